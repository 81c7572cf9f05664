"""Config values that are never shown: `token: Secret = Secret()` in a plugin's config."""

from __future__ import annotations

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
