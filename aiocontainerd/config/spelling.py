"""Give keys the case of their records: containerd reads `[Debug]`, `Address` and `GID` as it reads the lower case."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from aiocontainerd.config.source import KeyPath, Origins, Tree


def respell(tree: Tree, kind: type[msgspec.Struct], at: KeyPath, origins: Origins) -> None:
    """Rename keys of a tree, which is at `at`, in place where a field differs in case only. Origins move along.

    Keys of mappings, such as the names of proxy plugins, stay as they are. A key that is there in both cases does, too.
    """
    renames: dict[KeyPath, str] = {}
    for old, new, table, place in list(_differing(tree, kind, at)):
        table[new] = table.pop(old)
        renames[*place, old] = new
    rename_origins(origins, renames)


def rename_origins(origins: Origins, renames: Mapping[KeyPath, str]) -> None:
    """Rename keys in the origins, and in all below them. `renames` maps a whole key to its new last part."""
    if not renames:
        return
    moved = [
        (tuple(renames.get(key[: size + 1], part) for size, part in enumerate(key)), origin)
        for key, origin in origins.items()
    ]
    origins.clear()
    origins.update(moved)


def move_origins(origins: Origins, old: KeyPath, new: KeyPath) -> None:
    """Move the origins of a key, and of all below it, to another key."""
    for key in [key for key in origins if key[: len(old)] == old]:
        origins[new + key[len(old) :]] = origins.pop(key)


def _differing(value: Any, kind: Any, at: KeyPath) -> Iterator[tuple[str, str, Tree, KeyPath]]:
    """Yield old and new name of each key to rename, its table, and the table's place. Inner tables come first."""
    if not isinstance(value, dict):
        return
    fields = fields_of(kind)
    if fields is None:
        arguments = typing.get_args(kind)
        for key, inner in value.items():
            yield from _differing(inner, arguments[-1] if arguments else None, (*at, key))
        return
    names = {name.lower(): name for name in fields}
    for key, inner in value.items():
        name = key if key in fields else names.get(key.lower(), "")
        yield from _differing(inner, fields.get(name), (*at, key))
        if name and name != key and name not in value:
            yield key, name, value, at


def fields_of(kind: Any) -> dict[str, Any] | None:
    """Return the types of a record's fields, None for a type that is no record."""
    if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
        return None
    return {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
