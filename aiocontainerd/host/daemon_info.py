"""Facts about the daemon that every plugin may know."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from aiocontainerd.guard.owners import Owners
from aiocontainerd.interfaces.plugins import Change, ConfigValue

if TYPE_CHECKING:
    from aiocontainerd.events import EventBus
    from aiocontainerd.host.state import Plugin


class DaemonInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a plugin may know of the daemon it runs in. Addresses are socket paths, "" if not served."""

    root: Path
    state: Path
    temp: Path
    grpc_address: str
    ttrpc_address: str
    bus: EventBus
    plugins: Callable[[], Sequence[Plugin]]
    timeout_s: Callable[[str], float]
    """Seconds of a key of `[timeouts]`. Plugins read theirs by `InitContext.timeout_s`."""
    debug: bool = False
    owners: Callable[[], Owners] = Owners.nobody
    """Which plugins the modules and tasks of this process belong to."""
    reload: Callable[[], Awaitable[Sequence[Change]]] | None = None
    """Read the config again (`daemon/reload.py`). None if that is not possible."""
    explain_config: Callable[[str], Sequence[ConfigValue]] | None = None
    """Return the values at and below a key that the daemon runs by. Raises NotFound. None if that is not possible."""
