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

from aiocontainerd import typeurl
from aiocontainerd.interfaces.rules import TASK, WORK, deadline, guarded

_NONE: Mapping[str, str] = MappingProxyType({})

_LIMIT = "io.containerd.timeout.shim."
STEP_TIMEOUTS = (
    f"{_LIMIT}start", f"{_LIMIT}load", f"{_LIMIT}create", *(f"{_LIMIT}cleanup",) * 3, f"{_LIMIT}shutdown",
)  # fmt: skip
"""Limits of the steps that one call of a runtime or a shim may take, one after the other; deadline class *task* is
longer than all of them together. The plugin that takes the steps declares these keys of `[timeouts]`."""


class ShimCommand(msgspec.Struct, frozen=True, kw_only=True):
    """One shim action, in place of flags and environment of the binary. `stdin` is the BootstrapParams."""

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
        """True if a shim that answered Delete and Shutdown leaves nothing that a `delete` action would remove."""
        ...

    @property
    def rests(self) -> bool:
        """True if its shims rest while nothing happens, and are not to be woken for what the daemon knows.

        The inits of such shims are processes of this host, and `stats` measures their cgroups.
        """
        ...

    @deadline(WORK, always=True)
    async def stats(self, bundle: Path, pid: int) -> typeurl.Any:
        """Return the cgroup metrics of the container in a bundle, whose init is `pid`.

        Raises NotFound if the cgroup is gone, Unimplemented unless the launcher's shims rest.
        """
        ...

    @deadline(TASK)
    async def start(self, command: ShimCommand, *, timeout_s: float) -> bytes:
        """Return what `start` prints: a BootstrapResult. The shim listens when this returns."""
        ...

    @deadline(TASK, always=True)
    async def delete(self, command: ShimCommand, *, timeout_s: float) -> bytes:
        """Return what `delete` prints: a task DeleteResponse. The container is gone when this returns."""
        ...


@guarded(late_counts=False)
class ShimManager(Protocol):
    """Single shims, for the task runtime (kind `io.containerd.shim.v1`, id `manager`). Bundles are its own."""

    @deadline(WORK)
    async def launcher(self, runtime: str) -> ShimLauncher:
        """Return the launcher for a runtime name or the absolute path of a shim. Raises what resolving it raises."""
        ...

    def launcher_of(self, binary: Path) -> ShimLauncher:
        """Return the launcher that cleans up after shims whose bundle names this program."""
        ...

    @deadline(TASK)
    async def start(self, bundle: Any, launcher: ShimLauncher, options: Any | None) -> Any:
        """Start the shim of a bundle, connect to it and return it."""
        ...

    @deadline(TASK, always=True)
    async def connect(self, bundle: Any, endpoint: Any, launcher: ShimLauncher, *, joined: bool = False) -> Any:
        """Connect to a shim that listens and return it. Raises Unavailable if it does not listen."""
        ...

    @deadline(TASK, always=True)
    async def clean_up(self, bundle: Any, launcher: ShimLauncher) -> Any:
        """Run the `delete` action for a lost shim and return what became of its container; never fails."""
        ...

    @deadline(TASK, always=True)
    async def info(self, runtime: str, options: bytes) -> bytes:
        """Return the RuntimeInfo that the program of a runtime prints about itself."""
        ...
