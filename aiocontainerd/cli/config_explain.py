"""`config explain`, of `aiocontainerd` and of `actr`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from aiocontainerd.config import Config


def show(config: Config, key: str) -> None:
    """Print the values at and below a key with their origins. Raises ClickException for an unknown key."""
    from aiocontainerd.config import ConfigError
    from aiocontainerd.config.explain import explain
    from aiocontainerd.host import discovery

    try:
        registrations = discovery.checked_registrations(config)
        found = explain(config, registrations, key)
    except ConfigError as error:
        raise click.ClickException(f"containerd: {error}") from error
    if not found:
        raise click.ClickException(f"the config has no key {key}; `config explain` without a key shows all of them")
    for value in found:
        click.echo(value)
