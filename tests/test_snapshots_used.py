"""Which layers are mounted, by mountinfo lines as kernels write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiocontainerd.snapshots.used import names_in_use, names_mounted
from aiocontainerd.sys.mount import Mount, mount_all, unmount_all
from aiocontainerd.sys.mountinfo import parse_line

LAYERS = "/var/lib/c/io.containerd.snapshotter.v1.native/snapshots"


@pytest.mark.parametrize(
    ("line", "names"),
    [
        (f"36 35 0:31 / /r rw - overlay overlay rw,lowerdir={LAYERS}/2/fs:{LAYERS}/1/fs,upperdir={LAYERS}/3/fs", "123"),
        (f"36 35 0:31 / /r rw - overlay overlay rw,workdir={LAYERS}/4/work", "4"),
        (f"36 35 0:31 / /r rw - overlay overlay rw,lowerdir+={LAYERS}/5/fs,datadir+={LAYERS}/6/fs", "56"),
        ("36 35 0:31 / /r rw - overlay overlay rw,lowerdir=7/fs:8/fs", "78"),
        ("36 35 0:31 / /r rw - overlay overlay rw,lowerdir=/other/snapshots/7/fs", ""),
        (f"36 35 8:1 {LAYERS}/9 /r rw - ext4 /dev/sda1 rw", "9"),
        (f"36 35 8:1 {LAYERS.removeprefix('/var/lib')}/9/etc /r rw - ext4 /dev/sda1 rw", "9"),
        (f"36 35 8:1 /@{LAYERS}/9 /r rw - btrfs /dev/sda1 rw", "9"),
        ("36 35 8:1 /var/lib/d/io.containerd.snapshotter.v1.native/snapshots/9 /r rw - ext4 /dev/sda1 rw", ""),
        (f"36 35 8:1 / {LAYERS}/9/merged rw - tmpfs tmpfs rw", "9"),
        (f"36 35 8:1 {LAYERS} /r rw - ext4 /dev/sda1 rw", ""),
        ("36 35 8:1 / / rw - ext4 /dev/sda1 rw", ""),
    ],
)
def test_mounted_layers_are_found(line: str, names: str) -> None:
    assert names_mounted(LAYERS, [parse_line(line)]) == set(names)


@pytest.mark.root
def test_a_bind_mount_is_found_here_and_among_those_of_all_processes(tmp_path: Path) -> None:
    layers, target = tmp_path / "snapshots", tmp_path / "mnt"
    for directory in (layers / "1", layers / "2", target):
        directory.mkdir(parents=True)
    mounts = [Mount("bind", str(layers / "1"), options=("rbind", "ro"))]
    mount_all(mounts, str(target))
    try:
        assert names_in_use(str(layers), False) == names_in_use(str(layers), True) == {"1"}
    finally:
        unmount_all(mounts, str(target))
    # Only here: a process that made a mount namespace meanwhile has a copy of the mount, until it ends.
    assert names_in_use(str(layers), False) == set()
