"""URLs as they may be shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perf_service.models.errors import CollectError, ErrorReason, InvalidArgumentError
from perf_service.models.redaction import redacted, redacted_url


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:hush@h:80/metrics is down", "http://***@h:80/metrics is down"),
        ("'http://user:hu?sh@h'", "'http://***@h'"),
        ("http://user:hu@sh@h", "http://***@h"),
        ("http://user:hu/sh@h:80/x: refused", "http://***@h:80/x: refused"),
        ("https://h/metrics?token=hush&dedup=true#a", "https://h/metrics?token=***&dedup=true#a"),
        ("http://h?x:k=hush", "http://h?x:k=***"),
        ("is 'http://h/m?hush' up, and http://h?", "is 'http://h/m?***' up, and http://h?"),
        ("http://h#token=hush is down", "http://h#token=*** is down"),
        ("'http://h?a=hu\"hush&b=hush'", "'http://h?a=***&b=***'"),
        ('{"url":"http://h?a=hush","b":1}', '{"url":"http://h?a=***","b":1}'),
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
    for mask in (redacted, redacted_url):
        assert mask(mask(text)) == mask(text)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://h:8000/metrics", "http://h:8000/metrics"),
        ("h:8000?dedup=true&a=false&hush", "h:8000?dedup=true&a=false&***"),
        ("http://h?hush", "http://h?***"),
        ("http://h?aHVzaA==", "http://h?***"),
        ("http://h?x:k=hush&a=hu\"s'h h=ush", "http://h?x:k=***&a=***"),
        ("http://h?a=true#token=hush", "http://h?a=true#***"),
        ("http://h#hush?x", "http://h#***"),
        ("http://u:hush@h/x?", "http://***@h/x?"),
    ],
)
def test_of_a_url_every_part_that_may_be_secret_is_masked(url: str, shown: str) -> None:
    assert redacted_url(url) == shown


@given(st.sampled_from(["http://h?a={}", "http://h/x?{}", "http://h#{}", "http://h?a:b=1&{}#x"]), st.text(min_size=1))
def test_no_text_shows_in_a_query_or_a_fragment(url: str, text: str) -> None:
    assert "Hush" not in redacted_url(url.format(f"{text.replace('=', '')}Hush"))


def test_no_error_tells_one() -> None:
    """Whoever raises it, in its text and in its metadata."""
    error = CollectError(ErrorReason.ENDPOINT_TIMEOUT, "http://h?t=hush did not answer", {"url": "http://u:hush@h?t=hush"})
    assert (error.message, error.args, error.metadata) == (
        "http://h?t=*** did not answer",
        ("http://h?t=*** did not answer",),
        {"url": "http://***@h?t=***"},
    )
    assert "hush" not in str(InvalidArgumentError("http://u:hush@h", field="endpoint"))
