"""Page tokens."""

from __future__ import annotations

import pytest

from perf_service.models.errors import ErrorReason, InvalidArgumentError
from perf_service.storage.pages import decode_token, encode_token, scope_of


@pytest.mark.parametrize("at", [0.0, -1.5, 1795351916.591234, 1e300])
def test_a_token_names_its_row(at: float) -> None:
    for key in ("f", "", "a/b ü\n", "x" * 500):
        assert decode_token(encode_token("s", at, key), "s", str) == (at, key)


@pytest.mark.parametrize("token", ["", "x", "é", "AAAA", "e30", "W10", "====", encode_token("s", 1.0, "f")[:-3]])
def test_any_other_text_is_refused(token: str) -> None:
    with pytest.raises(InvalidArgumentError) as info:
        decode_token(token, "s", str)
    assert info.value.reason is ErrorReason.PAGE_TOKEN_INVALID


def test_a_token_holds_for_its_filters_only() -> None:
    token = encode_token(scope_of("fleets", owner="a"), 1.0, "f")
    with pytest.raises(InvalidArgumentError):
        decode_token(token, scope_of("fleets", owner="b"), str)


@pytest.mark.parametrize("token", [encode_token("s", float("nan"), "f"), encode_token("s", 1.0, 5), encode_token("s", 1.0, True)])
def test_a_token_of_our_form_with_other_content_is_refused(token: str) -> None:
    with pytest.raises(InvalidArgumentError):
        decode_token(token, "s", str)
