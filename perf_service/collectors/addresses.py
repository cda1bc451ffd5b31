"""Where an address leads: IPv6 has several ways of writing an IPv4 address, and a check of one form must hold for all."""

from __future__ import annotations

import ipaddress
from typing import Final

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_NAT64_LOCAL: Final = ipaddress.IPv6Network("64:ff9b:1::/48")
_V4_COMPATIBLE: Final = ipaddress.IPv6Network("::/96")
_V4_TRANSLATED: Final = ipaddress.IPv6Network("::ffff:0:0:0/96")
_ISATAP: Final = (0x00005EFE, 0x02005EFE)
"""Before the IPv4 address in the interface identifier, behind any prefix; the second where that address is a global one."""
_LOOPBACKS: Final = (ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1"))
_RFC6052_PREFIX_LENGTHS: Final = (48, 56, 64, 96)


def forms_of(address: str) -> tuple[Address, ...]:
    """The address, and every other one that a packet to it may reach. A scope (`%eth0`) is passed over.

    First comes what the system itself connects to: the IPv4 address of an IPv4-mapped one (RFC 4291), else the address as it is. Then
    First comes what the system itself connects to: the IPv4 address of an IPv4-mapped one (RFC 4291), else the address as it is. Then
    what it leads to: IPv4-compatible (RFC 4291), NAT64 (RFC 6052; within the local-use prefix of RFC 8215 at each place where an address
    can stand), 6to4 (RFC 3056), Teredo (RFC 4380), IPv4-translated (RFC 2765), ISATAP (RFC 5214), and the unspecified address, which
    Linux connects to this host.

    Raises:
        ValueError: when it is no address.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if ip.is_unspecified:
        return (ip, *_LOOPBACKS)
    if isinstance(ip, ipaddress.IPv4Address):
        return (ip,)
    if ip.ipv4_mapped is not None:
        return (*forms_of(str(ip.ipv4_mapped)), ip)
    return (ip, *_embedded(ip))


def _embedded(ip: ipaddress.IPv6Address) -> list[Address]:
    last = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    found = [ip.sixtofour, ip.teredo[1] if ip.teredo else None]
    if ip in _NAT64 or ip in _V4_TRANSLATED or (int(ip) >> 32) & 0xFFFFFFFF in _ISATAP or (ip in _V4_COMPATIBLE and not ip.is_loopback):
        found.append(last)
    if ip in _NAT64_LOCAL:
        found += [_rfc6052(ip, length) for length in _RFC6052_PREFIX_LENGTHS]
    leads_to = [address for address in found if address is not None]
    return [*leads_to, *(_LOOPBACKS if any(address.is_unspecified for address in leads_to) else ())]


def _rfc6052(ip: ipaddress.IPv6Address, prefix_length: int) -> ipaddress.IPv4Address:
    """The 32 bits behind a prefix, bits 64 to 71 being left out (RFC 6052, 2.2)."""
    packed = ip.packed
    start = prefix_length // 8
    return ipaddress.IPv4Address((packed[start:] if start > 8 else packed[start:8] + packed[9:])[:4])
