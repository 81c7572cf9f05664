"""The config files that distributions publish start this daemon as they start containerd (`configs/`).

Each file holds the facts of a published one, in an order of our own.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from harness import Ours, Peer, peer

pytestmark = [pytest.mark.root, pytest.mark.integration]

FILES = {path.stem: path for path in sorted((Path(__file__).parent / "configs").glob("*.toml"))}
REQUIRING = {name for name, path in FILES.items() if "required_plugins" in path.read_text()}
"""Files that name CRI in `required_plugins`. It is not part of this daemon yet."""
IDLE = "tables of plugins that only containerd has are without effect"
TOLD = {
    "docker-packaging-uncommented": ["subreaper has no effect", IDLE],
    "docker-packaging-kubeadm": ["unknown key enabled_plugins", IDLE],
    "flatcar": ["subreaper has no effect", 'no plugin "containerd.runtime.v1.linux" is installed', IDLE],
    "docker-packaging": [],
    "talos-system": [],
}
"""File -> every warning of its config. Others have one, that of containerd's tables."""


def warnings(daemon: Peer) -> list[str]:
    """Return the warnings that name the config file, and those of containerd's tables."""
    lines = [line for line in daemon.log().splitlines() if "level=warning" in line]
    return [line for line in lines if str(daemon.config_path.parent) in line or IDLE in line]


@pytest.mark.parametrize("name", sorted(FILES.keys() - REQUIRING))
def test_a_published_config_starts_the_daemon(name: str) -> None:
    with peer(Ours, config=FILES[name].read_text(), start=False) as daemon:
        (daemon.directory / "conf.d").mkdir()
        (daemon.directory / "conf.d" / "99-nvidia.toml").write_text(FILES["nvidia-drop-in"].read_text())
        daemon.start()
        assert daemon.ctr("version").returncode == 0
        assert daemon.ctr("images", "ls").returncode == 0
        found = warnings(daemon)
        expected = TOLD.get(name, [IDLE])
        assert len(found) == len(expected), found
        assert all(any(text in line.replace('\\"', '"') for line in found) for text in expected), found
        assert "Traceback" not in daemon.log()


@pytest.mark.parametrize("name", sorted(REQUIRING))
def test_a_config_that_requires_what_is_not_there_says_so_and_starts_without_it(name: str) -> None:
    text = FILES[name].read_text()
    with peer(Ours, config=text, start=False) as daemon:
        daemon.start(wait=False)
        assert daemon.process is not None
        assert daemon.process.wait(20) == 1
        daemon.process = None
        assert "required plugin io.containerd.grpc.v1.cri is not installed" in daemon.log()
    with peer(Ours, config=re.sub(r"required_plugins = .*\n", "", text)) as daemon:
        assert daemon.ctr("version").returncode == 0


@pytest.mark.parametrize("name", FILES)
def test_containerd_takes_the_same_file(name: str) -> None:
    done = subprocess.run(
        ["containerd", "--config", FILES[name], "config", "dump"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
