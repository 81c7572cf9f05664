"""`actr run`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from aiocontainerd import api
from aiocontainerd.cli.actr import output
from aiocontainerd.cli.actr.images import HINT, ranking_of
from aiocontainerd.cli.actr.session import session_of
from aiocontainerd.wire.anys import marshal

if TYPE_CHECKING:
    from aiocontainerd import typeurl
    from aiocontainerd.client.client import Client
    from aiocontainerd.oci.spec import Wishes

_SIZE = re.compile(r"(\d+)([kmgt]?)(i?b)?\Z", re.IGNORECASE)


def parse_bytes(text: str) -> int:
    """Return the bytes of `512m`, `1g` or a plain number. Raises ValueError naming the text."""
    found = _SIZE.match(text)
    if not found:
        raise ValueError(f'"{text}" is no size; write it as 512m or 1g')
    return int(found[1]) << (10 * " kmgt".index(found[2].lower() or " "))


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--rm", "remove", is_flag=True, help="Remove the container and its snapshot at the end.")
@click.option("-d", "--detach", is_flag=True, help="Run it in the background; its output is dropped.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal.")
@click.option("--snapshotter", default="", envvar="CONTAINERD_SNAPSHOTTER", help="Snapshotter of its root.")
@click.option("--runtime", default="", help="Runtime name or absolute path of a shim.")
@click.option("--runc-binary", default="", help="OCI runtime that the shim is to use.")
@click.option("--platform", "platforms", multiple=True, help="Platform of the image instead of the host's.")
@click.option("--env", "env", multiple=True, help="Environment, KEY=value.")
@click.option("--cwd", default="", help="Working directory.")
@click.option("-u", "--user", default="", help="user, uid, user:group or uid:gid.")
@click.option("--hostname", default="", help="Host name.")
@click.option("--net-host", is_flag=True, help="Use the host's network.")
@click.option(
    "--mount",
    "mounts",
    multiple=True,
    help="type=bind,src=/a,dst=/b,options=rbind:ro; takes the place of a default mount.",
)
@click.option("--privileged", is_flag=True, help="All capabilities that the caller has, and all devices.")
@click.option("--read-only", is_flag=True, help="Read-only root.")
@click.option("--memory-limit", default="0", help="Memory limit such as 512m.")
@click.option("--cpus", default=0.0, help="CPU limit in cores.")
@click.option("--label", "labels", multiple=True, help="Label (key=value) of the container.")
@click.option("--annotation", "annotations", multiple=True, help="Annotation (key=value) of its spec.")
@click.argument("image")
@click.argument("container_id", metavar="ID")
@click.argument("args", nargs=-1)
@click.pass_context
def run(ctx: click.Context, /, image: str, container_id: str, remove: bool, detach: bool, **given: object) -> None:
    """Run a container ID of IMAGE, with ARGS instead of the image's entrypoint and command."""

    async def work(client: Client) -> int:
        from aiocontainerd.client import run as runs
        from aiocontainerd.client import terminal
        from aiocontainerd.client.stdio import Streams

        if given["tty"] and not detach:
            terminal.require(0)
        options = runs.RunOptions(
            image=image,
            id=container_id,
            wishes=wishes_of(given),
            user=str(given["user"]),
            snapshotter=str(given["snapshotter"]),
            runtime=str(given["runtime"]),
            runtime_options=_runc_options(str(given["runc_binary"])),
            labels=output.parse_labels(_texts(given["labels"])),
        )
        rank = ranking_of(_texts(given["platforms"]))
        if detach:
            await runs.run_detached(client, options, rank)
            return 0
        return (await runs.run(client, options, rank, streams=Streams(), remove=remove)).status

    if detach and remove:
        raise click.UsageError("--rm and --detach cannot be used together: nobody would wait for the end")
    session_of(ctx).run(work, hint=HINT)


def wishes_of(given: dict[str, object]) -> Wishes:
    """Return the wishes of the command line. Raises ValueError, InvalidArgument."""
    from aiocontainerd.oci import spec

    labels = output.parse_labels(_texts(given["labels"]))
    return spec.Wishes(
        args=_texts(given["args"]),
        env=_texts(given["env"]),
        cwd=str(given["cwd"]),
        tty=bool(given["tty"]),
        hostname=str(given["hostname"]),
        net_host=bool(given["net_host"]),
        mounts=[spec.parse_mount(text) for text in _texts(given["mounts"])],
        privileged=bool(given["privileged"]),
        read_only=bool(given["read_only"]),
        memory_bytes=parse_bytes(str(given["memory_limit"])),
        cpus=float(str(given["cpus"])),
        annotations=output.parse_annotations(_texts(given["annotations"])),
        labels=labels,
    )


def _texts(values: object) -> tuple[str, ...]:
    return tuple(str(value) for value in values) if isinstance(values, tuple) else ()


def _runc_options(binary: str) -> typeurl.Any | None:
    if not binary:
        return None

    return marshal(api.runc.Options(binary_name=binary))
