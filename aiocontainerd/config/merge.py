"""Merge a file and its imports into one tree (facts/core 16).

Later files win. A top-level scalar that is empty or zero changes nothing: without another it has its default. Top-level
lists append what is new. Entries of `[timeouts]`, `[stream_processors]` and `[proxy_plugins]` are replaced whole.
`[plugins]` merges key by key at every depth: there an explicit `false` or `0` does override, and a list replaces one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from aiocontainerd.config.source import KeyPath, Origins, Tree

_ENTRY_TABLES = ("timeouts", "stream_processors", "proxy_plugins", "python_plugins")


def merge(base: Tree, base_origins: Origins, later: Tree, later_origins: Origins) -> None:
    """Merge `later` into `base` in place, with the origins of the values that are taken."""
    taken = set(_merge(base, later, ()))
    for key, origin in later_origins.items():
        if key in base_origins and not any(key[:size] in taken for size in range(1, len(key) + 1)):
            continue
        base_origins[key] = origin


def _merge(base: Tree, later: Tree, path: KeyPath) -> Iterator[KeyPath]:
    """Merge tables other than those of plugins, and yield the keys that are taken whole."""
    for key, value in later.items():
        here = (*path, key)
        if here == ("plugins",):
            yield from _merge_deep(base.setdefault(key, {}), value, here)
        elif key in _ENTRY_TABLES and not path:
            base.setdefault(key, {}).update(value)
            yield from ((*here, name) for name in value)
        elif isinstance(value, dict):
            yield from _merge(base.setdefault(key, {}), value, here)
        elif isinstance(value, list):
            _append_new(base.setdefault(key, []), value)
            yield here
        elif value:
            base[key] = value
            yield here


def _append_new(present: list[Any], added: list[Any]) -> None:
    """Append to a list what it does not have."""
    texts = {item for item in present if isinstance(item, str)}
    for item in added:
        if item not in (texts if isinstance(item, str) else present):
            present.append(item)
            if isinstance(item, str):
                texts.add(item)


def _merge_deep(base: Tree, later: Tree, path: KeyPath) -> Iterator[KeyPath]:
    for key, value in later.items():
        here = (*path, key)
        present: Any = base.get(key)
        if isinstance(value, dict) and isinstance(present, dict):
            yield from _merge_deep(present, value, here)
        elif value != [] or key not in base:
            base[key] = value
            yield here
