"""Recovery after a restart: finds the shims that still live, and cleans up after the others (facts/runtime 9).

All bundles are looked at at the same time, each by itself and within `io.containerd.timeout.shim.load`. A call that
concerns a bundle waits until it has been looked at; no other call does. A shim that rests, and whose init is on record
as running, is left alone: the first call connects to it, or else a slow round does. A shim may listen but not answer,
or answer with an error that says nothing about its container. Such a shim is kept: its container may well be running.

A container whose bundle is damaged or gone cannot be stopped through the daemon any more. Its processes are ended, by
the cgroup that its record names, and the log says so.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import msgspec

from aiocontainerd import context
from aiocontainerd.errors import ContainerdError, NotFound, Unimplemented
from aiocontainerd.interfaces.runtime import ProcessState
from aiocontainerd.interfaces.shim import ShimLauncher
from aiocontainerd.rpc.ttrpc.client import TtrpcClosed
from aiocontainerd_runtime_v2 import bundle as bundles
from aiocontainerd_runtime_v2 import known, leftovers, strays
from aiocontainerd_runtime_v2.bootstrap import Endpoint
from aiocontainerd_runtime_v2.bundle import Bundle
from aiocontainerd_runtime_v2.manager import to_thread
from aiocontainerd_runtime_v2.runtime import ShimTaskRuntime
from aiocontainerd_runtime_v2.shim import NobodyListensError, Shim
from aiocontainerd_runtime_v2.task import ShimTask
from aiocontainerd_runtime_v2.traces import RUNTIME_ROOT

log = logging.getLogger(__name__)

PAUSE_S = 0.05
"""Pause between two connections to shims at rest. Each wakes a shim for a third of a second."""

RuntimeName = Callable[[str], Awaitable[str]]
"""The runtime name of a container of the current namespace; raises NotFound."""


Spec = Callable[[str], Awaitable[bytes]]
"""The OCI spec of a container of the current namespace; raises NotFound."""


class OnDisk(msgspec.Struct, frozen=True):
    """Leftovers of the last daemon: bundles, and work directories without a bundle."""

    bundles: list[Bundle]
    strays: list[Bundle]


class Recovery:
    """Finds the tasks of the last daemon."""

    def __init__(self, runtime: ShimTaskRuntime, runtime_name: RuntimeName, spec: Spec) -> None:
        self._runtime = runtime
        self._manager = runtime.manager
        self._runtime_name = runtime_name
        self._spec = spec
        self._resting: list[ShimTask] = []

    async def scan(self) -> OnDisk:
        """Return what there is to look at."""
        layout = self._runtime.layout
        await to_thread(layout.sweep)
        present = await to_thread(layout.present)
        return OnDisk(present, await to_thread(layout.strays, set(present)))

    async def run(self, found: OnDisk, ready: anyio.Event) -> None:
        """Look at everything. `ready` is set as soon as calls know what to wait for."""
        table = self._runtime.table
        with table.loading((bundle.namespace, bundle.id) for bundle in (*found.bundles, *found.strays)):
            ready.set()
            async with anyio.create_task_group() as group:
                for bundle in found.bundles:
                    group.start_soon(self._guarded, self._load, bundle)
                for bundle in found.strays:
                    group.start_soon(self._guarded, self._end_stray, bundle)
        await self._meet()

    async def _meet(self) -> None:
        """Connect to the shims that were left alone, one after the other, to learn of their ends."""
        for task in self._resting:
            if not self._runtime.table.holds(task):
                continue
            try:
                await task.shim.dial(limit_s=self._manager.deadlines.load_s)
            except ContainerdError as error:
                log.warning("the shim of task %s/%s is gone: %s", task.namespace, task.id, error.message)
            await anyio.sleep(PAUSE_S)

    async def _guarded(self, step: Callable[[Bundle], Awaitable[None]], bundle: Bundle) -> None:
        try:
            await step(bundle)
        except Exception:  # the edge of one bundle: it harms no other
            log.exception("bundle of task %s/%s", bundle.namespace, bundle.id)
        finally:
            self._runtime.table.loaded((bundle.namespace, bundle.id))

    async def _load(self, bundle: Bundle) -> None:
        facts = await to_thread(_facts, bundle)
        if facts is None:
            await self._end_stray(bundle)
            return
        binary, endpoint, state = facts
        try:
            launcher = self._manager.launcher_of(binary) if binary else await self._launcher_by_record(bundle)
        except ContainerdError as error:
            log.warning("the bundle of task %s/%s is removed: %s", bundle.namespace, bundle.id, error.message)
            await self._discard(bundle)
            return
        self._runtime.open_log(bundle)
        if launcher.rests and endpoint is not None:
            endpoint = await self._put_right(bundle, endpoint)
        if binary is not None and endpoint is not None and state is not None and launcher.rests:
            self._leave_alone(Shim(bundle, endpoint, None, launcher), state)
            return
        try:
            shim = await self._connect(bundle, launcher, joined=binary is None)
        except Unimplemented as error:
            log.error("the shim of task %s/%s cannot be called: %s", bundle.namespace, bundle.id, error.message)
        except (NobodyListensError, NotFound) as error:
            log.warning("the shim of task %s/%s is gone: %s", bundle.namespace, bundle.id, error.message)
            await to_thread(strays.kill, bundle)
            await self._manager.clean_up(bundle, launcher)
            await self._discard(bundle)
        except ContainerdError as error:
            log.warning(
                "task %s/%s is kept, although its shim cannot be reached: %s",
                bundle.namespace, bundle.id, error.message,
            )  # fmt: skip
            assert endpoint is not None, "a bundle without an endpoint is NotFound"
            self._leave_alone(Shim(bundle, endpoint, None, launcher, joined=binary is None), state)
        else:
            await self._take_up(shim)

    async def _end_stray(self, bundle: Bundle) -> None:
        """End what runs without a usable bundle, and remove what is left of the bundle.

        A task whose bundle is in another directory of state belongs to the daemon of that directory.
        """
        elsewhere = await to_thread(strays.bundle_elsewhere, bundle)
        if elsewhere:
            log.error(
                "task %s/%s is left alone: its bundle is %s, in another directory of state (key `state`)",
                bundle.namespace,
                bundle.id,
                elsewhere,
            )
            return
        await to_thread(strays.kill, bundle)
        if await self._kill(bundle) or await to_thread(_has_runtime_state, bundle):
            await self._clean_up_without_bundle(bundle)
        await self._runtime.discard(bundle)

    async def _clean_up_without_bundle(self, bundle: Bundle) -> None:
        """Have the OCI runtime forget a container, from an empty bundle."""
        try:
            launcher = await self._launcher_by_record(bundle)
        except ContainerdError as error:
            log.warning("the container of task %s/%s is not cleaned up: %s", bundle.namespace, bundle.id, error.message)
            return
        await to_thread(_make_directory, bundle)
        await self._manager.clean_up(bundle, launcher)

    async def _discard(self, bundle: Bundle) -> None:
        await self._kill(bundle)
        await self._runtime.discard(bundle)

    async def _kill(self, bundle: Bundle) -> int:
        """Kill what still runs of a container that no task stands for; return how many processes there were."""
        with context.use(namespace=bundle.namespace, lease=""):
            try:
                specs = [await self._spec(bundle.id)]
            except ContainerdError:
                specs = []
        killed = await to_thread(_kill_leftovers, bundle, specs)
        if killed:
            log.warning(
                "task %s/%s has no usable bundle, and its container still ran: %d of its processes were killed",
                bundle.namespace,
                bundle.id,
                killed,
            )
        return killed

    async def _launcher_by_record(self, bundle: Bundle) -> ShimLauncher:
        with context.use(namespace=bundle.namespace, lease=""):
            name = await self._runtime_name(bundle.id)
        return await self._manager.launcher(name)

    async def _connect(self, bundle: Bundle, launcher: ShimLauncher, *, joined: bool) -> Shim:
        endpoint = await to_thread(bundles.read_endpoint, bundle)
        if endpoint is None:
            await to_thread(strays.kill, bundle)
            raise NotFound("the bundle is damaged or half made, so its container is ended")
        await to_thread(bundles.write_endpoint, bundle, endpoint)
        return await self._manager.connect(bundle, endpoint, launcher, joined=joined)

    async def _put_right(self, bundle: Bundle, endpoint: Endpoint) -> Endpoint:
        """Return where the shim listens that works in a bundle, if the bundle names another address."""
        own = await self._manager.own_endpoint(bundle, endpoint)
        if own is None:
            return endpoint
        log.warning(
            "the bundle of task %s/%s names %s, but its shim listens at %s: that is written there",
            bundle.namespace, bundle.id, endpoint.address, own.address,
        )  # fmt: skip
        await to_thread(bundles.write_endpoint, bundle, own)
        return own

    def _leave_alone(self, shim: Shim, state: ProcessState | None) -> None:
        task = self._runtime.adopt(shim)
        if state is not None:
            shim.pid = state.pid
            task.know(state)
        self._runtime.watch(task)
        self._resting.append(task)

    async def _take_up(self, shim: Shim) -> None:
        task = self._runtime.adopt(shim)
        try:
            await shim.connect(limit_s=self._manager.deadlines.load_s)
            await task.state()
        except NotFound:
            log.warning("the shim of task %s/%s does not know the container", task.namespace, task.id)
            await self._runtime.undo(task)
            return
        except TtrpcClosed as error:
            log.warning("the shim of task %s/%s is gone: %s", task.namespace, task.id, error.message)
            await self._runtime.undo(task)
            return
        except ContainerdError as error:
            log.warning(
                "task %s/%s is kept, although its shim does not answer: %s", task.namespace, task.id, error.message
            )
        self._runtime.watch(task)


def _facts(bundle: Bundle) -> tuple[Path | None, Endpoint | None, ProcessState | None] | None:
    """Return the program of the shim, where it listens, and the init if it is on record and runs. Blocking.

    Returns None for an empty bundle.
    """
    if bundles.is_empty(bundle):
        return None
    return bundles.read_shim_path(bundle), bundles.read_endpoint(bundle), known.read(bundle)


def _kill_leftovers(bundle: Bundle, specs: list[bytes]) -> int:
    specs = [*([config] if (config := bundles.read_config(bundle)) else []), *specs]
    return leftovers.kill(leftovers.cgroup_of(bundle.namespace, bundle.id, *specs))


def _has_runtime_state(bundle: Bundle) -> bool:
    return (Path(RUNTIME_ROOT) / bundle.namespace / bundle.id).is_dir()


def _make_directory(bundle: Bundle) -> None:
    if not bundle.path.is_dir():
        bundle.path.unlink(missing_ok=True)
    bundle.path.mkdir(mode=0o700, parents=True, exist_ok=True)
