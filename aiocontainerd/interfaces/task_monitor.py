"""Task monitors (kind `io.containerd.monitor.task.v1`): who wants to know which tasks there are, for metrics say.

Vocabulary. A *task* is as in `interfaces/runtime.py`. *Monitoring* one is whatever the monitor does between `monitor`
and `stop`.

Life cycle. `monitor` is called for every task after it was created, and for every task that a starting daemon finds
again, with the labels of its container; `stop` before the task is deleted. While the daemon starts, a task may be told
of twice. The namespace is that of `aiocontainerd.context`. A monitor must not keep a task alive: a task may vanish
without `stop` when its shim dies, and calls on it then raise NotFound.

What must fail and how. What `monitor` raises is logged and fails no task. `monitor` of a task that is monitored and
`stop` of one that is not are no errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from aiocontainerd.interfaces.rules import WORK, deadline
from aiocontainerd.interfaces.runtime import Task

__all__ = ["Task", "TaskMonitor"]


class TaskMonitor(Protocol):
    """Told of tasks as they come and go."""

    @deadline(WORK)
    async def monitor(self, task: Task, labels: Mapping[str, str]) -> None:
        """Begin to watch a task."""
        ...

    @deadline(WORK, always=True)
    async def stop(self, task: Task) -> None:
        """Stop watching a task, which is about to be deleted."""
        ...
