from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from pathlib import Path

import anyio
import pytest

from aiocontainerd.sys.mount import (
    MNT_DETACH,
    FakeMounter,
    Mount,
    mount_all,
    mounted,
    mounts_under,
    temp_mount,
    unmount,
    unmount_all,
    unmount_recursive,
)

TWO = [Mount("tmpfs", "tmpfs"), Mount("tmpfs", "tmpfs", "sub")]


def test_a_list_is_mounted_in_order_and_unmounted_in_reverse() -> None:
    fake = FakeMounter()
    mount_all(TWO, "/t", mounter=fake)
    unmount_all(TWO, "/t", mounter=fake)
    assert fake.log[:2] == ["mount /t", "mount /t/sub"]
    assert fake.log[2:4] == ["unmount /t/sub", "unmount /t/sub"]
    assert fake.mounted == []


def test_a_failing_mount_takes_the_earlier_ones_with_it() -> None:
    fake = FakeMounter()
    fake.fail["/t/sub"] = errno.ENODEV
    with pytest.raises(OSError, match="/t/sub"):
        mount_all(TWO, "/t", mounter=fake)
    assert fake.mounted == []


def test_a_busy_mount_is_detached_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeMounter()
    mount_all(TWO[:1], "/t", mounter=fake)
    fake.busy.add("/t")
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    unmount("/t", mounter=fake)
    assert fake.mounted == []
    assert "detach /t" in fake.log


def test_recursive_unmount_goes_deepest_first() -> None:
    fake = FakeMounter()
    mount_all([*TWO, Mount("tmpfs", "tmpfs", "sub/deep")], "/t", mounter=fake)
    fake.log.clear()
    unmount_recursive("/t", MNT_DETACH, mounter=fake)
    assert fake.log == ["detach /t/sub/deep", "detach /t/sub", "detach /t"]


@pytest.mark.anyio
async def test_a_temporary_mount_is_gone_after_a_failure(tmp_path: Path) -> None:
    fake = FakeMounter()
    with pytest.raises(ZeroDivisionError):
        async with temp_mount(TWO, tmp_path, mounter=fake):
            _ = 1 / 0
    assert fake.mounted == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.anyio
async def test_a_temporary_mount_is_gone_after_cancellation(tmp_path: Path) -> None:
    fake = FakeMounter()
    with anyio.move_on_after(0.01):
        async with temp_mount(TWO, tmp_path, mounter=fake):
            await anyio.sleep_forever()
    assert fake.mounted == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.anyio
async def test_a_temporary_mount_that_fails_leaves_no_directory(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"failed to mount .*/containerd-mount\w+: x: no such device"):
        async with temp_mount([Mount("nosuchfs", "x")], tmp_path, mounter=_Refusing()):
            pass
    assert list(tmp_path.iterdir()) == []


class _Refusing(FakeMounter):
    def mount(self, step: object) -> None:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), "x")


@pytest.mark.root
def test_a_read_only_bind_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_text("here")
    bind = [Mount("bind", str(tmp_path / "source"), options=("rbind", "rw"))]
    with mounted(bind, str(tmp_path / "tmp"), readonly=True) as directory:
        assert Path(directory, "file").read_text() == "here"
        with pytest.raises(OSError, match="Read-only"):
            Path(directory, "new").touch()
    assert mounts_under(str(tmp_path)) == []


@pytest.mark.root
def test_stacked_and_nested_mounts_all_go(tmp_path: Path) -> None:
    target = str(tmp_path / "t")
    os.mkdir(target)
    mount_all([Mount("tmpfs", "one"), Mount("tmpfs", "two")], target)
    os.mkdir(f"{target}/in")
    mount_all([Mount("tmpfs", "three", options=("size=1m",))], f"{target}/in")
    assert [info.source for info in mounts_under(target)] == ["one", "two", "three"]
    unmount_recursive(target)
    assert mounts_under(target) == []


@pytest.mark.root
def test_a_missing_or_unmounted_path_is_fine(tmp_path: Path) -> None:
    unmount(str(tmp_path))
    unmount(str(tmp_path / "missing"))
    unmount_recursive(str(tmp_path / "missing"))


@pytest.mark.root
def test_overlay_with_more_layers_than_a_page_of_data_holds(tmp_path: Path) -> None:
    base = tmp_path / ("long" * 20)
    layers = [base / str(number) / "fs" for number in range(60)]
    for number, layer in enumerate(layers):
        layer.mkdir(parents=True)
        (layer / f"from-{number}").touch()
    before = os.getcwd()
    overlay = [Mount("overlay", "overlay", options=(f"lowerdir={':'.join(map(str, layers))}",))]
    with mounted(overlay, str(tmp_path / "tmp")) as directory:
        assert len(os.listdir(directory)) == 60
    assert os.getcwd() == before
    assert mounts_under(str(tmp_path)) == []


@pytest.mark.root
@pytest.mark.parametrize("kind", ["bind", "overlay", "tmpfs"])
def test_an_id_mapped_mount_shows_the_hosts_ids(tmp_path: Path, kind: str) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    maps = ("uidmap=0:1000:65536", "gidmap=0:2000:65536")
    lower = f"lowerdir={tmp_path}/a:{tmp_path}/b"
    options = {"bind": ("rbind",), "overlay": (lower,), "tmpfs": ("mode=755",)}[kind]
    with mounted([Mount(kind, str(tmp_path / "a"), options=maps + options)], str(tmp_path / "tmp")) as directory:
        path = directory if kind == "tmpfs" else f"{directory}/a"
        assert (os.stat(path).st_uid, os.stat(path).st_gid) == (1000, 2000)
    assert mounts_under(str(tmp_path)) == []


@pytest.mark.root
def test_a_file_is_mounted_through_a_loop_device_that_frees_itself(tmp_path: Path) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(4 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    with mounted([Mount("ext4", str(image), options=("loop", "ro"))], str(tmp_path / "tmp")) as directory:
        assert os.path.isdir(f"{directory}/lost+found")
        device = mounts_under(directory)[0].source
        backing = Path("/sys/block", os.path.basename(device), "loop/backing_file")
        assert backing.read_text().strip() == str(image)
    with contextlib.suppress(OSError):  # it is nobody's
        assert backing.read_text().strip() != str(image)


def _fuse_helper(directory: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = directory / "mount.fuse3"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")


def test_a_fuse_mount_is_made_by_its_helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fuse_helper(tmp_path, f'echo "$@" > {tmp_path}/arguments', monkeypatch)
    mount_all([Mount("fuse3.sshfs", "host:", options=("ro",))], "/t")
    assert (tmp_path / "arguments").read_text() == "host: /t -o ro -t sshfs\n"


def test_what_a_failing_helper_printed_is_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fuse_helper(tmp_path, "echo no such host >&2; exit 3", monkeypatch)
    with pytest.raises(
        OSError, match=r'mount helper \[mount\.fuse3 \[host: /t -t sshfs\]\] failed: "no such host\\n": exit status 3$'
    ):
        mount_all([Mount("fuse3.sshfs", "host:")], "/t")
