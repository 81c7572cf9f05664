"""`actr containers`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from aiocontainerd.cli.actr import output
from aiocontainerd.cli.actr.session import session_of

if TYPE_CHECKING:
    from aiocontainerd import typeurl
    from aiocontainerd.client.client import Client
    from aiocontainerd.interfaces.metadata import Container

HINT = "actr containers ls lists all of them"


@click.group()
def containers() -> None:
    """List, show and remove container records."""


@containers.command("ls")
@click.argument("filters", nargs=-1)
@click.option("-q", "--quiet", is_flag=True, help="Print ids only.")
@click.pass_context
def list_containers(ctx: click.Context, filters: tuple[str, ...], quiet: bool) -> None:
    """List containers."""

    async def work(client: Client) -> None:
        found = await client.containers.list(filters)
        if quiet:
            print("".join(f"{container.id}\n" for container in found), end="")
        else:
            rows = [(c.id, c.image or "-", c.runtime_name) for c in found]
            output.table(("CONTAINER", "IMAGE", "RUNTIME"), rows)

    session_of(ctx).run(work)


@containers.command("info")
@click.argument("container_id", metavar="ID")
@click.option("--spec", "only_spec", is_flag=True, help="Print the runtime spec only.")
@click.pass_context
def info(ctx: click.Context, container_id: str, only_spec: bool) -> None:
    """Show a container as JSON."""

    async def work(client: Client) -> None:
        container = await client.containers.get(container_id)
        shown = _json(container.spec) if only_spec else described(container)
        print(json.dumps(shown, indent=4))

    session_of(ctx).run(work, hint=HINT)


def described(container: Container) -> dict[str, object]:
    """Return a container with the field names that ctr uses."""
    return {
        "ID": container.id,
        "Labels": dict(container.labels),
        "Image": container.image,
        "Runtime": {"Name": container.runtime_name, "Options": _json(container.runtime_options)},
        "SnapshotKey": container.snapshot_key,
        "Snapshotter": container.snapshotter,
        "CreatedAt": output.time(container.created_at_ns),
        "UpdatedAt": output.time(container.updated_at_ns),
        "Extensions": {key: _json(value) for key, value in container.extensions.items()},
        "SandboxID": container.sandbox_id,
        "Spec": _json(container.spec),
    }


def _json(value: typeurl.Any | None) -> object:
    if value is None:
        return None
    try:
        return json.loads(value.value)
    except ValueError:
        return {"type_url": value.type_url, "value": value.value.hex()}


@containers.command("rm")
@click.argument("container_ids", metavar="ID...", nargs=-1, required=True)
@click.option("--keep-snapshot", is_flag=True, help="Keep the snapshot.")
@click.option("-f", "--force", is_flag=True, help="Kill running tasks.")
@click.pass_context
def remove(ctx: click.Context, container_ids: tuple[str, ...], keep_snapshot: bool, force: bool) -> None:
    """Remove containers that have stopped, with their snapshots."""

    async def work(client: Client) -> None:
        import msgspec

        from aiocontainerd.client.run import remove_container

        for container_id in container_ids:
            container = await client.containers.get(container_id)
            if keep_snapshot:
                container = msgspec.structs.replace(container, snapshot_key="")
            await remove_container(client, container, force=force)

    session_of(ctx).run(work, hint=HINT)
