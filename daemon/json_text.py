"""JSON text that Postgres takes as jsonb, whatever a handler or a provider put into it. No I/O.

jsonb refuses NUL and lone surrogates, and JSON has no NaN. One such value must not fail the statement that
carries a hundred other jobs' results.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic_core import PydanticSerializationError, to_json

_ESCAPED_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def write_json(value: Any) -> str:
    """Compact JSON. NUL and lone surrogates become U+FFFD, NaN and infinities null.

    Errors: TypeError when a value is none of JSON's kinds (dates, UUIDs, decimals and bytes are written as text).
    """
    try:
        text = to_json(value, inf_nan_mode="null").decode()
    except UnicodeEncodeError:
        return write_json(_clean(value))
    except PydanticSerializationError as exc:
        cleaned = _clean(value)
        if cleaned == value:
            raise TypeError(f"This value is no JSON: {exc}.") from exc
        return write_json(cleaned)
    if "\\u0000" in text and _ESCAPED_NUL.search(text):
        return write_json(_clean(value))
    return text


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return _UNSTORABLE.sub("\ufffd", value)
    if isinstance(value, Mapping):
        return {_clean(key): _clean(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(item) for item in value]
    return value
