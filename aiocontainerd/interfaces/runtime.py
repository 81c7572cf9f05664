"""Task runtimes (kind `io.containerd.runtime.v2`, id `task`): running containers, each behind a shim.

Vocabulary. A *task* is a container that has been given processes: one *init* process and any number of *execs*. It is
found by the id of its container within a namespace. A *shim* is the process that owns tasks and outlives the daemon;
a *bundle* is the directory that holds all that is needed to find a shim again.

Life cycle. `create` makes the bundle, starts a shim and asks it to create the container: the task is CREATED and
its rootfs is mounted by the shim. `start` runs init: RUNNING. `pause` and `resume` freeze and thaw it. When init has
exited the task is STOPPED; its exit stays readable until `delete`, which ends the task, its shim and its bundle.
Execs are added by `exec`, then live the same life; their `delete` ends only them.

All methods work in the namespace of the current call (`aiocontainerd.context`) unless they say otherwise. A task is
read from its shim at every call, with two exceptions: exits once they are known, and the init of a shim that rests. The
runtime tells its state and metrics from what it knows for certain, and asks the shim about everything else.

What must fail and how (facts/runtime 4.2, 4.3): no such task: NotFound `task <id> not found`; a task of that id exists:
AlreadyExists `task <id>`; a bad id: InvalidArgument `invalid task id ...` or `invalid exec id ...`; what the shim
answers travels unchanged. A shim that does not answer within its limit raises DeadlineExceeded naming the task, the
call and the limit, and delays no other task. A lost shim answers `state` and `kill` with NotFound, `wait` and `delete`
with the exit that its clean-up recorded (status 255 where there was none to be had), everything else with Unavailable.

A shim's death (facts/runtime 3.7): the runtime runs the `delete` action, publishes `/tasks/exit` and `/tasks/delete`
unless the task was deleted before, and forgets the task. Shims publish every other event of the task themselves.

After a restart every task is found again from its bundle. `get`, `list` and `create` wait for the bundles concerned.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

import msgspec

from aiocontainerd.interfaces.rules import TASK, WORK, deadline, guarded, unlimited
from aiocontainerd.sys.mount import Mount
from aiocontainerd.timestamps import ZERO_NS
from aiocontainerd.typeurl import Any

_NONE: Mapping[str, str] = MappingProxyType({})

LOG_URI_SCHEMES = "fifo,binary,binary-v2,file"
"""Export `log-uri-schemes` of the runtime: schemes of `IO` that its shims understand (facts/runtime 5.1)."""
UNKNOWN_EXIT_STATUS = 255
"""The exit status of a process whose real one is lost with its shim."""


class ProcessStatus(enum.IntEnum):
    """Status of a process; the numbers are those of the API."""

    UNKNOWN = 0
    CREATED = 1
    RUNNING = 2
    STOPPED = 3
    PAUSED = 4
    PAUSING = 5


class IO(msgspec.Struct, frozen=True, kw_only=True):
    """Where the streams of a process go: fifo paths or URIs, "" for none."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False


class CreateOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to create a task.

    `runtime` is a runtime name or the absolute path of a shim. `options` are those of this call, `runtime_options`
    those of the container record, used if the call has none. `checkpoint` is a directory to restore from. A task of
    a sandbox joins the shim at `task_api_address` (`ttrpc+unix://...`), or else the one of `sandbox_id`.
    """

    runtime: str
    spec: Any | None = None
    io: IO = IO()
    rootfs: Sequence[Mount] = ()
    checkpoint: str = ""
    options: Any | None = None
    runtime_options: Any | None = None
    sandbox_id: str = ""
    task_api_address: str = ""
    task_api_version: int = 0


class ExecOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What to execute: `spec` is an OCI process."""

    spec: Any | None
    io: IO = IO()


class Exit(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a process. `pid` is 0 if it is not known."""

    status: int
    exited_at_ns: int
    pid: int = 0


class ProcessState(msgspec.Struct, frozen=True, kw_only=True):
    """A process as its shim sees it. `exited_at_ns` is Go's zero time until the process has exited."""

    id: str
    pid: int = 0
    status: ProcessStatus = ProcessStatus.UNKNOWN
    io: IO = IO()
    exit_status: int = 0
    exited_at_ns: int = ZERO_NS


class ProcessInfo(msgspec.Struct, frozen=True):
    """One process of a container; `info` is the shim's own description of it, if any."""

    pid: int
    info: Any | None = None


@guarded(late_counts=False)
class Process(Protocol):
    """Init or an exec of a task."""

    @property
    def id(self) -> str:
        """The container's id for init, the exec's id otherwise."""
        ...

    @deadline(TASK)
    async def start(self) -> int:
        """Run the process and return its pid."""
        ...

    @deadline(TASK, always=True)
    async def state(self) -> ProcessState:
        """Return the state of the process. Bounded by `io.containerd.timeout.task.state`."""
        ...

    @deadline(TASK, always=True)
    async def kill(self, signal: int, *, all_processes: bool = False) -> None: ...

    @deadline(TASK)
    async def resize_pty(self, width: int, height: int) -> None: ...

    @deadline(TASK)
    async def close_io(self) -> None:
        """Close stdin."""
        ...

    @unlimited("the exit of a process is waited for as long as it runs", always=True)
    async def wait(self) -> Exit:
        """Wait for the exit of the process, without limit. Any number of callers may wait and give up."""
        ...

    @deadline(TASK, always=True)
    async def delete(self) -> Exit:
        """Forget a process that has exited. For init that is the end of the task, its shim and its bundle."""
        ...


@guarded(late_counts=False)
class Task(Process, Protocol):
    """A task; as a Process it is its init."""

    @property
    def namespace(self) -> str: ...

    @property
    def bundle(self) -> str:
        """Path of the bundle directory."""
        ...

    @property
    def pid(self) -> int:
        """Pid of init as last told by the shim; 0 before there is one."""
        ...

    def process(self, exec_id: str) -> Process:
        """Return init for "", else the exec. A missing exec is noticed by the first call that goes to the shim."""
        ...

    @deadline(TASK)
    async def exec(self, exec_id: str, options: ExecOptions) -> Process:
        """Add an exec. Raises AlreadyExists if the id is taken."""
        ...

    @deadline(TASK)
    async def pause(self) -> None: ...

    @deadline(TASK)
    async def resume(self) -> None: ...

    @deadline(TASK, always=True)
    async def pids(self) -> Sequence[ProcessInfo]:
        """Return every process of the container."""
        ...

    @deadline(TASK)
    async def checkpoint(self, path: str, options: Any | None) -> None:
        """Write a checkpoint into the directory `path`."""
        ...

    @deadline(TASK)
    async def update(self, resources: Any | None, annotations: Mapping[str, str] = _NONE) -> None:
        """Change resource limits; `resources` is an OCI LinuxResources."""
        ...

    @deadline(TASK, always=True)
    async def stats(self) -> Any:
        """Return cgroup metrics. Bounded by `io.containerd.timeout.metrics.shimstats`."""
        ...


@guarded(late_counts=False)
class TaskRuntime(Protocol):
    """All tasks of the daemon."""

    @deadline(TASK)
    async def create(self, container_id: str, options: CreateOptions) -> Task:
        """Create a task. A failure leaves no container, shim, mount or bundle."""
        ...

    @deadline(WORK, always=True)
    async def get(self, container_id: str) -> Task: ...

    @deadline(WORK, always=True)
    async def list(self, *, all_namespaces: bool = False) -> Sequence[Task]:
        """Return the tasks of the current or of every namespace, sorted by namespace and id."""
        ...

    @deadline(TASK, always=True)
    async def plugin_info(self, options: Any | None) -> Any:
        """Return what a shim binary tells of itself: RuntimeRequest in, RuntimeInfo out (facts/core 12)."""
        ...
