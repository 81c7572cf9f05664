"""Registration of the shim launcher `aio`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiocontainerd.plugin import InitContext, PluginConfig, Registration, hookimpl, kinds
from aiocontainerd_shim.fork.limits import TIMEOUTS, Limits

if TYPE_CHECKING:
    from aiocontainerd_shim.fork.launcher import AioLauncher


class Config(PluginConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How shims are started."""

    fork_server: bool = True
    """Fork shims off a helper process that has their code loaded, instead of executing the program for each."""
    oci_runtime: str = ""
    """The OCI runtime for containers whose options name none; empty takes crun or runc, whichever works here."""
    cgroup: str = "/aiocontainerd-shims"
    """The cgroup of the fork server and its shims, where the daemon may make it, removed after the last
    of them; empty keeps them in the daemon's. While all processors are busy, it gets eight times the share of others:
    shims work little, and whoever starts a container waits for them."""


async def init(context: InitContext[Config]) -> AioLauncher:
    """Make the launcher. The fork server starts once the daemon serves, so it does not delay that."""
    from aiocontainerd_shim.fork.launcher import AioLauncher

    config = context.config
    launcher = AioLauncher(
        context.state,
        fork_server=config.fork_server,
        oci_runtime=config.oci_runtime,
        cgroup=config.cgroup,
        limits=Limits.from_timeouts(context.timeout_s),
        tell=context.exports.update,
    )

    async def attend() -> None:
        if await context.ready():
            await launcher.attend()

    def take_limits() -> None:
        launcher.limits = Limits.from_timeouts(context.timeout_s)

    context.watch_timeouts(take_limits)
    context.on_stop(launcher.aclose)
    context.tasks.start_soon(attend, name="fork server")
    return launcher


@hookimpl
def register_plugins() -> list[Registration]:
    """Register the launcher for `io.containerd.runc.v2` and `io.containerd.aio.v2`."""
    return [Registration(kind=kinds.SHIM_LAUNCHER, id="aio", config=Config, init=init, timeouts=TIMEOUTS)]
