"""Bundles that lead elsewhere, or that somebody moved: the container runs on, or can be started again."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aiocontainerd.testing.images import BuiltImage, busybox_layer, write_archive
from harness import RUNTIME, Ours, Peer, peer

pytestmark = [pytest.mark.root, pytest.mark.integration, pytest.mark.timeout(180)]

IMAGE = "docker.io/library/busybox:1"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Peer]:
    """Run a daemon with two containers."""
    write_archive(tmp_path / "busybox.tar", IMAGE, [BuiltImage(layers=[busybox_layer()])])
    with peer(Ours) as started:
        started.ctr("images", "import", str(tmp_path / "busybox.tar"))
        for name in ("b", "other"):
            started.ctr("run", "-d", IMAGE, name, "sleep", "1000")
        yield started


def bundle(daemon: Peer, name: str) -> Path:
    return daemon.state / RUNTIME / daemon.namespace / name


def dead(_daemon: Peer) -> str:
    return "unix:///tmp/nobody.sock"


def of_another_shim(daemon: Peer) -> str:
    return str(json.loads((bundle(daemon, "other") / "bootstrap.json").read_text())["address"])


def of_the_daemon(daemon: Peer) -> str:
    return f"unix://{daemon.address}.ttrpc"


def of_another_kind(_daemon: Peer) -> str:
    return "tcp://127.0.0.1:1"


def echo(daemon: Peer) -> bytes:
    return daemon.ctr("tasks", "exec", "--exec-id", "e", "b", "echo", "here").stdout


@pytest.mark.parametrize("address", [dead, of_another_shim, of_the_daemon, of_another_kind])
def test_a_bundle_that_names_another_address_is_put_right(daemon: Peer, address: Callable[[Peer], str]) -> None:
    file = bundle(daemon, "b") / "bootstrap.json"
    right = json.loads(file.read_text())
    daemon.stop()
    file.write_text(json.dumps(right | {"address": address(daemon)}))
    daemon.start()
    assert echo(daemon) == b"here\n"
    assert json.loads(file.read_text()) == right
    named = f"the bundle of task {daemon.namespace}/b names {address(daemon)}, but its shim listens at"
    assert named in daemon.log()


def hide(path: Path) -> None:
    path.rename(path.with_name(f".{path.name}"))


def replace(path: Path) -> None:
    subprocess.run(["rm", "-rf", "--one-file-system", path], check=True)
    path.touch()


@pytest.mark.parametrize("damage", [hide, replace])
def test_a_container_whose_bundle_was_moved_or_replaced_is_ended_and_starts_again(
    daemon: Peer, damage: Callable[[Path], None]
) -> None:
    daemon.stop()
    damage(bundle(daemon, "b"))
    daemon.start()
    assert b"b " not in daemon.ctr("tasks", "ls").stdout
    daemon.ctr("tasks", "start", "-d", "b")
    assert echo(daemon) == b"here\n"
    assert "Traceback" not in daemon.log()
