"""Telling task monitors about tasks (interfaces/task_monitor.py). No monitor can fail a task or hold one up."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from aiocontainerd import context
from aiocontainerd.errors import NotFound
from aiocontainerd.interfaces.metadata import MetadataStore
from aiocontainerd.interfaces.runtime import Task, TaskRuntime
from aiocontainerd.interfaces.task_monitor import TaskMonitor

log = logging.getLogger(__name__)


class Monitors:
    """All loaded monitors, by their ids."""

    def __init__(self, monitors: Mapping[str, TaskMonitor]) -> None:
        self._monitors = monitors

    def __repr__(self) -> str:
        return f"<Monitors {sorted(self._monitors)}>"

    async def monitor(self, task: Task, labels: Mapping[str, str]) -> None:
        """Tell every monitor about a task that was created or found again."""
        for name, monitor in self._monitors.items():
            try:
                await monitor.monitor(task, labels)
            except Exception as error:  # noqa: BLE001 - the edge of a monitor: what it raises fails no task
                log.warning("monitor %s does not watch task %s/%s: %s", name, task.namespace, task.id, error)

    async def stop(self, task: Task) -> None:
        """Tell every monitor about a task that is about to be deleted."""
        for name, monitor in self._monitors.items():
            try:
                await monitor.stop(task)
            except Exception as error:  # noqa: BLE001 - as above
                log.warning("monitor %s does not let go of task %s/%s: %s", name, task.namespace, task.id, error)

    async def find_again(self, runtime: TaskRuntime, metadata: MetadataStore) -> None:
        """Tell every monitor about the tasks that exist when the daemon starts."""
        if not self._monitors:
            return
        for task in await runtime.list(all_namespaces=True):
            with context.use(namespace=task.namespace):
                await self.monitor(task, await _labels(metadata, task.id))


async def _labels(metadata: MetadataStore, container_id: str) -> Mapping[str, str]:
    try:
        return (await metadata.containers.get(container_id)).labels
    except NotFound:
        return {}
