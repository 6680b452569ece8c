"""What handlers and providers may put into a result, as JSON that jsonb takes."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.json_text import write_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec=None)), inner),
    max_leaves=8,
)


@given(VALUES)
def test_text_holds_nothing_that_jsonb_refuses(value: object) -> None:
    text = write_json(value)

    assert "\x00" not in json.dumps(json.loads(text), ensure_ascii=False)
    text.encode()  # no lone surrogates


@given(
    st.recursive(
        st.none() | st.integers() | st.text(st.characters(codec="utf-8", exclude_characters="\x00")), st.lists
    )
)
def test_what_is_storable_comes_back(value: object) -> None:
    assert value == json.loads(write_json(value))


def test_escaped_backslash_before_u0000_is_kept() -> None:
    assert {"path": "a\\u0000"} == json.loads(write_json({"path": "a\\u0000"}))


def test_numbers_that_json_lacks_become_null() -> None:
    assert "[null,null]" == write_json([math.nan, math.inf])


def test_other_objects_are_refused() -> None:
    with pytest.raises(TypeError, match="no JSON"):
        write_json({"a": object(), "b": "\ud800"})
