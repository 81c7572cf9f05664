"""`actr reload`: plugins beside the daemon come and go while it runs; those in it wait for a restart."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiocontainerd.testing.images import BuiltImage, busybox_layer, write_archive
from harness import SCRIPTS, Ours, Peer, peer
from outside import wait_for

pytestmark = [pytest.mark.root, pytest.mark.integration, pytest.mark.timeout(120)]

IMAGE = "docker.io/library/busybox:1"
URI = "io.containerd.snapshotter.v1.acme"
ISOLATED = '[python_plugins.acme]\nmodule = "acme_copies"\nisolation = "process"\n'
INSIDE = '[python_plugins.acme]\nmodule = "acme_copies"\n'
MODULE = """
from aiocontainerd.plugin import kinds, register
from aiocontainerd_snapshotter_native.snapshotter import NativeSnapshotter


@register(kinds.SNAPSHOTTER, "acme")
class Copies(NativeSnapshotter):
    pass
"""


class WithModule(Ours):
    """Our daemon with a module of a third party on its path."""

    archive: Path

    def default_config(self) -> str:
        (self.directory / "acme_copies.py").write_text(MODULE)
        return super().default_config()

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "PYTHONPATH": str(self.directory)}

    def configure(self, text: str) -> None:
        """Write the config of the next reload: the default one and more."""
        self.config_path.write_text(self.default_config() + text)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[WithModule]:
    with peer(WithModule) as started:
        assert isinstance(started, WithModule)
        started.archive = tmp_path / "busybox.tar"
        write_archive(started.archive, IMAGE, [BuiltImage(layers=[busybox_layer()])])
        started.ctr("images", "import", str(started.archive))
        yield started


def actr(daemon: Peer, *args: str, status: int = 0) -> str:
    command = [str(SCRIPTS / "actr"), "-a", str(daemon.address), "-n", daemon.namespace, *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == status, f"{done.stdout}{done.stderr}\n{daemon.log()[-4000:]}"
    return done.stdout + done.stderr


def run_on_acme(daemon: Peer, name: str, *, check: bool = True) -> subprocess.CompletedProcess[bytes]:
    command = ("run", "--rm", "--snapshotter", "acme", IMAGE, name, "echo", "here")
    return daemon.ctr(*command, check=check)


def test_an_isolated_snapshotter_is_added_used_and_removed_while_the_daemon_runs(daemon: WithModule) -> None:
    assert run_on_acme(daemon, "before", check=False).returncode
    daemon.ctr("run", "-d", IMAGE, "lives", "sleep", "1000")
    daemon.configure(ISOLATED)
    assert actr(daemon, "reload") == f"{URI}: added\n"
    daemon.ctr("images", "import", "--snapshotter", "acme", str(daemon.archive))
    assert run_on_acme(daemon, "c").stdout == b"here\n"
    told = actr(daemon, "plugins", "explain", URI)
    assert "Memory (RSS):" in told
    assert "Required by:       io.containerd.metadata.v1.bolt" in told
    daemon.configure("")
    assert actr(daemon, "reload") == f"{URI}: removed\n"
    assert b"snapshotter not loaded: acme" in run_on_acme(daemon, "after", check=False).stderr
    assert URI not in actr(daemon, "plugins", "health")
    assert b"RUNNING" in daemon.ctr("tasks", "ls").stdout
    daemon.ctr("tasks", "rm", "-f", "lives")
    daemon.ctr("containers", "rm", "lives")
    daemon.configure(ISOLATED)
    assert actr(daemon, "reload") == f"{URI}: added\n"
    assert run_on_acme(daemon, "again").stdout == b"here\n", "its snapshots are where they were"


def test_what_is_part_of_the_daemon_says_restart_needed(daemon: WithModule) -> None:
    daemon.configure(INSIDE + '[debug]\nlevel = "debug"\n')
    told = actr(daemon, "reload").splitlines()
    assert told == [
        f"{URI}: restart needed (it is part of the daemon's process)",
        "debug: restart needed (read when the daemon starts)",
    ]
    assert actr(daemon, "reload").splitlines() == told


def test_a_config_that_cannot_be_used_is_refused_and_changes_nothing(daemon: WithModule) -> None:
    daemon.configure('[python_plugins.acme]\nmodul = "acme_copies"\n')
    told = actr(daemon, "reload", status=1)
    assert "the config is not reloaded" in told
    assert "modul" in told
    assert daemon.ctr("version").returncode == 0


def test_what_cannot_be_loaded_is_told_with_its_reason_until_it_can(daemon: WithModule) -> None:
    daemon.configure(ISOLATED.replace("acme_copies", "acme_copis"))
    for _ in range(2):
        told = actr(daemon, "reload", status=1)
        assert told == "python_plugins.acme: failed (there is no module acme_copis (no acme_copis is installed))\n"
    daemon.configure(ISOLATED)
    assert actr(daemon, "reload") == f"{URI}: added\n"
    assert actr(daemon, "reload") == "nothing changed\n"


def test_a_hang_up_reloads(daemon: WithModule) -> None:
    daemon.configure(ISOLATED)
    daemon.send_signal(signal.SIGHUP)
    wait_for(lambda: f"reload: {URI}: added" in daemon.log(), "the reload")
    assert URI in actr(daemon, "plugins", "health")
