"""Tells what is wrong with JSON in the words of Go's encoding/json, which clients of containerd know.

`syntax_error` finds the first byte that no JSON has; `type_error` compares a value with the fields of a Go struct.
Pure functions, for bytes that were refused already.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import msgspec

from aiocontainerd.gotext import quoted

T = TypeVar("T")

MAX_DEPTH = 10_000
_SPACE = b" \t\r\n"
_DIGITS = b"0123456789"
_HEX = b"0123456789abcdefABCDEF"
_TOO_DEEP = "exceeded max depth"
_END = "unexpected end of JSON input"
_BITS = {
    "uint32": (0, 1 << 32),
    "uint64": (0, 1 << 64),
    "int64": (-1 << 63, 1 << 63),
    "int": (-1 << 63, 1 << 63),
    "uint": (0, 1 << 64),
}

Shape = str | Mapping[str, "Shape"] | list["Shape"]
"""A Go type: `string`, `bool`, `uint32`, ...; a struct is a mapping of its fields, with its own name under ""."""


class _Bad(Exception):
    """What is wrong."""


def lenient(data: bytes) -> bytes:
    """Return JSON with U+FFFD for bytes that are no UTF-8, as Go reads them."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return data.decode(errors="replace").encode()
    return data


def decode(data: bytes, kind: type[T]) -> T:
    """Return JSON as `kind`, read as leniently as Go reads it. Raises msgspec.MsgspecError."""
    try:
        return msgspec.json.decode(lenient(data), type=kind)
    except RecursionError as deep:
        raise msgspec.DecodeError(_TOO_DEEP) from deep


def syntax_error(data: bytes) -> str:
    """Return what Go says of bytes that are no JSON; an empty string if they are."""
    try:
        _Scanner(data).check()
    except _Bad as bad:
        return str(bad)
    return ""


class _Scanner:
    """Goes through the bytes once. `_open` has the brackets that are open; `_is_new`: nothing is behind the last."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self._open = bytearray()
        self._is_new = False

    def check(self) -> None:
        self._value()
        while self._open:
            if self._is_new:
                self._first()
            else:
                self._after_value()
        if self._peek() is not None:
            raise self._invalid("after top-level value")

    def _peek(self) -> int | None:
        """Return the next byte that is no white space; None at the end."""
        data = self._data
        while self._at < len(data) and data[self._at] in _SPACE:
            self._at += 1
        return data[self._at] if self._at < len(data) else None

    def _next(self) -> int:
        if self._at >= len(self._data):
            raise _Bad(_END)
        byte = self._data[self._at]
        self._at += 1
        return byte

    def _invalid(self, where: str, at: int | None = None) -> _Bad:
        byte = self._data[self._at if at is None else at]
        plain = {0x27: "\\'", 0x22: '"'}.get(byte) or (f"\\x{byte:02x}" if byte >= 0x80 else quoted(chr(byte))[1:-1])
        return _Bad(f"invalid character '{plain}' {where}")

    def _value(self) -> None:
        """Read a value, or the beginning of an object or list: its end is found by `check`."""
        first = self._peek()
        if first is None:
            raise _Bad(_END)
        if first in b"{[":
            self._begin(first)
        elif first == ord('"'):
            self._string()
        elif first in _DIGITS or first == ord("-"):
            self._number()
        elif first in b"tfn":
            self._literal({ord("t"): b"true", ord("f"): b"false", ord("n"): b"null"}[first])
        else:
            raise self._invalid("looking for beginning of value")

    def _begin(self, bracket: int) -> None:
        self._at += 1
        self._open.append(bracket)
        if len(self._open) > MAX_DEPTH:
            raise _Bad(_TOO_DEEP)
        self._is_new = True

    def _first(self) -> None:
        self._is_new = False
        bracket, following = self._open[-1], self._peek()
        if following == bracket + 2:  # `]` and `}` are two behind `[` and `{`
            self._end()
        else:
            self._element(bracket)

    def _element(self, bracket: int) -> None:
        if bracket == ord("{"):
            self._key()
        self._value()

    def _end(self) -> None:
        self._at += 1
        self._open.pop()

    def _key(self) -> None:
        first = self._peek()
        if first is None:
            raise _Bad(_END)
        if first != ord('"'):
            raise self._invalid("looking for beginning of object key string")
        self._string()
        colon = self._peek()
        if colon is None:
            raise _Bad(_END)
        if colon != ord(":"):
            raise self._invalid("after object key")
        self._at += 1

    def _after_value(self) -> None:
        following = self._peek()
        if following is None:
            raise _Bad(_END)
        bracket = self._open[-1]
        if following == bracket + 2:
            self._end()
        elif following != ord(","):
            raise self._invalid("after object key:value pair" if bracket == ord("{") else "after array element")
        else:
            self._at += 1
            self._element(bracket)

    def _string(self) -> None:
        self._at += 1
        while True:
            byte = self._next()
            if byte == ord('"'):
                return
            if byte == ord("\\"):
                self._escape()
            elif byte < 0x20:
                raise self._invalid("in string literal", self._at - 1)

    def _escape(self) -> None:
        byte = self._next()
        if byte == ord("u"):
            for _ in range(4):
                if self._next() not in _HEX:
                    raise self._invalid("in \\u hexadecimal character escape", self._at - 1)
        elif byte not in b'bfnrt\\/"':
            raise self._invalid("in string escape code", self._at - 1)

    def _literal(self, word: bytes) -> None:
        for letter in word:
            if self._next() != letter:
                raise self._invalid(f"in literal {word.decode()} (expecting '{chr(letter)}')", self._at - 1)

    def _number(self) -> None:
        if self._data[self._at] == ord("-"):
            self._at += 1
            self._digit("in numeric literal")
            self._at -= 1
        if self._next() != ord("0"):
            self._digits()
        if self._follows(b"."):
            self._digit("after decimal point in numeric literal")
            self._digits()
        if self._follows(b"eE"):
            self._follows(b"+-")
            self._digit("in exponent of numeric literal")
            self._digits()

    def _digit(self, where: str) -> None:
        if self._next() not in _DIGITS:
            raise self._invalid(where, self._at - 1)

    def _digits(self) -> None:
        while self._at < len(self._data) and self._data[self._at] in _DIGITS:
            self._at += 1

    def _follows(self, wanted: bytes) -> bool:
        found = self._at < len(self._data) and self._data[self._at] in wanted
        self._at += found
        return found


def type_error(data: bytes, shape: Mapping[str, Shape]) -> str:
    """Return what Go says of JSON that does not fit a struct: the first such value; an empty string if it fits."""
    try:
        value: object = decode(data, object)
    except msgspec.DecodeError as bad:  # deeper than we read
        return str(bad)
    name = str(shape[""])
    if value is None:
        return ""
    if not isinstance(value, dict):
        return f"json: cannot unmarshal {_kind(value)} into Go value of type {name}"
    return _unfit(value, shape, name.rpartition(".")[2])


def _unfit(value: object, shape: Shape, path: str) -> str:
    """Return the text for the first value at or below `path` that does not fit."""
    if value is None:
        return ""
    if isinstance(shape, str):
        return "" if _fits(value, shape) else _told(value, path, shape)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return _told(value, path, _named(shape))
        found = (_unfit(element, shape[0], f"{path}.{number}") for number, element in enumerate(value))
        return next(filter(None, found), "").replace("Go struct field ", "", 1)
    if not isinstance(value, dict):
        return _told(value, path, _named(shape))
    known = {key.lower(): (key, field) for key, field in shape.items() if key}
    for key, inner in value.items():
        name, field = known.get(str(key).lower(), ("", None))
        if field is not None and (text := _unfit(inner, field, f"{path}.{name}")):
            return text
    return ""


def _told(value: object, path: str, kind: str) -> str:
    return f"json: cannot unmarshal {_kind(value, kind)} into Go struct field {path} of type {kind}"


def _named(shape: Shape) -> str:
    if isinstance(shape, str):
        return shape
    return f"[]{_named(shape[0])}" if isinstance(shape, list) else str(shape[""])


def _fits(value: object, kind: str) -> bool:
    if kind in ("string", "bool"):
        return isinstance(value, str if kind == "string" else bool)
    low, high = _BITS[kind]
    return isinstance(value, int) and not isinstance(value, bool) and low <= value < high


def _kind(value: object, wanted: str = "") -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return f"number {value}" if wanted in _BITS else "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"
