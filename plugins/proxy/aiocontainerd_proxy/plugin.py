"""Registration of plugins that run beside the daemon: behind a socket, or in a process that the daemon keeps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from aiocontainerd.plugin import InitContext, PluginConfig, PluginError, Registration, hookimpl, kinds

if TYPE_CHECKING:
    from aiocontainerd.config.records import Isolation, ProxyPlugin

KINDS = {"snapshot": kinds.SNAPSHOTTER, "content": kinds.CONTENT, "diff": kinds.DIFFER}
"""Short types of `[proxy_plugins]` (facts/core 16); the full kind means the same."""


@hookimpl
def register_plugins() -> Iterable[Registration]:
    return []


@hookimpl
def register_proxy_plugin(name: str, settings: ProxyPlugin) -> Registration | None:
    kind = KINDS.get(settings.type, settings.type)
    if kind not in KINDS.values():
        return None

    async def init(context: InitContext[PluginConfig]) -> object:
        from aiocontainerd_proxy.proxies import open_proxy

        return await open_proxy(context, settings)

    return Registration(kind=kind, id=name, init=init)


@hookimpl
def isolate_plugin(registration: Registration, isolation: Isolation) -> Registration | None:
    if registration.kind not in KINDS.values():
        raise PluginError(
            f'{registration.uri} cannot have isolation = "process", which is for snapshotters, content stores and '
            "differs"
        )

    async def init(context: InitContext[Any]) -> object:
        from aiocontainerd_proxy.isolated import open_isolated

        return await open_isolated(context, isolation)

    return Registration(
        kind=registration.kind,
        id=registration.id,
        config=registration.config,
        timeouts=registration.timeouts,
        init=init,
    )
