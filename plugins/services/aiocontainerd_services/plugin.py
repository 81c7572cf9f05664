"""The registrations of every service."""

from __future__ import annotations

from collections.abc import Iterable

from aiocontainerd.plugin import Registration, hookimpl
from aiocontainerd_services import daemon_registration, data_registration, records_registration, tasks_registration


@hookimpl
def register_plugins() -> Iterable[Registration]:
    """Return every registration of this package."""
    return [
        *records_registration.registrations(),
        *data_registration.registrations(),
        *tasks_registration.registrations(),
        *daemon_registration.registrations(),
    ]
