"""`actr snapshots` and `actr content`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from aiocontainerd.cli.actr import output
from aiocontainerd.cli.actr.session import session_of

if TYPE_CHECKING:
    from aiocontainerd.client.client import Client


@click.group()
def snapshots() -> None:
    """Snapshots of a snapshotter."""


@snapshots.command("ls")
@click.argument("filters", nargs=-1)
@click.option("--snapshotter", default="", envvar="CONTAINERD_SNAPSHOTTER", help="The namespace's default otherwise.")
@click.pass_context
def list_snapshots(ctx: click.Context, filters: tuple[str, ...], snapshotter: str) -> None:
    """List snapshots."""

    async def work(client: Client) -> None:
        from aiocontainerd.distribution.unpack import default_snapshotter

        with client.stores() as stores:
            backend = client.snapshots(snapshotter or await default_snapshotter(stores))
        rows = [(s.name, s.parent or "-", s.kind.name.capitalize()) async for s in backend.walk(filters)]
        output.table(("KEY", "PARENT", "KIND"), rows)

    session_of(ctx).run(work)


@click.group()
def content() -> None:
    """Blobs of the content store."""


@content.command("ls")
@click.argument("filters", nargs=-1)
@click.option("-q", "--quiet", is_flag=True, help="Print digests only.")
@click.pass_context
def list_content(ctx: click.Context, filters: tuple[str, ...], quiet: bool) -> None:
    """List blobs."""

    async def work(client: Client) -> None:
        found = [info async for info in client.content.walk(filters)]
        if quiet:
            print("".join(f"{info.digest}\n" for info in found), end="")
        else:
            rows = [
                (i.digest, output.size(i.size), output.time(i.created_at_ns), output.pairs(i.labels)) for i in found
            ]
            output.table(("DIGEST", "SIZE", "CREATED", "LABELS"), rows)

    session_of(ctx).run(work)
