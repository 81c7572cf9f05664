"""Task monitors: told of every task, able to fail none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiocontainerd_services.task_monitors import Monitors
from aiocontainerd_services.tasks import TasksService

from aiocontainerd import context
from aiocontainerd.errors import NotFound
from aiocontainerd.interfaces.metadata import Container
from aiocontainerd.interfaces.services import CreateTask

pytestmark = pytest.mark.anyio


class Monitor:
    """Notes what it is told, or raises."""

    def __init__(self, *, broken: bool = False) -> None:
        self.told: list[tuple[str, str, str]] = []
        self._broken = broken

    async def monitor(self, task: Any, labels: Mapping[str, str]) -> None:
        self.told.append(("monitor", context.namespace(), f"{task.id} {dict(labels)}"))
        if self._broken:
            raise OSError("no gauge")

    async def stop(self, task: Any) -> None:
        self.told.append(("stop", context.namespace(), task.id))
        if self._broken:
            raise OSError("no gauge")


class Task:
    namespace = "testing"

    def __init__(self, task_id: str, did: list[tuple[str, str, str]]) -> None:
        self.id = task_id
        self._did = did

    async def delete(self) -> str:
        self._did.append(("delete", "", self.id))
        return "exit"


class World:
    """As much of a runtime and metadata store as the service asks for."""

    def __init__(self, *monitors: Monitor, directory: Path) -> None:
        self.did = monitors[0].told
        self.there: dict[str, Task] = {}
        self.monitors = Monitors({str(number): monitor for number, monitor in enumerate(monitors)})
        runtime: Any = self
        self.metadata: Any = SimpleNamespace(containers=SimpleNamespace(get=self.record))
        self.service = TasksService(self.metadata, runtime, directory, self.monitors)

    async def record(self, container_id: str) -> Container:
        if container_id == "gone":
            raise NotFound("container")
        return Container(id=container_id, labels={"tier": "data"})

    async def create(self, container_id: str, _options: object) -> Task:
        self.there[container_id] = Task(container_id, self.did)
        return self.there[container_id]

    async def get(self, container_id: str) -> Task:
        if container_id not in self.there:
            raise NotFound("task")
        return self.there[container_id]

    async def list(self, *, all_namespaces: bool = False) -> list[Task]:
        assert all_namespaces
        return [Task("c", self.did), Task("gone", self.did)]


async def test_a_task_is_told_of_after_its_creation_and_before_its_deletion(tmp_path: Path) -> None:
    monitor = Monitor()
    world = World(monitor, directory=tmp_path)
    with context.use(namespace="testing"):
        await world.service.create(CreateTask(container_id="c"))
        await world.service.delete("c")
    assert monitor.told == [
        ("monitor", "testing", "c {'tier': 'data'}"), ("stop", "testing", "c"), ("delete", "", "c"),
    ]  # fmt: skip


async def test_a_monitor_that_fails_is_logged_and_the_others_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    works = Monitor()
    world = World(Monitor(broken=True), works, directory=tmp_path)
    with context.use(namespace="testing"):
        task = await world.service.create(CreateTask(container_id="c"))
        await world.service.delete("c")
    assert task.id == "c"
    assert [call for call, _, _ in works.told] == ["monitor", "stop"]
    assert caplog.messages == [
        "monitor 0 does not watch task testing/c: no gauge",
        "monitor 0 does not let go of task testing/c: no gauge",
    ]


async def test_tasks_that_a_starting_daemon_finds_are_told_in_their_namespaces(tmp_path: Path) -> None:
    monitor = Monitor()
    world = World(monitor, directory=tmp_path)
    runtime: Any = world
    await world.monitors.find_again(runtime, world.metadata)
    assert monitor.told == [("monitor", "testing", "c {'tier': 'data'}"), ("monitor", "testing", "gone {}")]


async def test_without_monitors_nothing_is_asked_of_the_runtime() -> None:
    nothing: Any = None
    await Monitors({}).find_again(nothing, nothing)
