"""`aiocontainerd index`: look at the databases of a root, go back to a copy, let go of data that nobody knows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import click

from aiocontainerd.cli.ending import Program

if TYPE_CHECKING:
    from aiocontainerd.config import Config


class ConfigFlags(Protocol):
    """The flags of the program, which name the config file and the root."""

    def load(self, *, missing_is_fine: bool = False) -> Config: ...


@click.group("index", cls=Program)
def index_group() -> None:
    """Repair the databases of a root while its daemon is stopped."""


@index_group.command("ls")
@click.pass_obj
def list_databases(flags: ConfigFlags) -> None:
    """Print each database of the root: what is wrong with it, what it keeps, the times of its copies."""
    from aiocontainerd.index import repair

    with _stopped(_root_of(flags)) as root:
        for found in repair.find(root):
            kept = f", keeps {found.kept} objects that no record knows" if found.kept else ""
            former = f"; of the database before: {found.former}" if found.former else ""
            copies = ", ".join(found.copies) or "none"
            click.echo(f"{found.path}: {found.problem or 'ok'}{kept}; copies: {copies}{former}")


@index_group.command("restore")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--empty", is_flag=True, help="Begin an empty database instead of going back to a copy.")
@click.option("--former", is_flag=True, help="Go back to the copy of the database that was there before this one.")
def restore(path: Path, empty: bool, former: bool) -> None:
    """Put the newest copy of the database PATH in its place. The database is moved aside."""
    from aiocontainerd.index import repair

    path = path.absolute()
    with _stopped(path.parent.parent):
        aside = repair.restore(path, empty=empty, former=former)
    now = "begins empty" if empty else "is the copy of the one before" if former else "is its newest copy"
    click.echo(f"{path}: {now}; before: {aside or 'missing'}")


@index_group.command("release")
@click.pass_obj
def release(flags: ConfigFlags) -> None:
    """Let go of what the databases keep although no record knows it: the next start of the daemon deletes it."""
    from aiocontainerd.index import repair

    with _stopped(_root_of(flags)) as root:
        for found in repair.find(root):
            if found.kept or found.former:
                click.echo(f"{found.path}: {repair.release(found.path)} objects are deleted at the next start")


def _root_of(flags: ConfigFlags) -> Path:
    from aiocontainerd.config import ConfigError

    try:
        return Path(flags.load(missing_is_fine=True).settings.root).absolute()
    except ConfigError as error:
        raise click.ClickException(f"containerd: {error}") from error


@contextmanager
def _stopped(root: Path) -> Iterator[Path]:
    """Hold the lock of a root, and print what goes wrong in the block in one line."""
    from aiocontainerd.daemon import lock
    from aiocontainerd.errors import ContainerdError, os_text

    try:
        with lock.hold(root):
            yield root
    except (lock.RootLockedError, ContainerdError) as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(os_text(error)) from error
