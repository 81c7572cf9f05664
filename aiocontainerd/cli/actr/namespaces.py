"""`actr namespaces`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from aiocontainerd.cli.actr import output
from aiocontainerd.cli.actr.session import session_of

if TYPE_CHECKING:
    from aiocontainerd.client.client import Client

HINT = "actr namespaces ls lists all of them"


@click.group()
def namespaces() -> None:
    """Create, list, label and remove namespaces."""


@namespaces.command("create")
@click.argument("name")
@click.argument("labels", nargs=-1)
@click.pass_context
def create(ctx: click.Context, name: str, labels: tuple[str, ...]) -> None:
    """Create NAME with LABELS given as key=value."""

    async def work(client: Client) -> None:
        await client.namespaces.create(name, output.parse_labels(labels))

    session_of(ctx).run(work)


@namespaces.command("ls")
@click.option("-q", "--quiet", is_flag=True, help="Print names only.")
@click.pass_context
def list_namespaces(ctx: click.Context, quiet: bool) -> None:
    """List namespaces."""

    async def work(client: Client) -> None:
        found = await client.namespaces.list()
        if quiet:
            print("".join(f"{namespace.name}\n" for namespace in found), end="")
        else:
            output.table(("NAME", "LABELS"), [(n.name, output.pairs(n.labels)) for n in found])

    session_of(ctx).run(work)


@namespaces.command("label")
@click.argument("name")
@click.argument("labels", nargs=-1, required=True)
@click.pass_context
def label(ctx: click.Context, name: str, labels: tuple[str, ...]) -> None:
    """Set LABELS (key=value) of NAME; `key=` deletes a label."""

    async def work(client: Client) -> None:
        from aiocontainerd.interfaces.metadata import Namespace

        given = output.parse_labels(labels)
        await client.namespaces.update(Namespace(name, given), [f"labels.{key}" for key in given])

    session_of(ctx).run(work, hint=HINT)


@namespaces.command("rm")
@click.argument("names", nargs=-1, required=True)
@click.pass_context
def remove(ctx: click.Context, names: tuple[str, ...]) -> None:
    """Remove empty namespaces."""

    async def work(client: Client) -> None:
        for name in names:
            await client.namespaces.delete(name)
            print(name)

    session_of(ctx).run(work, hint=HINT)
