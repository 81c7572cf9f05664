"""Registration of the shim launcher `aio`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiocontainerd.plugin import InitContext, PluginConfig, Registration, State, hookimpl, kinds

if TYPE_CHECKING:
    from aiocontainerd_shim.fork.launcher import AioLauncher

_STARTED_S, _POLL_S = 5.0, 0.02


class Config(PluginConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How shims are started."""

    fork_server: bool = True
    """Fork shims off a helper process that has their code loaded, instead of executing the program for each."""
    oci_runtime: str = ""
    """The OCI runtime for containers whose options name none; empty takes crun or runc, whichever works here."""
    cgroup: str = "/aiocontainerd-shims"
    """The cgroup of the fork server and its shims, where the daemon may make it, removed after the last
    of them; empty keeps them in the daemon's."""


async def init(context: InitContext[Config]) -> AioLauncher:
    """Make the launcher; the fork server starts when the daemon has, so that it takes no processor from that."""
    import anyio

    from aiocontainerd_shim.fork.launcher import AioLauncher

    config = context.config
    launcher = AioLauncher(
        context.state, fork_server=config.fork_server, oci_runtime=config.oci_runtime, cgroup=config.cgroup
    )

    async def attend() -> None:
        with anyio.move_on_after(_STARTED_S):
            while any(plugin.state == State.REGISTERED for plugin in context.daemon.plugins()):  # noqa: ASYNC110 - sets no event
                await anyio.sleep(_POLL_S)
        await launcher.attend()

    context.on_stop(launcher.aclose)
    context.tasks.start_soon(attend, name="fork server")
    return launcher


@hookimpl
def register_plugins() -> list[Registration]:
    """Register the launcher for `io.containerd.runc.v2` and `io.containerd.aio.v2`."""
    return [Registration(kind=kinds.SHIM_LAUNCHER, id="aio", config=Config, init=init)]
