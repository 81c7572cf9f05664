"""Open a plugin with `isolation = "process"`: it runs in a process that the daemon keeps, as a proxy plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio.to_thread

from aiocontainerd_proxy import child, pulse
from aiocontainerd_proxy.limits import limits_of
from aiocontainerd_proxy.link import Link
from aiocontainerd_proxy.proxies import Shown, instance_of
from aiocontainerd_proxy.supervisor import Supervisor

if TYPE_CHECKING:
    from aiocontainerd.config.records import Isolation
    from aiocontainerd.plugin import InitContext


SLACK_S = 2.0
"""How much later than the plugin's own process the daemon cuts off a call. The process has the same limits and a second
of grace, and names the line that a call waits at."""


async def open_isolated(context: InitContext[Any], isolation: Isolation) -> object:
    """Return the instance of an isolated plugin. A task starts its process; the first calls wait for that."""
    described = child.child_of(context, isolation)
    await anyio.to_thread.run_sync(child.prepare, described, context.config, context.timeouts())
    shown = Shown(context)
    kept = Kept(context.exports, shown)
    limits = limits_of(context)
    supervisor = Supervisor(described, context.log, limits, kept.wake)
    link = Link(
        context.uri,
        str(described.socket),
        limits,
        gate=supervisor.serving,
        fate=supervisor.fate,
        slack_s=SLACK_S,
        changed=kept.update,
    )
    kept.supervisor, kept.link = supervisor, link
    context.exports.update(address=str(described.socket), isolation="process")
    kept.update(link)
    context.health.rss_bytes, context.health.restart = supervisor.rss_bytes, supervisor.restart
    context.health.slack_s, context.health.stuck = SLACK_S, supervisor.stuck
    context.tasks.start_soon(link.keep, name="connection")
    context.tasks.start_soon(supervisor.keep, name="process")
    context.tasks.start_soon(pulse.keep, link, limits, supervisor.hung, name="pulse")
    return await instance_of(context, link)


class Kept:
    """Copy the state of a process and its connection into what introspection shows."""

    def __init__(self, exports: dict[str, str], shown: Shown) -> None:
        self._exports = exports
        self._shown = shown
        self.supervisor: Supervisor | None = None
        self.link: Link | None = None

    def wake(self) -> None:
        """Connect again: the process began to serve, or ended."""
        assert self.link is not None
        self.link.wake()
        self.update(self.link)

    def update(self, link: Link) -> None:
        """Show the current state."""
        self._shown.update(link)
        if self.supervisor is not None:
            self._exports["pid"] = str(self.supervisor.pid)
            self._exports["starts"] = str(self.supervisor.starts)
