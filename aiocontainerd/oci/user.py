"""Resolve the USER of an image: `user`, `uid`, `user:group` and mixes, looked up in its root file system.

Digits are never a name, and numbers are 0 to 2147483647 (facts/runtime 7.7, facts/security 2024-40635, 2026-46680).
Which groups a process gets besides depends on who names the user; the rules are those of containerd's client library.
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
_HALVES = 2
_NUMBER = re.compile(r"[+-]?[0-9]+\Z")

ReadLines = Callable[[str], Sequence[Sequence[str]]]
"""A function that returns the fields of every line of `/etc/passwd` or `/etc/group`."""


class User(msgspec.Struct, frozen=True):
    """The numeric identity of a process."""

    uid: int = 0
    gid: int = 0
    additional_gids: tuple[int, ...] = ()


def of_image(text: str, read: ReadLines) -> User:
    """Return the identity that an image's USER means, with the groups that /etc/group lists for its uid.

    "" means root. Raises InvalidArgument for a malformed string, NotFound (`no users found`, `no groups found`).
    """
    if not text:
        return _with_groups(0, 0, _groups_of("root", read))
    uid, gid = _ids(text, read)
    return _with_groups(uid, gid, _groups_of(_name_of(uid, read), read))


def given(text: str, read: ReadLines) -> User:
    """Return the identity that a person asks for in place of the image's, as `ctr run --user` makes it.

    It has the groups of a user that is given alone. With a group it has that group only. Raises as `of_image`.
    """
    uid, gid = _ids(text, read)
    number = _number(text, text, "uid") if ":" not in text else None
    return _with_groups(uid, gid, _groups_of(text if number is None else _name_of(number, read), read))


def of_exec(text: str, read: ReadLines) -> User:
    """Return the identity of an exec, which has no group but its primary one, as with ctr. Raises as `of_image`."""
    uid, gid = _ids(text, read)
    return User(uid, gid, (gid,))


def _ids(text: str, read: ReadLines) -> tuple[int, int]:
    """Return uid and gid. In a pair, an empty half is 0, and the user's own group does not count."""
    parts = text.split(":")
    if len(parts) > _HALVES:
        raise InvalidArgument(f"invalid USER value {text}")
    numbers = [_number(part, text, kind) for part, kind in zip(parts, ("uid", "gid"), strict=False)]
    if len(parts) == 1:
        return _alone(text, numbers[0], read)
    uid, gid = (number or 0 for number in numbers)
    if parts[0] and numbers[0] is None:
        uid, _ = _user(parts[0], text, read)
    if parts[1] and numbers[1] is None:
        gid = _group(parts[1], text, read)
    return uid, gid


def _alone(text: str, number: int | None, read: ReadLines) -> tuple[int, int]:
    if number is None:
        return _user(text, text, read)
    found = _passwd_entry(lambda _name, uid: uid == number, read)
    return (number, found[1]) if found else (number, 0)


def _number(part: str, text: str, kind: str) -> int | None:
    """Return a numeric part as a number, or None for a name. Raises InvalidArgument for a number out of range."""
    if not _NUMBER.match(part):
        return None
    digits = part.lstrip("+-").lstrip("0")
    if len(digits) > len(str(MAX_ID)) or not 0 <= int(f"{'-' if part[0] == '-' else ''}{digits or '0'}") <= MAX_ID:
        raise InvalidArgument(f'invalid USER value "{text}": {kind} out of range')
    return int(digits or "0")


def _passwd_entry(wanted: Callable[[str, int], bool], read: ReadLines) -> tuple[int, int, str] | None:
    """Return uid, gid and name of the first line that is wanted. A line without a group means 0, as containerd has it.

    A line whose numbers are none is nobody's. containerd takes it for root's.
    """
    for fields in read("/etc/passwd"):
        group = (fields[3] if len(fields) > 3 else "") or "0"
        if len(fields) < 3 or not (_is_id(fields[2]) and _is_id(group)):
            continue
        uid, gid = int(fields[2]), int(group)
        if wanted(fields[0], uid):
            return uid, gid, fields[0]
    return None


def _user(name: str, text: str, read: ReadLines) -> tuple[int, int]:
    found = _passwd_entry(lambda other, _uid: other == name, read)
    if found is None:
        raise NotFound(f'no users found for USER value "{text}" in /etc/passwd of the image')
    return found[0], found[1]


def _name_of(uid: int, read: ReadLines) -> str:
    found = _passwd_entry(lambda _name, other: other == uid, read)
    return found[2] if found else ""


def _group(group: str, text: str, read: ReadLines) -> int:
    for fields in read("/etc/group"):
        if len(fields) >= 3 and fields[0] == group and _is_id(fields[2]):
            return int(fields[2])
    raise NotFound(f'no groups found for USER value "{text}" in /etc/group of the image')


def _groups_of(name: str, read: ReadLines) -> list[int]:
    """Return the groups that list a user, in the order of the file. A group of the user's own name does not count."""
    lines = [fields for fields in (read("/etc/group") if name else ()) if len(fields) >= 4 and _is_id(fields[2])]
    return [int(fields[2]) for fields in lines if fields[0] != name and name in fields[3].split(",")]


def _with_groups(uid: int, gid: int, groups: Sequence[int]) -> User:
    """Return an identity whose primary group is among the others."""
    return User(uid, gid, tuple(groups) if gid in groups else (gid, *groups))


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
    lines = (line.strip() for line in data.decode(errors="surrogateescape").split("\n"))
    return [line.split(":") for line in lines if line and not line.startswith("#")]


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
