"""Limits of what one request may hold, beside its bytes.

Two bytes of a message can become an object of several hundred, and whoever serves a request copies its values and its
strings several times on the event loop. So a large request is refused where its values are more, or its strings longer,
than any client of containerd sends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiocontainerd.api import names
from aiocontainerd.errors import ResourceExhausted
from aiocontainerd.wire import protobuf

if TYPE_CHECKING:
    import betterproto2

MAX_VALUES = 1 << 15
"""Most list items and map entries of a request, in itself and below."""
MAX_STRING_CHARACTERS = 1 << 20
"""Longest string of a request. Bytes, such as those of a spec, may be longer."""


def check(message: betterproto2.Message) -> None:
    """Raise ResourceExhausted, naming the type of the message, if a request holds more than it may."""
    if protobuf.parts(message, MAX_VALUES + 1) > MAX_VALUES:
        raise ResourceExhausted(f"{names.class_name(type(message))}: more than {MAX_VALUES} values")
    if _has_long_string(message):
        raise ResourceExhausted(
            f"{names.class_name(type(message))}: a string of more than {MAX_STRING_CHARACTERS} characters"
        )


def _has_long_string(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) > MAX_STRING_CHARACTERS
    if isinstance(value, list):
        return any(map(_has_long_string, value))
    if isinstance(value, dict):
        return any(map(_has_long_string, value)) or any(map(_has_long_string, value.values()))
    return hasattr(value, "_betterproto") and any(map(_has_long_string, vars(value).values()))
