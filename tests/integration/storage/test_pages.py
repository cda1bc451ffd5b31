"""Page tokens of any row."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perf_service.models.errors import ErrorReason, InvalidArgumentError
from perf_service.storage.pages import decode_token, encode_token
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
