"""Describe what a suite tests: `--target` and the options that go with it.

acme.plugin:Reflink                                   a class, registered or not
acme.plugin                                           a module; `#<id>` chooses one of several plugins of a kind
unix:///run/containerd/containerd.sock#overlayfs      a daemon in any language; `#` names the snapshotter
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Protocol

import msgspec


class TargetError(Exception):
    """A `--target` that cannot be used, told in one line to the person who gave it."""


class TargetSkippedError(TargetError):
    """A plugin that says it has no business on this host."""


class Bench(Protocol):
    """Where one test opens instances of its target."""

    @property
    def remote(self) -> bool:
        """Return whether the target is behind a socket: it cannot be killed, moved to another disk, or given a root."""
        ...

    def open(self, kind: str, root: Path, needs: Mapping[str, Any]) -> AbstractAsyncContextManager[Any]:
        """Open an instance over `root`, which may be opened again later. `needs` are instances that it may require.

        Behind a socket, open what the daemon has of that kind in the test's namespace, and ignore `root`.
        """
        ...

    async def capabilities(self, kind: str) -> frozenset[str]:
        """Return the capabilities of the plugin and of `--target-capability`. They are known once it was opened."""
        ...


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """The options of a run."""

    text: str
    namespace: str = ""
    config: Mapping[str, Any] = msgspec.field(default_factory=dict)
    capabilities: frozenset[str] = frozenset()
    deviations: str = ""
    needs: Sequence[str] = ()
    """Modules of plugins that the target requires."""

    @property
    def remote(self) -> bool:
        """Return whether the target is a socket."""
        return self.text.startswith("unix://")

    @property
    def path(self) -> str:
        """Return address or module path, without what follows `#`."""
        return self.text.partition("#")[0]

    @property
    def name(self) -> str:
        """Return what follows `#`: a snapshotter of a daemon, or the id of one of several plugins."""
        return self.text.partition("#")[2]

    def modules(self) -> Sequence[str]:
        """Return the packages whose code runs in this process when the target does; none for a daemon."""
        if self.remote:
            return []
        return sorted({"aiocontainerd", self.path.partition(":")[0].partition(".")[0]})


def target_of(
    text: str,
    *,
    namespace: str = "",
    config: Sequence[str] = (),
    capabilities: Sequence[str] = (),
    deviations: str = "",
    needs: Sequence[str] = (),
) -> Target:
    """Return the target of options as they were typed. Raise TargetError."""
    if "://" in text and not text.startswith("unix://"):
        raise TargetError(f"--target {text}: only unix:// sockets can be a target")
    settings: dict[str, Any] = {}
    for item in config:
        key, found, value = item.partition("=")
        if not (key and found):
            raise TargetError(f"--target-config {item}: write it as KEY=VALUE")
        _put(settings, key.split("."), _value(value))
    return Target(
        text=text,
        namespace=namespace,
        config=settings,
        capabilities=frozenset(capabilities),
        deviations=deviations,
        needs=tuple(needs),
    )


def _put(table: dict[str, Any], path: Sequence[str], value: object) -> None:
    for name in path[:-1]:
        table = table.setdefault(name, {})
    table[path[-1]] = value


def _value(text: str) -> object:
    """Return the TOML value of a text, or the text itself if it is none."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def replaced(value: object, directory: Path) -> object:
    """Return a config value with `{tmp}` in its texts replaced by a test's directory."""
    if isinstance(value, str):
        return value.replace("{tmp}", str(directory))
    if isinstance(value, dict):
        return {key: replaced(item, directory) for key, item in value.items()}
    if isinstance(value, list):
        return [replaced(item, directory) for item in value]
    return value
