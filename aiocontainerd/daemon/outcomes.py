"""Log what became of the plugins."""

from __future__ import annotations

import logging

from aiocontainerd.host.discovery import DECLARED_KIND
from aiocontainerd.host.registry import Registry
from aiocontainerd.host.state import State

log = logging.getLogger(__name__)

_LEVELS = {State.FAILED: logging.ERROR, State.SKIPPED: logging.INFO, State.DISABLED: logging.INFO}


def log_outcomes(registry: Registry) -> None:
    """Log a line for each plugin that is not loaded, at debug for each one that is, and a summary.

    Modules that could not register anything are in the log already: discovery tells them, also where nothing starts.
    """
    for plugin in registry.plugins:
        if plugin.kind == DECLARED_KIND:
            continue
        fields = {"plugin": plugin.uri, "state": plugin.state.value, "ms": round(plugin.init_s * 1000, 1)}
        if plugin.reason:
            fields["reason"] = plugin.reason
        if plugin.caused_by:
            fields["caused_by"] = plugin.caused_by
        log.log(_LEVELS.get(plugin.state, logging.DEBUG), "plugin", extra={"fields": fields})
    counts = registry.statistics()
    log.info("plugins: %s", ", ".join(f"{counts[state]} {state}" for state in State if state in counts))
