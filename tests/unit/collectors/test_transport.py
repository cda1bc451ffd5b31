"""Which addresses may be reached."""

from __future__ import annotations

import pytest

from perf_service.collectors.transport import NetworkPolicy
from perf_service.models.errors import CollectError, ErrorReason


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "169.254.0.1",
        "fe80::1",
        "fe80::1%eth0",
        "::ffff:169.254.169.254",
        "fd00:ec2::254",
        "64:ff9b::169.254.169.254",
        "64:ff9b:1::169.254.169.254",
        "::ffff:0:169.254.169.254",  # IPv4-translated
        "fe80::5efe:169.254.169.254",  # ISATAP
        "2001:db8::200:5efe:169.254.169.254",
        "64:ff9b:1:a9fe:a9:fe00::",  # RFC 6052 behind 48 bits
        "2002:a9fe:a9fe::1",
        "2001:0:4136:e378:8000:63bf:5601:5601",  # Teredo: the client's address is inverted
        "::169.254.169.254",
    ],
)
def test_metadata_addresses_are_denied_by_default(address: str) -> None:
    with pytest.raises(CollectError) as error:
        NetworkPolicy().check("name", address)
    assert error.value.reason is ErrorReason.ENDPOINT_FORBIDDEN
    assert error.value.metadata["host"] == "name"


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.5", "::1", "::", "8.8.8.8", "64:ff9b::10.0.0.5", "2002:a00:5::1"])
def test_others_are_admitted_by_default(address: str) -> None:
    NetworkPolicy().check("name", address)


def test_an_allow_list_admits_nothing_else_and_denial_wins() -> None:
    policy = NetworkPolicy.of(denied=["10.1.0.0/16"], allowed=["10.0.0.0/8"])
    policy.check("name", "10.0.0.5")
    policy.check("name", "::ffff:10.0.0.5")
    for address in ("10.1.0.5", "127.0.0.1", "::1", "64:ff9b::10.1.0.5", "::ffff:10.1.0.5", "64:ff9b::10.0.0.5", "2002:a00:5::1"):
        with pytest.raises(CollectError):
            policy.check("name", address)
    NetworkPolicy.of(allowed=["64:ff9b::/96"]).check("name", "64:ff9b::10.0.0.5")
    for address in ("0.0.0.0", "::", "::ffff:0.0.0.0"):  # Linux connects them to this host
        with pytest.raises(CollectError):
            NetworkPolicy.of(denied=["127.0.0.0/8"]).check("name", address)
    NetworkPolicy.of(denied=[]).check("name", "169.254.169.254")
    with pytest.raises(ValueError, match="does not appear"):
        NetworkPolicy.of(allowed=["ten"])
