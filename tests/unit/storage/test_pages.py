"""Page tokens."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perf_service.models.errors import ErrorReason, InvalidArgumentError
from perf_service.storage.pages import decode_token, encode_token, scope_of
from tests.support.examples import examples


@settings(max_examples=examples(40), deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False), st.text())
def test_a_token_names_its_row(at: float, key: str) -> None:
    assert decode_token(encode_token("s", at, key), "s", str) == (at, key)


@settings(max_examples=examples(40), deadline=None)
@given(st.text(max_size=40))
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
