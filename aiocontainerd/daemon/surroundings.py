"""What the daemon does to its surroundings before it starts plugins: directories, old mounts, cgroup, oom score."""

from __future__ import annotations

import errno
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aiocontainerd import kinds
from aiocontainerd.config import Config
from aiocontainerd.daemon.errors import StartError
from aiocontainerd.errors import os_text
from aiocontainerd.sys import cgroup, mount, mountinfo

log = logging.getLogger(__name__)

_ROOT_MODE, _STATE_MODE, _TEMP_MODE = 0o700, 0o711, 0o700
_SERVICE_MANAGERS_OWN = ("systemd", "unified")
"""Hierarchies of a host with cgroup version 1 by which systemd tracks the daemon. They are left as they are."""


@contextmanager
def directories(config: Config) -> Iterator[tuple[Path, Path, Path]]:
    """Make root, state and temp. Temporary files of this process and its children then go to temp.

    A root of ours on a read-only file system is used for reading, and a warning says so. Raises StartError.
    """
    settings = config.settings
    root = _made(settings.root, _ROOT_MODE, "root", may_be_read_only=True)
    state = _made(settings.state, _STATE_MODE, "state")
    if settings.temp:
        temp = _made(settings.temp, _TEMP_MODE, "temp")
    else:
        try:
            yield root, state, Path(tempfile.gettempdir())
            return
        except FileNotFoundError:  # nothing can be written in any directory for temporary files
            temp = _made(str(state / "tmp"), _TEMP_MODE, "temp")
    os.environ["TMPDIR"] = tempfile.tempdir = str(temp)
    yield root, state, temp


_CHOICE = {"root": " with --root", "state": " with --state", "temp": ": temp = in the config"}
"""Directory -> how an operator chooses another."""


def _made(path: str, mode: int, name: str, *, may_be_read_only: bool = False) -> Path:
    directory = Path(path).absolute()
    try:
        directory.mkdir(mode=mode, parents=True, exist_ok=True)
        directory.chmod(mode)
        _try_writing(directory)
    except OSError as error:
        if error.errno != errno.EROFS:
            text = f"{name} directory {directory} cannot be used: {error.strerror}; choose another{_CHOICE[name]}"
            raise StartError(text) from error
        mounted, remedy = _mounted_at(directory)
        if not (may_be_read_only and _has_records(directory)):
            text = f"{name} directory {directory} cannot be used: {error.strerror}{mounted}. Containers run on."
            raise StartError(f"{text} Start again after: {remedy}") from error
        log.warning(
            "%s directory %s is on a read-only file system%s: until it can be written, only reading, and stopping of "
            "tasks, work. The daemon goes on by itself after: %s",
            name, directory, mounted, remedy,
        )  # fmt: skip
    return directory


def _has_records(root: Path) -> bool:
    """Return whether a daemon of ours has kept its records here: a plugin's check has refused those of others."""
    return any(path.stat().st_size for path in root.glob(f"{kinds.METADATA}.*/meta.db"))


def _mounted_at(directory: Path) -> tuple[str, str]:
    """Return what is mounted read-only at a directory, and the command that makes it writable.

    Another directory is no remedy: what lies in this one would be out of sight, and its containers run.
    """
    import shlex  # a start imports nothing for what hardly ever happens

    real = os.path.realpath(directory)
    mounts = [each for each in reversed(mountinfo.read()) if mountinfo.is_below(real, each.mount_point)]
    if not mounts:  # in a chroot: what is mounted outside of it is not listed
        return "", "its file system is made writable"
    found = max(mounts, key=lambda each: len(each.mount_point))
    return f" ({found.fs_type}, {found.source})", f"mount -o remount,rw {shlex.quote(found.mount_point)}"


def _try_writing(directory: Path) -> None:
    """Make and remove a file. A full disk is no reason to stay away: it takes a daemon to delete something."""
    probe = directory / f".probe-{os.getpid()}"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        log.warning("the disk of %s is full", directory)


def drop_old_mounts(root: Path) -> None:
    """Unmount and remove what a killed daemon left below `<root>/tmpmounts`. Log what cannot be removed.

    Empty directories on a read-only file system stay silently.
    """
    directory = root / "tmpmounts"
    if not directory.is_dir():
        return
    try:
        mount.unmount_recursive(str(directory))
        for left in directory.iterdir():
            left.rmdir()
    except OSError as error:
        if error.errno != errno.EROFS:
            log.warning("an old temporary mount stays: %s", os_text(error))


def join_cgroup(path: str) -> None:
    """Move this process into a cgroup, made where it is missing. Raises StartError. "" leaves the process alone."""
    if not path:
        return
    try:
        for directory in cgroup_directories(path):
            (directory / "cgroup.procs").write_text(str(os.getpid()))
    except OSError as error:
        raise StartError(f"cannot join cgroup {path} (cgroup.path): {os_text(error)}") from error


def cgroup_directories(path: str) -> Iterator[Path]:
    """Make the directories of a cgroup and yield them: one, or one for each controller of version 1."""
    base = Path(cgroup.ROOT)
    if (base / "cgroup.controllers").exists():
        hierarchies = [base]
    else:
        entries = (d for d in base.iterdir() if d.is_dir() and not d.is_symlink())
        hierarchies = [d for d in entries if d.name not in _SERVICE_MANAGERS_OWN]
    for hierarchy in hierarchies:
        directory = hierarchy
        for part in Path(path.lstrip("/")).parts:
            directory /= part
            directory.mkdir(exist_ok=True)
            _inherit_cpuset(directory)
        yield directory


def _inherit_cpuset(directory: Path) -> None:
    """Copy processors and memory nodes from the parent: a new cpuset of version 1 is empty and takes no process."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        file = directory / name
        if file.exists() and not file.read_text().strip() and (directory.parent / name).exists():
            file.write_text((directory.parent / name).read_text())


def set_oom_score(score: int) -> None:
    """Set the daemon's oom_score_adj. Without the right to lower it, the value stays, as in containerd."""
    if not score:
        return
    try:
        Path("/proc/self/oom_score_adj").write_text(str(score))
    except PermissionError:
        log.warning("oom_score = %d needs CAP_SYS_RESOURCE; left as it is", score)
    except OSError as error:
        raise StartError(f"oom_score = {score} cannot be set (-1000 to 1000): {error.strerror}") from error
