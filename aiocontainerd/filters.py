"""Filters in list and subscribe requests: grammar, errors and matching (facts/core 2).

    filter   = selector *("," selector)
    selector = field *("." field) [("==" / "!=" / "~=") value]

The filters of a request are alternatives: an object is chosen when one of them matches, or when there are no filters.
A filter reads an object through an adaptor: a function from a field path to the field's value, or None when the object
lacks the field.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from functools import lru_cache
from typing import Any

import msgspec

from aiocontainerd.errors import InvalidArgument, ResourceExhausted

MAX_CHARACTERS = 32 << 10
"""Most characters of all filters of a request. They are parsed and matched in the event loop."""

FieldPath = tuple[str, ...]
Adaptor = Callable[[FieldPath], str | None]


class Operator(StrEnum):
    """The condition of a selector."""

    PRESENT = ""
    EQUAL = "=="
    NOT_EQUAL = "!="
    MATCHES = "~="


class Selector(msgspec.Struct, frozen=True):
    """One condition on one field."""

    path: FieldPath
    operator: Operator = Operator.PRESENT
    value: str = ""

    def matches(self, adaptor: Adaptor) -> bool:
        """Return True when the condition holds."""
        found = adaptor(self.path)
        if self.operator is Operator.PRESENT:
            return found is not None
        if self.operator is Operator.EQUAL:
            return found == self.value
        if self.operator is Operator.NOT_EQUAL:
            return found != self.value
        regex = _regex(self.value)
        return regex is not None and regex.search(found or "") is not None


class Filter(msgspec.Struct, frozen=True):
    """Alternatives, each a list of selectors that must all match. One without selectors matches everything."""

    alternatives: tuple[tuple[Selector, ...], ...]

    def matches(self, adaptor: Adaptor) -> bool:
        """Return True when an alternative matches the object."""
        return any(all(selector.matches(adaptor) for selector in every) for every in self.alternatives)

    @property
    def matches_all(self) -> bool:
        """True for a filter that matches every object."""
        return () in self.alternatives


def compile_filters(filters: Sequence[str]) -> Filter:
    """Compile the filters of a request.

    Raises InvalidArgument in containerd's words, with the place of the mistake; ResourceExhausted for filters that are
    too long.
    """
    if not filters:
        return Filter(((),))
    size = len(filters) + sum(map(len, filters))
    if size > MAX_CHARACTERS:
        raise ResourceExhausted(f"filters: {size} characters are more than {MAX_CHARACTERS}")
    return Filter(tuple(_Parser(text).selectors() if text else () for text in filters))


def field(mapping: Mapping[str, str], path: FieldPath) -> str | None:
    """Return the value of a key that the grammar cut at its dots: `labels.a.b` and `labels."a.b"` mean the same."""
    return mapping.get(".".join(path))


@lru_cache(maxsize=256)
def _regex(pattern: str) -> Any:
    """Compile an RE2 expression; return None for a malformed one. The library loads slowly, so it is imported here."""
    import re2

    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error:
        return None


class _Token(StrEnum):
    END = "end"
    QUOTED = "quoted"
    VALUE = "value"
    FIELD = "field"
    SEPARATOR = "separator"
    OPERATOR = "operator"
    OTHER = "other"
    ILLEGAL = "illegal"


_QUOTES = '"/|'
_SEPARATORS = ",."
_OPERATORS = "=!~"
_ILLEGAL = {"\0": "unexpected null", "\ufffd": "rune error"}
_SIMPLE_ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\"}
_HEX_ESCAPES = {"x": 2, "u": 4, "U": 8}
_HEX = frozenset("0123456789abcdefABCDEF")
_OCTAL = frozenset("01234567")
_UNTERMINATED = "quoted literal not terminated"
_FIELD_RUN = re.compile(r"[A-Za-z0-9_]*")
_OPERATOR_RUN = re.compile(r"[=!~]*")
_PLAIN_VALUE_RUN = re.compile(r"[!-+\--~]*")
_PLAIN_QUOTED_RUN = {quote: re.compile(rf"[^{quote}\\\n\0\ufffd]*") for quote in _QUOTES}


class _Scanner:
    """Cuts a filter into tokens. The word after an operator is a value, which may have more kinds of characters."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self.error = ""
        self._after_operator = False

    def peek(self) -> str:
        """Return the next character without consuming it; "" at the end."""
        return self.text[self.position : self.position + 1]

    def scan(self) -> tuple[int, _Token, str]:
        """Skip spaces and return position, kind and text of the next token."""
        while self.peek().isspace():
            self.position += 1
        start = self.position
        kind = self._scan_one(self.peek())
        return start, kind, self.text[start : self.position]

    def _scan_one(self, first: str) -> _Token:
        if not first:
            return _Token.END
        if first in _ILLEGAL:
            return self._illegal(_ILLEGAL[first])
        self.position += 1
        if first in _QUOTES:
            return self._scan_quoted(first)
        if first in _SEPARATORS:
            self._after_operator = False
            return _Token.SEPARATOR
        if first in _OPERATORS:
            self._skip_run(_OPERATOR_RUN)
            self._after_operator = True
            return _Token.OPERATOR
        if self._after_operator:
            self._skip_value()
            self._after_operator = False
            return _Token.VALUE
        if _is_field_character(first):
            self._skip_run(_FIELD_RUN)
            return _Token.FIELD
        self.position -= 1
        return _Token.OTHER

    def _skip_run(self, characters: re.Pattern[str]) -> None:
        found = characters.match(self.text, self.position)
        assert found is not None, "an expression that may match nothing"
        self.position = found.end()

    def _skip_value(self) -> None:
        self._skip_run(_PLAIN_VALUE_RUN)
        while (following := self.peek()) and _is_value_character(following):
            self.position += 1
            self._skip_run(_PLAIN_VALUE_RUN)

    def _scan_quoted(self, quote: str) -> _Token:
        legal = True
        self._skip_run(_PLAIN_QUOTED_RUN[quote])
        while (following := self.peek()) != quote:
            if not following or following == "\n" or following in _ILLEGAL:
                return self._illegal(_UNTERMINATED)
            self.position += 1
            if following == "\\":
                legal = self._scan_escape(quote) and legal
            self._skip_run(_PLAIN_QUOTED_RUN[quote])
        self.position += 1
        return _Token.QUOTED if legal else _Token.ILLEGAL

    def _scan_escape(self, quote: str) -> bool:
        letter = self.peek()
        if letter and (letter in _SIMPLE_ESCAPES or letter == quote):
            self.position += 1
            return True
        if letter in _HEX_ESCAPES:
            self.position += 1
            return self._scan_digits(_HEX, _HEX_ESCAPES[letter])
        if letter in _OCTAL:
            return self._scan_digits(_OCTAL, 3)
        self._illegal("illegal escape sequence")
        return False

    def _scan_digits(self, digits: frozenset[str], count: int) -> bool:
        for _ in range(count):
            if self.peek() not in digits:
                self._illegal("illegal numeric escape sequence")
                return False
            self.position += 1
        return True

    def _illegal(self, reason: str) -> _Token:
        self.error = self.error or reason
        return _Token.ILLEGAL


def _is_field_character(character: str) -> bool:
    return character == "_" or (character.isascii() and character.isalnum())


def _is_value_character(character: str) -> bool:
    return character != "," and character not in _ILLEGAL and character.isprintable() and not character.isspace()


class _Parser:
    def __init__(self, text: str) -> None:
        self._scanner = _Scanner(text)

    def selectors(self) -> tuple[Selector, ...]:
        found = [self._selector()]
        while following := self._scanner.peek():
            if following != ",":
                raise self._error(self._scanner.position, f"unexpected input: {following}")
            self._scanner.scan()
            found.append(self._selector())
        return tuple(found)

    def _selector(self) -> Selector:
        path = self._field_path()
        if self._scanner.peek() in ("", ","):
            return Selector(path)
        operator = self._operator()
        return Selector(path, operator, self._value(alternative_quotes=operator is Operator.MATCHES))

    def _field_path(self) -> FieldPath:
        fields = [self._field()]
        while self._scanner.peek() == ".":
            self._scanner.scan()
            fields.append(self._field())
        return tuple(fields)

    def _field(self) -> str:
        position, kind, text = self._scan()
        if kind is _Token.FIELD:
            return text
        if kind is _Token.QUOTED:
            return self._unquote(position, text, alternative_quotes=False)
        raise self._error(position, "expected field or quoted")

    def _operator(self) -> Operator:
        position, kind, text = self._scan()
        if kind is not _Token.OPERATOR:
            raise self._error(position, 'expected an operator ("=="|"!="|"~=")')
        try:
            return Operator(text)
        except ValueError:
            raise self._error(position, f'unsupported operator "{text}"') from None

    def _value(self, *, alternative_quotes: bool) -> str:
        position, kind, text = self._scan()
        if kind in (_Token.VALUE, _Token.FIELD):
            return text
        if kind is _Token.QUOTED:
            return self._unquote(position, text, alternative_quotes=alternative_quotes)
        raise self._error(position, "expected value or quoted")

    def _scan(self) -> tuple[int, _Token, str]:
        position, kind, text = self._scanner.scan()
        if kind is _Token.ILLEGAL:
            raise self._error(position, self._scanner.error)
        return position, kind, text

    def _unquote(self, position: int, text: str, *, alternative_quotes: bool) -> str:
        if text[0] != '"' and not alternative_quotes:
            raise self._error(position, "invalid quote encountered")
        try:
            return _unquote(text[1:-1])
        except ValueError as error:
            raise self._error(position, f"unquoting failed: {error}") from None

    def _error(self, position: int, message: str) -> InvalidArgument:
        text = self._scanner.text
        where = f"[{text}]"
        if position < len(text):
            where = f"[{text[:position]} >|{text[position]}|< {text[position + 1 :]}]"
        return InvalidArgument(f"filters: parse error: {where}: {message}")


def _unquote(text: str) -> str:
    """Resolve Go's escapes, whose form was checked before. Raises ValueError for a number that is no character."""
    out = bytearray()
    position = 0
    while (backslash := text.find("\\", position)) >= 0:
        out += text[position:backslash].encode()
        position = backslash + 1
        letter = text[position]
        width = _HEX_ESCAPES.get(letter, 0)
        if width:
            code = int(text[position + 1 : position + 1 + width], 16)
            out += bytes([code]) if letter == "x" else _encode(code)
            position += 1 + width
        elif letter in _OCTAL:
            out += _octal(text[position : position + 3])
            position += 3
        else:
            out += _SIMPLE_ESCAPES.get(letter, letter).encode()
            position += 1
    out += text[position:].encode()
    return out.decode(errors="replace")


def _encode(code: int) -> bytes:
    if code > 0x10FFFF:
        raise ValueError("quote syntax error")
    return chr(code).encode(errors="replace")


def _octal(digits: str) -> bytes:
    code = int(digits, 8)
    if code > 0xFF:
        raise ValueError("quote syntax error")
    return bytes([code])
