"""The door to the kernel's mounts, and its fake for tests that run without root."""

from __future__ import annotations

import errno
import os
import subprocess
import tempfile
import threading
from collections.abc import Callable
from typing import Protocol

from aiocontainerd.errors import os_text
from aiocontainerd.gotext import quoted
from aiocontainerd.sys import idmap, loop, mountinfo
from aiocontainerd.sys import mount_calls as calls
from aiocontainerd.sys import mount_options as opts
from aiocontainerd.sys.mount_plan import MountStep
from aiocontainerd.sys.mountinfo import MountInfo

_HELPER_TIMEOUT_S = 60.0
_ATTRIBUTES = {
    calls.MS_RDONLY: calls.MOUNT_ATTR_RDONLY,
    calls.MS_NOSUID: calls.MOUNT_ATTR_NOSUID,
    calls.MS_NODEV: calls.MOUNT_ATTR_NODEV,
    calls.MS_NOEXEC: calls.MOUNT_ATTR_NOEXEC,
    calls.MS_NOSYMFOLLOW: calls.MOUNT_ATTR_NOSYMFOLLOW,
}


class Mounter(Protocol):
    """The door to the kernel's mounts. The methods block, and raise OSError naming the path."""

    def mount(self, step: MountStep) -> None:
        """Carry out one step. When a part of it fails, nothing of the step stays mounted."""
        ...

    def unmount(self, target: str, flags: int = 0) -> None:
        """Unmount the topmost mount at `target`. Raises EINVAL when nothing is mounted, EBUSY when it is in use."""
        ...

    def mounts_under(self, root: str) -> list[MountInfo]:
        """Return the mounts at `root` and below it, parents first."""
        ...


class KernelMounter:
    """The mounter that calls the kernel."""

    def mount(self, step: MountStep) -> None:
        if step.helper:
            _run_helper(step.helper)
            return
        _mount_first(step)
        try:
            _finish(step)
        except OSError:
            if not step.options.flags & calls.MS_REMOUNT:
                calls.umount(step.target, calls.MNT_DETACH)
            raise

    def unmount(self, target: str, flags: int = 0) -> None:
        calls.umount(target, flags)

    def mounts_under(self, root: str) -> list[MountInfo]:
        return mountinfo.mounts_under(root)


def _mount_first(step: MountStep) -> None:
    if not step.options.id_mapped:
        _mount_plain(step)
        return
    with idmap.user_namespace(step.options.uid_map, step.options.gid_map) as namespace:
        if step.options.is_bind:
            recursive = bool(step.options.flags & calls.MS_REC)
            attributes = _attributes(step.options.flags)
            idmap.attach(step.source, step.target, namespace, attributes=attributes, recursive=recursive)
        elif step.type == "overlay":
            _mount_mapped_overlay(step, namespace)
        else:
            _mount_plain(step)
            _replace_mapped(step, namespace)


def _attributes(flags: int) -> int:
    return sum(attribute for flag, attribute in _ATTRIBUTES.items() if flags & flag)


def _mount_plain(step: MountStep) -> None:
    if not step.options.loop:
        _call(step, step.source)
        return
    ro = bool(step.options.flags & calls.MS_RDONLY)
    try:
        os.stat(step.source)
    except OSError as error:
        raise OSError(error.errno, f"could not open backing file: {step.source}: {os_text(error, 'open')}") from error
    with loop.attached(step.source, read_only=ro, direct_io=step.options.direct_io) as device:
        _call(step, device)


def _call(step: MountStep, source: str) -> None:
    def mount() -> None:
        try:
            calls.mount(source, step.target, step.type, step.options.flags, step.data)
        except OSError as error:
            raise OSError(error.errno, _told(step, source, error)) from error

    if step.directory:
        _in_directory(step.directory, mount)
    else:
        mount()


def _told(step: MountStep, source: str, error: OSError) -> str:
    """Return what failed to be mounted, in containerd's words."""
    return (
        f"mount source: {quoted(source)}, target: {quoted(step.target)}, fstype: {step.named}, "
        f"flags: {step.options.flags}, data: {quoted(step.data)}, err: {os_text(OSError(error.errno, error.strerror))}"
    )


def _in_directory(directory: str, action: Callable[[], None]) -> None:
    """Run `action` in a thread whose working directory is `directory`. Other threads keep theirs."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            calls.unshare_fs()
            os.chdir(directory)
            action()
        except BaseException as error:  # noqa: BLE001 - handed to the caller's thread
            failures.append(error)

    thread = threading.Thread(target=run, name="mount")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def _mount_mapped_overlay(step: MountStep, namespace: int) -> None:
    """Mount an overlay over id-mapped copies of its lower layers, since overlay itself cannot be id-mapped."""
    lower = opts.value_of(step.options.data, "lowerdir") or ""
    relative = opts.value_of(step.data.split(","), "lowerdir") or ""
    layers = [os.path.join(step.directory, _plain_path(layer)) for layer in opts.split_layers(relative)]
    scratch = tempfile.mkdtemp(prefix="ovl-idmapped-")
    try:
        with idmap.mapped_layers(layers, namespace, scratch) as mapped:
            names = ":".join(os.path.basename(path) for path in mapped)
            data = ",".join(
                f"lowerdir={names}" if option == f"lowerdir={lower}" else option for option in step.options.data
            )
            _in_directory(scratch, lambda: calls.mount(step.source, step.target, step.type, step.options.flags, data))
    finally:
        os.rmdir(scratch)


def _plain_path(layer: str) -> str:
    return layer.replace("\\:", ":").replace("\\\\", "\\")


def _replace_mapped(step: MountStep, namespace: int) -> None:
    """Replace the mount that was just made with an id-mapped copy of it."""
    tree = calls.open_tree(step.target, calls.OPEN_TREE_CLONE)
    try:
        calls.umount(step.target, calls.MNT_DETACH)
        calls.mount_setattr(tree, calls.MOUNT_ATTR_IDMAP, recursive=False, userns=namespace, path=step.target)
        calls.move_mount(tree, step.target)
    finally:
        os.close(tree)


def _finish(step: MountStep) -> None:
    for propagation in step.options.propagation:
        calls.mount("", step.target, "", propagation)
    if step.remount_flags:
        calls.mount("", step.target, "", step.remount_flags)


def _run_helper(command: tuple[str, ...]) -> None:
    """Run a helper such as mount.fuse. Raises OSError with the text that the helper printed, in containerd's words."""
    target = command[2]
    what = f"mount helper [{command[0]} [{' '.join(command[1:])}]] failed: "
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_HELPER_TIMEOUT_S)
    except FileNotFoundError as missing:
        text = f'{what}"": exec: {quoted(command[0])}: executable file not found in $PATH'
        raise OSError(errno.ENOENT, text) from missing
    except subprocess.TimeoutExpired as late:
        raise OSError(errno.ETIMEDOUT, f"{command[0]} did not end in {_HELPER_TIMEOUT_S:g} s", target) from late
    if done.returncode != 0:
        text = (done.stdout + done.stderr).decode(errors="surrogateescape")
        raise OSError(errno.EIO, f"{what}{quoted(text)}: exit status {done.returncode}")


class FakeMounter:
    """A mounter that only keeps a list of mounts. `fail` maps a target to the errno with which its next mount fails."""

    def __init__(self) -> None:
        self.mounted: list[MountStep] = []
        self.log: list[str] = []
        self.fail: dict[str, int] = {}
        self.busy: set[str] = set()

    def __repr__(self) -> str:
        return f"<FakeMounter {len(self.mounted)} mounted, {len(self.log)} calls>"

    def mount(self, step: MountStep) -> None:
        self.log.append(f"mount {step.target}")
        number = self.fail.pop(step.target, None)
        if number is not None:
            raise OSError(number, os.strerror(number), step.target)
        self.mounted.append(step)

    def unmount(self, target: str, flags: int = 0) -> None:
        detach = bool(flags & calls.MNT_DETACH)
        self.log.append(f"{'detach' if detach else 'unmount'} {target}")
        found = [index for index, step in enumerate(self.mounted) if step.target == target]
        if not found:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), target)
        if target in self.busy and not detach:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), target)
        del self.mounted[found[-1]]

    def mounts_under(self, root: str) -> list[MountInfo]:
        return [
            MountInfo(number, 0, "0:0", "/", step.target, (), (), step.type, step.source, tuple(step.options.data))
            for number, step in enumerate(self.mounted)
            if mountinfo.is_below(step.target, root)
        ]
