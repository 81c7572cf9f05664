"""OCI runtimes through stock `ctr`: specs of later versions, a missing runtime, what a runtime says of its failure."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiocontainerd.testing.images import BuiltImage, busybox_layer, write_archive
from harness import RUNTIME, SCRIPTS, Ours, Peer, peer

pytestmark = [pytest.mark.root, pytest.mark.integration, pytest.mark.timeout(120)]

IMAGE = "docker.io/library/busybox:1"
SHIM = str(SCRIPTS / "containerd-shim-aio-v2")
RUNTIMES = [name for name in ("crun", "runc") if shutil.which(name)]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    archive = tmp_path_factory.mktemp("image") / "busybox.tar"
    write_archive(archive, IMAGE, [BuiltImage(layers=[busybox_layer()])])
    with peer(Ours) as started:
        started.ctr("images", "import", str(archive))
        yield started


@pytest.fixture
def rootfs(daemon: Peer) -> Iterator[Path]:
    """Return a directory with busybox in it, for containers that are run from a spec of the test's own."""
    directory = daemon.directory / "rootfs"
    (directory / "bin").mkdir(parents=True)
    for name in ("proc", "dev", "sys"):
        (directory / name).mkdir()
    shutil.copy(shutil.which("busybox") or "", directory / "bin" / "busybox")
    yield directory
    shutil.rmtree(directory)


def modern_spec(daemon: Peer, rootfs: Path, **linux: object) -> str:
    """Write a spec as clients of containerd 2 write it; return its path."""
    spec = json.loads(daemon.ctr("oci", "spec").stdout)
    spec["ociVersion"] = "1.3.0"
    spec["root"]["path"] = str(rootfs)
    spec["process"]["args"] = ["/bin/busybox", "echo", "hello"]
    spec["linux"].update(linux)
    path = daemon.directory / "modern.json"
    path.write_text(json.dumps(spec))
    return str(path)


@pytest.mark.parametrize("binary", ["", *RUNTIMES])
def test_a_container_of_a_modern_client_runs_on_every_runtime(daemon: Peer, rootfs: Path, binary: str) -> None:
    chosen = ["--runc-binary", binary] if binary else []
    done = daemon.ctr("run", "--rm", *chosen, "--config", modern_spec(daemon, rootfs), "m1")
    assert done.stdout == b"hello\n"


def test_a_shim_that_is_started_by_its_path_takes_it_too(daemon: Peer, rootfs: Path) -> None:
    done = daemon.ctr("run", "--rm", "--runtime", SHIM, "--config", modern_spec(daemon, rootfs), "m2")
    assert done.stdout == b"hello\n"


def test_only_the_runtime_sees_another_version(daemon: Peer, rootfs: Path) -> None:
    daemon.ctr("run", "-d", "--config", modern_spec(daemon, rootfs), "m3")
    bundle = daemon.state / RUNTIME / daemon.namespace / "m3"
    handed_over = json.loads((bundle / "config.json").read_text())
    stored = json.loads(daemon.ctr("containers", "info", "m3").stdout)["Spec"]
    daemon.ctr("tasks", "rm", "-f", "m3")
    daemon.ctr("containers", "rm", "m3")
    assert stored["ociVersion"] == "1.3.0"
    shown = daemon.ctr("plugins", "ls", "-d", "id==aio").stdout.decode()
    assert "oci-runtime " in shown
    if "takes ociVersion <= 1.1.0" in shown and "oci-runtime           crun" in shown:
        assert handed_over == {**stored, "ociVersion": "1.1.0"}


@pytest.mark.parametrize("binary", RUNTIMES)
def test_what_a_runtime_says_of_its_failure_is_no_output_of_the_container(daemon: Peer, binary: str) -> None:
    log = daemon.directory / f"{binary}.log"
    told = daemon.ctr("run", "--rm", "--runc-binary", binary, IMAGE, "f1", "/no/program", check=False)
    filed = ("--log-uri", f"file://{log}", IMAGE, "f2", "/no/program")
    daemon.ctr("run", "-d", "--runc-binary", binary, *filed, check=False)
    daemon.ctr("containers", "rm", "f2")
    assert told.stderr.decode().startswith("ctr: failed to create shim task: OCI runtime create failed: ")
    assert told.stderr.count(b"/no/program") in (1, 2)  # runc names it twice in one message
    assert len(told.stderr.splitlines()) == 1
    assert log.read_bytes() == b""
    daemon.ctr("run", "-d", "--runc-binary", binary, IMAGE, "f3", "sleep", "1000")
    failed = daemon.ctr("tasks", "exec", "--exec-id", "e1", "f3", "/no/program", check=False)
    daemon.ctr("tasks", "rm", "-f", "f3")
    daemon.ctr("containers", "rm", "f3")
    assert failed.stderr.decode().startswith("ctr: OCI runtime exec failed: ")
    assert len(failed.stderr.splitlines()) == 1


def test_what_a_container_says_on_stderr_arrives_whole(daemon: Peer) -> None:
    script = "echo out; head -c 1000000 /dev/zero >&2; echo end >&2; exit 3"
    done = daemon.ctr("run", "--rm", IMAGE, "e1", "sh", "-c", script, check=False)
    assert (done.returncode, done.stdout) == (3, b"out\n")
    assert done.stderr == bytes(1_000_000) + b"end\n"


def test_a_missing_runtime_is_told_as_containerd_tells_it_and_leaves_nothing(daemon: Peer) -> None:
    before = daemon.log().count("Traceback")
    done = daemon.ctr("run", "--rm", "--runc-binary", "/nonexistent/runc", IMAGE, "g1", "true", check=False)
    log = daemon.state / RUNTIME / daemon.namespace / "g1" / "log.json"
    assert done.stderr.decode() == (
        "ctr: failed to create shim task: OCI runtime create failed: unable to retrieve OCI runtime error "
        f"(open {log}: no such file or directory): fork/exec /nonexistent/runc: no such file or directory: unknown\n"
    )
    mounts = Path(f"/proc/{daemon.pid}/mounts").read_text()
    assert f"/{daemon.namespace}/g1/" not in mounts
    assert daemon.log().count("Traceback") == before
    assert os.listdir(daemon.directory / "s") == []


def test_a_file_that_a_bad_shim_names_as_its_socket_stays(daemon: Peer, rootfs: Path) -> None:
    shim, kept = daemon.directory / "bad-shim", daemon.directory / "kept"
    kept.write_text("not a socket")
    shim.write_text(f"#!/bin/sh\necho unix://{kept}\n")
    shim.chmod(0o755)
    done = daemon.ctr("run", "--runtime", str(shim), "--config", modern_spec(daemon, rootfs), "h1", check=False)
    daemon.ctr("containers", "rm", "h1")
    assert done.stderr.decode().startswith("ctr: failed to start shim: start failed: failed to create TTRPC connection")
    assert kept.read_text() == "not a socket"
    assert not (daemon.state / RUNTIME / daemon.namespace / "h1").exists()


def test_an_unknown_protocol_of_a_shim_leaves_nothing(daemon: Peer, rootfs: Path) -> None:
    shim = daemon.directory / "odd-shim"
    answer = json.dumps({"version": 3, "address": f"unix://{daemon.directory}", "protocol": "http"})
    shim.write_text(f"#!/bin/sh\necho '{answer}'\n")
    shim.chmod(0o755)
    done = daemon.ctr("run", "--runtime", str(shim), "--config", modern_spec(daemon, rootfs), "h2", check=False)
    daemon.ctr("containers", "rm", "h2")
    assert done.stderr.decode() == 'ctr: failed to start shim: start failed: unexpected protocol: "http": unknown\n'
    assert not (daemon.state / RUNTIME / daemon.namespace / "h2").exists()
