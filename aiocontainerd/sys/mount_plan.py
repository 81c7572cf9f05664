"""The record of a mount, and the plan of system calls that makes it. Nothing here touches a mount (facts/core 7)."""

from __future__ import annotations

import os
from collections.abc import Sequence

import msgspec

from aiocontainerd.errors import InvalidArgument
from aiocontainerd.sys import mount_calls as calls
from aiocontainerd.sys import mount_options as opts
from aiocontainerd.sys import mountinfo

PAGE_SIZE_BYTES = os.sysconf("SC_PAGE_SIZE")
_DATA_HEADROOM = 512
_FUSE = {"fuse": "mount.fuse", "fuse3": "mount.fuse3"}


class Mount(msgspec.Struct, frozen=True):
    """One mount of a list that is mounted in order. `target` is relative to the root; options are as in fstab."""

    type: str
    source: str
    target: str = ""
    options: tuple[str, ...] = ()


class MountStep(msgspec.Struct, frozen=True, kw_only=True):
    """The system calls of one mount: mount(2) with these arguments, then changes of propagation and a bind remount.

    Relative paths in `data` start at `directory`. A `helper` is a program that is run in place of mount(2). `named` is
    the type that the mount had, for errors.
    """

    type: str
    source: str
    target: str
    options: opts.MountOptions
    data: str = ""
    directory: str = ""
    helper: tuple[str, ...] = ()
    named: str = ""

    @property
    def remount_flags(self) -> int:
        """Flags for the second mount(2), which a bind mount needs to become read-only; 0 without a second call."""
        flags = self.options.flags
        per_mount = flags & opts.PER_MOUNT_FLAGS
        return flags | calls.MS_REMOUNT if self.options.is_bind and per_mount else 0


def plan(mounts: Sequence[Mount], target: str) -> list[MountStep]:
    """Return the steps that mount `mounts` in order on `target`.

    Raises InvalidArgument for an option that nobody handled, for data that is too long even when shortened, and for a
    mount whose target lies outside of `target`.
    """
    return [_step(mount, target_of(mount, target)) for mount in mounts]


def _step(mount: Mount, target: str) -> MountStep:
    options = opts.parse(mount.options)
    prefix, dot, subtype = mount.type.partition(".")
    helper: tuple[str, ...] = ()
    if dot and prefix in _FUSE:
        helper = _fuse_command(_FUSE[prefix], subtype, mount, target)
    data, directory = ",".join(options.data), ""
    if not helper and len(data) >= PAGE_SIZE_BYTES - _DATA_HEADROOM:
        data, directory = _shortened(mount, options)
    fs_type = "" if options.is_bind else mount.type
    return MountStep(
        type=fs_type,
        source=mount.source,
        target=target,
        options=options,
        data=data,
        directory=directory,
        helper=helper,
        named=mount.type,
    )


def target_of(mount: Mount, root: str) -> str:
    """Return the path of `mount` when its list is mounted on `root`.

    Raises InvalidArgument for a target that leads out of `root`, also through a symbolic link.
    """
    if not mount.target.strip("/"):
        return root
    clean = os.path.normpath("/" + mount.target).lstrip("/")
    path = os.path.join(root, clean)
    if not mountinfo.is_below(os.path.realpath(path), os.path.realpath(root)):
        raise InvalidArgument(f"mount target {mount.target!r} leads out of {root}")
    return path


def _fuse_command(program: str, subtype: str, mount: Mount, target: str) -> tuple[str, ...]:
    options = ("-o", ",".join(mount.options)) if mount.options else ()
    return (program, mount.source, target, *options, "-t", subtype)


def _shortened(mount: Mount, options: opts.MountOptions) -> tuple[str, str]:
    """Return overlay's data with lower layers relative to the directory that they share, and that directory."""
    lower = opts.value_of(options.data, "lowerdir")
    data, directory = ",".join(options.data), ""
    if mount.type == "overlay" and lower is not None:
        layers, directory = _relative(opts.split_layers(lower))
        short = f"lowerdir={':'.join(layers)}"
        data = ",".join(short if option == f"lowerdir={lower}" else option for option in options.data)
    if len(data) >= PAGE_SIZE_BYTES:
        raise InvalidArgument("mount options is too long")
    return data, directory


def _relative(layers: list[str]) -> tuple[list[str], str]:
    if not all(layer.startswith("/") for layer in layers):
        return layers, ""
    shared = os.path.commonpath(layers)
    directory = os.path.dirname(shared) if shared in layers else shared
    return [os.path.relpath(layer, directory) for layer in layers], directory


def read_only(mounts: Sequence[Mount]) -> list[Mount]:
    """Return mounts that show the same trees read-only. Overlay gets its upper directory as a lower one."""
    return [_overlay_read_only(mount) if mount.type == "overlay" else _plain_read_only(mount) for mount in mounts]


def _plain_read_only(mount: Mount) -> Mount:
    options = (*(option for option in mount.options if option not in ("ro", "rw")), "ro")
    return msgspec.structs.replace(mount, options=options)


def _overlay_read_only(mount: Mount) -> Mount:
    upper = opts.value_of(mount.options, "upperdir")
    kept = opts.without(mount.options, "upperdir", "workdir")
    if upper is not None:
        kept = tuple(
            f"lowerdir={upper}:{option.removeprefix('lowerdir=')}" if option.startswith("lowerdir=") else option
            for option in kept
        )
    return msgspec.structs.replace(mount, options=kept)


def without_volatile(mounts: Sequence[Mount]) -> list[Mount]:
    """Return `mounts` without overlay's `volatile`, which makes a later mount of the same upper directory fail."""
    return [
        msgspec.structs.replace(mount, options=tuple(o for o in mount.options if o not in opts.VOLATILE))
        for mount in mounts
    ]
