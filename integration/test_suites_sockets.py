"""The suites aimed at sockets: our daemon keeps the contracts, Debian's containerd too, but for listed deviations."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiocontainerd.testing.deviations import TABLES
from harness import Debians, Ours, Peer, peer

pytestmark = [pytest.mark.root, pytest.mark.integration, pytest.mark.timeout(180)]

SERVICES = ("snapshotter", "content", "differ")
LAST_LINE = re.compile(r"(\d+) (passed|failed|skipped|xfailed|error)")


@pytest.fixture(scope="module")
def ours() -> Iterator[Peer]:
    with peer(Ours) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def debians() -> Iterator[Peer]:
    with peer(Debians) as daemon:
        yield daemon


def run_suites(directory: Path, daemon: Peer, snapshotter: str, *args: str, suites: tuple[str, ...]) -> tuple[int, str]:
    """Run suites against a daemon as anyone would; status and output."""
    command = [sys.executable, "-m", "pytest", "-q", "-rfExs", "--tb=short", "--noconftest", "-p", "no:cacheprovider"]
    modules = [f"aiocontainerd.testing.{suite}" for suite in suites]
    target = f"unix://{daemon.address}#{snapshotter}"
    done = subprocess.run(
        [*command, f"--basetemp={directory / 'tmp'}", "--pyargs", *modules, "--target", target, *args],
        capture_output=True, text=True, cwd=directory, timeout=150, env={**os.environ, "COLUMNS": "400"},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def counts(output: str) -> dict[str, int]:
    """Return how many tests passed, failed and so on."""
    return {word: int(number) for number, word in LAST_LINE.findall(output.splitlines()[-1])}


def test_our_daemon_keeps_every_contract(ours: Peer, tmp_path: Path) -> None:
    status, output = run_suites(tmp_path, ours, "overlayfs", suites=SERVICES)
    assert status == 0, output
    assert counts(output) == {"passed": 110, "skipped": 1}
    assert "behind a socket a blob is in no file of this side" in output


def test_debians_containerd_keeps_them_but_for_its_deviations(debians: Peer, tmp_path: Path) -> None:
    status, output = run_suites(
        tmp_path, debians, "overlayfs", "--target-deviations", "containerd-1.6", suites=SERVICES
    )
    assert status == 0, output
    assert counts(output).keys() == {"passed", "skipped", "xfailed"}
    for deviation in TABLES["containerd-1.6"]:
        assert (deviation.reason in output) == (deviation.target in ("", "#overlayfs")), deviation


def test_deviations_of_one_snapshotter_are_its_own(debians: Peer, tmp_path: Path) -> None:
    status, output = run_suites(
        tmp_path, debians, "native", "--target-deviations", "containerd-1.6", suites=("snapshotter",)
    )
    assert status == 0, output
    assert "the native snapshotter measures the view's directory" in output


def test_namespace_that_is_used_is_left_alone(ours: Peer, tmp_path: Path) -> None:
    ours.ctr("snapshots", "prepare", "mine", namespace="suite-used")
    args = ("--target-namespace", "suite-used", "-k", "test_prepared")
    status, output = run_suites(tmp_path, ours, "overlayfs", *args, suites=("snapshotter",))
    assert status == 1
    assert "namespace suite-used is not empty; the suite would delete what is in it" in output
    assert b"mine" in ours.ctr("snapshots", "ls", namespace="suite-used").stdout
    ours.ctr("snapshots", "rm", "mine", namespace="suite-used")
    assert run_suites(tmp_path, ours, "overlayfs", *args, suites=("snapshotter",))[0] == 0


def test_faults_of_a_daemon_are_skipped_with_the_reason(ours: Peer, tmp_path: Path) -> None:
    status, output = run_suites(tmp_path, ours, "overlayfs", suites=("faults",))
    assert status == 0, output
    assert counts(output).keys() == {"skipped"}
    assert "a daemon behind a socket cannot be killed between its steps" in output


def test_nothing_is_left_in_a_daemon(ours: Peer, debians: Peer) -> None:
    for daemon in (ours, debians):
        names = daemon.ctr("namespaces", "ls", "-q").stdout.decode().split()
        assert not [name for name in names if name.startswith("suite-")]
        assert daemon.ctr("content", "ls", "-q").stdout == b""


def test_socket_that_is_not_there_is_told(tmp_path: Path) -> None:
    with_nothing = Peer(tmp_path)
    status, output = run_suites(tmp_path, with_nothing, "overlayfs", "-k", "test_prepared", suites=("snapshotter",))
    assert status != 0
    assert str(with_nothing.address) in output
