"""Read one TOML file: its tree, and the line of each key, which the standard parser does not tell."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec

from aiocontainerd.config.records import ConfigError

Tree = dict[str, Any]
KeyPath = tuple[str, ...]

_KEY = re.compile(r"""\s*(?:"((?:[^"\\]|\\.)*)"|'([^']*)'|([A-Za-z0-9_-]+))\s*""")
_PLACE = re.compile(r"\(at line (\d+),")
_BARE = re.compile(r"[A-Za-z0-9_-]+\Z")
_OPENERS = {"[": 1, "{": 1, "]": -1, "}": -1}


def dotted(key: KeyPath) -> str:
    """Return a key as TOML writes it."""
    return ".".join(part if _BARE.match(part) else json.dumps(part) for part in key)


class Origin(msgspec.Struct, frozen=True):
    """Where a value came from: a file and line, a flag, or a default."""

    file: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


Origins = dict[KeyPath, Origin]


class Source(msgspec.Struct, frozen=True):
    """A parsed file."""

    path: Path
    tree: Tree
    lines: dict[KeyPath, int]

    def origin(self, key: KeyPath) -> Origin:
        """Return file and line of a key, or of the nearest table above it that the file has."""
        while key and key not in self.lines:
            key = key[:-1]
        return Origin(str(self.path), self.lines.get(key, 0))


def read(path: Path) -> Source:
    """Read and parse a file. Raises ConfigError in containerd's words, which names the file and the mistake."""
    text = ""
    try:
        text = path.read_text()
        return Source(path, tomllib.loads(text), key_lines(text))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"failed to load TOML from {path}: {reason}{_shown_line(error, text)}") from error


def _shown_line(error: Exception, text: str) -> str:
    """Return the beginning of the line that a parser's message names. A value is not shown: it may be a secret."""
    place = _PLACE.search(str(error))
    lines = text.splitlines()
    if place is None or not 0 < int(place[1]) <= len(lines):
        return ""
    key, equals, _ = lines[int(place[1]) - 1].strip().partition("=")
    return f"; the line begins with: {key}{equals}"


def key_lines(text: str) -> dict[KeyPath, int]:
    """Return the line, from 1, of every table header and key of a well-formed TOML text."""
    found: dict[KeyPath, int] = {}
    table: KeyPath = ()
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        line = lines[number].strip()
        number += 1
        if line.startswith("["):
            table = _key_path(line.lstrip("["))[0]
            _note(found, table, number)
        elif line and not line.startswith("#"):
            key, rest = _key_path(line)
            _note(found, table + key, number)
            found[table + key] = number
            _inline_keys(rest, table + key, number, found)
            number += _extra_lines(rest, lines[number:])
    return found


def _note(found: dict[KeyPath, int], key: KeyPath, number: int) -> None:
    """Note the line of a key, and as the line of the tables around it if they have none of their own before."""
    for size in range(1, len(key) + 1):
        found.setdefault(key[:size], number)


def _key_path(text: str) -> tuple[KeyPath, str]:
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


def _inline_keys(rest: str, table: KeyPath, line: int, found: dict[KeyPath, int]) -> None:
    """Note the line on which an inline table opens as the line of its keys."""
    value = rest.lstrip("= ")
    if value.startswith("{"):
        for name in re.findall(r"[{,]\s*([A-Za-z0-9_-]+|\"[^\"]*\")\s*=", value):
            found.setdefault((*table, name.strip('"')), line)


def _extra_lines(rest: str, following: list[str]) -> int:
    """Return how many of the following lines belong to a value that begins in `rest`."""
    for quotes in ('"' * 3, "'" * 3):
        if quotes in rest:
            if rest.count(quotes) > 1:
                return 0
            return next((n for n, line in enumerate(following, 1) if quotes in line), len(following))
    depth = _bracket_depth(rest)
    for taken, line in enumerate(following):
        if depth <= 0:
            return taken
        depth += _bracket_depth(line)
    return 0 if depth <= 0 and not following else len(following)


def _bracket_depth(text: str) -> int:
    """Return the number of opened minus closed brackets outside of strings and comments."""
    depth, quote, escaped = 0, "", False
    for char in text:
        if quote:
            if char == quote and not escaped:
                quote = ""
            escaped = char == "\\" and quote == '"' and not escaped
        elif char in "\"'":
            quote = char
        elif char == "#":
            break
        else:
            depth += _OPENERS.get(char, 0)
    return depth
