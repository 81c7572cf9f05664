"""Id-mapped mounts (mount_setattr(2)): make a user namespace that carries the maps, and mount trees through it."""

from __future__ import annotations

import errno
import os
import select
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from aiocontainerd.errors import InvalidArgument
from aiocontainerd.sys import mount_calls as calls

_HELPER = ("unshare", "--user", "cat")
_HANDSHAKE_S = 10.0


def parse_map(value: str) -> list[tuple[int, int, int]]:
    """Return the ranges of `container:host:length[,...]`. Raises InvalidArgument, in Go's words, for another form."""
    return [_parse_range(text) for text in value.split(",") if text]


def _parse_range(text: str) -> tuple[int, int, int]:
    fields = text.split(":")
    if len(fields) != 3 or not all(field.isascii() and field.isdigit() for field in fields):
        raise InvalidArgument("user namespace mappings require the format `container-id:host-id:size`")
    return int(fields[0]), int(fields[1]), int(fields[2])


def root_pair(uid_map: str, gid_map: str) -> tuple[int, int] | None:
    """Return the host's uid and gid of the container's root, or None when the maps leave root out."""
    uid, gid = _host_of_root(uid_map), _host_of_root(gid_map)
    return None if uid is None or gid is None else (uid, gid)


def _host_of_root(value: str) -> int | None:
    return next((host for container, host, length in parse_map(value) if container == 0 and length > 0), None)


@contextmanager
def user_namespace(uid_map: str, gid_map: str) -> Iterator[int]:
    """Make a user namespace with these maps and yield a descriptor of it, which is closed after the block.

    The namespace is made by a short-lived helper program, since a fork of this process could inherit locks that its
    threads hold. Raises OSError when the kernel refuses the maps or the helper cannot start.
    """
    if not (uid_map and gid_map):
        raise InvalidArgument("an id-mapped mount needs both uidmap= and gidmap=")
    with subprocess.Popen(_HELPER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as helper:
        try:
            _wait_until_unshared(helper)
            for name, value in (("uid_map", uid_map), ("gid_map", gid_map)):
                _write_map(f"/proc/{helper.pid}/{name}", value)
            namespace = os.open(f"/proc/{helper.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            helper.kill()
    try:
        yield namespace
    finally:
        os.close(namespace)


def _wait_until_unshared(helper: subprocess.Popen[bytes]) -> None:
    """Wait for an echo of the helper, which proves that it is past its unshare(2)."""
    assert helper.stdin is not None
    assert helper.stdout is not None
    helper.stdin.write(b"\n")
    helper.stdin.flush()
    readable, _, _ = select.select([helper.stdout], [], [], _HANDSHAKE_S)
    if not readable or helper.stdout.read(1) != b"\n":
        raise OSError("no user namespace could be made for an id-mapped mount")


def _write_map(path: str, value: str) -> None:
    lines = [f"{container} {host} {length}" for container, host, length in parse_map(value)]
    with open(path, "w", encoding="ascii") as file:
        file.write("\n".join(lines))


def attach(source: str, target: str, namespace: int, *, attributes: int = 0, recursive: bool = False) -> None:
    """Mount the tree at `source` on `target` with its ids mapped by `namespace`."""
    flags = calls.OPEN_TREE_CLONE | (calls.AT_RECURSIVE if recursive else 0)
    tree = calls.open_tree(source, flags)
    try:
        calls.mount_setattr(
            tree, calls.MOUNT_ATTR_IDMAP | attributes, recursive=recursive, userns=namespace, path=source
        )
        calls.move_mount(tree, target)
    finally:
        os.close(tree)


@contextmanager
def mapped_layers(layers: Sequence[str], namespace: int, scratch: str) -> Iterator[list[str]]:
    """Mount id-mapped copies of overlay's lower layers below the empty directory `scratch`; yield their paths.

    The copies are detached after the block. An overlay that was mounted in the block keeps references of its own.
    """
    made: list[str] = []
    try:
        for number, layer in enumerate(layers):
            directory = os.path.join(scratch, str(number))
            os.mkdir(directory, 0o700)
            made.append(directory)
            attach(layer, directory, namespace, attributes=calls.MOUNT_ATTR_RDONLY)
        yield made
    finally:
        for directory in reversed(made):
            _detach(directory)
            os.rmdir(directory)


def _detach(directory: str) -> None:
    try:
        calls.umount(directory, calls.MNT_DETACH)
    except OSError as error:
        if error.errno != errno.EINVAL:  # EINVAL: nothing was mounted here
            raise
