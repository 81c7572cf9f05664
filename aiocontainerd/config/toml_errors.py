"""Parse TOML, and say what is wrong with a text: the line, the beginning of it, and how to write it. Pure.

A value is not shown: it may be a secret.
"""

from __future__ import annotations

import re
import tomllib
from typing import Any

from aiocontainerd.config.toml_text import BadTomlText, KeyPath, flattened, key_lines, key_path

_PLACE = re.compile(r" \((?:at line (\d+), column (\d+)|at end of document)\)\Z")
_REMEDIES = (
    (re.compile(r"\s*[\w.-]+\s*:"), 'write "=" instead of ":"'),
    (re.compile(r"[^#]*[\u201c-\u201f\u2018-\u201b\xab\xbb]"), "write plain quotes"),
    (re.compile(r"[^=]*=\s*[+-]?0\d"), "a number does not begin with 0"),
    (re.compile(r"[^=]*=\s*(true|yes|on|false|no|off)\s*(#.*)?\Z", re.IGNORECASE), "write true or false"),
    (re.compile(r"[^=]*=\s*[\w./-]+\s*(#.*)?\Z"), "write a text in quotes"),
)
"""The line with the mistake -> the remedy."""
_LEFT_OPEN = ("Unclosed", "Unterminated", "Illegal character '\\n'")
_TWICE = ("Cannot overwrite", "Cannot declare")
_LARGEST = 1 << 63
_DEEPEST = 100


def parse(text: str) -> dict[str, Any]:
    """Return the tree of a text. Raises BadTomlText."""
    try:
        tree = _parsed(text)
    except tomllib.TOMLDecodeError as error:
        raise _explained(str(error), text) from error
    except RecursionError as error:
        raise BadTomlText(_last_line(text), "the values are nested too deeply") from error
    _check_values(tree, text)
    return tree


def _parsed(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        flat = flattened(text)
        if flat == text:
            raise
        try:
            return tomllib.loads(flat)
        except tomllib.TOMLDecodeError:
            pass
        raise


def _explained(message: str, text: str) -> BadTomlText:
    """Return the error of a parser's message, with the place where a person has to look."""
    number, column = _place(message, text)
    lines = text.split("\n")
    line = lines[number - 1] if number <= len(lines) else ""
    what = _PLACE.sub("", message)
    twice = _twice(line, "\n".join(lines[: number - 1])) if what.startswith(_TWICE) else ""
    key, equals, _ = line.strip().partition("=")
    said = twice or f"{what}{f' at column {column}' if column else ''}"
    return BadTomlText(number, f"{said}; the line begins with: {key}{equals}{_remedy(what, line)}")


def _place(message: str, text: str) -> tuple[int, int]:
    """Return line and column of a mistake. Column 0 stands for a value that begins on the line and does not end."""
    place = _PLACE.search(message)
    if place is None or place[1] is None:
        return _last_line(text), 0
    number, column = int(place[1]), int(place[2])
    begun = _last_line("\n".join(text.split("\n")[: number - 1]))
    return (begun, 0) if message.startswith("Unclosed") and begun < number else (number, column)


def _twice(line: str, before: str) -> str:
    """Return what to say of a line whose key or table is there `before`, "" if it is not clear which one."""
    first, name = _first(key_lines(before), key_lines(f"{before}\n{line}"), line)
    return f"{name} is already there, at line {first}" if first else ""


def _first(before: dict[KeyPath, int], with_line: dict[KeyPath, int], line: str) -> tuple[int, str]:
    """Return the line on which a key or table was first, 0 if it is not known, and the key as the line has it."""
    if line.strip().startswith("["):
        table = key_path(line.strip().lstrip("["))[0]
        return before.get(table, 0), line.strip().partition("#")[0].strip()
    name = key_path(line)[0]
    inside = [key for key in with_line if key[-len(name) :] == name and key in before] if name else []
    return (before[inside[-1]], ".".join(name)) if inside else (0, "")


def _remedy(what: str, line: str) -> str:
    if what.startswith(_LEFT_OPEN):
        return "; a quote or bracket is missing at its end"
    return next((f"; {remedy}" for form, remedy in _REMEDIES if form.match(line)), "")


def _last_line(text: str) -> int:
    """Return the line on which the last statement of a text begins."""
    return max(key_lines(text).values(), default=1)


def _check_values(tree: dict[str, Any], text: str) -> None:
    """Raise BadTomlText for what containerd's parser does not take: numbers over 64 bits; or for a bottomless tree."""
    todo: list[tuple[KeyPath, Any]] = [((), tree)]
    while todo:
        key, value = todo.pop()
        if isinstance(value, int) and not -_LARGEST <= value < _LARGEST:
            raise BadTomlText(_line_of(key, text), f"{'.'.join(key)}: the number does not fit into 64 bits")
        if len(key) > _DEEPEST:
            raise BadTomlText(_line_of(key, text), "the values are nested too deeply")
        if isinstance(value, dict):
            todo += [((*key, name), inner) for name, inner in value.items()]
        elif isinstance(value, list):
            todo += [((*key, str(number)), inner) for number, inner in enumerate(value)]


def _line_of(key: KeyPath, text: str) -> int:
    lines = key_lines(text)
    while key and key not in lines:
        key = key[:-1]
    return lines.get(key, 1)
