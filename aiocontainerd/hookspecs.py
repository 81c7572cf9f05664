"""Every pluggy hook: signature, one sentence, sync or async, deadline class.

pluggy calls are synchronous. A hook marked async returns an awaitable, which the dispatcher awaits under the deadline
that the hook's class names in `[timeouts]`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from aiocontainerd.registry import Registration

PROJECT = "aiocontainerd"
ENTRY_POINT_GROUP = "aiocontainerd.plugins"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def register_plugins() -> Iterable[Registration]:  # type: ignore[empty-body]
    """Return the registrations this package brings. Sync; called once at start-up, before any config is decoded."""
