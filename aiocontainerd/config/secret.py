"""Config values that are never shown: `token: Secret = Secret()` in a plugin's config."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, get_args, get_origin

import msgspec

REDACTED = "<redacted>"


class Secret:
    """A string that `repr`, `str`, formatting, logs, `config dump` and `config explain` show as `<redacted>`.

    `reveal()` returns the value. An empty secret is false. Secrets with the same value are equal.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str = "") -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the value."""
        return self._value

    def __repr__(self) -> str:
        return REDACTED if self._value else "''"

    __str__ = __repr__

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash((Secret, self._value))


def decode_hook(kind: Any, value: Any) -> Any:
    """Decode types that msgspec does not know. Raises NotImplementedError, or ValueError for a wrong value."""
    if (get_origin(kind) or kind) is MappingProxyType:
        return MappingProxyType(_mapping(kind, value))
    if kind is not Secret:
        raise NotImplementedError(f"config fields cannot be of type {kind.__name__}")
    if not isinstance(value, str):
        raise ValueError(f"Expected `str`, got `{type(value).__name__}`")
    return Secret(value)


def _mapping(kind: Any, value: Any) -> dict[Any, Any]:
    wanted: Any = dict[get_args(kind) or (Any, Any)]  # type: ignore[misc] # a type made of what a field is annotated with
    try:
        found: dict[Any, Any] = msgspec.convert(value, wanted, dec_hook=decode_hook)
    except msgspec.ValidationError as error:
        raise ValueError(str(error).partition(" - at `")[0]) from error
    return found
