"""Texts as Go programs write them, for errors that clients compare: quoted strings and what is wrong with JSON.

Pure functions. They run when something has failed already, so they need not be quick.
"""

from __future__ import annotations

import re

_ESCAPES = {
    "\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v", '"': '\\"', "\\": "\\\\",
}  # fmt: skip
_PLAIN = re.compile(r"[ !#-\[\]-~]*")


def quoted(text: str) -> str:
    """Return `text` as Go's `%q` writes it: in double quotes, on one line."""
    if _PLAIN.fullmatch(text):
        return f'"{text}"'
    return f'"{"".join(_quoted(character) for character in text)}"'


def _quoted(character: str) -> str:
    number = ord(character)
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character == " " or (character.isprintable() and not character.isspace()):
        return character
    if number < 0x80:
        return f"\\x{number:02x}"
    if 0xDC80 <= number <= 0xDCFF:  # a stray byte, as surrogateescape keeps it
        return f"\\x{number - 0xDC00:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
