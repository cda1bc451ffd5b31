"""URLs as they may be shown: in errors, logs, answers and what is stored of a measurement."""

from __future__ import annotations

import re
from typing import Final

MASK: Final = "***"
"""Stands for a secret that is set."""

_LOGIN: Final = re.compile(r"(://)[^\s\"'<>]*@")
"""To the last `@`: a password may have a `/` in it."""
_QUERY_VALUE: Final = re.compile(r"([?&][\w.~%+\[\]-]+=)(?!(?:true|false)(?:[&#\s\"'<>]|$))[^\s&#\"'<>]+")


def redacted(text: str) -> str:
    """A text without what is secret in the URLs in it: the login before a host, and the values of a query, but for switches (true, false).

    Which parameter holds a token is the server's to know, so that all are masked. Masked twice it is the same.
    """
    if "@" in text:
        text = _LOGIN.sub(rf"\1{MASK}@", text)
    if "=" in text:
        text = _QUERY_VALUE.sub(rf"\1{MASK}", text)
    return text
