"""What CRIU has to be told besides the OCI runtime's flags, and what it says when it fails.

A container's standard streams are named pipes or files of the host: nobody stands between the container and the client.
CRIU finds them in no mount of the container, so they are declared as *external*. The dump notes them by mount and
inode. The restore gets the new container's streams in their place. A file beside the images says which streams they
were. The OCI runtime has no flags for this; CRIU reads the file that `CRIU_CONFIG_FILE` names (criu(8)).
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from aiocontainerd.errors import InvalidArgument, text_of

CONFIG_VARIABLE = "CRIU_CONFIG_FILE"
STREAMS_FILE = "aiocontainerd-streams.json"
_STREAMS = (0, 1, 2)
_LARGEST_BYTES = 4096
_KEY = re.compile(r"file\[[0-9a-f]{1,16}:[0-9a-f]{1,16}\]")
"""A checkpoint may come from anywhere, and CRIU's config could name programs: nothing else gets into it."""
_ERROR = re.compile(r"\([0-9.]+\)\s+(?:[0-9]+:\s+)?Error \([^)]*\): (.+)")
_HARMLESS = ("rlimit: ",)
"""Told as an error by an unprivileged host, and not one."""


def streams_of(pid: int) -> list[str]:
    """Return CRIU's name for each standard stream of a process; "" for a stream that CRIU can dump itself."""
    inside = _mounts_of(pid)
    return [_external(pid, number, inside) for number in _STREAMS]


def dump_config(streams: Sequence[str]) -> str:
    """Return the config of a dump that leaves these streams out."""
    return "".join(f"external {key}\n" for key in dict.fromkeys(streams) if key)


def restore_config(streams: Sequence[str]) -> str:
    """Return the config of a restore that puts its own standard streams in place of these."""
    first = {key: number for number, key in reversed(list(enumerate(streams))) if key}
    return "".join(f"inherit-fd fd[{number}]:{key}\n" for key, number in sorted(first.items(), key=lambda one: one[1]))


def keep_streams(images: Path, streams: Sequence[str]) -> None:
    """Note beside the images which streams are external. If none is, write no file."""
    file = images / STREAMS_FILE
    file.unlink(missing_ok=True)
    if any(streams):
        file.write_bytes(msgspec.json.encode(list(streams)))


def kept_streams(images: Path) -> list[str]:
    """Return what `keep_streams` noted; nothing for the images of another shim.

    Raises InvalidArgument for anything else.
    """
    try:
        descriptor = os.open(images / STREAMS_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            streams = msgspec.json.decode(file.read(_LARGEST_BYTES), type=list[str])
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"checkpoint: {STREAMS_FILE}: {text_of(error)}") from error
    if len(streams) > len(_STREAMS) or not all(_KEY.fullmatch(key) for key in streams if key):
        raise InvalidArgument(f"checkpoint: {STREAMS_FILE} names streams that no checkpoint has")
    return streams


def reason(log: Path, said: str) -> str:
    """Return why CRIU or the OCI runtime failed, from CRIU's log or output; "" if `said` is all there is."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        error = _ERROR.match(line)
        if error is not None and not error[1].startswith(_HARMLESS):
            return error[1].strip()
    if "unknown command" in said:
        return "this OCI runtime was built without CRIU"
    return "CRIU is not installed" if '"criu": executable file not found' in said else ""


def _external(pid: int, number: int, inside: set[str]) -> str:
    try:
        target = os.readlink(f"/proc/{pid}/fd/{number}")
        mount, inode = _mount_of(pid, number), os.stat(f"/proc/{pid}/fd/{number}").st_ino
    except FileNotFoundError:
        return ""
    return "" if mount in inside or not target.startswith("/") else f"file[{int(mount):x}:{inode:x}]"


def _mount_of(pid: int, number: int) -> str:
    for line in Path(f"/proc/{pid}/fdinfo/{number}").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "mnt_id":
            return value.strip()
    return "0"


def _mounts_of(pid: int) -> set[str]:
    return {line.partition(" ")[0] for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()}
