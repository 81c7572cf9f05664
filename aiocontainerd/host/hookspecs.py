"""Every pluggy hook: signature, one sentence, sync or async, deadline class.

pluggy calls are synchronous. A hook marked async returns an awaitable, which the dispatcher awaits under the deadline
that the hook's class names in `[timeouts]`.
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
    """Return the registrations this package brings. Sync; called once at start-up, before any config is decoded."""


@hookspec(firstresult=True)
def register_proxy_plugin(name: str, settings: ProxyPlugin) -> Registration | None:
    """Return the registration of a `[proxy_plugins]` table, None for a type that is not yours. Sync; called at start.

    The plugin's id is `name`. The first that is not None counts; where there is none, a warning names the type.
    """


@hookspec(firstresult=True)
def register_stream_processor(name: str, settings: StreamProgram) -> Registration | None:
    """Return the registration of a `[stream_processors]` table, None to leave it to another package. Sync; at start.

    The plugin's id is `name`, its kind that of stream processors. The first that is not None counts; where there is
    none, a warning names the table.
    """


@hookspec(firstresult=True)
def isolate_plugin(registration: Registration, isolation: Isolation) -> Registration | None:
    """Return a registration that runs another one apart from the daemon, None for what is not yours. Sync; at start.

    It has the kind, the id and the config of the other. The first that is not None counts; where there is none the
    plugin does not load.
    """
