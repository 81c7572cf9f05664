"""The program `aiocontainerd`: the daemon with containerd's flags, its `config` commands and `publish`."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

import aiocontainerd
from aiocontainerd import api
from aiocontainerd.cli.ending import Program
from aiocontainerd.cli.index import index_group
from aiocontainerd.config import Config, ConfigError, load
from aiocontainerd.config.migrate import GRPC_ADDRESS
from aiocontainerd.config.records import DEFAULT_ADDRESS, DEFAULT_PATH
from aiocontainerd.daemon import logs

log = logging.getLogger("aiocontainerd")


class DaemonFlags:
    """The global flags, empty if not given."""

    def __init__(self, config: str, address: str, root: str, state: str, log_level: str, warn_only: bool) -> None:
        self.config, self.address, self.root, self.state = config, address, root, state
        self.log_level, self.warn_only = log_level, warn_only

    def load(self, *, missing_is_fine: bool = False) -> Config:
        """Load the config that these flags name, with the flags on top. Raises ConfigError."""
        values: dict[tuple[str, ...], tuple[str, Any]] = {}
        for key, flag, value in (
            (("root",), "--root", self.root),
            (("state",), "--state", self.state),
            (("debug", "level"), "--log-level", self.log_level),
            (GRPC_ADDRESS, "--address", self.address),
        ):
            if value:
                values[key] = (flag, value)
        explicit = bool(self.config) and not missing_is_fine
        return load(Path(self.config or DEFAULT_PATH), explicit=explicit, warn_only=self.warn_only, flags=values)


class GoFlags(click.Group):
    """A group whose long options may have one dash, as Go programs take them: `-log-level debug`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        names = {name for param in self.params for name in param.opts if name.startswith("--")}
        return super().parse_args(ctx, [f"-{arg}" if f"-{arg}".partition("=")[0] in names else arg for arg in args])


@click.group(cls=GoFlags, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-c", "--config", metavar="FILE", help=f"Config file [default: {DEFAULT_PATH}].")
@click.option("-a", "--address", default="", metavar="PATH", help=f"gRPC socket [default: {DEFAULT_ADDRESS}].")
@click.option("--root", default="", metavar="DIR", help="Directory of persistent data.")
@click.option("--state", default="", metavar="DIR", help="Directory of what a reboot may empty.")
@click.option("-l", "--log-level", default="", metavar="LEVEL", help="trace, debug, info, warn, error, fatal or panic.")
@click.option("--config-warn-only", is_flag=True, help="Warn of unknown config keys; for files shared with containerd.")
@click.option("-v", "--version", is_flag=True, help="Print the version.")
@click.pass_context
def main(
    context: click.Context, config: str | None, address: str, root: str, state: str, log_level: str,
    config_warn_only: bool, version: bool,
) -> None:  # fmt: skip
    """Run the container runtime daemon."""
    if version:
        click.echo(f"aiocontainerd {aiocontainerd.__version__}")
        context.exit()
    if config == "":
        raise click.UsageError("--config is empty; it needs the path of a file")
    context.obj = DaemonFlags(config or "", address, root, state, log_level, config_warn_only)
    if context.invoked_subcommand is None:
        sys.exit(_run_daemon(context.obj))


def _run_daemon(flags: DaemonFlags) -> int:
    """Run until a signal and return the exit status. An error that an operator can mend is one line on stderr."""
    gc.disable()  # start-up makes next to no garbage, and the more to look through
    from aiocontainerd.daemon import run

    try:
        logs.setup(flags.log_level)
        config = flags.load()
        logs.setup(config.settings.debug.level, config.settings.debug.format)
        again = run.run(
            config,
            load=flags.load,
            when_serving=_collect_garbage,
        )
    except (*run.EXPECTED_ERRORS, ValueError) as error:
        print(f"containerd: {error}", file=sys.stderr)
        log.debug("the daemon cannot run", exc_info=error)
        return 1
    finally:
        gc.enable()
    if again:
        _start_anew()
    return 0


def _start_anew() -> None:
    """Execute this program again, in this process, with the command line that it got."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - no shell is wanted


def _collect_garbage() -> None:
    """Collect garbage from now on. Objects of the start-up stay, so no collection looks at them."""
    gc.collect()
    gc.freeze()
    gc.enable()


main.add_command(index_group)


@main.group("config", cls=Program)
def config_group() -> None:
    """Print the daemon's config."""


def _printing(*, defaults_only: bool = False, reveal: bool = False) -> Callable[[DaemonFlags], None]:
    def command(flags: DaemonFlags) -> None:
        from aiocontainerd.config import render
        from aiocontainerd.host import discovery

        try:
            config = Config({}, {}) if defaults_only else flags.load(missing_is_fine=True)
            registrations = discovery.checked_registrations(config)
            for warning in config.warnings:
                click.echo(warning, err=True)
            click.echo(render.dump(config, registrations, reveal=reveal), nl=False)
        except ConfigError as error:
            raise click.ClickException(f"containerd: {error}") from error

    return command


for _name, _help, _command in (
    ("default", "Print the defaults.", _printing(defaults_only=True)),
    ("dump", "Print the config file with its imports, merged, version 4. Secrets are redacted.", _printing()),
    ("migrate", "Print the config file as version 4, secrets included.", _printing(reveal=True)),
):
    config_group.command(_name, help=_help)(click.pass_obj(_command))


@config_group.command("check")
@click.pass_obj
def check_config(flags: DaemonFlags) -> None:
    """Name every mistake of the config file, also those that only warn; the exit status is 1 if there is any.

    It is 1, too, if a plugin cannot be loaded; the reason is on standard error.
    """
    from aiocontainerd.host import discovery

    all_load = True
    try:
        found, all_load = discovery.problems(flags.load())
    except ConfigError as error:
        found = str(error).splitlines()
    for line in found:
        click.echo(line)
    if found or not all_load:
        raise click.exceptions.Exit(1)


@config_group.command("explain")
@click.argument("key", default="")
@click.pass_obj
def explain_config(flags: DaemonFlags, key: str) -> None:
    """Print each value at or below KEY with its origin: file and line, flag, or default. Secrets are redacted."""
    from aiocontainerd.cli import config_explain

    try:
        config_explain.show(flags.load(missing_is_fine=True), key)
    except ConfigError as error:
        raise click.ClickException(f"containerd: {error}") from error


@main.command()
@click.option("--topic", required=True, help="Topic of the event, such as /tasks/exit.")
@click.option("--namespace", required=True, help="Namespace of the event.")
@click.pass_obj
def publish(flags: DaemonFlags, topic: str, namespace: str) -> None:
    """Publish the event on standard input (a serialised google.protobuf.Any); what shims call."""
    import anyio

    from aiocontainerd.errors import ContainerdError, to_status
    from aiocontainerd.rpc.grpc_client import GrpcClient
    from aiocontainerd.wire import codec

    async def send() -> None:
        event = codec.decode(api.protobuf.Any, serialised)
        async with GrpcClient(flags.address or DEFAULT_ADDRESS) as client:
            await client.unary(
                "containerd.services.events.v1.Events",
                "Publish",
                api.events.PublishRequest(topic=topic, event=event),
                namespace=namespace,
                timeout_s=5.0,
            )

    serialised = sys.stdin.buffer.read()
    try:
        anyio.run(send)
    except (ContainerdError, OSError) as error:
        raise click.ClickException(f"cannot publish {topic}: {to_status(error)[1]}") from error


if __name__ == "__main__":
    main()
