"""What an operator gets wrong at start: each a message that names the thing, and nothing left behind."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from aiocontainerd.testing.images import BuiltImage, busybox_layer, write_archive
from harness import Debians, Ours, Peer, peer

pytestmark = [pytest.mark.root, pytest.mark.integration]


def failing(daemon: Peer) -> str:
    """Start a daemon that must end by itself with status 1; what it printed."""
    daemon.start(wait=False)
    assert daemon.process is not None
    assert daemon.process.wait(20) == 1
    daemon.process = None
    return daemon.log()


def test_a_typo_in_the_config_names_line_key_and_nearest_key() -> None:
    with peer(Ours, config="version = 3\nrooot = '/x'\n", start=False) as daemon:
        assert f'{daemon.config_path}:2: unknown key rooot; did you mean "root"?' in failing(daemon)


def test_a_typo_in_a_plugin_table_stops_the_start() -> None:
    config = 'version = 3\n[plugins."io.containerd.gc.v1.scheduler"]\npause_treshold = 0.1\n'
    with peer(Ours, config=config, start=False) as daemon:
        assert 'did you mean "pause_threshold"?' in failing(daemon)


def test_a_config_of_a_newer_version_is_refused() -> None:
    with peer(Ours, config="version = 9\n", start=False) as daemon:
        assert "expected containerd config version equal to or less than `4`, got `9`" in failing(daemon)


def test_unknown_keys_only_warn_where_the_operator_says_so() -> None:
    with peer(Ours, config="version = 3\nrooot = '/x'\n", args=["--config-warn-only"]) as daemon:
        assert "unknown key rooot" in daemon.log()


def test_a_stock_config_of_debians_containerd_starts_us() -> None:
    stock = subprocess.run(["containerd", "config", "default"], capture_output=True, text=True, check=True).stdout
    with peer(Ours, config=stock) as daemon:
        assert daemon.log().count("tables of plugins that only containerd has are without effect") == 1


def module(directory: Path, text: str) -> None:
    (directory / "acme_plugin.py").write_text(text)


class WithModules(Ours):
    """Our daemon, with its directory on the interpreter's path."""

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "PYTHONPATH": str(self.directory)}


DECLARED = 'version = 3\n[python_plugins.acme]\nmodule = "acme_plugin"\n'
RAISING = """
from aiocontainerd.plugin import Registration, hookimpl, kinds

async def init(context):
    raise RuntimeError("no acme device on this host")

@hookimpl
def register_plugins():
    return [Registration(kind=kinds.SNAPSHOTTER, id="acme", init=init)]
"""


def test_a_plugin_module_that_does_not_import_is_one_line_and_the_daemon_runs() -> None:
    with peer(WithModules, config=DECLARED, start=False) as daemon:
        module(daemon.directory, "import no_such_package\n")
        daemon.start()
        assert (
            "acme_plugin of acme cannot be loaded: ModuleNotFoundError: No module named 'no_such_package'"
            in daemon.log()
        )
        assert daemon.ctr("version").returncode == 0


def test_a_plugin_whose_init_raises_is_a_failed_row_with_its_reason() -> None:
    with peer(WithModules, config=DECLARED, start=False) as daemon:
        module(daemon.directory, RAISING)
        daemon.start()
        assert "no acme device on this host" in daemon.log()
        listed = daemon.ctr("plugins", "ls").stdout.decode()
        assert any("acme" in line and "error" in line for line in listed.splitlines())


def test_a_missing_required_plugin_stops_the_start() -> None:
    config = 'version = 3\nrequired_plugins = ["io.containerd.snapshotter.v1.acme"]\n'
    with peer(Ours, config=config, start=False) as daemon:
        assert "required plugin io.containerd.snapshotter.v1.acme is not installed" in failing(daemon)


def test_a_required_plugin_that_fails_stops_the_start_with_its_reason() -> None:
    config = f'required_plugins = ["io.containerd.snapshotter.v1.acme"]\n{DECLARED}'
    with peer(WithModules, config=config, start=False) as daemon:
        module(daemon.directory, RAISING)
        assert "no acme device on this host" in failing(daemon)


def test_root_and_state_must_be_two_directories() -> None:
    with peer(Ours, start=False) as daemon:
        daemon.state = daemon.root
        assert "root and state must be different directories" in failing(daemon)


def test_a_root_that_cannot_be_made_is_named() -> None:
    with peer(Ours, start=False) as daemon:
        (daemon.directory / "file").write_text("")
        daemon.root = daemon.directory / "file" / "root"
        assert f"root directory {daemon.root} cannot be used: Not a directory" in failing(daemon)


def test_a_second_daemon_on_a_root_is_told_who_has_it() -> None:
    with peer(Ours) as first, peer(Ours, start=False) as second:
        second.root = first.root
        assert f"root {first.root} is in use by another daemon (pid " in failing(second)
        assert first.ctr("version").returncode == 0


def test_a_socket_path_that_is_too_long_is_named() -> None:
    with peer(Ours, start=False) as daemon:
        daemon.address = daemon.directory / ("a" * 120) / "c.sock"
        log = failing(daemon)
        assert str(daemon.address) in log
        assert "104" in log


def test_a_broken_config_file_is_named() -> None:
    with peer(Ours, config="version = \n", start=False) as daemon:
        assert f"failed to load TOML from {daemon.config_path}" in failing(daemon)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: drops privileges to show what an ordinary user sees")
def test_an_unwritable_root_is_named() -> None:
    with peer(Ours, start=False) as daemon:
        locked = daemon.directory / "locked"
        locked.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(locked)], check=True)
        try:
            daemon.root = locked / "root"
            assert f"root directory {daemon.root} cannot be used: Read-only file system" in failing(daemon)
        finally:
            subprocess.run(["umount", str(locked)], check=True)


def tree(root: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """Return mode, size, time and bytes of everything at and below a root."""
    found = {}
    for path in [root, *root.rglob("*")]:
        status = path.lstat()
        data = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        size = status.st_size if data else 0
        found[str(path.relative_to(root))] = (status.st_mode, size, status.st_mtime_ns, data)
    return found


class Newer(Debians):
    """A newer containerd, which a path in the environment names."""

    program = os.environ.get("AIOCONTAINERD_NEWER_CONTAINERD", "")


@pytest.mark.parametrize("kind", [Debians, Newer])
def test_a_root_of_containerd_is_refused_and_not_touched(kind: type[Debians], tmp_path: Path) -> None:
    if not kind.program:
        pytest.skip("AIOCONTAINERD_NEWER_CONTAINERD names no program")
    archive = tmp_path / "busybox.tar"
    write_archive(archive, "docker.io/library/busybox:1", [BuiltImage(layers=[busybox_layer()])])
    with peer(kind) as theirs:
        theirs.ctr("images", "import", str(archive))
        theirs.ctr("snapshots", "prepare", "made")
        theirs.stop()
        (theirs.root / "tmpmounts").mkdir(exist_ok=True)
        (theirs.root / "tmpmounts" / "theirs").mkdir()
        (theirs.root / "io.containerd.content.v1.content" / "ingest" / "unreadable").mkdir(parents=True)
        before = tree(theirs.root)
        with peer(Ours, start=False) as ours:
            ours.root = theirs.root
            log = failing(ours)
            assert tree(theirs.root) == before
            assert len(log.splitlines()) == 1, log
            assert f"{theirs.root}/io.containerd.metadata.v1.bolt/meta.db was written by another program" in log
            assert not ours.state.exists()
        theirs.start()
        assert b"docker.io/library/busybox:1" in theirs.ctr("images", "ls", "-q").stdout


def test_snapshots_of_containerd_in_an_empty_root_are_refused_and_not_touched() -> None:
    with peer(Debians) as theirs:
        theirs.ctr("snapshots", "prepare", "made")
        theirs.stop()
        (theirs.root / "io.containerd.metadata.v1.bolt" / "meta.db").unlink()
        before = tree(theirs.root)
        with peer(Ours, start=False) as ours:
            ours.root = theirs.root
            log = failing(ours)
            assert tree(theirs.root) == before
            assert "io.containerd.snapshotter.v1.overlayfs/metadata.db was written by another program" in log
