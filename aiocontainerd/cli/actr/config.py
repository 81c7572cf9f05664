"""`actr config`: explain the config file of a daemon on this host."""

from __future__ import annotations

from pathlib import Path

import click

from aiocontainerd.config.records import DEFAULT_PATH


@click.group()
def config() -> None:
    """Explain the config of a daemon on this host."""


@config.command()
@click.argument("key", default="")
@click.option("-c", "--config", "path", default="", metavar="FILE", help=f"Config file [default: {DEFAULT_PATH}].")
def explain(key: str, path: str) -> None:
    """Show each value at or below KEY with its origin: file and line, or default. Secrets are redacted."""
    from aiocontainerd.cli import config_explain
    from aiocontainerd.config import ConfigError, load

    try:
        config_explain.show(load(Path(path or DEFAULT_PATH), explicit=bool(path)), key)
    except ConfigError as error:
        raise click.ClickException(f"containerd: {error}") from error
