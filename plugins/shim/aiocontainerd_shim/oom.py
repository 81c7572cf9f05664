"""Kills for want of memory (facts/runtime 6.4): an eventfd on version 1, inotify on version 2."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence

from aiocontainerd.sys import inotify
from aiocontainerd.sys.cgroup import read_flat, write_text
from aiocontainerd_shim.cgroups import Cgroup
from aiocontainerd_shim.descriptors import READABLE, Descriptors
from aiocontainerd_shim.fifos import close_fd
from aiocontainerd_shim.rest import RestedOom

_READ_BYTES = 4096


class OomWatch:
    """Calls back with the container's id whenever the kernel has killed in its cgroup."""

    def __init__(self, container_id: str, cgroup: Cgroup, on_oom: Callable[[str], None]) -> None:
        self.container_id = container_id
        self._on_oom = on_oom
        self._unified = cgroup.is_unified
        self._dir = cgroup.paths.unified or cgroup.paths.controllers.get("memory", "")
        self._fd = -1
        self._kills = 0

    def __repr__(self) -> str:
        return f"<OomWatch {self.container_id} {'watching' if self._fd >= 0 else 'closed'}>"

    def start(self) -> None:
        """Watch from now on, in the running loop.

        Raises OSError where the kernel refuses, as without a memory controller. Kills from before aren't told.
        """
        self._fd = self._open_unified() if self._unified else self._open_version_1()
        asyncio.get_running_loop().add_reader(self._fd, self._on_readable)

    def look(self) -> None:
        """Tell of a kill whose notice is still on its way: version 2 sends it from a work queue, after the kill."""
        if self._fd >= 0 and self._unified and self._has_killed():
            self._on_oom(self.container_id)

    def rested(self, held: Descriptors) -> RestedOom | None:
        """What `adopt` needs; None where nothing is watched."""
        return RestedOom(held.put(self._fd, READABLE), self._kills) if self._fd >= 0 else None

    def adopt(self, rested: RestedOom, fds: Sequence[int]) -> None:
        """Watch on with a descriptor kept meanwhile."""
        self._fd, self._kills = fds[rested.fd], rested.kills
        asyncio.get_running_loop().add_reader(self._fd, self._on_readable)

    def close(self) -> None:
        """Stop watching. May be called again."""
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            self._fd = close_fd(self._fd)

    def _open_version_1(self) -> int:
        control = os.open(f"{self._dir}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
        event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            write_text(f"{self._dir}/cgroup.event_control", f"{event} {control}")
        except BaseException:
            os.close(event)
            raise
        finally:
            os.close(control)
        return event

    def _open_unified(self) -> int:
        path = f"{self._dir}/memory.events"
        fd = inotify.open_instance()
        try:
            inotify.add_watch(fd, path, inotify.IN_MODIFY)
        except BaseException:
            os.close(fd)
            raise
        self._kills = read_flat(path).get("oom_kill", 0)
        return fd

    def _on_readable(self) -> None:
        try:
            os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return
        if not os.path.isdir(self._dir):
            self.close()  # removing the cgroup wakes the watcher too
        elif not self._unified or self._has_killed():
            self._on_oom(self.container_id)

    def _has_killed(self) -> bool:
        before = self._kills
        self._kills = read_flat(f"{self._dir}/memory.events").get("oom_kill", before)
        return self._kills > before
