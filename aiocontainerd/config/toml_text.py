"""The text of a TOML file: its characters, its statements, and the line of each key. No files.

`tomllib` reads TOML 1.0 and forgets lines. Containerd's parser also takes line breaks and a last comma in an inline
table, as TOML 1.1 has them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

KeyPath = tuple[str, ...]

_KEY = re.compile(r"""\s*(?:"((?:[^"\\]|\\.)*)"|'([^']*)'|([A-Za-z0-9_-]+))\s*""")
_TOKEN = re.compile(
    r'''"""(?:[^"\\]|\\.|"(?!""))*(?:"{3,5}|\Z)|\'\'\'(?:[^']|'(?!''))*(?:'{3,5}|\Z)'''
    r"""|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'|\#[^\n]*|[\[{\]}\n]|[^"'\#\[\]{}\n]+|.""",
    re.DOTALL,
)
_INLINE_NAME = re.compile(r"[{,]\s*(?:#[^\n]*\n\s*)*([A-Za-z0-9_-]+|\"[^\"]*\")\s*=")
_CLOSES = {"]": "[", "}": "{"}


class BadTomlText(ValueError):
    """Raised for a text that is no TOML. `line` counts from 1."""

    def __init__(self, line: int, why: str) -> None:
        super().__init__(why)
        self.line = line


def characters(data: bytes) -> str:
    """Return the text of a file in UTF-8, with or without a byte order mark. Raises BadTomlText."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise BadTomlText(1, "the file is UTF-16; save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise BadTomlText(line, f"byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def key_lines(text: str) -> dict[KeyPath, int]:
    """Return the line, from 1, of every table header and key of a text, in their order."""
    found: dict[KeyPath, int] = {}
    table: KeyPath = ()
    for number, statement in _statements(text):
        if statement.startswith("["):
            table = key_path(statement.lstrip("["))[0]
            _note(found, table, number)
        elif statement and not statement.startswith("#"):
            key, rest = key_path(statement)
            _note(found, table + key, number)
            found[table + key] = number
            _inline_keys(rest, table + key, number, found)
    return found


def key_path(text: str) -> tuple[KeyPath, str]:
    """Return the dotted key at the start of `text`, and the rest."""
    parts: list[str] = []
    while True:
        part = _KEY.match(text)
        if part is None:
            return tuple(parts), text
        parts.append(next(group for group in part.groups() if group is not None))
        text = text[part.end() :]
        if not text.startswith("."):
            return tuple(parts), text
        text = text[1:]


def flattened(text: str) -> str:
    """Return a text without line breaks, comments and last commas in inline tables. The keys and values stay."""
    parts: list[str] = []
    opened: list[str] = []
    for piece in _TOKEN.findall(text):
        inline = "{" in opened
        if piece in ("[", "{"):
            opened.append(piece)
        elif opened and _CLOSES.get(piece) == opened[-1]:
            opened.pop()
            if piece == "}":
                _drop_last_comma(parts)
        if not (inline and (piece == "\n" or piece.startswith("#"))):
            parts.append(piece)
    return "".join(parts)


def _drop_last_comma(parts: list[str]) -> None:
    while parts and not parts[-1].strip():
        parts.pop()
    if parts and parts[-1].rstrip().endswith(","):
        parts[-1] = parts[-1].rstrip()[:-1]


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Yield the line on which each statement begins, and the statement: a key with its value, a header, a comment."""
    line, begun, depth = 1, 1, 0
    parts: list[str] = []
    for piece in _TOKEN.findall(text):
        depth += piece in ("[", "{")
        depth -= piece in ("]", "}")
        line += piece.count("\n")
        if piece == "\n" and depth <= 0:
            yield begun, "".join(parts).strip()
            parts, begun, depth = [], line, 0
        else:
            parts.append(piece)
    yield begun, "".join(parts).strip()


def _note(found: dict[KeyPath, int], key: KeyPath, number: int) -> None:
    """Note the line of a key, and as the line of the tables around it if they have none of their own before."""
    for size in range(1, len(key) + 1):
        found.setdefault(key[:size], number)


def _inline_keys(rest: str, table: KeyPath, line: int, found: dict[KeyPath, int]) -> None:
    """Note the lines of the keys of an inline table."""
    if not rest.lstrip("= ").startswith("{"):
        return
    for name in _INLINE_NAME.finditer(rest):
        found.setdefault((*table, name[1].strip('"')), line + rest[: name.start(1)].count("\n"))
