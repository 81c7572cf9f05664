"""Shim launchers (kind `io.containerd.shim-launcher.v1`): a quicker way to start a shim than executing its binary.

The runtime plugin starts a shim by executing `<binary> ... start` and cleans up after one by `<binary> ... delete`
(facts/runtime 3). A launcher that serves a runtime name does the same work without a new interpreter or program, and
with the same results. Where its helper process is gone it falls back to the binary by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import msgspec

from aiocontainerd.interfaces.rules import TASK, WORK, deadline, guarded

_NONE: Mapping[str, str] = MappingProxyType({})


class ShimCommand(msgspec.Struct, frozen=True, kw_only=True):
    """One shim action: what the flags and environment of the binary would say. `stdin` is the BootstrapParams."""

    namespace: str
    id: str
    bundle: Path
    grpc_address: str
    ttrpc_address: str
    publish_binary: str
    debug: bool = False
    stdin: bytes = b""
    env: Mapping[str, str] = _NONE


@guarded(name="launcher", late_counts=False)
class ShimLauncher(Protocol):
    """Starts and cleans up shims of some runtime names."""

    @property
    def binary(self) -> Path:
        """The shim program this launcher stands in for; written to `shim-binary-path` of every bundle."""
        ...

    @property
    def runtimes(self) -> Sequence[str]:
        """The runtime names it serves, such as `io.containerd.runc.v2`."""
        ...

    @property
    def cleans_up(self) -> bool:
        """True where a shim that answered Delete and Shutdown leaves nothing that a `delete` action would remove."""
        ...

    @deadline(TASK)
    async def start(self, command: ShimCommand, *, timeout_s: float) -> bytes:
        """What `start` prints: a BootstrapResult. The shim listens when this returns."""
        ...

    @deadline(TASK, always=True)
    async def delete(self, command: ShimCommand, *, timeout_s: float) -> bytes:
        """What `delete` prints: a task DeleteResponse. The container is gone when this returns."""
        ...


@guarded(late_counts=False)
class ShimManager(Protocol):
    """Single shims, for the task runtime (kind `io.containerd.shim.v1`, id `manager`). Bundles are its own."""

    @deadline(WORK)
    async def launcher(self, runtime: str) -> ShimLauncher:
        """How to start shims of a runtime name or absolute path. Raises what resolving it raises."""
        ...

    def launcher_of(self, binary: Path) -> ShimLauncher:
        """How to clean up after shims whose bundle names this program."""
        ...

    @deadline(TASK)
    async def start(self, bundle: Any, launcher: ShimLauncher, options: Any | None) -> Any:
        """The shim of a bundle, started and connected to."""
        ...

    @deadline(TASK, always=True)
    async def connect(self, bundle: Any, endpoint: Any, launcher: ShimLauncher, *, joined: bool = False) -> Any:
        """A shim that listens. Raises Unavailable where it does not."""
        ...

    @deadline(TASK, always=True)
    async def clean_up(self, bundle: Any, launcher: ShimLauncher) -> Any:
        """What became of the container of a lost shim, once the `delete` action has run; never fails."""
        ...

    @deadline(TASK, always=True)
    async def info(self, runtime: str, options: bytes) -> bytes:
        """The RuntimeInfo that the program of a runtime prints about itself."""
        ...
