"""URLs as they may be shown: in errors, logs, answers and what is stored of a measurement."""

from __future__ import annotations

import re
from typing import Final

MASK: Final = "***"
"""Stands for a secret that is set."""

_LOGIN: Final = re.compile(r"(://)[^\s\"'<>]*@")
"""To the last `@`: a password may have a `/` in it."""
_QUERY_VALUE: Final = re.compile(r"([?&#][\w.~%+:\[\]-]+=)(?!(?:true|false)(?:[&#\s\"'<>]|$))(?:[^\s&#\"'<>]|[\"'<>](?=\w))+")
"""A quote ends it, unless the value goes on behind it."""
_BARE_QUERY: Final = re.compile(r"(://[^\s\"'<>?]*\?)[^\s&=#\"'<>]+(?=[\s&#\"'<>]|$)")
"""A query that is nothing but a value."""
_SWITCHES: Final = ("true", "false")


def redacted(text: str) -> str:
    """A text without what is secret in the URLs in it: the login before a host, and the values of a query, but for switches (true, false).

    Which parameter holds a token is the server's to know, so that all are masked. Masked twice it is the same. Where a URL ends in a
    text is guessed: what is a URL as a whole takes `redacted_url`.
    """
    if "@" in text:
        text = _LOGIN.sub(rf"\1{MASK}@", text)
    if "=" in text:
        text = _QUERY_VALUE.sub(rf"\1{MASK}", text)
    if "?" in text:
        text = _BARE_QUERY.sub(rf"\1{MASK}", text)
    return text


def redacted_url(url: str) -> str:
    """As `redacted`, of a text that is a URL: also a query that is nothing but a value, and the fragment, whatever stands in them."""
    rest, hash_, fragment = url.partition("#")
    base, mark, query = rest.partition("?")
    pairs = "&".join(map(_redacted_pair, query.split("&")))
    return f"{redacted(base)}{mark}{pairs}{hash_}{MASK if fragment else ''}"


def _redacted_pair(pair: str) -> str:
    name, is_pair, value = pair.partition("=")
    # A token may end in `=`, as Base64 does.
    if not is_pair or not value.strip("="):
        return MASK if pair else ""
    return pair if value in _SWITCHES else f"{name}={MASK}"
