"""Show what the daemon noted of its plugins, and have it read its config again (`aiocontainerd.plugins.v1.Plugins`)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar

from aiocontainerd import api, kinds, timestamps
from aiocontainerd.errors import FailedPrecondition, InvalidArgument, NotFound
from aiocontainerd.guard.health import MethodHealth, MethodRecord, PluginHealth
from aiocontainerd.guard.latencies import Latencies
from aiocontainerd.guard.owners import Owners
from aiocontainerd.interfaces.plugins import Change, ConfigValue
from aiocontainerd.serve.served_health import Row, last_error, quantiles_s, served_methods
from aiocontainerd.wire.times import time_to_wire

Reload = Callable[[], Awaitable[Sequence[Change]]]
ExplainConfig = Callable[[str], Sequence[ConfigValue]]


class PluginsGrpc:
    """The service. `plugins` gives a row for each plugin, in the order they started; `owners` says whose a task is.

    `reload` is None in a daemon that cannot read its config again, `explain_config` in one that cannot tell it.
    """

    service_name: ClassVar[str] = "aiocontainerd.plugins.v1.Plugins"

    def __init__(
        self,
        plugins: Callable[[], Sequence[Row]],
        owners: Callable[[], Owners],
        reload: Reload | None,
        explain_config: ExplainConfig | None = None,
    ) -> None:
        self._plugins = plugins
        self._owners = owners
        self._reload = reload
        self._explain_config = explain_config

    async def explain(self, request: api.plugins.ExplainRequest) -> api.plugins.ExplainResponse:
        """Return all notes of a plugin. Raises NotFound, InvalidArgument for an id that several plugins have."""
        plugins = self._plugins()
        plugin = find(plugins, request.plugin)
        health, served = plugin.health, served_methods(plugins, plugin)
        block = health.last_block
        return api.plugins.ExplainResponse(
            health=_health(plugins, plugin, served),
            distribution=plugin.distribution,
            requires=list(plugin.requires),
            required_by=[other.uri for other in plugins if _needs(other, plugin)],
            init_ns=_ns(plugin.init_s),
            methods=[_method(method) for method in (*health.method_health(), *served)],
            tasks=sorted(health.tasks),
            other_tasks=other_tasks(health, self._owners()),
            leaked_tasks=health.leaked,
            abandoned=[
                api.plugins.AbandonedCall(method=call.record.method, elapsed_ns=_ns(call.elapsed_s))
                for call in sorted(health.abandoned, key=lambda call: call.started)
            ],
            last_block=api.plugins.Block(where=block.where, duration_ns=_ns(block.seconds)) if block else None,
            rss_bytes=health.rss_bytes(),
        )

    async def list_health(self, _request: api.plugins.ListHealthRequest) -> api.plugins.ListHealthResponse:
        """Return one row for each plugin, in the order they started."""
        plugins = self._plugins()
        rows = [_health(plugins, plugin, served_methods(plugins, plugin)) for plugin in plugins]
        return api.plugins.ListHealthResponse(plugins=rows)

    async def reload(self, _request: api.plugins.ReloadRequest) -> api.plugins.ReloadResponse:
        """Follow the config as it is on disk now. Raises InvalidArgument, FailedPrecondition."""
        if self._reload is None:
            raise FailedPrecondition("this daemon cannot read its config again")
        changes = await self._reload()
        return api.plugins.ReloadResponse(
            changes=[api.plugins.Change(subject=c.subject, outcome=c.outcome, detail=c.detail) for c in changes]
        )

    async def restart(self, request: api.plugins.RestartRequest) -> api.plugins.RestartResponse:
        """Restart the process of a plugin that has one. Raises NotFound, FailedPrecondition, Unavailable."""
        plugin = find(self._plugins(), request.plugin)
        if plugin.health.restart is None:
            raise FailedPrecondition(
                f"plugin {plugin.uri} has no process of its own: it restarts with the daemon, or with whoever serves "
                f"its socket"
            )
        return api.plugins.RestartResponse(pid=await plugin.health.restart())

    async def explain_config(self, request: api.plugins.ExplainConfigRequest) -> api.plugins.ExplainConfigResponse:
        """Return the values at and below a key of the config. Raises NotFound, FailedPrecondition."""
        if self._explain_config is None:
            raise FailedPrecondition("this daemon cannot tell its config")
        values = self._explain_config(request.key)
        return api.plugins.ExplainConfigResponse(
            values=[
                api.plugins.ConfigValue(key=value.key, value=value.value, origin=value.origin, doc=value.doc)
                for value in values
            ]
        )


def find(plugins: Sequence[Row], name: str) -> Row:
    """Return the plugin of a URI, with or without `io.containerd.`, or of an id. Raises NotFound, InvalidArgument."""
    named = [p for p in plugins if name in (p.uri, p.uri.removeprefix("io.containerd."))]
    found = named or [plugin for plugin in plugins if plugin.id == name]
    if not found:
        raise NotFound(f"plugin {name}")
    if len(found) > 1:
        raise InvalidArgument(f"several plugins are called {name}: {', '.join(plugin.uri for plugin in found)}")
    return found[0]


def other_tasks(health: PluginHealth, owners: Owners) -> list[str]:
    """Return the names of a plugin's tasks, but for its life, those of its context, and guarded calls."""
    names = [task.get_name() for task in asyncio.all_tasks() if owners.of_task(task) == health.uri]
    names = [name for name in names if name != f"plugin {health.uri}"]
    return sorted(name for name in names if name not in health.tasks and not name.startswith(f"{health.uri}: "))


def _needs(other: Row, plugin: Row) -> bool:
    if other is plugin or not other.is_loaded:
        return False
    return plugin.kind in other.requires and kinds.ALL not in other.requires


def _health(plugins: Sequence[Row], plugin: Row, served: Sequence[MethodHealth]) -> api.plugins.Health:
    health = plugin.health
    records = list(health.methods.values())
    counted: list[MethodRecord | MethodHealth] = [*records, *served]
    median_s, late_s = quantiles_s(plugins, plugin)
    error, error_at = max((health.last_error_at, health.last_error), last_error(plugins, plugin)[::-1])[::-1]
    together = Latencies.sum_of(record.latencies for record in records)
    return api.plugins.Health(
        kind=plugin.kind,
        id=plugin.id,
        state=plugin.condition.state,
        reason=plugin.condition.reason,
        caused_by=plugin.caused_by,
        calls=sum(one.calls for one in counted),
        errors=sum(one.errors for one in counted),
        expired=sum(one.expired for one in counted),
        in_flight=sum(one.in_flight for one in counted),
        abandoned=len(health.abandoned),
        p50_ns=_ns(max(together.quantile_s(0.5), median_s)),
        p99_ns=_ns(max(together.quantile_s(0.99), late_s)),
        refused=sorted(record.method for record in records if record.retry_s),
        blocks=health.blocked,
        blocked_ns=_ns(health.blocked_s),
        last_error=error,
        last_error_at=time_to_wire(_ns(error_at)) if error_at else None,
    )


def _method(method: MethodHealth) -> api.plugins.Method:
    return api.plugins.Method(
        name=method.method,
        timeout=method.timeout,
        limit_ns=_ns(method.limit_s),
        calls=method.calls,
        errors=method.errors,
        expired=method.expired,
        cancelled=method.cancelled,
        in_flight=method.in_flight,
        abandoned=method.abandoned,
        p50_ns=_ns(method.p50_s),
        p99_ns=_ns(method.p99_s),
        failures_in_a_row=method.failures_in_a_row,
        retry_ns=_ns(method.retry_s),
        last_error=method.last_error,
    )


def _ns(seconds: float) -> int:
    return round(seconds * timestamps.NANOSECONDS)
