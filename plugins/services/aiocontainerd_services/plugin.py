"""The registrations of every service."""

from __future__ import annotations

from collections.abc import Iterable

from aiocontainerd.plugin import Registration, hookimpl
from aiocontainerd_services import daemon_registration


@hookimpl
def register_plugins() -> Iterable[Registration]:
    """All of this package."""
    return [*daemon_registration.registrations()]
