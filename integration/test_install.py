"""Wheels of all our distributions, installed into empty environments: the daemon with every service, the client alone.

Nothing is downloaded. What our distributions require of others is linked from the environment of the tests, and no more
than that: an import that nobody declared fails.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from aiocontainerd import kinds, scaffold
from aiocontainerd.host import discovery
from aiocontainerd.testing import images
from environments import brought_by, link
from harness import REPOSITORY, Installed, peer

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

OURS = "aiocontainerd"
NAME = "docker.io/library/t:1"
UNUSED = {("io.containerd.internal.v1", "event-sinks"), (kinds.SERVER, "grpc-tcp")}
"""Plugins that have nothing to do where the config does not say what."""
BUILD = "import sys; from flit_core import buildapi; print(buildapi.build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a wheel of each distribution into a directory."""
    directory = tmp_path_factory.mktemp("wheels")
    for root in (REPOSITORY, *sorted((REPOSITORY / "plugins").iterdir())):
        subprocess.run([sys.executable, "-c", BUILD, str(directory)], cwd=root, check=True, capture_output=True)
    return directory


class Environment:
    """A virtual environment with one of our distributions, or several."""

    def __init__(self, directory: Path, wheels: Path, *extras: str) -> None:
        self.scripts = directory / "bin"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(directory)], check=True)
        (site_packages,) = directory.glob("lib/python3*/site-packages")
        for name in brought_by(OURS, frozenset(extras)):
            if not name.startswith(OURS):
                link(name, site_packages)
        self.run(
            sys.executable, "-m", "pip", "--python", str(self.scripts / "python"), "install", "--quiet", "--no-index",
            "--disable-pip-version-check", "--find-links", str(wheels), f"{OURS}[{','.join(extras)}]",
        )  # fmt: skip

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(command, capture_output=True, text=True, cwd="/")
        assert not check or done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done

    def program(self, name: str, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run one of its programs."""
        return self.run(str(self.scripts / name), *args, check=check)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, wheels: Path) -> Environment:
    return Environment(tmp_path_factory.mktemp("whole"), wheels, "daemon", "cli")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, wheels: Path) -> Environment:
    return Environment(tmp_path_factory.mktemp("base"), wheels)


def rows(listed: str) -> dict[tuple[str, str], str]:
    """Return the status of every plugin, by type and id, of what `actr plugins ls` prints."""
    return {(line.split()[0], line.split()[1]): line.split()[3] for line in listed.splitlines()[1:]}


@pytest.mark.root
def test_a_daemon_from_wheels_has_every_plugin_and_runs_a_container(whole: Environment, tmp_path: Path) -> None:
    class FromWheels(Installed):
        program = str(whole.scripts / "aiocontainerd")

        def environment(self) -> dict[str, str]:
            path = f"{whole.scripts}:/usr/sbin:/usr/bin:/sbin:/bin"
            return {**os.environ, "PATH": path, "TMPDIR": str(self.directory)}

    images.write_archive(tmp_path / "image.tar", NAME, [images.BuiltImage(layers=[images.busybox_layer()])])
    with peer(FromWheels) as daemon:
        actr = ["actr", "-a", str(daemon.address), "-n", daemon.namespace]
        status = rows(whole.program(*actr, "plugins", "ls").stdout)
        whole.program(*actr, "images", "import", str(tmp_path / "image.tar"))
        printed = whole.program(*actr, "run", "--rm", NAME, "c1", "echo", "hello").stdout
    assert {(one.kind, one.id) for one in discovery.all_registrations()} - status.keys() == set()
    assert {name: one for name, one in status.items() if one != "ok"} == dict.fromkeys(UNUSED, "skip")
    assert printed == "hello\n"


def test_the_base_is_a_client_without_programs(base: Environment) -> None:
    listed = base.run(str(base.scripts / "python"), "-c", "import aiocontainerd.client, aiocontainerd.plugin")
    assert listed.stderr == ""
    for program, extra in (("aiocontainerd", "daemon"), ("actr", "cli"), ("aiocontainerd-plugin", "daemon")):
        done = base.program(program, "--version", check=False)
        assert done.returncode == 1
        line = f"{program}: the package click is missing; pip install 'aiocontainerd[{extra}]' brings it\n"
        assert done.stderr == line


@pytest.mark.root
def test_an_author_needs_the_extra_testing_alone(
    tmp_path_factory: pytest.TempPathFactory, wheels: Path, tmp_path: Path
) -> None:
    author = Environment(tmp_path_factory.mktemp("author"), wheels, "testing")
    packages = [tmp_path / kind for kind in ("snapshotter", "event-sink")]
    for package in packages:
        scaffold.write(package.name, f"acme-{package.name}", package)
    importable = f"pythonpath={' '.join(map(str, packages))}"
    done = author.program(
        "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", importable, *map(str, packages)
    )
    assert " passed" in done.stdout
