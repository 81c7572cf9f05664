"""The init of a container: everything the OCI runtime does with a whole container (facts/runtime 4.1-4.3, 4.7)."""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from aiocontainerd.errors import ContainerdError, NotFound, Unknown, os_text
from aiocontainerd.sys.mount import Mount, mount_all, unmount_recursive
from aiocontainerd_shim.io.stdio import Stdio
from aiocontainerd_shim.oci.runtime import CheckpointFlags, CreateFlags, NoPid, OciError
from aiocontainerd_shim.task.process import Process, Site, StdioFds
from aiocontainerd_shim.task.states import Action, State

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_FINISHED = ("os: process already finished", "container not running", "is not running", "no such process")


class Checkpoint(msgspec.Struct, frozen=True):
    """The directories from which a container is restored. An empty image path means that it is created anew."""

    image_path: str = ""
    parent_path: str = ""


class InitProcess(Process):
    """The first process of a container. It stands for the container."""

    is_init = True
    console_owner = "OCI runtime"

    def __init__(self, site: Site, stdio: Stdio, mounts: Sequence[Mount], checkpoint: Checkpoint) -> None:
        super().__init__(site, "", stdio)
        self.pausing = False
        self._mounts = mounts
        self._checkpoint = checkpoint

    @property
    def rootfs(self) -> Path:
        """Where the container's root is mounted."""
        return self.site.bundle / "rootfs"

    async def create(self) -> None:
        """Mount the root and create the container. With a checkpoint, wait for `start` instead.

        If this fails or is cancelled, nothing stays mounted or known to the OCI runtime.
        """
        try:
            self._mount()
            if self._checkpoint.image_path:
                self.state = State.RESTORING
            else:
                self.pid = await self._guarded("create", self.launch(self._create))
        except BaseException:
            await asyncio.shield(self._undo())
            raise
        self.save()

    async def start(self) -> None:
        """Start the container, or restore it."""
        self.check(Action.START)
        if self.state == State.RESTORING:
            self.pid = await self._guarded("restore", self.launch(self._restore))
        else:
            await self._guarded("start", self.site.runtime.start(self.site.id))
        self.state = State.RUNNING
        self.save()

    async def pause(self) -> None:
        """Freeze the container."""
        self.check(Action.PAUSE)
        self.pausing = True
        try:
            await self._guarded("pause", self.site.runtime.pause(self.site.id))
        finally:
            self.pausing = False
        self.state = State.PAUSED

    async def resume(self) -> None:
        """Thaw the container."""
        self.check(Action.RESUME)
        await self._guarded("resume", self.site.runtime.resume(self.site.id))
        self.state = State.RUNNING

    async def kill(self, signum: int, *, everyone: bool) -> None:
        """Signal the init, or every process of the container. Raises NotFound if it is over."""
        self.check(Action.KILL)
        if self.state == State.STOPPED and not everyone:
            raise NotFound("process already finished")
        try:
            await self.site.runtime.kill(self.site.id, signum, everyone=everyone)
        except OciError as failure:
            raise kill_error(failure, self.site.runtime.root) from failure
        if signum == signal.SIGKILL and self.state == State.PAUSED:
            await self.thaw()

    async def kill_all(self) -> None:
        """Kill whatever the container left running. It is no failure if nothing is left."""
        try:
            await self.site.runtime.kill(self.site.id, 9, everyone=True)
        except OciError as failure:
            log.debug("killing what the container left running failed: %s", failure)

    async def update(self, resources: bytes) -> None:
        """Apply resources, the JSON of a LinuxResources."""
        self.check(Action.UPDATE)
        try:
            await self.site.runtime.update(self.site.id, resources)
        except OciError as failure:
            raise Unknown(failure.raw) from failure

    async def checkpoint(self, flags: CheckpointFlags) -> None:
        """Write a checkpoint. If that fails, CRIU's log stays in the bundle."""
        from aiocontainerd_shim.oci import criu

        self.check(Action.CHECKPOINT)
        work = Path(flags.work_path or self.site.bundle / "work" / "criu-work")
        flags = msgspec.structs.replace(flags, work_path=str(work))
        streams = criu.streams_of(self.pid)
        try:
            with self._criu_config(criu.dump_config(streams)) as env:
                await self.site.runtime.checkpoint(self.site.id, flags, env)
            criu.keep_streams(Path(flags.image_path), streams)
        except OciError as failure:
            dump = self.site.bundle / "criu-dump.log"
            _copy_if_there(work / "dump.log", dump)
            ending = f"{failure.ending}: " if failure.ending else ""
            text = self._failed(failure, work / "dump.log").removeprefix(ending)
            raise Unknown(f"{ending}{text} path= {dump}") from failure
        finally:
            self._remove_work(work)

    async def delete(self) -> None:
        """Remove the container: wait for its output, remove its OCI runtime state, unmount its root.

        If the OCI runtime fails, the streams are closed and the root is unmounted all the same.
        """
        self.check(Action.DELETE)
        if self.state == State.STOPPED:  # a container that never ran has written nothing, and still holds its pipes
            await self.drained()
        failed: Unknown | None = None
        try:
            await self.site.runtime.delete(self.site.id)
        except OciError as failure:
            failed = Unknown(f"failed to delete task: {failure}")
        await self.close_streams()
        stays = self._unmount()
        failed = failed or stays
        if failed is not None:
            raise failed
        self.state = State.DELETED

    async def thaw(self) -> None:
        """Let a process that was killed while paused run on to its end. runc does so by itself, crun does not."""
        try:
            await self.site.runtime.resume(self.site.id)
        except OciError as failure:
            log.debug("thawing the container failed: %s", failure)

    async def _create(self, console_socket: str, stdio: StdioFds | None) -> int:
        site = self.site
        return await site.runtime.create(
            site.id, site.bundle, site.bundle / "init.pid", self._flags(console_socket), stdio
        )

    async def _restore(self, console_socket: str, stdio: StdioFds | None) -> int:
        from aiocontainerd_shim.oci import criu

        site = self.site
        work = Path(site.options.criu_work_path or site.bundle / "work" / "criu-work")
        image = CheckpointFlags(
            image_path=site.options.criu_image_path or self._checkpoint.image_path,
            work_path=str(work),
            parent_path=self._checkpoint.parent_path,
        )
        try:
            with self._criu_config(criu.restore_config(criu.kept_streams(Path(image.image_path)))) as env:
                return await site.runtime.restore(
                    site.id, site.bundle, site.bundle / "init.pid", self._flags(console_socket), image, stdio, env
                )
        except OciError as failure:
            raise OciError(self._failed(failure, work / "restore.log"), failure.output) from failure
        finally:
            _copy_if_there(work / "restore.log", site.bundle / "criu-dump.log")
            self._remove_work(work)

    @contextmanager
    def _criu_config(self, text: str) -> Iterator[dict[str, str]]:
        """Give the environment in which CRIU reads `text` besides its own configuration."""
        from aiocontainerd_shim.oci import criu

        if not text:
            yield {}
            return
        path = self.site.bundle / "criu.conf"
        path.write_text(text)
        try:
            yield {criu.CONFIG_VARIABLE: str(path)}
        finally:
            path.unlink(missing_ok=True)

    def _failed(self, failure: OciError, log: Path) -> str:
        """Return the first line of a failure (facts/runtime 4.7), and the cause from CRIU's log."""
        from aiocontainerd_shim.oci import criu

        text = str(failure).partition("\n")[0]
        reason = criu.reason(log, f"{failure} {failure.output}")
        return f"{text}: {reason}" if reason else text

    def _flags(self, console_socket: str) -> CreateFlags:
        options = self.site.options
        return CreateFlags(
            no_pivot=options.no_pivot_root, no_new_keyring=options.no_new_keyring, console_socket=console_socket
        )

    def _mount(self) -> None:
        if not self._mounts:
            return
        try:
            self.rootfs.mkdir(mode=0o711, exist_ok=True)
            mount_all(self._mounts, str(self.rootfs))
        except (OSError, ContainerdError) as failure:
            reason = os_text(failure, "mount") if isinstance(failure, OSError) else failure.message
            raise Unknown(f"failed to mount rootfs component: {reason}") from failure

    def _unmount(self) -> Unknown | None:
        """Unmount the root; return the error if something stays mounted."""
        try:
            unmount_recursive(str(self.rootfs))
        except OSError as failure:
            return Unknown(f"failed rootfs umount: {os_text(failure, 'unmount')}")
        return None

    async def _undo(self) -> None:
        try:
            await self.site.runtime.delete(self.site.id, force=True)
        except OciError as failure:
            log.debug("nothing to delete: %s", failure)
        finally:
            stays = self._unmount()
            if stays is not None:  # it must not hide why there is something to undo
                log.warning("container %s: %s", self.site.id, stays)

    def _remove_work(self, work: Path) -> None:
        if not self.site.options.criu_work_path:
            shutil.rmtree(work, ignore_errors=True)

    @staticmethod
    async def _guarded(verb: str, command: Awaitable[_T]) -> _T:
        try:
            return await command
        except NoPid as failure:
            raise Unknown(str(failure)) from failure
        except OciError as failure:
            raise Unknown(f"OCI runtime {verb} failed: {failure}") from failure


def kill_error(failure: OciError, root: str) -> NotFound | Unknown:
    """Return the error for a failed kill, from the words of the OCI runtime whose state is in `root`."""
    text = f"{failure} {failure.output}".lower()
    if any(phrase in text for phrase in _FINISHED):
        return NotFound("process already finished")
    if failure.says_missing(root):
        return NotFound("no such container")
    return Unknown(f"unknown error after kill: {failure.raw}")


def _copy_if_there(source: Path, target: Path) -> None:
    try:
        shutil.copyfile(source, target)
    except FileNotFoundError:
        return
