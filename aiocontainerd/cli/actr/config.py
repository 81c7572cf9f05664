"""`actr config`: explain the config of a daemon, or a config file of this host."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from aiocontainerd.cli.actr.session import session_of

if TYPE_CHECKING:
    from aiocontainerd.client.client import Client

_HINT = "`actr config explain` without a key shows all of them"


@click.group()
def config() -> None:
    """Explain the config of a daemon."""


@config.command()
@click.argument("key", default="")
@click.option("-c", "--config", "path", default="", metavar="FILE", help="A config file, instead of the daemon's.")
@click.pass_context
def explain(ctx: click.Context, key: str, path: str) -> None:
    """Show each value at or below KEY with its origin: file and line, flag, or default. Secrets are redacted.

    The values are those that the daemon runs by. With --config they are those of a file, whether or not a daemon uses
    it.
    """
    if path:
        _explain_file(path, key)
        return

    async def work(client: Client) -> None:
        from aiocontainerd.errors import NotFound, Unimplemented

        try:
            values = await client.plugins.explain_config(key)
        except Unimplemented as error:
            raise Unimplemented("this daemon does not tell its config; --config explains a file") from error
        except NotFound as error:
            raise ValueError(f"the config of the daemon has no key {key}; {_HINT}") from error
        print("\n".join(map(str, values)))

    session_of(ctx).run(work)


def _explain_file(path: str, key: str) -> None:
    from aiocontainerd.cli import config_explain
    from aiocontainerd.config import ConfigError, load

    try:
        config_explain.show(load(Path(path), explicit=True), key)
    except ConfigError as error:
        raise click.ClickException(f"containerd: {error}") from error
