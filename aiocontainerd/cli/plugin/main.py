"""The program `aiocontainerd-plugin`: run a plugin in a process of its own, behind a socket."""

from __future__ import annotations

import logging
import os
import pwd
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

import aiocontainerd
from aiocontainerd.cli.plugins_new import new
from aiocontainerd.daemon import logs

if TYPE_CHECKING:
    from aiocontainerd.cli.plugin.serve import ServeOptions

log = logging.getLogger("aiocontainerd.plugin")

TRY_AGAIN = 75
"""Exit status EX_TEMPFAIL of sysexits(3)."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(aiocontainerd.__version__, "-v", "--version", prog_name="aiocontainerd-plugin")
def main() -> None:
    """Run plugins beside a daemon."""


main.add_command(new)


@main.command()
@click.argument("plugin", metavar="MODULE[:NAME]")
@click.option("-a", "--address", required=True, metavar="PATH", help="Unix socket to serve on.")
@click.option("-c", "--config", type=click.Path(path_type=Path), metavar="FILE", help="TOML with the plugin's table.")
@click.option("--id", "plugin_id", default="", help="Which plugin of several, or how a class is called.")
@click.option("--root", type=click.Path(path_type=Path), help="Directory of persistent data.")
@click.option("--state", type=click.Path(path_type=Path), help="Directory of what a reboot may empty.")
@click.option("--content", default="", metavar="ADDRESS", help="Daemon whose content a differ works with.")
@click.option("--namespace", default="", help="Where a differ works for calls that name no namespace.")
@click.option("--uid", type=int, default=-1, help="Owner of the socket.")
@click.option("--gid", type=int, default=-1, help="Group of the socket.")
@click.option("-l", "--log-level", default="info", help="trace, debug, info, warn, error, fatal or panic.")
@click.option("--log-format", default="text", help="text or json.")
@click.option("--ready-fd", type=int, default=-1, metavar="N", help="Descriptor that gets a line once it serves.")
@click.option("--setuid", type=int, help="Become this user before anything of the plugin is loaded.")
@click.option("--setgid", type=int, help="Become this group [default: that of --setuid].")
@click.option("--stacks", type=click.Path(path_type=Path), help="File for its stacks at SIGUSR2, and when it crashes.")
@click.option("--parent", type=int, default=0, metavar="PID", help="End when this process, which started us, ends.")
def serve(
    plugin: str, address: str, config: Path | None, plugin_id: str, root: Path | None, state: Path | None,
    content: str, namespace: str, uid: int, gid: int, log_level: str, log_format: str, ready_fd: int,
    setuid: int | None, setgid: int | None, stacks: Path | None, parent: int,
) -> None:  # fmt: skip
    """Serve the snapshotter, content store or differ of MODULE as a proxy plugin.

    MODULE registers it by @register or the hook register_plugins, or NAME in it is a class such as a SnapshotterBase.
    """
    from aiocontainerd.cli.plugin import serve

    _become(setuid, setgid)
    _end_with(parent)
    _write_stacks_to(stacks)
    try:
        logs.setup(log_level, log_format)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    options = serve.ServeOptions(
        target=plugin,
        address=address,
        root=root or Path(serve.DEFAULT_ROOT),
        state=state or Path(serve.DEFAULT_STATE),
        config=config,
        plugin_id=plugin_id,
        content=content,
        namespace=namespace,
        uid=os.geteuid() if uid < 0 else uid,
        gid=os.getegid() if gid < 0 else gid,
        ready_fd=ready_fd,
    )
    sys.exit(_run(options))


@main.command(hidden=True)
@click.argument("module")
@click.option("--stacks", type=click.Path(path_type=Path))
@click.option("--parent", type=int, default=0)
def load(module: str, stacks: Path | None, parent: int) -> None:
    """Import MODULE and exit with status 0, unless that ends the process. For the daemon, which imports it next."""
    import importlib
    from contextlib import suppress

    _end_with(parent)
    _write_stacks_to(stacks)
    with suppress(BaseException):
        importlib.import_module(module)
    os._exit(0)  # what a thread or an atexit of the module does is not of the import


def _run(options: ServeOptions) -> int:
    """Serve until the end and return the exit status. An error before it serves is one line in the log.

    With the status `TRY_AGAIN` whoever keeps this process starts it again: the daemon, or a unit with `Restart=`.
    """
    import anyio

    from aiocontainerd.cli.plugin import serve
    from aiocontainerd.config import ConfigError
    from aiocontainerd.daemon.lock import RootLockedError
    from aiocontainerd.errors import ContainerdError
    from aiocontainerd.host.registration import PluginError

    status = 0
    try:
        if anyio.run(serve.run, options, backend_options={"use_uvloop": True}):
            status = TRY_AGAIN
    except* (ConfigError, ContainerdError, ImportError, AttributeError, OSError, PluginError, RootLockedError) as group:
        for error in _leaves(group):
            log.error("cannot serve %s: %s", options.target, error)
            log.debug("the error", exc_info=error)
        status = 1
    return status


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    return [
        leaf
        for error in group.exceptions
        for leaf in (_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    ]


def _become(uid: int | None, gid: int | None) -> None:
    """Become another user, with the named group or else that user's own, and no other group."""
    if uid is None and gid is None:
        return
    os.setgroups([])
    os.setgid(_group_of(uid) if gid is None else gid)
    if uid is not None:
        os.setuid(uid)


def _write_stacks_to(path: Path | None) -> None:
    """Write the stacks of all threads to a file at SIGUSR2 and when the process crashes, also from C code."""
    if path is None:
        return
    import faulthandler

    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)  # for the whole life
    faulthandler.enable(descriptor)
    faulthandler.register(signal.SIGUSR2, descriptor)


def _group_of(uid: int | None) -> int:
    try:
        return os.getgid() if uid is None else pwd.getpwuid(uid).pw_gid
    except KeyError:
        return uid or 0


def _end_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends. Exit if the parent has ended already."""
    if not parent:
        return
    from aiocontainerd.sys import prctl

    prctl.set_parent_death_signal(signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


if __name__ == "__main__":
    main()
