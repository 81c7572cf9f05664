from __future__ import annotations

from pathlib import Path

import pytest

from aiocontainerd.errors import InvalidArgument
from aiocontainerd.sys import mount_calls as calls
from aiocontainerd.sys import mount_options as opts
from aiocontainerd.sys import mountinfo
from aiocontainerd.sys.mount_plan import Mount, plan, read_only, target_of, without_volatile


def test_flags_propagation_and_data_are_told_apart() -> None:
    parsed = opts.parse(["rbind", "ro", "rslave", "size=1m", "mode=755"])
    assert parsed.flags == calls.MS_BIND | calls.MS_REC | calls.MS_RDONLY
    assert parsed.propagation == (calls.MS_SLAVE | calls.MS_REC,)
    assert parsed.data == ("size=1m", "mode=755")


def test_a_later_option_undoes_an_earlier() -> None:
    assert opts.parse(["ro", "nosuid", "rw"]).flags == calls.MS_NOSUID


def test_loop_and_id_maps_do_not_reach_the_file_system() -> None:
    parsed = opts.parse(["loop", "direct-io", "uidmap=0:1000:10", "gidmap=0:2000:10", "ro"])
    assert parsed.data == ()
    assert parsed.loop
    assert parsed.direct_io
    assert (parsed.uid_map, parsed.gid_map) == ("0:1000:10", "0:2000:10")


def test_an_option_of_a_mount_manager_is_an_error() -> None:
    with pytest.raises(InvalidArgument, match=r"X-containerd\.mkfs\.size"):
        plan([Mount("ext4", "/dev/x", options=("X-containerd.mkfs.size=1",))], "/t")


def test_a_bind_mount_becomes_read_only_by_a_remount() -> None:
    (step,) = plan([Mount("bind", "/s", options=("rbind", "ro"))], "/t")
    assert step.type == ""
    assert step.remount_flags == calls.MS_BIND | calls.MS_REC | calls.MS_RDONLY | calls.MS_REMOUNT
    (step,) = plan([Mount("bind", "/s", options=("rbind", "rw"))], "/t")
    assert step.remount_flags == 0


def test_short_overlay_data_stays_as_it_is() -> None:
    mount = Mount("overlay", "overlay", options=("index=off", "lowerdir=/a/1/fs:/a/2/fs"))
    (step,) = plan([mount], "/t")
    assert (step.data, step.directory) == ("index=off,lowerdir=/a/1/fs:/a/2/fs", "")


def test_long_overlay_data_is_shortened_from_the_directory_the_layers_share() -> None:
    base = "/var/lib/" + "x" * 60 + "/snapshots"
    layers = [f"{base}/{number}/fs" for number in range(100, 50, -1)]
    mount = Mount("overlay", "overlay", options=("workdir=/w", f"lowerdir={':'.join(layers)}", "index=off"))
    (step,) = plan([mount], "/t")
    assert step.directory == base
    assert step.data.startswith("workdir=/w,lowerdir=100/fs:99/fs:")
    assert step.data.endswith("51/fs,index=off")


def test_data_that_stays_too_long_is_named() -> None:
    with pytest.raises(InvalidArgument, match=r"^mount options is too long$"):
        plan([Mount("ext4", "/dev/x", options=("a" * 5000,))], "/t")


def test_layers_split_at_colons_that_are_not_escaped() -> None:
    assert opts.split_layers("/a:/b\\:c:/d\\\\:/e") == ["/a", "/b\\:c", "/d\\\\", "/e"]


def test_fuse_types_name_the_helper() -> None:
    (step,) = plan([Mount("fuse3.sshfs", "host:", options=("ro", "allow_other"))], "/t")
    assert step.helper == ("mount.fuse3", "host:", "/t", "-o", "ro,allow_other", "-t", "sshfs")


def test_a_target_is_below_the_root(tmp_path: Path) -> None:
    assert target_of(Mount("bind", "/s", "a/b"), str(tmp_path)) == f"{tmp_path}/a/b"
    assert target_of(Mount("bind", "/s", "../../etc"), str(tmp_path)) == f"{tmp_path}/etc"
    (tmp_path / "out").symlink_to("/etc")
    with pytest.raises(InvalidArgument, match="leads out of"):
        target_of(Mount("bind", "/s", "out/ssh"), str(tmp_path))


def test_read_only_overlay_has_its_upper_directory_as_nearest_layer() -> None:
    mount = Mount("overlay", "overlay", options=("workdir=/w", "upperdir=/u", "lowerdir=/l1:/l2", "index=off"))
    assert read_only([mount])[0].options == ("lowerdir=/u:/l1:/l2", "index=off")


def test_read_only_bind_replaces_rw() -> None:
    assert read_only([Mount("bind", "/s", options=("rbind", "rw"))])[0].options == ("rbind", "ro")


def test_volatile_is_stripped() -> None:
    mounts = [Mount("overlay", "overlay", options=("volatile", "fsync=volatile", "index=off"))]
    assert without_volatile(mounts)[0].options == ("index=off",)


def test_a_line_of_mountinfo() -> None:
    line = r"36 35 98:0 /mnt1 /mnt/a\040b rw,noatime master:1 shared:7 - ext3 /dev/root rw,errors=continue"
    info = mountinfo.parse_line(line)
    assert (info.mount_id, info.parent_id, info.root, info.mount_point) == (36, 35, "/mnt1", "/mnt/a b")
    assert info.propagation == ("master:1", "shared:7")
    assert (info.fs_type, info.source, info.super_options) == ("ext3", "/dev/root", ("rw", "errors=continue"))


def test_mounts_under_a_root_are_not_those_of_its_neighbours(tmp_path: Path) -> None:
    lines = [f"{n} 1 0:1 / {tmp_path}{p} rw - tmpfs none rw\n" for n, p in enumerate(["/a", "/a/b", "/ab", ""], 10)]
    listing = tmp_path / "mountinfo"
    listing.write_text("".join(lines))
    found = mountinfo.mounts_under(f"{tmp_path}/a", str(listing))
    assert [info.mount_id for info in found] == [10, 11]
