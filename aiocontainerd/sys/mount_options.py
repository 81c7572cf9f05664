"""Parse fstab-like mount options into flags, propagation, data for the file system, loop device and id mapping.

Pure functions; the rules are those of containerd's native Linux mounts (facts/core 7).
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from aiocontainerd.errors import InvalidArgument
from aiocontainerd.sys import mount_calls as calls

_SET = {
    "async": (calls.MS_SYNCHRONOUS, False),
    "atime": (calls.MS_NOATIME, False),
    "bind": (calls.MS_BIND, True),
    "defaults": (0, True),
    "dev": (calls.MS_NODEV, False),
    "diratime": (calls.MS_NODIRATIME, False),
    "dirsync": (calls.MS_DIRSYNC, True),
    "exec": (calls.MS_NOEXEC, False),
    "lazytime": (calls.MS_LAZYTIME, True),
    "mand": (calls.MS_MANDLOCK, True),
    "noatime": (calls.MS_NOATIME, True),
    "nodev": (calls.MS_NODEV, True),
    "nodiratime": (calls.MS_NODIRATIME, True),
    "noexec": (calls.MS_NOEXEC, True),
    "nolazytime": (calls.MS_LAZYTIME, False),
    "nomand": (calls.MS_MANDLOCK, False),
    "norelatime": (calls.MS_RELATIME, False),
    "nostrictatime": (calls.MS_STRICTATIME, False),
    "nosuid": (calls.MS_NOSUID, True),
    "nosymfollow": (calls.MS_NOSYMFOLLOW, True),
    "rbind": (calls.MS_BIND | calls.MS_REC, True),
    "relatime": (calls.MS_RELATIME, True),
    "remount": (calls.MS_REMOUNT, True),
    "ro": (calls.MS_RDONLY, True),
    "rw": (calls.MS_RDONLY, False),
    "strictatime": (calls.MS_STRICTATIME, True),
    "suid": (calls.MS_NOSUID, False),
    "sync": (calls.MS_SYNCHRONOUS, True),
}

_PROPAGATION = {
    "private": calls.MS_PRIVATE,
    "rprivate": calls.MS_PRIVATE | calls.MS_REC,
    "rshared": calls.MS_SHARED | calls.MS_REC,
    "rslave": calls.MS_SLAVE | calls.MS_REC,
    "runbindable": calls.MS_UNBINDABLE | calls.MS_REC,
    "shared": calls.MS_SHARED,
    "slave": calls.MS_SLAVE,
    "unbindable": calls.MS_UNBINDABLE,
}

PER_MOUNT_FLAGS = (
    calls.MS_RDONLY
    | calls.MS_NOSUID
    | calls.MS_NODEV
    | calls.MS_NOEXEC
    | calls.MS_NOATIME
    | calls.MS_NODIRATIME
    | calls.MS_NOSYMFOLLOW
)
"""Flags of a mount, not of its file system. A bind mount takes them only when it is remounted."""

VOLATILE = frozenset({"volatile", "fsync=volatile"})
_UNUSED = "X-containerd."


class MountOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Parsed mount options. `data` goes to the file system, in order. A map is a list of `container:host:length`."""

    flags: int = 0
    propagation: tuple[int, ...] = ()
    data: tuple[str, ...] = ()
    loop: bool = False
    direct_io: bool = False
    uid_map: str = ""
    gid_map: str = ""

    @property
    def is_bind(self) -> bool:
        return bool(self.flags & calls.MS_BIND)

    @property
    def id_mapped(self) -> bool:
        return bool(self.uid_map or self.gid_map)


def parse(options: Sequence[str]) -> MountOptions:
    """Parse `options`. Raises InvalidArgument for `X-containerd.*`, which only a mount manager understands."""
    flags, propagation, data = 0, [], []
    named: dict[str, str] = {}
    for option in options:
        key, _, value = option.partition("=")
        if option in _SET:
            bits, on = _SET[option]
            flags = flags | bits if on else flags & ~bits
        elif option in _PROPAGATION:
            propagation.append(_PROPAGATION[option])
        elif option in ("loop", "direct-io") or key in ("uidmap", "gidmap"):
            named[key] = value
        elif option.startswith(_UNUSED):
            raise InvalidArgument(f"mount option {option!r} was handled by no mount manager")
        elif option:
            data.append(option)
    return MountOptions(
        flags=flags,
        propagation=tuple(propagation),
        data=tuple(data),
        loop="loop" in named,
        direct_io="direct-io" in named,
        uid_map=named.get("uidmap", ""),
        gid_map=named.get("gidmap", ""),
    )


def value_of(options: Sequence[str], name: str) -> str | None:
    """Return the value of the last option `name=value`, or None."""
    found = [option for option in options if option.startswith(f"{name}=")]
    return found[-1].removeprefix(f"{name}=") if found else None


def without(options: Sequence[str], *names: str) -> tuple[str, ...]:
    """Return `options` without the options `name` and `name=...` of every name in `names`."""
    return tuple(option for option in options if option.partition("=")[0] not in names)


def split_layers(lowerdir: str) -> list[str]:
    """Return the paths in overlay's `lowerdir`, nearest first. Colons inside a path stay escaped with a backslash."""
    layers, current, escaped = [], "", False
    for character in lowerdir:
        if character == ":" and not escaped:
            layers.append(current)
            current = ""
        else:
            current += character
        escaped = character == "\\" and not escaped
    return [*layers, current]
