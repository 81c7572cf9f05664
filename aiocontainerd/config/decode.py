"""Decode trees into records, strictly: find every unknown key and wrong type, with its line and the nearest key."""

from __future__ import annotations

import copy
import re
import typing
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from aiocontainerd.config import hints, stock
from aiocontainerd.config.source import KeyPath, Origin, Origins, Tree, dotted
from aiocontainerd.config.spelling import fields_of, respell
from aiocontainerd.config.values import Misfit, decode_hook, misfits

RecordT = TypeVar("RecordT", bound=msgspec.Struct)

_UNKNOWN_FIELD = re.compile(r"Object contains unknown field `(?P<field>.*?)`(?: - at `\$(?P<path>.*?)`)?\Z")
_AT = re.compile(r"(?P<what>.*?)(?: - at `\$(?P<path>.*?)`)?\Z", re.DOTALL)
_MISSING = re.compile(r".* missing required field `(?P<field>.*?)`\Z")
HINTS = 100
"""Unknown names of one kind that are compared with the known ones. In a file of more, something else is wrong."""
_NAMED_TABLES = ("stream_processors", "proxy_plugins", "python_plugins")
_SOME_KEY = "..."
_STEP = re.compile(r"\.([A-Za-z0-9_]+)|\[(\.\.\.|\d+)\]")


class Problem(msgspec.Struct, frozen=True):
    """A mistake in a config file: what to tell, and the key. An unknown key may be tolerated, a wrong type never."""

    text: str
    unknown_key: bool
    key: KeyPath = ()


def decode(tree: Tree, kind: type[RecordT], at: KeyPath, origins: Origins) -> tuple[RecordT | None, list[Problem]]:
    """Return the record of `tree`, which is at key `at` of the config, and every problem found.

    Unknown keys are left out of the record; a wrong type leaves no record at all.
    """
    problems: list[Problem] = []
    rest = copy.deepcopy(tree)
    respell(rest, kind, at, origins)
    _drop_empty_choices(rest, kind)
    for steps, name in list(_unknown_keys(rest, kind, ())):
        key, value = (*at, *steps, name), _at(rest, steps).pop(name)
        problems.append(_unknown_problem(kind, steps, key, value, origins, hint=len(problems) < HINTS))
    while True:
        error = _failure(rest, kind)
        if error is None:
            record = msgspec.convert(rest, kind, dec_hook=decode_hook)
            misfit = [_told(found, at, origins) for found in misfits(record, kind)]
            return None if misfit else record, problems + misfit
        unknown = _UNKNOWN_FIELD.match(error)
        if unknown is None:
            problems.append(Problem(_wrong_type(rest, kind, error, at, origins, tree), False))
            return None, problems
        steps = _named(rest, kind, _steps(unknown["path"]))
        key = (*at, *steps, unknown["field"])
        value = _at(rest, steps).pop(unknown["field"])
        problems.append(_unknown_problem(kind, steps, key, value, origins))


def _unknown_keys(table: Any, kind: Any, steps: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    """Yield where a record has a key that is no field of it, and the key. Records in unions are left to msgspec."""
    if not isinstance(table, dict):
        return
    fields = fields_of(kind)
    if fields is None:
        arguments = typing.get_args(kind) if typing.get_origin(kind) is dict else ()
        fields = dict.fromkeys(table, arguments[-1]) if arguments else {}
    elif kind.__struct_config__.forbid_unknown_fields:
        yield from ((steps, name) for name in table if name not in fields)
    for name in (name for name in table if name in fields):
        yield from _unknown_keys(table[name], fields[name], (*steps, name))


def _unknown_problem(
    kind: type, steps: KeyPath, key: KeyPath, value: Any, origins: Origins, *, hint: bool = True
) -> Problem:
    text = _unknown_key(kind, steps, key, value) if hint else f"unknown key {dotted(key)}"
    return Problem(f"{origin_of(key, origins)}: {text}", True, key)


def _drop_empty_choices(table: Tree, kind: type[msgspec.Struct]) -> None:
    """Leave out keys that are "" where a value is chosen from a few: they have their defaults, as in containerd."""
    for field in msgspec.structs.fields(kind):
        if table.get(field.encode_name) == "" and not field.required and _is_choice(field.type):
            del table[field.encode_name]


def _is_choice(kind: Any) -> bool:
    return typing.get_origin(kind) is typing.Literal and "" not in typing.get_args(kind)


def _told(found: Misfit, at: KeyPath, origins: Origins) -> Problem:
    key = (*at, *found.steps)
    return Problem(f"{origin_of(key, origins)}: {dotted(key)}: {found.why}", False, key)


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


def _wrong_type(
    tree: Tree, kind: type[msgspec.Struct], error: str, at: KeyPath, origins: Origins, written: Tree
) -> str:
    found = _AT.match(error)
    what = (found["what"] if found else error).replace("`object`", "`table`")
    steps = _named(tree, kind, _steps(found["path"] if found else None))
    key = (*at, *steps)
    missing = _MISSING.match(what)
    if missing is not None:
        table = _at(written, steps)
        unknown = [name for name in table if name not in _fields_at(kind, steps)] if isinstance(table, dict) else []
        near = hints.nearest(missing["field"], unknown, "did you write it as")
        return f"{origin_of(key, origins)}: {dotted((*key, missing['field']))} is missing{near}"
    remedy = _choices(kind, steps) or hints.wrong_type(key, what, _at(tree, steps))
    return f"{origin_of(key, origins)}: {dotted(key)}: {_lowered(what)}{remedy}"


def _unknown_key(kind: type, steps: KeyPath, key: KeyPath, value: Any) -> str:
    """Return what is wrong with a key that the record at `steps` below `kind` does not have."""
    if len(key) == 1:
        return hints.top_level(key[0], value)
    if key[0] == "plugins" and (key[1], key[-1]) in stock.DROPPED_OF_PLUGINS:
        return f"{dotted(key)} has no effect; containerd dropped it, too"
    fields = _fields_at(kind, steps)
    remedy = hints.nearest(key[-1], fields)
    if key[0] in _NAMED_TABLES and len(steps) == 2:
        remedy = hints.without_quotes(key, value, fields) or remedy
    return f"unknown key {dotted(key)}{remedy}"


def _lowered(what: str) -> str:
    """Return a message of msgspec as the part of a sentence. Texts of our own begin as they should."""
    return what[:1].lower() + what[1:] if what.startswith(("Expected", "Invalid", "Object")) else what


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
