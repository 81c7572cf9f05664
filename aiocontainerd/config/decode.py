"""Decode trees into records, strictly: find every unknown key and wrong type, with its line and the nearest key."""

from __future__ import annotations

import copy
import difflib
import re
import typing
from typing import Any, TypeVar

import msgspec

from aiocontainerd.config.migrate import Origins
from aiocontainerd.config.secret import decode_hook
from aiocontainerd.config.source import KeyPath, Origin, Tree

RecordT = TypeVar("RecordT", bound=msgspec.Struct)

_UNKNOWN_FIELD = re.compile(r"Object contains unknown field `(?P<field>.*?)`(?: - at `\$(?P<path>.*?)`)?\Z")
_AT = re.compile(r"(?P<what>.*?)(?: - at `\$(?P<path>.*?)`)?\Z", re.DOTALL)
_SOME_KEY = "..."
_STEP = re.compile(r"\.([A-Za-z0-9_]+)|\[(\.\.\.|\d+)\]")


class Problem(msgspec.Struct, frozen=True):
    """A mistake in a config file. An unknown key may be tolerated, a wrong type never."""

    text: str
    unknown_key: bool


def decode(tree: Tree, kind: type[RecordT], at: KeyPath, origins: Origins) -> tuple[RecordT | None, list[Problem]]:
    """Return the record of `tree`, which is at key `at` of the config, and every problem found.

    Unknown keys are left out of the record; a wrong type leaves no record at all.
    """
    problems: list[Problem] = []
    rest = copy.deepcopy(tree)
    while True:
        error = _failure(rest, kind)
        if error is None:
            return msgspec.convert(rest, kind, dec_hook=decode_hook), problems
        unknown = _UNKNOWN_FIELD.match(error)
        if unknown is None:
            problems.append(Problem(_wrong_type(rest, kind, error, at, origins), False))
            return None, problems
        steps = _named(rest, kind, _steps(unknown["path"]))
        del _at(rest, steps)[unknown["field"]]
        problems.append(Problem(_unknown_key(kind, steps, unknown["field"], at, origins), True))


def origin_of(key: KeyPath, origins: Origins) -> Origin:
    """Return where a key, or the nearest table above it, is written."""
    while key and key not in origins:
        key = key[:-1]
    return origins.get(key, Origin("default"))


def _failure(tree: Tree, kind: type[msgspec.Struct]) -> str | None:
    """Return the error of msgspec for a tree that does not fit, None for one that does."""
    try:
        msgspec.convert(tree, kind, dec_hook=decode_hook)
    except msgspec.ValidationError as error:
        return str(error)
    return None


def _wrong_type(tree: Tree, kind: type[msgspec.Struct], error: str, at: KeyPath, origins: Origins) -> str:
    found = _AT.match(error)
    what = (found["what"] if found else error).replace("`object`", "`table`")
    steps = _named(tree, kind, _steps(found["path"] if found else None))
    key = (*at, *steps)
    return f"{origin_of(key, origins)}: {_dotted(key)}: {what[:1].lower()}{what[1:]}{_choices(kind, steps)}"


def _unknown_key(kind: type, steps: KeyPath, field: str, at: KeyPath, origins: Origins) -> str:
    key = (*at, *steps, field)
    near = difflib.get_close_matches(field, _fields_at(kind, steps), n=1, cutoff=0.5)
    hint = f'; did you mean "{near[0]}"?' if near else ""
    return f"{origin_of(key, origins)}: unknown key {_dotted(key)}{hint}"


def _choices(kind: type, steps: KeyPath) -> str:
    """Return a hint that names the values a key may have, "" where they are not listed in its type."""
    found = _kind_at(kind, steps)
    if typing.get_origin(found) is not typing.Literal:
        return ""
    return "; use " + " or ".join(f'"{value}"' for value in typing.get_args(found))


def _fields_at(kind: type, steps: KeyPath) -> tuple[str, ...]:
    """Return the names of the fields that a record has at a path below `kind`."""
    found = _kind_at(kind, steps)
    return tuple(found.__struct_fields__) if isinstance(found, type) and issubclass(found, msgspec.Struct) else ()


def _kind_at(kind: Any, steps: KeyPath) -> Any:
    """Return the type that a value has at a path below `kind`."""
    for step in steps:
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            kind = typing.get_type_hints(kind).get(step)
        else:
            arguments = [a for a in typing.get_args(kind) if a is not Ellipsis]
            kind = arguments[-1] if arguments else None
    return kind


def _steps(path: str | None) -> KeyPath:
    return tuple(name or index for name, index in _STEP.findall(path or ""))


def _named(tree: Tree, kind: type[msgspec.Struct], steps: KeyPath) -> KeyPath:
    """Return the steps to where a tree fails. Find the keys that msgspec only calls `...`."""
    rest = copy.deepcopy(tree)
    named: KeyPath = ()
    for step in steps:
        named += (_failing_key(rest, kind, _at(rest, named)) if step == _SOME_KEY else step,)
    return named


def _failing_key(tree: Tree, kind: type[msgspec.Struct], table: Tree) -> str:
    """Return the first key of a table that makes the tree fail on its own. Remove all others from the table."""
    key = _SOME_KEY
    for key, value in list(table.items()):
        table.clear()
        table[key] = value
        if _failure(tree, kind) is not None:
            break
    return key


def _at(tree: Any, steps: KeyPath) -> Any:
    for step in steps:
        tree = tree[int(step)] if isinstance(tree, list) else tree[step]
    return tree


def _dotted(key: KeyPath) -> str:
    bare = re.compile(r"[A-Za-z0-9_-]+\Z")
    return ".".join(part if bare.match(part) else f'"{part}"' for part in key)
