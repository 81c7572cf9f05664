"""Registration of the Tasks service and its logic."""

from __future__ import annotations

from aiocontainerd.plugin import InitContext, PluginConfig, Registration, kinds


class TasksConfig(PluginConfig, frozen=True):
    """Classes of block I/O and cache use for containers. Neither is implemented; a file named here is reported."""

    blockio_config_file: str = ""
    rdt_config_file: str = ""


def registrations() -> list[Registration]:
    """Return the registrations of this module."""
    return [
        Registration(
            kind=kinds.SERVICE,
            id="tasks-service",
            config=TasksConfig,
            requires=(kinds.METADATA, kinds.RUNTIME),
            wants=(kinds.TASK_MONITOR,),
            init=_tasks,
        ),
        Registration(kind=kinds.GRPC, id="tasks", requires=(kinds.SERVICE,), init=_tasks_grpc),
    ]


async def _tasks(context: InitContext[TasksConfig]) -> object:
    from aiocontainerd_services.task_monitors import Monitors
    from aiocontainerd_services.tasks import TasksService

    for key in ("blockio_config_file", "rdt_config_file"):
        if getattr(context.config, key):
            context.log.warning("%s is not supported and has no effect", key)
    metadata, runtime = context.get(kinds.METADATA, "bolt"), context.get(kinds.RUNTIME, "task")
    monitors = Monitors(context.get_all(kinds.TASK_MONITOR))
    context.tasks.start_soon(monitors.find_again, runtime, metadata, name="monitors")
    return TasksService(metadata, runtime, context.state, monitors)


async def _tasks_grpc(context: InitContext[PluginConfig]) -> object:
    from aiocontainerd.serve.tasks import TasksGrpc

    return TasksGrpc(context.get(kinds.SERVICE, "tasks-service"))
