"""Kills for want of memory (facts/runtime 6.4): an eventfd on version 1, inotify on version 2.

A service manager that has made the cgroup removes it as soon as its last process is dead. Then nobody may have read yet
why the process died. The counts of the cgroups above include that kill. If the nearest cgroup that is left has risen
since the last look, and a process of ours was killed, it was killed for want of memory.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from itertools import takewhile

import msgspec

from aiocontainerd.sys import inotify
from aiocontainerd.sys.cgroup import read_flat, write_text
from aiocontainerd_shim.cgroups.cgroup import Cgroup

_READ_BYTES = 4096
_UNKNOWN = -1


class OomPosition(msgspec.Struct, frozen=True):
    """How far a watch has come: its descriptor, kills seen in its cgroup and in those above, the nearest first."""

    fd: int
    kills: int
    above: list[int] = []


class OomWatch:
    """Calls back with the container's id whenever the kernel has killed in its cgroup."""

    def __init__(self, container_id: str, cgroup: Cgroup, on_oom: Callable[[str], None]) -> None:
        self.container_id = container_id
        self._on_oom = on_oom
        self._unified = cgroup.is_unified
        self._dir = cgroup.paths.unified or cgroup.paths.controllers.get("memory", "")
        self._fd = -1
        self._kills = 0
        self._above: list[int] = []
        """Kills seen in the cgroups above, the nearest first."""
        self._closed = False

    def __repr__(self) -> str:
        return f"<OomWatch {self.container_id} {'watching' if self._fd >= 0 else 'closed'}>"

    def start(self) -> None:
        """Watch from now on, in the running loop. Earlier kills are not told.

        Raises OSError where the kernel refuses, for instance without a memory controller.
        """
        self._fd = self._open_unified() if self._unified else self._open_version_1()
        asyncio.get_running_loop().add_reader(self._fd, self._on_readable)

    def look(self, *, killed: bool) -> None:
        """Look for a kill whose notice is still on its way, and tell it.

        Version 2 sends the notice from a work queue, after the kill. `killed` is whether a process has just
        ended by SIGKILL.
        """
        if self._unified and not self._closed and self._has_killed(by_above=killed):
            self._on_oom(self.container_id)

    @property
    def position(self) -> OomPosition | None:
        """Where `resume` may go on; None if nothing is watched."""
        return OomPosition(self._fd, self._kills, self._above) if self._fd >= 0 else None

    def resume(self, position: OomPosition) -> None:
        """Watch on from where another watch has stopped."""
        self._fd, self._kills, self._above = position.fd, position.kills, position.above
        if self._unified and _count(self._dir) == self._kills:
            self._above = self._count_above()
        asyncio.get_running_loop().add_reader(self._fd, self._on_readable)

    def close(self) -> None:
        """Stop watching and looking. May be called again."""
        self._closed = True
        self._stop_reading()

    def _stop_reading(self) -> None:
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

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
        self._kills = _count(self._dir)
        self._above = list(takewhile(lambda kills: kills != _UNKNOWN, map(_count, _ancestors(self._dir))))
        return fd

    def _on_readable(self) -> None:
        try:
            os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return
        if not os.path.isdir(self._dir):
            self._stop_reading()  # removing the cgroup wakes the watcher too
        elif not self._unified or self._has_killed(by_above=False):
            self._on_oom(self.container_id)

    def _has_killed(self, *, by_above: bool) -> bool:
        """Return whether the kernel has killed since the last look. If the cgroup has gone, the cgroups above tell."""
        kills, above = _count(self._dir), self._count_above()
        if kills == _UNKNOWN:
            left = (now > before for now, before in zip(above, self._above, strict=True) if now != _UNKNOWN)
            killed = by_above and next(left, False)
        else:
            killed = kills > self._kills
            self._kills = kills
        self._above = above
        return killed

    def _count_above(self) -> list[int]:
        return [_count(directory) for directory, _ in zip(_ancestors(self._dir), self._above, strict=False)]


def _ancestors(directory: str) -> Iterator[str]:
    while (above := os.path.dirname(directory)) != directory:
        yield above
        directory = above


def _count(directory: str) -> int:
    """Return the kills in a cgroup and below it; `_UNKNOWN` where it has gone or has no memory controller."""
    return read_flat(f"{directory}/memory.events").get("oom_kill", _UNKNOWN)
