"""Registration of the local content store as `io.containerd.content.v1.content`."""

from __future__ import annotations

from collections.abc import Iterable

from aiocontainerd.plugin import InitContext, PluginConfig, Registration, hookimpl, kinds


class Config(PluginConfig, frozen=True, kw_only=True):
    """The store has no settings. It lives in the root directory of its plugin."""


async def init(context: InitContext[Config]) -> object:
    """Open the store. Blobs and ingests of earlier runs stay, but for ingests that cannot be resumed."""
    from aiocontainerd_content_local.store import LocalStore

    context.exports["root"] = str(context.root)
    store = LocalStore(context.root)
    await store.remove_unreadable()
    return store


@hookimpl
def register_plugins() -> Iterable[Registration]:
    return [Registration(kind=kinds.CONTENT, id="content", config=Config, init=init)]
