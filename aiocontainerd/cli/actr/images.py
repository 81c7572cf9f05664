"""`actr images`."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import IO, TYPE_CHECKING

import click

from aiocontainerd.cli.actr import output
from aiocontainerd.cli.actr.session import session_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiocontainerd.client.client import Client
    from aiocontainerd.distribution import Stores
    from aiocontainerd.distribution.hosts import RegistryCredentials
    from aiocontainerd.interfaces.metadata import Image
    from aiocontainerd.oci.platform import Ranking

HINT = "actr images ls shows which there are, actr images pull gets more"


@click.group()
def images() -> None:
    """Pull, import, list, tag and remove images."""


def ranking_of(platforms: Sequence[str]) -> Ranking:
    """Return a ranking for the platforms of the command line, or for this host. Raises InvalidArgument."""
    from aiocontainerd.oci import platform

    return platform.ranking([platform.parse(text) for text in platforms] or [platform.default()])


@images.command("ls")
@click.argument("filters", nargs=-1)
@click.option("-q", "--quiet", is_flag=True, help="Print names only.")
@click.pass_context
def list_images(ctx: click.Context, filters: tuple[str, ...], quiet: bool) -> None:
    """List images."""

    async def work(client: Client) -> None:
        found = await client.images.list(filters)
        if quiet:
            print("".join(f"{image.name}\n" for image in found), end="")
        else:
            rows = [await _row(client, image) for image in found]
            output.table(("REF", "TYPE", "DIGEST", "SIZE", "PLATFORMS", "LABELS"), rows)

    session_of(ctx).run(work)


async def _row(client: Client, image: Image) -> tuple[str, ...]:
    from aiocontainerd.distribution.inspect import summary

    with client.stores() as stores:
        total, platforms = await summary(stores.content, image.target)
    target = image.target
    shown = ",".join(platforms) or "-"
    return image.name, target.media_type, target.digest, output.size(total), shown, output.pairs(image.labels)


@images.command("rm")
@click.argument("names", nargs=-1, required=True)
@click.option("--sync", is_flag=True, help="Wait for the garbage collection.")
@click.pass_context
def remove(ctx: click.Context, names: tuple[str, ...], sync: bool) -> None:
    """Remove images by name."""

    async def work(client: Client) -> None:
        for number, name in enumerate(names):
            await client.images.delete(name, sync=sync and number == len(names) - 1)
            print(name)

    session_of(ctx).run(work, hint=HINT)


@images.command("tag")
@click.argument("source")
@click.argument("targets", nargs=-1, required=True)
@click.option("--force", is_flag=True, help="Replace a target that exists.")
@click.pass_context
def tag(ctx: click.Context, source: str, targets: tuple[str, ...], force: bool) -> None:
    """Give an image more names."""

    async def work(client: Client) -> None:
        import msgspec

        from aiocontainerd.distribution.images import put

        image = await client.images.get(source)
        for name in targets:
            named = msgspec.structs.replace(image, name=name)
            await (put(client.images, named) if force else client.images.create(named))
            print(name)

    session_of(ctx).run(work, hint=HINT)


@images.command("import")
@click.argument("archive", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--base-name", default="", help="Prefix of names, and the only one whose images are imported.")
@click.option("--digests", is_flag=True, help="Name every image by its digest as well.")
@click.option("--skip-digest-for-named", is_flag=True, help="With --digests: not those that have a name.")
@click.option("--index-name", default="", help="Name for the archive's index.")
@click.option("--all-platforms", is_flag=True, help="Import every platform.")
@click.option("--platform", "platforms", multiple=True, help="Import this platform instead of the host's.")
@click.option("--snapshotter", default="", envvar="CONTAINERD_SNAPSHOTTER", help="Unpack with this snapshotter.")
@click.option("--no-unpack", is_flag=True, help="Leave the layers packed.")
@click.option("--label", "labels", multiple=True, help="Label (key=value) of the images.")
@click.pass_context
def import_images(
    ctx: click.Context,
    archive: str,
    base_name: str,
    digests: bool,
    skip_digest_for_named: bool,
    index_name: str,
    all_platforms: bool,
    platforms: tuple[str, ...],
    snapshotter: str,
    no_unpack: bool,
    labels: tuple[str, ...],
) -> None:
    """Import images of ARCHIVE, an OCI layout or what docker save writes; `-` reads standard input."""

    async def work(client: Client) -> None:
        from aiocontainerd.distribution.import_names import Naming
        from aiocontainerd.distribution.importing import ImportOptions, import_archive
        from aiocontainerd.distribution.leases import held

        naming = Naming(
            prefix=base_name or _today(),
            allow_overwrite=not base_name,
            add_digest=digests,
            skip_named_digest=skip_digest_for_named,
        )
        options = ImportOptions(
            naming=naming,
            rank=ranking_of(platforms),
            all_platforms=all_platforms,
            index_name=index_name,
            labels=output.parse_labels(labels),
        )
        with client.stores() as stores:
            async with held(stores.leases):
                with _opened(archive) as source:
                    found = await import_archive(stores, source, options)
                for image in found:
                    await _unpacked(stores, image, options.rank, snapshotter, skip=no_unpack)

    session_of(ctx).run(work)


async def _unpacked(stores: Stores, image: Image, rank: Ranking, snapshotter: str, *, skip: bool) -> None:
    if skip:
        print(f"saved {output.printable(image.name)} ({image.target.digest})", flush=True)
        return
    from aiocontainerd.distribution.unpack import unpack_image

    print(f"unpacking {output.printable(image.name)} ({image.target.digest})...", end="", flush=True)
    try:
        await unpack_image(stores, image.target, rank, snapshotter)
    except BaseException:
        print(flush=True)
        raise
    print("done", flush=True)


def _opened(archive: str) -> AbstractContextManager[IO[bytes]]:
    """Open an archive. Standard input is not closed: that would wait for a thread that still reads it."""
    return nullcontext(open(0, "rb", closefd=False)) if archive == "-" else open(archive, "rb")


def _today() -> str:
    import datetime

    return f"import-{datetime.datetime.now(tz=datetime.UTC).date()}"


@images.command("pull")
@click.argument("reference")
@click.option("--platform", "platforms", multiple=True, help="Pull this platform instead of the host's.")
@click.option("--all-platforms", is_flag=True, help="Pull every platform.")
@click.option("--snapshotter", default="", envvar="CONTAINERD_SNAPSHOTTER", help="Unpack with this snapshotter.")
@click.option("--no-unpack", is_flag=True, help="Leave the layers packed.")
@click.option("--plain-http", is_flag=True, help="Speak http with the registry.")
@click.option("-k", "--skip-verify", is_flag=True, help="Accept any certificate of the registry.")
@click.option("-u", "--user", default="", help="Credentials, user[:password]; asked for where the password is missing.")
@click.option("--max-concurrent-downloads", default=3, show_default=True, help="Blobs in transfer at once.")
@click.option("--label", "labels", multiple=True, help="Label (key=value) of the image.")
@click.pass_context
def pull(
    ctx: click.Context,
    reference: str,
    platforms: tuple[str, ...],
    all_platforms: bool,
    snapshotter: str,
    no_unpack: bool,
    plain_http: bool,
    skip_verify: bool,
    user: str,
    max_concurrent_downloads: int,
    labels: tuple[str, ...],
) -> None:
    """Pull REFERENCE, a full name such as docker.io/library/busybox:latest, and unpack it."""

    async def work(client: Client) -> None:
        from aiocontainerd.cli.actr.progress import progress
        from aiocontainerd.distribution.hosts import RegistryOptions
        from aiocontainerd.distribution.pull import PullOptions

        options = PullOptions(
            rank=ranking_of(platforms),
            all_platforms=all_platforms,
            unpack=not no_unpack,
            snapshotter=snapshotter,
            labels=output.parse_labels(labels),
            concurrency=max_concurrent_downloads,
        )
        registry = RegistryOptions(plain_http=plain_http, skip_verify=skip_verify, credentials=credentials)
        with progress(sys.stdout) as told:
            image = await client.pull(reference, registry, options, told)
        print(f"{image.name} {image.target.digest}")

    credentials = _credentials(user)  # asks for the password before there is a loop that would wait for it
    session_of(ctx).run(work)


def _credentials(user: str) -> RegistryCredentials | None:
    if not user:
        return None
    from aiocontainerd.distribution.hosts import RegistryCredentials

    name, colon, secret = user.partition(":")
    return RegistryCredentials(name, secret if colon else click.prompt("Password", hide_input=True, err=True))
