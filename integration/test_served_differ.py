"""Our differ in a process of its own, for stock containerd and for a gRPC stack that is not ours."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aiocontainerd.testing.differ import CAPABILITY, directory, entry, hard_link, symlink, tar_of, tree_of
from aiocontainerd.testing.images import BuiltImage, BuiltLayer, busybox_layer, write_archive
from harness import Debians, Peer, docker_registry, peer, push
from outside import protoc, served

pytestmark = [pytest.mark.root, pytest.mark.integration, pytest.mark.timeout(120)]

IMAGE = "docker.io/library/busybox:1"
DIFFER = "aiocontainerd_differ.plugin"
LAYER = "application/vnd.oci.image.layer.v1.tar"
CONTAINERD = os.environ.get("AIOCONTAINERD_TEST_CONTAINERD", "/usr/bin/containerd")
"""A containerd of another release than the installed one; its shim is looked for beside it."""
KEPT = {"containerd.io/gc.root": "now"}
"""What the collector of containerd leaves alone."""

BASE = [
    directory("etc/"), entry("etc/passwd", b"root:x:0:0\n"), entry("etc/gone", b"1"), entry("etc/kept", b"kept\n"),
    directory("lib/", mode=0o711), entry("lib/" + "long" * 40, b"long"), entry("lib/ümläut", b"u"),
    entry("lib/twice", b"linked" * 1000), hard_link("lib/again", "lib/twice"), symlink("lib/absolute", "/etc/passwd"),
    directory("old/"), entry("old/a", b"a"), directory("old/below/"), entry("old/below/b", b"b"),
    entry("su", b"#!", mode=0o4755, uid=7, gid=8), entry("service", b"s", pax_headers={
        "SCHILY.xattr.security.capability": CAPABILITY.decode(), "SCHILY.xattr.user.note": "noted",
    }),
    entry("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666),
    entry("pipe", type=tarfile.FIFOTYPE, mode=0o600),
]  # fmt: skip
CHANGED = [
    entry("etc/.wh.gone"), entry("etc/passwd", b"root:x:0:0\nme:x:1:1\n", mode=0o600), directory("old/"),
    entry("old/.wh..wh..opq"), entry("old/new", b"n"), directory("su/"), entry("su/inside", b"i" * 100_000),
    entry("implied/parents/file", b"f"),
]  # fmt: skip
LAYERS = [
    BuiltLayer(tar_of(BASE)),
    BuiltLayer(tar_of(CHANGED), "zstd"),
    BuiltLayer(tar_of([entry("last", b"l")]), "tar"),
]


@pytest.fixture
def tmp() -> Iterator[Path]:
    """Yield a directory with a short name, for sockets."""
    with tempfile.TemporaryDirectory(prefix="sd-", dir="/tmp") as path:
        yield Path(path)


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    services = ("snapshots/v1/snapshots", "diff/v1/diff", "content/v1/content")
    return protoc(tmp_path_factory.mktemp("stubs"), *services)


class Caller(msgspec.Struct, frozen=True):
    """Calls a socket through grpcio, in a namespace."""

    stubs: Path
    socket: Path
    namespace: str

    def answer(self, method: str, **request: Any) -> tuple[int, str]:
        """Exit status, and the answer as JSON or code and details of what was refused."""
        script = Path(__file__).with_name("grpcio_call.py")
        path = f"containerd.services.{method}"
        command = [sys.executable, str(script), str(self.stubs), str(self.socket), self.namespace, path]
        done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True)
        return done.returncode, done.stdout if done.returncode == 0 else done.stderr.strip()

    def __call__(self, method: str, **request: Any) -> dict[str, Any]:
        status, text = self.answer(method, **request)
        assert status == 0, text
        answer: dict[str, Any] = json.loads(text)
        return answer


class Bench(msgspec.Struct, frozen=True):
    """Debian's containerd, and our differ over its content. `differs` are both, by name."""

    stock: Caller
    differs: dict[str, Caller]

    def prepare(self, key: str, parent: str = "", *, view: bool = False) -> list[dict[str, Any]]:
        """Mounts of a new snapshot of Debian's overlayfs."""
        method = "snapshots.v1.Snapshots/View" if view else "snapshots.v1.Snapshots/Prepare"
        request = {"snapshotter": "overlayfs", "key": key, "parent": parent, "labels": KEPT}
        mounts: list[dict[str, Any]] = self.stock(method, **request)["mounts"]
        return mounts

    def commit(self, key: str, name: str) -> None:
        self.stock("snapshots.v1.Snapshots/Commit", snapshotter="overlayfs", key=key, name=name, labels=KEPT)

    def labels(self, digest: str) -> dict[str, str]:
        info: dict[str, Any] = self.stock("content.v1.Content/Info", digest=digest)["info"]
        found: dict[str, str] = info.get("labels", {})
        return found


@pytest.fixture
def bench(tmp: Path, stubs: Path) -> Iterator[tuple[Peer, Bench]]:
    write_archive(tmp / "image.tar", IMAGE, [BuiltImage(layers=LAYERS)])
    with peer(Debians) as debians:
        content = f"unix://{debians.address}"
        with served(DIFFER, tmp, "d", "--content", content) as socket:
            debians.ctr("images", "import", "--no-unpack", str(tmp / "image.tar"))
            stock = Caller(stubs, debians.address, debians.namespace)
            yield debians, Bench(stock, {"stock": stock, "ours": Caller(stubs, socket, debians.namespace)})


@contextmanager
def mounted(mounts: Sequence[dict[str, Any]], at: Path) -> Iterator[Path]:
    """Mount the only mount of a snapshotter and yield its tree."""
    (mount,) = mounts
    at.mkdir()
    options = ",".join(mount["options"])
    subprocess.run(["mount", "-t", mount["type"], "-o", options, mount["source"], str(at)], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", str(at)], check=True)


def extended(root: Path) -> dict[str, dict[str, bytes]]:
    """Extended attributes of what is below a directory, and how often each file is linked."""
    found = {}
    for path in sorted(root.rglob("*")):
        names = os.listxattr(path, follow_symlinks=False)
        found[str(path)] = {name: os.getxattr(path, name, follow_symlinks=False) for name in names}
        found[str(path)]["links"] = b"%d" % path.lstat().st_nlink
    return found


def timeless(tree: dict[str, tuple[object, ...]]) -> dict[str, tuple[object, ...]]:
    """Return a tree without the times of whiteouts, and of directories that no layer or only BASE describes."""
    made = {"etc", "implied", "implied/parents", "etc/gone"}
    return {path: (*held[:3], "" if path in made else held[3], *held[4:]) for path, held in tree.items()}


def descriptor(layer: BuiltLayer, media_type: str = "") -> dict[str, Any]:
    return layer.blob().descriptor(media_type or layer.media_type)


def test_layers_applied_through_a_foreign_client_are_those_of_containerds_own_differ(
    bench: tuple[Peer, Bench], tmp: Path
) -> None:
    _, on = bench
    applied: dict[str, list[Any]] = {}
    trees: dict[str, list[Any]] = {}
    for name, differ in on.differs.items():
        parent = ""
        for number, layer in enumerate(LAYERS):
            mounts = on.prepare(f"{name}-active", parent)
            answer = differ("diff.v1.Diff/Apply", diff=descriptor(layer), mounts=mounts, syncFs=number == 1)
            applied.setdefault(name, []).append(answer["applied"])
            on.commit(f"{name}-active", f"{name}-{number}")
            parent = f"{name}-{number}"
            upper = re.search(r"upperdir=([^,]+)", ",".join(mounts[0]["options"]))
            directories = Path(upper[1]) if upper else Path(mounts[0]["source"])
            trees.setdefault(name, []).append(timeless(tree_of(directories)))
            trees[name].append({path.removeprefix(str(directories)): x for path, x in extended(directories).items()})
        with mounted(on.prepare(f"{name}-view", parent, view=True), tmp / "merged") as merged:
            trees[name] += [timeless(tree_of(merged)), extended(merged)]
        (tmp / "merged").rmdir()
    assert applied["ours"] == applied["stock"]
    assert [one["digest"] for one in applied["ours"]] == [layer.diff_id for layer in LAYERS]
    for ours, stock in zip(trees["ours"], trees["stock"], strict=True):
        assert ours == stock
    assert trees["ours"][-2]["service"][-1] == b"s"
    assert "old/a" not in trees["ours"][-2]


def test_what_is_refused_through_a_foreign_client_is_refused_as_by_containerds_own_differ(
    bench: tuple[Peer, Bench],
) -> None:
    _, on = bench
    mounts = on.prepare("k")
    absent = {"mediaType": LAYER, "digest": f"sha256:{'0' * 64}", "size": "1"}
    unknown = descriptor(LAYERS[0], "application/acme")
    requests: list[tuple[str, dict[str, Any]]] = [
        ("diff.v1.Diff/Apply", {"diff": absent, "mounts": mounts}),
        ("diff.v1.Diff/Apply", {"diff": unknown, "mounts": mounts}),
        ("diff.v1.Diff/Diff", {"left": mounts, "right": mounts, "mediaType": "application/acme"}),
    ]
    for method, request in requests:
        answers = [differ.answer(method, **request) for differ in on.differs.values()]
        assert answers[0] == answers[1]
        assert answers[0][0] == 1


def change(root: Path) -> None:
    """Change a tree as a container may do."""
    (root / "etc" / "passwd").write_bytes(b"other\n")
    (root / "etc" / "kept").unlink()
    shutil.rmtree(root / "old")
    (root / "old").mkdir(0o700)
    (root / "old" / "again").write_bytes(os.urandom(1000))
    (root / "one").write_bytes(b"1" * 300_000)
    (root / "two").hardlink_to(root / "one")
    (root / "to").symlink_to("one")
    (root / "last").chmod(0o4711)
    os.chown(root / "lib" / "twice", 3, 4)
    os.mknod(root / "device", 0o020640, os.makedev(1, 5))
    os.setxattr(root / "one", "security.capability", CAPABILITY)
    os.setxattr(root / "one", "user.left-out", b"x")


def members(blob: bytes) -> dict[str, tuple[Any, ...]]:
    """Return every entry of a layer that may be compressed, by name.

    The times of whiteouts are left out, which have no effect.
    """
    with tarfile.open(fileobj=io.BytesIO(blob)) as archive:
        return {one.name: _member(archive, one) for one in archive.getmembers()}


def _member(archive: tarfile.TarFile, one: tarfile.TarInfo) -> tuple[Any, ...]:
    whiteout = one.name.rpartition("/")[2].startswith(".wh.")
    attributes = {key: value for key, value in one.pax_headers.items() if key.startswith("SCHILY.")}
    file = archive.extractfile(one) if one.isreg() else None
    return (
        one.type, one.mode, one.uid, one.gid, one.size, None if whiteout else int(one.mtime), one.linkname,
        one.devmajor, one.devminor, attributes, file.read() if file else None,
    )  # fmt: skip


@pytest.mark.parametrize("media_type", ["", LAYER])
def test_a_difference_made_through_a_foreign_client_holds_what_containerds_own_does(
    bench: tuple[Peer, Bench], tmp: Path, media_type: str
) -> None:
    debians, on = bench
    parent = ""
    for number, layer in enumerate(LAYERS):
        on.stock("diff.v1.Diff/Apply", diff=descriptor(layer), mounts=on.prepare("k", parent))
        parent = f"layer-{number}"
        on.commit("k", parent)
    right, left = on.prepare("k", parent), on.prepare("below", parent, view=True)
    with mounted(right, tmp / "merged") as merged:
        change(merged)
    request: dict[str, Any] = {"left": left, "right": right, "mediaType": media_type, "labels": {"acme": "1", **KEPT}}
    made = {name: differ("diff.v1.Diff/Diff", ref=name, **request)["diff"] for name, differ in on.differs.items()}
    blobs = {name: debians.ctr("content", "get", one["digest"]).stdout for name, one in made.items()}
    assert made["ours"]["mediaType"] == made["stock"]["mediaType"] == (media_type or f"{LAYER}+gzip")
    assert int(made["ours"]["size"]) == len(blobs["ours"])
    assert members(blobs["ours"]) == members(blobs["stock"])
    assert "etc/.wh.kept" in members(blobs["ours"])
    labels = {name: on.labels(one["digest"]) for name, one in made.items()}
    assert labels["ours"].keys() == labels["stock"].keys()
    assert ("containerd.io/uncompressed" in labels["ours"]) is (not media_type)
    with mounted(right, tmp / "seen") as seen:
        wanted = tree_of(seen)
    again = on.prepare("again", parent)
    on.stock("diff.v1.Diff/Apply", diff=made["ours"], mounts=again)
    with mounted(again, tmp / "again") as seen:
        assert tree_of(seen) == wanted
        assert os.getxattr(seen / "one", "security.capability") == CAPABILITY


class Newer(Debians):
    """The containerd that the environment names."""

    program = CONTAINERD

    def environment(self) -> dict[str, str]:
        inherited = super().environment()
        return {**inherited, "PATH": f"{Path(CONTAINERD).parent}:{inherited['PATH']}"}


def release() -> tuple[int, int]:
    """Major and minor of the containerd to test with."""
    text = subprocess.run([CONTAINERD, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r" v?(\d+)\.(\d+)\.", text)
    assert found, text
    return int(found[1]), int(found[2])


def proxied(address: Path) -> str:
    """Return a config of containerd whose only differ is behind a socket."""
    return (
        'version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
        f'[proxy_plugins.served]\ntype = "diff"\naddress = "{address}"\n'
        '[plugins."io.containerd.service.v1.diff-service"]\ndefault = ["served"]\n'
    )


def test_containerd_before_1_7_ends_at_a_differ_as_proxy_plugin(tmp: Path) -> None:
    if release() >= (1, 7):
        pytest.skip(f"{CONTAINERD} knows differs as proxy plugins")
    with (
        peer(Newer, config=proxied(tmp / "d.sock"), start=False) as stock,
        pytest.raises(AssertionError, match="panic"),
    ):
        stock.start()


def test_stock_containerd_pulls_runs_and_compares_with_our_differ(tmp: Path) -> None:
    if release() < (1, 7):
        pytest.skip(
            f"{CONTAINERD} has no proxy plugins of type diff, which came with 1.7; "
            "AIOCONTAINERD_TEST_CONTAINERD may name another"
        )
    write_archive(tmp / "image.tar", IMAGE, [BuiltImage(layers=[busybox_layer(), *LAYERS[1:]])])
    with (
        docker_registry(tmp) as registry,
        peer(Newer, config=proxied(tmp / "d.sock")) as stock,
        served(DIFFER, tmp, "d", "--content", f"unix://{stock.address}", "--namespace", stock.namespace),
    ):
        push(tmp / "image.tar", registry, "busybox:1")
        stock.ctr("images", "pull", "--plain-http", f"{registry}/busybox:1")
        ran = stock.ctr("run", "--rm", f"{registry}/busybox:1", "c", "cat", "/etc/passwd", "/implied/parents/file")
        assert ran.stdout == b"root:x:0:0\nme:x:1:1\nf"
        stock.ctr("run", f"{registry}/busybox:1", "changes", "sh", "-c", "echo new > /new; rm /last")
        layer = stock.ctr("snapshots", "diff", "--keep", "changes").stdout
        assert members(layer)["new"][-1] == b"new\n"
        assert ".wh.last" in members(layer)
