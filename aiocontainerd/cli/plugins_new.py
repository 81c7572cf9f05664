"""The command `new` of `actr plugins` and of `aiocontainerd-plugin`: write the package of a new plugin."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("new")
@click.argument("kind")
@click.argument("name")
@click.option("--directory", type=click.Path(path_type=Path), help="Directory of the package [default: ./NAME].")
def new(kind: str, name: str, directory: Path | None) -> None:
    """Write a small package for a plugin of KIND, with a test that passes.

    KIND is one of content, credentials, differ, event-sink, mount-handler, service, snapshotter, stream-processor,
    task-monitor, verifier. NAME is the name of the package and the id of the plugin, as in acme-reflink.
    """
    from aiocontainerd import scaffold

    target = directory or Path(name)
    try:
        written = scaffold.write(kind, name, target)
    except (scaffold.ScaffoldError, OSError) as error:
        raise click.ClickException(str(error)) from error
    for path in written:
        click.echo(path)
    scripts = _shown(scaffold.SCRIPTS)
    click.echo(f"\nNext:\n  {scaffold.install_command(scripts, target)}\n  {scripts}/pytest {target}")
    click.echo(f"{target}/README.md has the further steps.")


def _shown(scripts: Path) -> Path:
    """Return a directory as a person in the working directory types it."""
    return scripts.relative_to(Path.cwd()) if scripts.is_relative_to(Path.cwd()) else scripts
