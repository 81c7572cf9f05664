"""Every pluggy hook: its signature and what it returns.

Every hook is synchronous. The daemon calls it while it starts or reloads, without a deadline. So a hook must return at
once and wait for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from aiocontainerd.config.records import Isolation, ProxyPlugin, StreamProgram
    from aiocontainerd.host.registration import Registration

PROJECT = "aiocontainerd"
ENTRY_POINT_GROUP = "aiocontainerd.plugins"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def register_plugins() -> Iterable[Registration]:  # type: ignore[empty-body]
    """Return the registrations that this package brings. Sync; called before any config is decoded."""


@hookspec(firstresult=True)
def register_proxy_plugin(name: str, settings: ProxyPlugin) -> Registration | None:
    """Return the registration of a `[proxy_plugins]` table, None for a type that is not yours. Sync.

    The plugin's id is `name`. The first answer that is not None counts. If there is none, a warning names the type.
    """


@hookspec(firstresult=True)
def register_stream_processor(name: str, settings: StreamProgram) -> Registration | None:
    """Return the registration of a `[stream_processors]` table, None to leave it to another package. Sync.

    The plugin's id is `name`, its kind that of stream processors. The first answer that is not None counts. If there is
    none, a warning names the table.
    """


@hookspec(firstresult=True)
def isolate_plugin(registration: Registration, isolation: Isolation) -> Registration | None:
    """Return a registration that runs a plugin outside the daemon's process, None for what is not yours. Sync.

    It has the kind, id, config and timeouts of `registration`. The first answer that is not None counts. If there is
    none, the plugin does not load.
    """
