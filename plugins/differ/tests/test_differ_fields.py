"""Every field of every header against what the file system then says, whatever surrounds the tree.

The kernel lets umask, setgid directories and default ACLs have a word in the mode, the owner and the ACL of what is
made. None of that may reach a layer's files, and nothing tells when it does.
"""

from __future__ import annotations

import os
import stat
import struct
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path

import pytest
from aiocontainerd_differ.unpack import Job, unpack

from aiocontainerd.testing.differ import Entry, directory, entry, hard_link, symlink, tar_of

pytestmark = pytest.mark.root

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
USER_OBJ, USER, GROUP_OBJ, MASK, OTHER = 1, 2, 4, 0x10, 0x20
NOBODY_ELSE = 0xFFFFFFFF
CAPABILITY = b"\x01\x00\x00\x02\x00\x04" + bytes(14)
MODES = (0o000, 0o644, 0o666, 0o777, 0o4755, 0o2755, 0o6711, 0o1777, 0o7777)
OWNERS = ((0, 0), (0, 5), (7, 0), (7, 8), (4294967294, 1 << 31))


def acl(*entries: tuple[int, int, int]) -> bytes:
    """Return an ACL as the kernel keeps it: tag, permissions and id of each entry."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *item) for item in entries)


STRICT = acl((USER_OBJ, 7, NOBODY_ELSE), (USER, 7, 1000), (GROUP_OBJ, 5, NOBODY_ELSE), (MASK, 5, NOBODY_ELSE),
             (OTHER, 0, NOBODY_ELSE))  # fmt: skip
SHARED = acl((USER_OBJ, 6, NOBODY_ELSE), (USER, 4, 1000), (GROUP_OBJ, 4, NOBODY_ELSE), (MASK, 6, NOBODY_ELSE),
             (OTHER, 4, NOBODY_ELSE))  # fmt: skip


def text(value: bytes) -> str:
    """Return bytes as tarfile takes them in a PAX record."""
    return value.decode("utf-8", "surrogateescape")


def setgid(root: Path) -> None:
    os.chown(root, 3, 77)
    root.chmod(0o2775)


def with_default_acl(root: Path) -> None:
    os.setxattr(root, DEFAULT, STRICT)


def setgid_with_default_acl(root: Path) -> None:
    setgid(root)
    with_default_acl(root)


SURROUNDINGS: dict[str, Callable[[Path], None]] = {
    "plain": lambda _root: None, "setgid": setgid, "default-acl": with_default_acl, "both": setgid_with_default_acl,
}  # fmt: skip


@pytest.fixture(params=[0, 0o077, 0o777], ids=["umask-0", "umask-077", "umask-777"])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    try:
        yield request.param
    finally:
        os.umask(before)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "root"
    made.mkdir()
    made.chmod(0o755)
    try:
        os.setxattr(made, DEFAULT, STRICT)
        os.removexattr(made, DEFAULT)
    except OSError as error:
        pytest.skip(f"the file system of {tmp_path} has no ACLs: {error.strerror}")
    return made


def apply(entries: Sequence[Entry], root: Path, *, overlay: bool = False, lowers: Sequence[Path] = ()) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(tar_of(entries))
        file.seek(0)
        root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            unpack(
                Job(
                    blob_fd=file.fileno(),
                    root_fd=root_fd,
                    overlay=overlay,
                    lowers=[str(lower) for lower in lowers],
                    in_user_namespace=False,
                    sniff=True,
                    max_entries=1_000_000,
                ),
                ahead=False,
            )
        finally:
            os.close(root_fd)


KINDS = {
    tarfile.REGTYPE: stat.S_IFREG, tarfile.DIRTYPE: stat.S_IFDIR, tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.CHRTYPE: stat.S_IFCHR, tarfile.BLKTYPE: stat.S_IFBLK, tarfile.FIFOTYPE: stat.S_IFIFO,
}  # fmt: skip


def differences(info: tarfile.TarInfo, data: bytes, path: Path, links: int = 1) -> list[str]:
    """Return what the file system says otherwise than the header."""
    found = path.lstat()
    wanted: dict[str, object] = {"type": KINDS[info.type], "uid": info.uid, "gid": info.gid}
    seen: dict[str, object] = {"type": stat.S_IFMT(found.st_mode), "uid": found.st_uid, "gid": found.st_gid}
    wanted["mtime_ns"], seen["mtime_ns"] = round(float(info.mtime) * 4) * 250_000_000, found.st_mtime_ns
    records = {name.removeprefix("SCHILY.xattr."): value for name, value in info.pax_headers.items()}
    wanted["xattrs"] = {name: value.encode("utf-8", "surrogateescape") for name, value in records.items()}
    seen["xattrs"] = {
        name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)
    }
    if info.type == tarfile.SYMTYPE:
        wanted["link"], seen["link"] = info.linkname, os.readlink(path)
    else:
        wanted["mode"], seen["mode"] = oct(info.mode), oct(stat.S_IMODE(found.st_mode))
    if info.type == tarfile.REGTYPE:
        wanted["data"], seen["data"] = data, path.read_bytes()
        wanted["size"], seen["size"] = len(data), found.st_size
    if info.type != tarfile.DIRTYPE:
        wanted["links"], seen["links"] = links, found.st_nlink
    if info.type in (tarfile.CHRTYPE, tarfile.BLKTYPE):
        wanted["device"] = (info.devmajor, info.devminor)
        seen["device"] = (os.major(found.st_rdev), os.minor(found.st_rdev))
    return [f"{info.name}: {key} is {seen[key]!r}, not {wanted[key]!r}" for key in wanted if wanted[key] != seen[key]]


def owned(item: Entry, owner: tuple[int, int], **fields: object) -> Entry:
    info, data = item
    info.uid, info.gid, info.mtime = *owner, 1_234_567_890.25
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def layer(below: str) -> list[Entry]:
    """Return entries of every type, mode and owner in the directory `below`."""
    made = []
    for number, (mode, owner) in enumerate(product(MODES, OWNERS)):
        name = f"{below}/{number}"
        made += [
            owned(entry(f"{name}-empty", mode=mode), owner),
            owned(entry(f"{name}-file", b"x" * 600, mode=mode), owner),
            owned(directory(f"{name}-dir", mode=mode), owner),
            owned(entry(f"{name}-dir/in", b"x", mode=mode), owner),
            owned(symlink(f"{name}-link", "to/nowhere"), owner),
            owned(entry(f"{name}-fifo", type=tarfile.FIFOTYPE, mode=mode), owner),
            owned(entry(f"{name}-char", type=tarfile.CHRTYPE, mode=mode, devmajor=1, devminor=3), owner),
            owned(entry(f"{name}-block", type=tarfile.BLKTYPE, mode=mode, devmajor=4095, devminor=0xFFFFF), owner),
        ]
    return made


def all_differences(entries: Sequence[Entry], root: Path) -> list[str]:
    last = {info.name: (info, data) for info, data in entries}
    return [line for info, data in last.values() for line in differences(info, data, root / info.name)]


@pytest.mark.parametrize("surroundings", SURROUNDINGS)
@pytest.mark.parametrize("overlay", [False, True], ids=["whole", "overlay"])
def test_every_field_is_the_headers(root: Path, umask: int, surroundings: str, *, overlay: bool) -> None:
    SURROUNDINGS[surroundings](root)
    entries = [owned(directory("d", mode=0o755), (0, 0)), *layer("d")]
    apply(entries, root, overlay=overlay)
    assert all_differences(entries, root) == []


@pytest.mark.parametrize("surroundings", SURROUNDINGS)
def test_directories_that_a_lower_layer_left_have_no_say(root: Path, umask: int, surroundings: str) -> None:
    for name in ("d", "e"):
        (root / name).mkdir()
        (root / name).chmod(0o755)
        SURROUNDINGS[surroundings](root / name)
    entries = layer("d")
    apply([*entries, entry("e/missing/parents/f")], root)
    assert all_differences(entries, root) == []
    for made in ("e/missing", "e/missing/parents"):
        status = (root / made).stat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid, os.listxattr(root / made)) == (0o755, 0, [])


@pytest.mark.parametrize("mode", [0o755, 0o2775, 0o3777])
def test_directories_of_the_layer_itself_have_no_say(root: Path, umask: int, mode: int) -> None:
    records = {f"SCHILY.xattr.{DEFAULT}": text(STRICT)}
    entries = [owned(directory("d", mode=mode, pax_headers=records), (3, 77)), *layer("d")]
    apply(entries, root)
    assert all_differences(entries, root) == []


def test_a_directory_that_gets_a_default_acl_after_it_was_used_has_no_say(root: Path, umask: int) -> None:
    records = {f"SCHILY.xattr.{DEFAULT}": text(STRICT)}
    before = [owned(directory("d"), (0, 0)), owned(entry("d/before", b"x"), (0, 0))]
    after = [owned(directory("d", mode=0o2755, pax_headers=records), (0, 9)), owned(entry("d/after", b"x"), (0, 0))]
    apply([*before, *after], root)
    assert all_differences([*before, *after], root) == []


@pytest.mark.parametrize("surroundings", SURROUNDINGS)
def test_an_access_acl_of_an_entry_is_kept_and_its_mode_too(root: Path, umask: int, surroundings: str) -> None:
    SURROUNDINGS[surroundings](root)
    records = {f"SCHILY.xattr.{ACCESS}": text(SHARED)}
    capable = {"SCHILY.xattr.security.capability": text(CAPABILITY), "SCHILY.xattr.user.note": "hello"}
    entries = [
        owned(entry("acl", b"x", mode=0o4664, pax_headers=records), (7, 8)),
        owned(directory("d", mode=0o2664, pax_headers={**records, f"SCHILY.xattr.{DEFAULT}": text(STRICT)}), (7, 8)),
        owned(entry("fifo", type=tarfile.FIFOTYPE, mode=0o664, pax_headers=records), (7, 8)),
        owned(entry("capable", b"x", mode=0o755, pax_headers=capable), (7, 8)),
        owned(entry("capable-suid", b"x", mode=0o6755, pax_headers=capable), (0, 0)),
    ]
    apply(entries, root)
    assert all_differences(entries, root) == []


def test_the_mode_of_the_header_bounds_the_access_acl(root: Path) -> None:
    records = {f"SCHILY.xattr.{ACCESS}": text(SHARED)}
    apply([entry("f", b"x", mode=0o600, pax_headers=records)], root)
    assert stat.S_IMODE((root / "f").stat().st_mode) == 0o600


@pytest.mark.parametrize("surroundings", SURROUNDINGS)
def test_hard_links_have_the_fields_of_the_last_header(root: Path, umask: int, surroundings: str) -> None:
    SURROUNDINGS[surroundings](root)
    file = owned(entry("f", b"data", mode=0o600), (1, 2))
    link = owned(hard_link("d/h", "f"), (7, 8), mode=0o4711)
    apply([file, link], root)
    info = file[0]
    info.uid, info.gid, info.mode = 7, 8, 0o4711
    for name in ("f", "d/h"):
        assert differences(info, b"data", root / name, links=2) == []


@pytest.mark.parametrize("surroundings", SURROUNDINGS)
def test_what_is_replaced_leaves_nothing_behind(root: Path, umask: int, surroundings: str) -> None:
    SURROUNDINGS[surroundings](root)
    old = [
        entry("a", b"long data", mode=0o7777, uid=9),
        directory("b", mode=0o2777, gid=9),
        entry("b/x"),
        symlink("c", "a"),
    ]
    new = [owned(entry(name, b"n", mode=0o640), (0, 0)) for name in ("a", "b", "c")]
    apply([*old, symlink("c", "a"), *new], root)
    assert all_differences(new, root) == []


def test_an_owner_that_means_no_change_leaves_the_owner(root: Path) -> None:
    apply([entry("f", b"x", pax_headers={"uid": "4294967295", "gid": "-1"})], root)
    status = (root / "f").stat()
    assert (status.st_uid, status.st_gid) == (0, 0)


@pytest.mark.parametrize("surroundings", SURROUNDINGS)
def test_copied_up_parents_are_those_of_the_layer_below(root: Path, umask: int, surroundings: str) -> None:
    lower = root.parent / "lower"
    (lower / "d" / "e").mkdir(parents=True)
    lower.chmod(0o755)
    os.chown(lower / "d", 7, 8)
    (lower / "d").chmod(0o3711)
    os.setxattr(lower / "d", DEFAULT, STRICT)
    (lower / "d" / "e").chmod(0o700)
    os.utime(lower / "d" / "e", ns=(5, 5_000_000_000))
    SURROUNDINGS[surroundings](root)
    file = owned(entry("d/e/f", b"x", mode=0o644), (0, 0))
    apply([file], root, overlay=True, lowers=[lower])
    assert differences(*file, root / "d/e/f") == []
    for name in ("d", "d/e"):
        above, below = (root / name).stat(), (lower / name).stat()
        assert (above.st_mode, above.st_uid, above.st_gid, above.st_mtime_ns) == (
            below.st_mode, below.st_uid, below.st_gid, below.st_mtime_ns,
        )  # fmt: skip
        assert os.listxattr(root / name) == os.listxattr(lower / name)
