"""Records that a bundle keeps on disk: for the delete action, and for a shim that adopts the container.

`options.json` and `runtime` are containerd's own names (facts/runtime 2.2). `process/` holds one record of the init
(`init.json`) and one of each exec (`exec-<id>.json`): pid and start time, streams, exit. `shim.json` names the shim
that serves the bundle. Every file is replaced by renaming: a reader meets the old record or the new one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from aiocontainerd import api, typeurl
from aiocontainerd.wire.anys import unmarshal_known

OPTIONS_URL = "containerd.runc.v1.Options"

_START_TIME_FIELD = 19
"""Of /proc/PID/stat, counted from the field behind the command name."""


class RuncOptions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`containerd.runc.v1.Options` as `options.json` has it (facts/runtime 6.3)."""

    no_pivot_root: bool = False
    no_new_keyring: bool = False
    shim_cgroup: str = ""
    io_uid: int = 0
    io_gid: int = 0
    binary_name: str = ""
    root: str = ""
    systemd_cgroup: bool = False
    criu_image_path: str = ""
    criu_work_path: str = ""


class ShimRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Which shim serves a bundle, and where the OCI runtime keeps the container."""

    version: int = 1
    namespace: str
    id: str
    shim_pid: int
    binary: str
    root: str
    systemd_cgroup: bool


class ProcessRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A process of a container. `start_time` (clock ticks since boot) tells it from a later process of the same pid."""

    exec_id: str = ""
    pid: int = 0
    start_time: int = 0
    started: bool = False
    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False
    exit_status: int | None = None
    exited_at_ns: int | None = None


def options_from_wire(value: api.protobuf.Any | None) -> RuncOptions:
    """Return the options of a request; defaults if there are none, or if they are of another known type.

    Raises Unknown for a type that nobody knows and for bytes that do not fit.
    """
    if value is None or not (value.type_url or value.value):
        return RuncOptions()
    message = unmarshal_known(typeurl.Any(value.type_url, value.value))
    if not isinstance(message, api.runc.Options):
        return RuncOptions()
    return RuncOptions(**{name: getattr(message, name) for name in RuncOptions.__struct_fields__})


def write_options(bundle: Path, options: RuncOptions) -> None:
    """Write the options of a container, for the delete action."""
    replace_file(bundle / "options.json", msgspec.json.encode(options))
    replace_file(bundle / "runtime", options.binary_name.encode())


def read_options(bundle: Path) -> RuncOptions:
    """Return the options of a container; defaults if the bundle has none, or damaged ones."""
    try:
        return msgspec.json.decode((bundle / "options.json").read_bytes(), type=RuncOptions)
    except (FileNotFoundError, msgspec.DecodeError):
        return RuncOptions()


def read_config(bundle: Path) -> bytes:
    """Return the OCI spec of a bundle, config.json; nothing where it cannot be read, which the OCI runtime tells."""
    try:
        return (bundle / "config.json").read_bytes()
    except OSError:
        return b""


def replace_config(bundle: Path, config: bytes) -> None:
    """Put another OCI spec into a bundle. The file keeps its mode."""
    path = bundle / "config.json"
    replace_file(path, config, path.stat().st_mode & 0o777)


def write_shim(bundle: Path, record: ShimRecord) -> None:
    """Write which shim serves the bundle."""
    replace_file(bundle / "shim.json", msgspec.json.encode(record))


def read_shim(bundle: Path) -> ShimRecord | None:
    """Return the shim that serves the bundle; None if its container was never created."""
    try:
        return msgspec.json.decode((bundle / "shim.json").read_bytes(), type=ShimRecord)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def write_process(bundle: Path, record: ProcessRecord) -> None:
    """Write the record of a process."""
    path = _process_path(bundle, record.exec_id)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    replace_file(path, msgspec.json.encode(record))


def read_process(bundle: Path, exec_id: str = "") -> ProcessRecord | None:
    """Return the record of a process, by default of the init; None if there is none."""
    return _read_record(_process_path(bundle, exec_id))


def read_processes(bundle: Path) -> Iterator[ProcessRecord]:
    """Yield the records of all processes of a bundle."""
    for path in (bundle / "process").glob("*.json"):
        record = _read_record(path)
        if record is not None:
            yield record


def remove_process(bundle: Path, exec_id: str) -> None:
    """Remove the record of an exec, and the pid file that the OCI runtime wrote for it."""
    _process_path(bundle, exec_id).unlink(missing_ok=True)
    exec_pid_file(bundle, exec_id).unlink(missing_ok=True)


def exec_pid_file(bundle: Path, exec_id: str) -> Path:
    """Return where the OCI runtime writes the pid of an exec. It is never `init.pid`, which is the container's."""
    return _process_path(bundle, exec_id).with_suffix(".pid")


def start_time(pid: int) -> int:
    """Return when a process started, in clock ticks since boot; 0 if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return int(stat.rpartition(") ")[2].split()[_START_TIME_FIELD])


def replace_file(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Write a file so that a reader sees it whole or not at all."""
    temporary = path.with_name(f".{path.name}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        os.write(fd, content)
    finally:
        os.close(fd)
    temporary.replace(path)


def _process_path(bundle: Path, exec_id: str) -> Path:
    return bundle / "process" / (f"exec-{exec_id}.json" if exec_id else "init.json")


def _read_record(path: Path) -> ProcessRecord | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=ProcessRecord)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
