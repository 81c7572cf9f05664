"""`config explain`: every value with its origin: file and line, a flag, or the default."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from aiocontainerd.config import render
from aiocontainerd.config.load import Config
from aiocontainerd.config.plugin import Configured
from aiocontainerd.config.source import KeyPath, dotted
from aiocontainerd.interfaces.plugins import ConfigValue

_PART = re.compile(r'"((?:[^"\\]|\\.)*)"|([^."]+)')


class Explained(msgspec.Struct, frozen=True):
    """A value of the config (redacted if it is a secret), its origin, and for a timeout what it limits."""

    key: KeyPath
    value: Any
    origin: str
    doc: str = ""

    def __str__(self) -> str:
        return str(self.rendered())

    def rendered(self) -> ConfigValue:
        """Return the value as text."""
        return ConfigValue(dotted(self.key), _shown(self.value), self.origin, self.doc)


def explain(config: Config, registrations: Iterable[Configured], key: str = "") -> list[Explained]:
    """Return the values at and below a key, every value for "", none for an unknown key."""
    registrations = list(registrations)
    chosen = matching(key, [registration.uri for registration in registrations])
    known = render.declared(registrations).values()
    docs: dict[KeyPath, str] = {("timeouts", timeout.key): timeout.doc for timeout in known}
    return [
        Explained(path, value, _origin(config, path), docs.get(path, ""))
        for path, value in _values(render.tree_of(config, registrations))
        if path[: len(chosen)] == chosen
    ]


def matching(key: str, uris: Iterable[str]) -> KeyPath:
    """Split a key as people write it. Dots in quotes, and those of a plugin's URI, do not split."""
    parts: list[str] = []
    rest = key.removeprefix("plugins.")
    for uri in sorted(uris, key=len, reverse=True):
        if rest == uri or rest.startswith(f"{uri}."):
            parts, rest = ["plugins", uri], rest[len(uri) + 1 :]
            break
    else:
        rest = key
    return (*parts, *(quoted or bare for quoted, bare in _PART.findall(rest)))


def _values(tree: Mapping[str, Any], above: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    for name, value in tree.items():
        path = (*above, name)
        if isinstance(value, Mapping) and value:
            yield from _values(value, path)
        else:
            yield path, value


def _origin(config: Config, path: KeyPath) -> str:
    return str(config.origin(*path)) if config.is_written(*path) else "default"


def _shown(value: Any) -> str:
    return "(not set)" if value is None else json.dumps(value, ensure_ascii=False)
