"""Contract of differs (interfaces/differ.py): layers applied, hostile layers confined, trees compared.

    pytest --pyargs aiocontainerd.testing.differ --target acme.plugin:Differ

Or subclass `DifferContract` in a test module and give it the fixtures `content` (an empty ContentStore) and `differ` (a
Differ over it). Needs root: owners, devices and whiteouts are made for real.
"""

from __future__ import annotations

import copy
import gzip
import io
import os
import stat
import tarfile
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from aiocontainerd import kinds
from aiocontainerd.errors import ContainerdError, Unimplemented, Unknown
from aiocontainerd.interfaces.content import ContentStore
from aiocontainerd.interfaces.differ import ApplyOptions, CompareOptions, Differ
from aiocontainerd.labels import UNCOMPRESSED
from aiocontainerd.oci.descriptor import Descriptor
from aiocontainerd.sys.mount import Mount
from aiocontainerd.testing.content import digest_of, ingest, read_all
from aiocontainerd.testing.contract import Contract, Targeted
from aiocontainerd.testing.fake_records import FakeMetadata
from aiocontainerd.testing.fakes import FakeContentStore
from aiocontainerd.testing.target import Bench

LAYER = "application/vnd.oci.image.layer.v1.tar"
MTIME = 1_600_000_000
CAPABILITY = b"\x01\x00\x00\x02\x00\x04" + bytes(14)
"""cap_net_bind_service, effective, as the kernel keeps it."""
Entry = tuple[tarfile.TarInfo, bytes]


def entry(name: str, data: bytes = b"", **fields: Any) -> Entry:
    """Make a member, a regular file by default. Keywords set fields of TarInfo."""
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = len(data), MTIME, 0o644
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def directory(name: str, **fields: Any) -> Entry:
    """Make a directory member, 0755 unless said otherwise."""
    return entry(name, type=tarfile.DIRTYPE, **{"mode": 0o755, **fields})


def symlink(name: str, target: str) -> Entry:
    """Make a symbolic link member."""
    return entry(name, type=tarfile.SYMTYPE, linkname=target, mode=0o777)


def hard_link(name: str, target: str) -> Entry:
    """Make a hard link member."""
    return entry(name, type=tarfile.LNKTYPE, linkname=target)


def tar_of(entries: Iterable[Entry], tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    """Return the archive of `entries`, names unchanged."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _zstd(data: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


def bind(path: Path) -> list[Mount]:
    """Return the mounts of a tree that is a plain directory."""
    return [Mount("bind", str(path), "", ("rbind", "rw"))]


def tree_of(root: Path) -> dict[str, tuple[object, ...]]:
    """Return path below `root` -> type and mode, owner, modification time in seconds, content or link target."""
    found: dict[str, tuple[object, ...]] = {}
    for parent, directories, files in os.walk(root):
        for name in directories + files:
            path = Path(parent) / name
            found[str(path.relative_to(root))] = _described(path)
    return found


def _described(path: Path) -> tuple[object, ...]:
    status = path.lstat()
    held: object = status.st_rdev
    if path.is_symlink():
        held = os.readlink(path)
    elif stat.S_ISREG(status.st_mode):
        held = path.read_bytes()
    return status.st_mode, status.st_uid, status.st_gid, int(status.st_mtime), held


async def apply(
    differ: Differ, content: ContentStore, root: Path, blob: bytes, media_type: str = LAYER + "+gzip"
) -> Descriptor:
    """Store `blob` and apply it to the directory `root`."""
    digest = digest_of(blob)
    if digest not in [info.digest async for info in content.walk()]:
        await ingest(content, f"layer-{digest}", blob)
    return await differ.apply(Descriptor(media_type, digest, len(blob)), bind(root), ApplyOptions())


ESCAPES: dict[str, Sequence[Entry]] = {
    "dot-dot-name": [entry("../../../outside/canary", b"bad"), entry("a/../../../outside/new", b"bad")],
    "absolute-name": [entry("/{outside}/canary", b"bad"), entry("/{outside}/new", b"bad")],
    "write-through-absolute-link": [symlink("l", "{outside}"), entry("l/canary", b"bad"), entry("l/new", b"bad")],
    "write-through-relative-link": [symlink("l", "../outside"), entry("l/canary", b"bad"), entry("l/new")],
    "write-through-chain": [symlink("b", "a"), symlink("a", "{outside}"), directory("b/sub"), entry("b/new", b"bad")],
    "overwrite-of-a-link": [symlink("l", "{outside}/canary"), entry("l", b"bad")],
    "hardlink-outside": [hard_link("h", "../outside/canary"), entry("h", b"bad")],
    "hardlink-absolute": [hard_link("h", "{outside}/canary"), entry("h", b"bad")],
    "hardlink-through-link": [symlink("l", "{outside}"), hard_link("h", "l/canary"), entry("h", b"bad")],
    "hardlink-to-link": [symlink("l", "{outside}/canary"), hard_link("h", "l"), entry("h", b"bad", mode=0o777)],
    "whiteout-through-link": [symlink("l", "{outside}"), entry("l/.wh.canary"), entry("l/.wh..wh..opq")],
    "whiteout-dot-dot-path": [entry("../outside/.wh.canary")],
    "directory-swapped-for-link": [
        directory("foo"), entry("foo/canary", b"in"), symlink("foo", "{outside}"), entry("foo/canary", b"bad"),
        directory("foo"), entry("foo/canary", b"in"),
    ],
    "device-through-link": [symlink("l", "{outside}"), entry("l/fifo", type=tarfile.FIFOTYPE)],
    "directory-mode-through-link": [symlink("l", "{outside}"), directory("l", mode=0o700), entry("l/new")],
    "link-named-dot-dot": [symlink("..", "{outside}"), symlink("a/..", "{outside}"), entry("../canary", b"bad")],
}  # fmt: skip


@pytest.mark.root
@pytest.mark.anyio
class DifferContract(Contract):
    """What every differ must do. See the module."""

    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        """Make an empty tree beside a directory that no layer may touch."""
        (tmp_path / "outside").mkdir()
        (tmp_path / "outside" / "canary").write_text("untouched")
        (tmp_path / "outside" / "canary").chmod(0o400)
        root = tmp_path / "root"
        root.mkdir()
        return root

    async def test_layer_becomes_the_tree_it_describes(self, differ: Differ, content: ContentStore, root: Path) -> None:
        blob = tar_of(
            [
                directory("d", mode=0o1777, uid=7, gid=8),
                entry("d/suid", b"x" * 3000, mode=0o4755, uid=5, gid=6),
                entry("d/é" + "n" * 200, b"long", mode=0o666),
                hard_link("hard", "d/suid"),
                symlink("soft", "/nowhere"),
                entry("fifo", type=tarfile.FIFOTYPE, mode=0o622),
                entry("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666),
            ]
        )
        result = await apply(differ, content, root, gzip.compress(blob))
        assert result == Descriptor(LAYER, digest_of(blob), len(blob))
        tree = tree_of(root)
        assert tree["d"][:4] == (stat.S_IFDIR | 0o1777, 7, 8, MTIME)
        assert tree["d/suid"] == (stat.S_IFREG | 0o4755, 5, 6, MTIME, b"x" * 3000) or tree["hard"] == tree["d/suid"]
        assert (root / "hard").stat().st_ino == (root / "d/suid").stat().st_ino
        assert tree["d/é" + "n" * 200][0] == stat.S_IFREG | 0o666
        assert tree["soft"][3:] == (MTIME, "/nowhere")
        assert tree["fifo"][0] == stat.S_IFIFO | 0o622
        assert tree["null"][0] == stat.S_IFCHR | 0o666
        assert tree["null"][4] == os.makedev(1, 3)

    @pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    async def test_every_tar_format_is_read(
        self, differ: Differ, content: ContentStore, root: Path, tar_format: int
    ) -> None:
        long = "/".join(["part" * 10] * 3) + "/file"
        blob = tar_of([entry(long, b"data"), symlink("link", "t" * 90)], tar_format)
        await apply(differ, content, root, blob, LAYER)
        assert (root / long).read_bytes() == b"data"

    async def test_trailing_data_counts_for_the_diff_id(
        self, differ: Differ, content: ContentStore, root: Path
    ) -> None:
        blob = tar_of([entry("f", b"1")]) + b"\0" * 5120
        result = await apply(differ, content, root, gzip.compress(blob))
        assert (result.digest, result.size) == (digest_of(blob), len(blob))

    async def test_docker_type_without_suffix_is_sniffed(
        self, differ: Differ, content: ContentStore, root: Path
    ) -> None:
        blob = gzip.compress(tar_of([entry("f", b"1")]))
        await apply(differ, content, root, blob, "application/vnd.docker.image.rootfs.diff.tar")
        assert (root / "f").read_bytes() == b"1"

    async def test_type_that_is_no_layer_is_refused(self, differ: Differ, content: ContentStore, root: Path) -> None:
        with pytest.raises(Unknown, match="failed to get stream processor for text/plain: no processor"):
            await apply(differ, content, root, b"text", "text/plain")

    async def test_whiteouts_remove_what_was_below(self, differ: Differ, content: ContentStore, root: Path) -> None:
        below = [directory("a"), entry("a/old"), entry("a/gone"), directory("o"), entry("o/old"), directory("d")]
        await apply(differ, content, root, tar_of([*below, entry("d/f")]), LAYER)
        upper = [entry("a/.wh.gone"), entry("o/new"), entry("o/.wh..wh..opq"), entry("o/newer"), entry(".wh.d")]
        await apply(differ, content, root, tar_of(upper), LAYER)
        assert sorted(tree_of(root)) == ["a", "a/old", "o", "o/new", "o/newer"]

    async def test_later_entry_replaces_what_is_in_its_way(
        self, differ: Differ, content: ContentStore, root: Path
    ) -> None:
        entries = [
            directory("x"), entry("x/f"), entry("x", b"file"), symlink("y", "x"), directory("y"), entry("y/g"),
            entry("z", b"1"), entry("z", b"2"), directory("k"), entry("k/kept"), directory("k", mode=0o700),
        ]  # fmt: skip
        await apply(differ, content, root, tar_of(entries), LAYER)
        assert (root / "x").read_bytes() == b"file"
        assert sorted(tree_of(root)) == ["k", "k/kept", "x", "y", "y/g", "z"]
        assert (root / "z").read_bytes() == b"2"
        assert stat.S_IMODE((root / "k").stat().st_mode) == 0o700

    async def test_links_on_the_way_stay_inside_the_root(
        self, differ: Differ, content: ContentStore, root: Path
    ) -> None:
        entries = [
            directory("etc"), symlink("abs", "/etc"), symlink("up", "../../../../etc"), symlink("chain", "abs"),
            symlink("dangling", "/made/here"), entry("abs/a"), entry("up/b"), entry("chain/c"), entry("dangling/d"),
            hard_link("hard", "up/a"),
        ]  # fmt: skip
        await apply(differ, content, root, tar_of(entries), LAYER)
        assert {p for p in tree_of(root) if p.startswith(("etc/", "made"))} == {
            "etc/a", "etc/b", "etc/c", "made", "made/here", "made/here/d",
        }  # fmt: skip
        assert (root / "hard").stat().st_ino == (root / "etc/a").stat().st_ino

    @pytest.mark.parametrize("attack", sorted(ESCAPES))
    async def test_no_entry_escapes(self, differ: Differ, content: ContentStore, root: Path, attack: str) -> None:
        outside = root.parent / "outside"
        before = tree_of(outside), outside.stat().st_mode, outside.stat().st_mtime_ns
        siblings = set(os.listdir(root.parent)) | {"content"}
        entries = []
        for original, data in ESCAPES[attack]:
            info = copy.copy(original)
            info.name = info.name.replace("{outside}", str(outside))
            info.linkname = info.linkname.replace("{outside}", str(outside))
            entries.append((info, data))
        try:
            await apply(differ, content, root, tar_of(entries), LAYER)
        except ContainerdError:
            pass  # refusing is as good as confining
        assert (tree_of(outside), outside.stat().st_mode, outside.stat().st_mtime_ns) == before
        assert set(os.listdir(root.parent)) <= siblings

    @pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "a/.wh..", "a/.wh..."])
    async def test_whiteout_of_no_child_is_an_invalid_archive(
        self, differ: Differ, content: ContentStore, root: Path, name: str
    ) -> None:
        with pytest.raises(Unknown, match=r"invalid whiteout name: .*invalid archive"):
            await apply(differ, content, root, tar_of([entry(name)]), LAYER)
        assert root.is_dir()

    async def test_entries_at_the_root_itself_are_ignored(
        self, differ: Differ, content: ContentStore, root: Path
    ) -> None:
        mode = root.stat().st_mode
        entries = [directory("./", mode=0o700), directory("/", mode=0o700), symlink(".", "x"), entry("a/..", b"x")]
        await apply(differ, content, root, tar_of([*entries, entry("f")]), LAYER)
        assert sorted(tree_of(root)) == ["f"]
        assert root.stat().st_mode == mode

    @pytest.mark.parametrize(
        "blob",
        [
            b"no tar at all" * 100,
            gzip.compress(b"\1" * 2048),
            gzip.compress(tar_of([entry("f", os.urandom(100_000))]))[:-3000],
            gzip.compress(tar_of([entry("f", os.urandom(100_000))]))[:-4] + b"junk",
            gzip.compress(tar_of([entry("f", b"x" * 5000)])[:2000]),
            gzip.compress(tar_of([entry("f", b"x" * 5000)]))[:-1],
            gzip.compress(tar_of([entry("f", b"x" * 5000)])) + b"junk",
            b"\x28\xb5\x2f\xfdgarbage" * 10,
            _zstd(tar_of([entry("f", b"x" * 5000)]))[:-1],
            _zstd(tar_of([entry("f", b"x" * 5000)]))[:-20],
            _zstd(tar_of([entry("f", b"x" * 5000)])) + b"\x28\xb5",
        ],
        ids=[
            "text", "no-tar", "short-gzip", "bad-trailer", "short-tar", "short-trailer", "gzip-and-junk", "bad-zstd",
            "short-zstd-checksum", "short-zstd", "zstd-and-junk",
        ],
    )  # fmt: skip
    async def test_damaged_layer_is_an_error_that_names_it(
        self, differ: Differ, content: ContentStore, root: Path, blob: bytes
    ) -> None:
        with pytest.raises(Unknown, match=digest_of(blob)):
            await apply(differ, content, root, blob)

    async def test_difference_applied_to_the_lower_tree_gives_the_upper(
        self, differ: Differ, content: ContentStore, root: Path
    ) -> None:
        lower, upper, target = (root / name for name in ("lower", "upper", "target"))
        base = [directory("d"), entry("d/same"), entry("d/changed", b"1"), entry("gone"), directory("deep/gone")]
        for tree in (lower, upper, target):
            tree.mkdir()
            await apply(differ, content, tree, tar_of(base), LAYER)
        change = [entry("d/changed", b"22"), entry("new", b"n", mode=0o4711), hard_link("link", "new"),
                  entry(".wh.gone"), entry("deep/.wh.gone"), symlink("soft", "d")]  # fmt: skip
        await apply(differ, content, upper, tar_of(change), LAYER)
        for media_type in (LAYER, LAYER + "+gzip", LAYER + "+zstd"):
            made = await differ.compare(bind(lower), bind(upper), CompareOptions(media_type=media_type))
            assert made.media_type == media_type
            info = await content.info(made.digest)
            result = await differ.apply(made, bind(target), ApplyOptions())
            if info.labels:
                assert info.labels[UNCOMPRESSED] == result.digest
            assert tree_of(target) == tree_of(upper)
        assert (target / "link").stat().st_ino == (target / "new").stat().st_ino

    async def test_capabilities_of_a_file_with_two_names_are_kept(
        self, differ: Differ, content: ContentStore, root: Path
    ) -> None:
        lower, upper, target = (root / name for name in ("lower", "upper", "target"))
        for tree in (lower, upper, target):
            tree.mkdir()
        (upper / "a").write_bytes(b"a")
        (upper / "b").hardlink_to(upper / "a")
        (upper / "other").write_bytes(b"o")
        os.setxattr(upper / "a", "security.capability", CAPABILITY)
        made = await differ.compare(bind(lower), bind(upper), CompareOptions(media_type=LAYER))
        assert (await content.info(made.digest)).size == made.size
        await differ.apply(made, bind(target), ApplyOptions())
        assert os.getxattr(target / "a", "security.capability") == CAPABILITY
        assert (target / "a").samefile(target / "b")
        assert "security.capability" not in os.listxattr(target / "other")

    async def test_comparison_is_deterministic(self, differ: Differ, content: ContentStore, root: Path) -> None:
        lower, upper = root / "lower", root / "upper"
        lower.mkdir()
        upper.mkdir()
        await apply(differ, content, upper, tar_of([entry(f"f{n}", bytes([n])) for n in range(20)]), LAYER)
        options = CompareOptions(media_type=LAYER + "+gzip", source_date_epoch_ns=10**18)
        first = await differ.compare(bind(lower), bind(upper), options)
        assert await differ.compare(bind(lower), bind(upper), options) == first
        with tarfile.open(fileobj=io.BytesIO(gzip.decompress(await read_all(content, first.digest)))) as archive:
            assert [(m.name, m.mtime, m.uname) for m in archive] == [
                (name, 10**9, "") for name in sorted(f"f{n}" for n in range(20))
            ]

    async def test_comparison_to_another_type_is_unimplemented(self, differ: Differ, root: Path) -> None:
        with pytest.raises(Unimplemented, match="unsupported diff media type: text/plain"):
            await differ.compare(bind(root), bind(root), CompareOptions(media_type="text/plain"))


class TestDiffer(Targeted, DifferContract):
    """The differ that `--target` names, over a content store in memory or its daemon's own."""

    kind = kinds.DIFFER

    @pytest.fixture
    async def content(self, bench: Bench, tmp_path: Path) -> AsyncIterator[ContentStore]:
        if not bench.remote:
            yield FakeContentStore()
            return
        async with bench.open(kinds.CONTENT, tmp_path, {}) as opened:
            yield opened

    @pytest.fixture
    async def differ(self, bench: Bench, content: ContentStore, tmp_path: Path) -> AsyncIterator[Differ]:
        needs = {kinds.METADATA: FakeMetadata(content), kinds.CONTENT: content}
        async with bench.open(self.kind, tmp_path / "daemon", needs) as opened:
            yield opened
