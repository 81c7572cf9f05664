"""Resolve the USER of an image: `user`, `uid`, `user:group` and mixes, looked up in its root file system.

Digits are never a name, and numbers are 0 to 2147483647 (facts/runtime 7.7, facts/security 2024-40635, 2026-46680).
passwd and group must be regular files of at most 10 MiB, opened without leaving the root (2026-47262).
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Sequence

import msgspec

from aiocontainerd.errors import InvalidArgument, NotFound
from aiocontainerd.sys.openat2 import open_in_root

MAX_ID = 2**31 - 1
MAX_FILE_BYTES = 10 << 20
_NUMBER = re.compile(r"[+-]?[0-9]+\Z")

ReadLines = Callable[[str], Sequence[Sequence[str]]]
"""A function that returns the fields of every line of `/etc/passwd` or `/etc/group`."""


class User(msgspec.Struct, frozen=True):
    """The numeric identity of a process."""

    uid: int = 0
    gid: int = 0
    additional_gids: tuple[int, ...] = ()


def resolve(text: str, read: ReadLines) -> User:
    """Return the identity that a USER string means.

    Raises InvalidArgument for a malformed string, NotFound (`no users found`, `no groups found`) for unknown names.
    """
    user, colon, group = text.partition(":")
    if not user or (colon and not group):
        raise InvalidArgument(f'invalid USER value "{text}": must be user, uid, user:group or uid:gid')
    number = _number(user, text, "uid")
    found = _passwd_entry(user, number, read)
    if number is None and found is None:
        raise NotFound(f'no users found for USER value "{text}" in /etc/passwd of the image')
    uid, gid, name = found or (number or 0, 0, "")
    if group:
        gid = _group(group, text, read)
    return User(uid, gid, _memberships(name, gid, read))


def needs_lookup(text: str) -> bool:
    """Return True when the identity must be looked up in a root file system. Root itself need not."""
    return text not in ("", "0", "0:0", "root", "root:root")


def _number(part: str, text: str, kind: str) -> int | None:
    """Return a numeric part as a number, or None for a name. Raises InvalidArgument for a number out of range."""
    if not _NUMBER.match(part):
        return None
    if len(part) > len(str(MAX_ID)) + 1 or not 0 <= int(part) <= MAX_ID:
        raise InvalidArgument(f'invalid USER value "{text}": {kind} out of range')
    return int(part)


def _passwd_entry(user: str, number: int | None, read: ReadLines) -> tuple[int, int, str] | None:
    for fields in read("/etc/passwd"):
        if len(fields) < 4 or not (_is_id(fields[2]) and _is_id(fields[3])):
            continue
        uid, gid = int(fields[2]), int(fields[3])
        if (number is None and fields[0] == user) or uid == number:
            return uid, gid, fields[0]
    return None


def _group(group: str, text: str, read: ReadLines) -> int:
    number = _number(group, text, "gid")
    if number is not None:
        return number
    for fields in read("/etc/group"):
        if len(fields) >= 3 and fields[0] == group and _is_id(fields[2]):
            return int(fields[2])
    raise NotFound(f'no groups found for USER value "{text}" in /etc/group of the image')


def _memberships(name: str, gid: int, read: ReadLines) -> tuple[int, ...]:
    """Return the primary group and the groups that list the user."""
    lines = read("/etc/group") if name else ()
    listed = [f[2] for f in lines if len(f) >= 4 and name in f[3].split(",") and _is_id(f[2])]
    return tuple(dict.fromkeys([gid, *map(int, listed)]))


def _is_id(field: str) -> bool:
    return field.isascii() and field.isdecimal() and len(field) <= len(str(MAX_ID)) and int(field) <= MAX_ID


def reader(root: str) -> ReadLines:
    """Return a function that reads the files of a mounted root file system, each once. A missing file is empty."""
    cache: dict[str, Sequence[Sequence[str]]] = {}

    def read(path: str) -> Sequence[Sequence[str]]:
        if path not in cache:
            cache[path] = _fields(_read_regular(root, path))
        return cache[path]

    return read


def _fields(data: bytes) -> Sequence[Sequence[str]]:
    lines = data.decode(errors="surrogateescape").split("\n")
    return [line.strip().split(":") for line in lines if line.strip() and not line.startswith("#")]


def _read_regular(root: str, path: str) -> bytes:
    """Return the bytes of a regular file. Raises InvalidArgument for any other kind of file before reading it."""
    try:
        checked = open_in_root(root, path, os.O_PATH)
    except (FileNotFoundError, NotADirectoryError):
        return b""
    try:
        info = os.fstat(checked)
        if not stat.S_ISREG(info.st_mode):
            raise InvalidArgument(f"{path} of the image is not a regular file")
        with open(f"/proc/self/fd/{checked}", "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    finally:
        os.close(checked)
    if len(data) > MAX_FILE_BYTES:
        raise InvalidArgument(f"{path} of the image is larger than {MAX_FILE_BYTES} bytes")
    return data
