"""`docs/plugins/tutorial.md`, read and done: its files are written, its commands run, its outputs seen."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from aiocontainerd.oci import platform
from harness import REPOSITORY, SCRIPTS, START_S, Ours, Peer, peer

pytestmark = [pytest.mark.root, pytest.mark.integration, pytest.mark.timeout(300)]

PAGE = REPOSITORY / "docs" / "plugins" / "tutorial.md"
IMAGE = "docker.io/library/busybox:local"
RESTART = "make serve"
EXPORT = "export CONTAINERD_ADDRESS="
INSTALL = ".venv/bin/pip install --no-build-isolation -e "
COMMAND_S = 150.0


class Block(msgspec.Struct, frozen=True):
    """A fenced block of the page."""

    language: str
    path: str
    text: str


def blocks() -> Iterator[Block]:
    for language, path, text in re.findall(r"^```(\w+) ?(\S*)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        yield Block(language, path, text)


class Reader:
    """Somebody who follows the page in a directory, with a daemon."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.site = directory / "site"
        self.address: dict[str, str] = {}
        self.daemon: Peer | None = None
        self.output = ""

    @property
    def environment(self) -> dict[str, str]:
        """What the reader's commands and daemon see: the package as `pip install -e` shows it."""
        return {"PYTHONPATH": f"{self.directory / 'acme-layers'}:{self.site}"}

    def follow(self, block: Block) -> None:
        assert self.daemon is not None
        if block.language == "sh":
            self.output = "".join(self._command(line) for line in block.text.splitlines())
        elif block.language == "text":
            for line in block.text.replace("linux/amd64", str(platform.default())).splitlines():
                assert _squeezed(line) in _squeezed(self.output), self.output
        elif block.language == "toml":
            with self.daemon.config_path.open("a") as config:
                config.write(f"\n{block.text}")
        else:
            assert block.path, f"a block of {block.language} without a path"
            (self.directory / block.path).write_text(block.text)

    def _command(self, line: str) -> str:
        assert self.daemon is not None
        if line == RESTART:
            self.daemon.stop()
            self.daemon.start()
            self._settle()
            return ""
        if line.startswith(EXPORT):
            self.address = {"CONTAINERD_ADDRESS": str(self.daemon.address)}
            return ""
        if line.startswith(INSTALL):
            return self._install(line.removeprefix(INSTALL))
        return self.run(line)

    def _settle(self) -> None:
        """Wait for plugins beside the daemon, which a reader's typing gives time to connect."""
        assert self.daemon is not None
        until = time.monotonic() + START_S
        while "connecting" in self.run(f".venv/bin/actr -a {self.daemon.address} plugins ls"):
            assert time.monotonic() < until, f"a plugin still connects after {START_S:g} s"
            time.sleep(0.05)

    def _install(self, folder: str) -> str:
        """Install the metadata that an editable install would leave in the environment, in a directory of the test."""
        options = "--quiet --no-index --no-deps --no-build-isolation --disable-pip-version-check"
        return self.run(f"{sys.executable} -m pip install {options} --upgrade --target {self.site} ./{folder}")

    def run(self, line: str) -> str:
        assert self.daemon is not None
        environment = {
            **os.environ,
            **self.environment,
            **self.address,
            "CONTAINERD_NAMESPACE": self.daemon.namespace,
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        }
        done = subprocess.run(
            line, shell=True, cwd=self.directory, env=environment, capture_output=True, text=True, timeout=COMMAND_S
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}\n{self.daemon.log()[-4000:]}"
        return done.stdout


def _squeezed(text: str) -> str:
    return re.sub(r"[ \t]+", " ", text)


def test_who_follows_the_tutorial_runs_containers_on_a_snapshotter_of_their_own(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    (tmp_path / ".venv").symlink_to(SCRIPTS.parent)

    class WithReader(Ours):
        def environment(self) -> dict[str, str]:
            return {**super().environment(), **reader.environment}

    with peer(WithReader) as daemon:
        reader.daemon = daemon
        for block in blocks():
            reader.follow(block)
        assert "isolation=process" in reader.run(".venv/bin/actr plugins ls -d id==acme-layers")
        daemon.ctr("images", "rm", "--sync", IMAGE)
        assert len(daemon.ctr("snapshots", "--snapshotter", "acme-layers", "ls").stdout.splitlines()) == 1
