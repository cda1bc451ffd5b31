"""URLs as they may be shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perf_service.models.errors import CollectError, ErrorReason, InvalidArgumentError
from perf_service.models.redaction import redacted


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:hush@h:80/metrics is down", "http://***@h:80/metrics is down"),
        ("'http://user:hu?sh@h'", "'http://***@h'"),
        ("http://user:hu@sh@h", "http://***@h"),
        ("http://user:hu/sh@h:80/x: refused", "http://***@h:80/x: refused"),
        ("https://h/metrics?token=hush&dedup=true#a", "https://h/metrics?token=***&dedup=true#a"),
        ("h:8000?key=hush: refused", "h:8000?key=*** refused"),
        ("http://h?a=true-hush", "http://h?a=***"),
        ("http://h/?t=%68ush&u[x]=hush", "http://h/?t=***&u[x]=***"),
        ("postgresql+psycopg://u:hush@h/db", "postgresql+psycopg://***@h/db"),
    ],
)
def test_secrets_in_urls_are_masked(text: str, shown: str) -> None:
    assert redacted(text) == shown


@pytest.mark.parametrize(
    "text", ["", "http://h:8000/metrics", "mail a@b.c", 'job="vllm",instance=~"10.0.0.1:.*"', "--what-if max_num_seqs=64", "ttft_p95<=0.5"]
)
def test_everything_else_stays(text: str) -> None:
    assert redacted(text) == text


@given(st.text(alphabet="ab:/?&=@%. *'\"#", max_size=60))
def test_twice_is_once(text: str) -> None:
    assert redacted(redacted(text)) == redacted(text)


def test_no_error_tells_one() -> None:
    """Whoever raises it, in its text and in its metadata."""
    error = CollectError(ErrorReason.ENDPOINT_TIMEOUT, "http://h?t=hush did not answer", {"url": "http://u:hush@h?t=hush"})
    assert (error.message, error.args, error.metadata) == (
        "http://h?t=*** did not answer",
        ("http://h?t=*** did not answer",),
        {"url": "http://***@h?t=***"},
    )
    assert "hush" not in str(InvalidArgumentError("http://u:hush@h", field="endpoint"))
