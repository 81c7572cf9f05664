"""Registration of the garbage collection scheduler, `io.containerd.gc.v1.scheduler`."""

from __future__ import annotations

from aiocontainerd import durations
from aiocontainerd.plugin import Duration, InitContext, PluginConfig, Registration, hookimpl, kinds


class Config(PluginConfig, frozen=True):
    """When to collect. Durations are Go's: `100ms`, `1m30s`."""

    pause_threshold: float = 0.02
    """The part of the time that collections may take, 0 to 0.5."""
    deletion_threshold: int = 0
    """Deletions after which a collection begins at once; 0 leaves it to the timer."""
    mutation_threshold: int = 100
    """Changes after which the timer collects although nothing was deleted."""
    schedule_delay: Duration = Duration("0s")
    """From a request or threshold to its collection."""
    startup_delay: Duration = Duration("100ms")
    """From the start of the daemon to the first collection."""


async def init(context: InitContext[Config]) -> object:
    """Start the scheduler over the metadata store."""
    from aiocontainerd_gc.plan import Thresholds
    from aiocontainerd_gc.scheduler import Scheduler

    config = context.config
    thresholds = Thresholds(
        pause=config.pause_threshold,
        deletions=config.deletion_threshold,
        mutations=config.mutation_threshold,
        delay_s=config.schedule_delay.seconds,
    )
    metadata = context.get_single(kinds.METADATA)
    startup_delay_s = config.startup_delay.seconds
    scheduler = Scheduler(metadata.sweep, metadata.reclaim, thresholds, startup_delay_s=startup_delay_s)
    context.exports.update(
        PauseThreshold=f"{config.pause_threshold:g}",
        DeletionThreshold=str(config.deletion_threshold),
        MutationThreshold=str(config.mutation_threshold),
        ScheduleDelay=durations.render(thresholds.delay_s),
    )
    metadata.on_mutation(scheduler.note)
    context.tasks.start_soon(scheduler.run, name="schedule")
    return scheduler


@hookimpl
def register_plugins() -> list[Registration]:
    return [Registration(kind=kinds.GC, id="scheduler", config=Config, requires=(kinds.METADATA,), init=init)]
