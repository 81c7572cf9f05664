"""The task runtime: creates, finds and ends tasks, and cleans up after dead shims (facts/runtime 3.7, 4.2)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import anyio

from aiocontainerd import api, context
from aiocontainerd.errors import ContainerdError, InvalidArgument, NotFound, os_text
from aiocontainerd.interfaces.runtime import CreateOptions, Exit
from aiocontainerd.rpc.ttrpc.client import TtrpcClosed
from aiocontainerd.typeurl import Any
from aiocontainerd.wire import codec
from aiocontainerd.wire.anys import marshal, message_name, unmarshal_given
from aiocontainerd.wire.times import time_to_wire
from aiocontainerd_runtime_v2 import bundle as bundles
from aiocontainerd_runtime_v2 import strays
from aiocontainerd_runtime_v2.bootstrap import Endpoint, from_api_address
from aiocontainerd_runtime_v2.bundle import Bundle, Layout
from aiocontainerd_runtime_v2.manager import ShimManager, prefixed, to_thread
from aiocontainerd_runtime_v2.moves import Moves
from aiocontainerd_runtime_v2.shim import Shim, lost_exit
from aiocontainerd_runtime_v2.shim_log import ShimLog
from aiocontainerd_runtime_v2.table import Table
from aiocontainerd_runtime_v2.task import ShimTask, chosen_options
from aiocontainerd_runtime_v2.traces import Traces
from aiocontainerd_runtime_v2.waits import Spawn

if TYPE_CHECKING:
    import betterproto2

    from aiocontainerd.interfaces.shim import ShimLauncher

log = logging.getLogger(__name__)

_JOINABLE_VERSION = 3
_NOT_STARTED = "failed to start shim"


class Publish(Protocol):
    """Publishes an event in a namespace."""

    def __call__(self, topic: str, event: betterproto2.Message, *, namespace: str) -> None: ...


class ShimTaskRuntime:
    """Every task of the daemon. `spawn` starts work that lives as long as the daemon; shims live longer."""

    def __init__(
        self,
        layout: Layout,
        manager: ShimManager,
        publish: Publish,
        spawn: Spawn,
        sandboxes: Path,
    ) -> None:
        self.layout = layout
        self.manager = manager
        self.table = Table()
        self.spawn = spawn
        self._moves = Moves(spawn)
        self._publish = publish
        self._sandboxes = sandboxes
        self._traces = Traces(layout)
        self._logs: dict[Bundle, ShimLog] = {}
        self._left: set[Bundle] = set()
        """Bundles that could not be removed, such as those with files on a read-only file system."""
        self._stopping = False

    def __repr__(self) -> str:
        return f"<ShimTaskRuntime {self.layout.state} {self.statistics()}>"

    def statistics(self) -> dict[str, int]:
        """Return the counts of tasks and of ids in transition."""
        return self.table.statistics()

    async def get(self, container_id: str) -> ShimTask:
        """Return the task of a container. Raises NotFound `task <id> not found`."""
        return await self.table.get((context.namespace(), container_id))

    async def list(self, *, all_namespaces: bool = False) -> list[ShimTask]:
        """Return the tasks of the current or of every namespace."""
        return await self.table.select(None if all_namespaces else context.namespace())

    async def create(self, container_id: str, options: CreateOptions) -> ShimTask:
        """Create a task. A failure leaves no container, shim, mount or bundle."""
        key = (context.namespace(), container_id)
        bundles.validate(container_id)
        await self.table.reserve(key)
        try:
            self._moves.expect()
            return await self._create(key, options)
        finally:
            self.table.release(key)

    async def _create(self, key: tuple[str, str], options: CreateOptions) -> ShimTask:
        try:
            launcher = await self.manager.launcher(options.runtime)
        except ContainerdError as error:
            raise prefixed(_NOT_STARTED, error) from error
        bundle = await to_thread(self._make_bundle, *key, options)
        try:
            self.open_log(bundle)
            shim = await self._shim(bundle, launcher, options)
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                await to_thread(strays.kill, bundle)
                await self.manager.clean_up(bundle, launcher)
                await self.discard(bundle)
            if isinstance(error, ContainerdError):
                raise prefixed(_NOT_STARTED, error) from error
            raise
        task = self.adopt(shim)
        try:
            await task.create(options)
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                await self.undo(task)
            if isinstance(error, ContainerdError):
                raise prefixed("failed to create shim task", error) from error
            raise
        self.watch(task)
        return task

    def _make_bundle(self, namespace: str, container_id: str, options: CreateOptions) -> Bundle:
        spec = None if options.spec is None else options.spec.value
        self._traces.note(namespace, spec, chosen_options(options))
        return self.layout.create(namespace, container_id, spec)

    async def _shim(self, bundle: Bundle, launcher: ShimLauncher, options: CreateOptions) -> Shim:
        endpoint = await to_thread(self._joinable, bundle.namespace, options) if options.sandbox_id else None
        if endpoint is None:
            return await self._started(bundle, launcher, options)
        await to_thread(bundles.write_endpoint, bundle, endpoint)
        await to_thread(bundles.write_sandbox, bundle, options.sandbox_id)
        return await self.manager.connect(bundle, endpoint, launcher, joined=True)

    async def _started(self, bundle: Bundle, launcher: ShimLauncher, options: CreateOptions) -> Shim:
        """Start a shim to the end, even if the caller is cancelled: a guard leaves such work behind."""
        with anyio.CancelScope(shield=True):
            shim = await self.manager.start(bundle, launcher, chosen_options(options))
        return shim  # noqa: RET504 - a scope may end its block early, as far as a type checker knows

    def _joinable(self, namespace: str, options: CreateOptions) -> Endpoint | None:
        """Return the running shim that a container of a sandbox joins; None if it gets its own."""
        if options.task_api_address:
            found: Endpoint | None = from_api_address(options.task_api_address, options.task_api_version)
        else:
            found = self._sandbox_endpoint(namespace, options.sandbox_id)
        return found if found is not None and found.version >= _JOINABLE_VERSION else None

    def _sandbox_endpoint(self, namespace: str, sandbox_id: str) -> Endpoint | None:
        if not bundles.is_identifier(sandbox_id):
            return None
        for state in (self._sandboxes, self.layout.state):
            endpoint = bundles.read_endpoint(Layout(state, self.layout.root).bundle(namespace, sandbox_id))
            if endpoint is not None:
                return endpoint
        return None

    def adopt(self, shim: Shim) -> ShimTask:
        """Make the task of a connected shim known."""
        task = ShimTask(shim, self.manager.deadlines, self.spawn, self._delete, self._moves)
        self.table.add(task)
        return task

    def watch(self, task: ShimTask) -> None:
        """Clean up when the task's shim dies, from now on."""
        self.spawn(self._watch, task, name=f"watch {task.namespace}/{task.id}")

    def open_log(self, bundle: Bundle) -> None:
        """Copy the log of the bundle's shim until the bundle is discarded."""
        shim_log = self._logs[bundle] = ShimLog(bundle)
        self.spawn(shim_log.run, name=f"log {bundle.namespace}/{bundle.id}")

    async def discard(self, bundle: Bundle) -> None:
        """Remove a bundle. What cannot be removed stays, such as files on a read-only file system; the log says why."""
        shim_log = self._logs.pop(bundle, None)
        if shim_log is not None:
            shim_log.stop()
        try:
            await to_thread(self.layout.remove, bundle)
        except OSError as error:
            self._left.add(bundle)
            log.error("the bundle of task %s/%s could not be removed: %s", bundle.namespace, bundle.id, os_text(error))
            return
        self._left.discard(bundle)
        await self._discard_left()

    async def _discard_left(self) -> None:
        """Remove what could not be removed before, unless the id is in use again."""
        for bundle in sorted(self._left):
            with self.table.removing((bundle.namespace, bundle.id)) as is_free:
                if not is_free:
                    continue
                try:
                    await to_thread(self.layout.remove, bundle)
                except OSError as error:
                    log.debug("the bundle of task %s/%s stays: %s", bundle.namespace, bundle.id, os_text(error))
                else:
                    self._left.discard(bundle)

    async def undo(self, task: ShimTask) -> None:
        """Take back a task whose creation failed or whose container is gone.

        No events are published; each step has its limit.
        """
        limit_s = self.manager.deadlines.cleanup_s
        if not self.table.begin_removal(task):
            return
        try:
            deleted = True
            await task.delete_in_shim(limit_s=limit_s)
        except ContainerdError:
            deleted = False
        clean = await task.shim.shut_down(limit_s=limit_s) and deleted
        await self._finish(task, clean)

    async def _delete(self, task: ShimTask) -> Exit:
        """Delete a task to the end, whatever becomes of the caller.

        If it were gone in the shim alone, nobody could delete the rest any more.
        """
        with anyio.CancelScope(shield=True):
            ended = await self._delete_everywhere(task)
        return ended  # noqa: RET504 - as in _started

    async def _delete_everywhere(self, task: ShimTask) -> Exit:
        shim = task.shim
        missing: NotFound | None = None
        try:
            ended = await task.delete_in_shim(limit_s=self.manager.deadlines.call_s)
        except TtrpcClosed:
            return await shim.recorded_exit()
        except NotFound as error:
            missing, ended = error, shim.exit or lost_exit()
        except ContainerdError as error:
            raise prefixed("failed to delete task", error) from error
        if not self.table.begin_removal(task):
            return shim.exit or ended
        shim.exit = ended
        clean = await shim.shut_down(limit_s=self.manager.deadlines.shutdown_s)  # its socket goes before the answer
        self.spawn(self._finish, task, clean and missing is None, name=f"finish {task.namespace}/{task.id}")
        if missing is not None:
            raise missing
        return ended

    async def _finish(self, task: ShimTask, clean: bool) -> None:
        """Remove the bundle while the caller goes on. The id stays taken until that is done."""
        shim = task.shim
        try:
            await shim.aclose()
            if not clean or _needs_action(shim):
                shim.end(await self.manager.clean_up(shim.bundle, shim.launcher))
            shim.end(shim.exit or lost_exit())
            await self.discard(shim.bundle)
        finally:
            task.close()
            self.table.end_removal(task)

    async def _watch(self, task: ShimTask) -> None:
        await task.shim.wait_closed()
        if self._stopping or not self.table.holds(task):
            return
        log.warning("the shim of task %s/%s has died", task.namespace, task.id)
        if not task.shim.joined:
            await to_thread(strays.kill, task.shim.bundle)  # it may live, and listen elsewhere
        ended = await self.manager.clean_up(task.shim.bundle, task.shim.launcher)
        if not self.table.begin_removal(task):
            return
        try:
            self._publish_death(task, ended)
            task.shim.end(ended)
            await self.discard(task.shim.bundle)
        finally:
            task.close()
            self.table.end_removal(task)

    def _publish_death(self, task: ShimTask, ended: Exit) -> None:
        exited_at = time_to_wire(ended.exited_at_ns)
        exit_event = api.event_types.TaskExit(
            container_id=task.id, id=task.id, pid=ended.pid, exit_status=ended.status, exited_at=exited_at
        )
        delete_event = api.event_types.TaskDelete(
            container_id=task.id, pid=ended.pid, exit_status=ended.status, exited_at=exited_at
        )
        self._publish("/tasks/exit", exit_event, namespace=task.namespace)
        self._publish("/tasks/delete", delete_event, namespace=task.namespace)

    async def plugin_info(self, options: Any | None) -> Any:
        """Return what a shim program says about itself: RuntimeRequest in, RuntimeInfo out (facts/core 12)."""
        request = api.types.RuntimeRequest() if options is None else unmarshal_given(options)
        if not isinstance(request, api.types.RuntimeRequest):
            raise InvalidArgument(f"{message_name(request)} is no containerd.types.RuntimeRequest")
        given = b"" if request.options is None else codec.encode(request.options)
        printed = await self.manager.info(request.runtime_path, given)
        return marshal(codec.decode(api.types.RuntimeInfo, printed))

    async def stop(self) -> None:
        """Wait for deletions under way, let go of every shim, and remove what the OCI runtime left of empty namespaces.

        Shims live on.
        """
        self._stopping = True
        with anyio.move_on_after(self.manager.deadlines.shutdown_s):
            await self.table.removed()
        for task in self.table.tasks:
            task.close()
            await task.shim.aclose()
        await to_thread(self._traces.remove, {bundle.work for bundle in self._left})


def _needs_action(shim: Shim) -> bool:
    """Return whether a shim that answered Delete and Shutdown may have left something behind."""
    return not (shim.joined or shim.launcher.cleans_up)
