"""Health of a daemon's plugins, its config, and reload of it. Only aiocontainerd has this service."""

from __future__ import annotations

from collections.abc import Sequence

from aiocontainerd import api
from aiocontainerd.client.connection import Connection
from aiocontainerd.interfaces.plugins import ConfigValue


class Plugins:
    """`aiocontainerd.plugins.v1.Plugins`. Any other daemon answers Unimplemented."""

    SERVICE = "aiocontainerd.plugins.v1.Plugins"

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def explain(self, plugin: str) -> api.plugins.ExplainResponse:
        """Return all about a plugin, by URI or id. Raises NotFound, InvalidArgument for an id that several have."""
        request = api.plugins.ExplainRequest(plugin=plugin)
        return await self._connection.call(self.SERVICE, "Explain", request, api.plugins.ExplainResponse)

    async def health(self) -> Sequence[api.plugins.Health]:
        """Return the health of every plugin."""
        p = api.plugins
        answer = await self._connection.call(self.SERVICE, "ListHealth", p.ListHealthRequest(), p.ListHealthResponse)
        return answer.plugins

    async def reload(self) -> Sequence[api.plugins.Change]:
        """Have the daemon read its config again; the changes. Raises InvalidArgument for an unusable config."""
        p = api.plugins
        answer = await self._connection.call(self.SERVICE, "Reload", p.ReloadRequest(), p.ReloadResponse)
        return answer.changes

    async def restart(self, plugin: str) -> int:
        """Restart the process of an isolated plugin, by URI or id; return the new process's id.

        Raises NotFound, FailedPrecondition for a plugin without a process of its own, Unavailable where it does not
        serve.
        """
        p = api.plugins
        answer = await self._connection.call(
            self.SERVICE, "Restart", p.RestartRequest(plugin=plugin), p.RestartResponse, unlimited=True
        )
        return answer.pid

    async def explain_config(self, key: str = "") -> list[ConfigValue]:
        """Return the values at and below a key of the config that the daemon runs by. Raises NotFound."""
        p = api.plugins
        request = p.ExplainConfigRequest(key=key)
        answer = await self._connection.call(self.SERVICE, "ExplainConfig", request, p.ExplainConfigResponse)
        return [ConfigValue(value.key, value.value, value.origin, value.doc) for value in answer.values]
