"""Config values that must not be seen: `token: Secret = Secret()` in a plugin's config."""

from __future__ import annotations

from typing import Any

REDACTED = "<redacted>"


class Secret:
    """A string that `repr`, `str`, formatting, logs, `config dump` and `config explain` show as `<redacted>`.

    `reveal()` is its value. False when empty; equal to a secret of the same value.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str = "") -> None:
        self._value = value

    def reveal(self) -> str:
        """The value, for who needs it."""
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


def decode_hook(kind: type, value: Any) -> Any:
    """What msgspec asks for types it does not know. Raises NotImplementedError, or ValueError for a wrong value."""
    if kind is not Secret:
        raise NotImplementedError(f"config fields cannot be of type {kind.__name__}")
    if not isinstance(value, str):
        raise ValueError(f"Expected `str`, got `{type(value).__name__}`")
    return Secret(value)


def encode_redacted(value: Any) -> Any:
    """The printable form of a value that TOML does not know: a secret stays one."""
    if isinstance(value, Secret):
        return REDACTED if value else ""
    raise NotImplementedError(f"config values cannot be of type {type(value).__name__}")


def encode_revealed(value: Any) -> Any:
    """The value itself, for a config file that is to be used, such as a migrated one."""
    return value.reveal() if isinstance(value, Secret) else encode_redacted(value)
