"""Merge a file and its imports into one tree (facts/core 16).

Later files win. A top-level scalar that is empty or zero changes nothing: without another it has its default. Top-level
lists append what is new. Entries of `[timeouts]`, `[stream_processors]` and `[proxy_plugins]` are replaced whole.
`[plugins]` merges key by key at every depth: there an explicit `false` or `0` does override, and a list replaces one.
"""

from __future__ import annotations

from typing import Any

from aiocontainerd.config.source import KeyPath, Origins, Tree

_ENTRY_TABLES = ("timeouts", "stream_processors", "proxy_plugins", "python_plugins")


def merge(base: Tree, base_origins: Origins, later: Tree, later_origins: Origins) -> None:
    """Merge `later` into `base` in place, with the origins of the values that are taken."""
    for key, value in later.items():
        if key == "plugins":
            _merge_deep(base.setdefault(key, {}), value, (key,), base_origins, later_origins)
        elif key in _ENTRY_TABLES:
            base.setdefault(key, {}).update(value)
            _take_origins((key,), base_origins, later_origins)
        elif isinstance(value, dict):
            table = base.setdefault(key, {})
            merge(table, _sub(base_origins, key), value, _sub(later_origins, key))
            _take_origins((key,), base_origins, later_origins)
        elif isinstance(value, list):
            present = base.setdefault(key, [])
            present += [item for item in value if item not in present]
            _take_origins((key,), base_origins, later_origins)
        elif value:
            base[key] = value
            _take_origins((key,), base_origins, later_origins)


def _merge_deep(base: Tree, later: Tree, path: KeyPath, base_origins: Origins, later_origins: Origins) -> None:
    for key, value in later.items():
        here = (*path, key)
        present: Any = base.get(key)
        if isinstance(value, dict) and isinstance(present, dict):
            _merge_deep(present, value, here, base_origins, later_origins)
        elif value != [] or key not in base:
            base[key] = value
            _take_origins(here, base_origins, later_origins)


def _take_origins(path: KeyPath, base: Origins, later: Origins) -> None:
    base.update({key: origin for key, origin in later.items() if key[: len(path)] == path})


def _sub(origins: Origins, key: str) -> Origins:
    return {path[1:]: origin for path, origin in origins.items() if path[:1] == (key,)}
