"""Read the limits of a plugin beside the daemon: keys of `[timeouts]`, any of which may name one plugin."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aiocontainerd.plugin import InitContext, Timeout

Limits = Callable[["Timeout"], float]
"""Return the seconds that a key sets, infinite for no limit."""


def limits_of(context: InitContext[Any]) -> Limits:
    """Return the limits of the plugin of a context. They follow `actr reload`."""
    daemon, uri = context.daemon, context.uri
    return lambda timeout: daemon.timeout_s(f"{timeout.key}.{uri}") or math.inf
