"""Registration of plugins that run beside the daemon."""

from __future__ import annotations

from collections.abc import Iterable

from aiocontainerd.plugin import Registration, hookimpl


@hookimpl
def register_plugins() -> Iterable[Registration]:
    return []
