"""Images whose layers go through programs of `[stream_processors]`, with ours and with Debian's containerd."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiocontainerd.testing.images import Blob, BuiltImage, BuiltLayer, busybox_layer, entry, tar_of, write_archive
from harness import Debians, Ours, Peer, docker_registry, peer, push
from outside import served

pytestmark = [pytest.mark.root, pytest.mark.integration, pytest.mark.timeout(120)]

SCRAMBLED, REFUSED = (f"application/vnd.oci.image.layer.v1.tar+{word}" for word in ("scrambled", "refused"))
IMAGE = "docker.io/library/{}:1"
SCRAMBLE = bytes(byte ^ 0x5A for byte in range(256))
UNSCRAMBLE = """
import os, sys
assert os.environ["STREAM_PROCESSOR_MEDIATYPE"] == sys.argv[1], os.environ
while data := sys.stdin.buffer.read(1 << 16):
    sys.stdout.buffer.write(data.translate(bytes(byte ^ int(os.environ["KEY"]) for byte in range(256))))
"""
TABLES = f"""
[stream_processors."acme.unscramble"]
accepts = ["{SCRAMBLED}"]
returns = "application/vnd.oci.image.layer.v1.tar+gzip"
path = "{sys.executable}"
args = ["{{directory}}/unscramble.py", "{SCRAMBLED}"]
env = ["KEY=90"]
[stream_processors."acme.refuse"]
accepts = ["{REFUSED}"]
returns = "application/vnd.oci.image.layer.v1.tar"
path = "sh"
args = ["-c", "cat >/dev/null; echo no key of yours fits >&2; exit 7"]
"""


class Scrambled(BuiltLayer, frozen=True):
    """A compressed layer that only a program can read."""

    @property
    def media_type(self) -> str:
        return SCRAMBLED

    def blob(self) -> Blob:
        return Blob(super().blob().data.translate(SCRAMBLE))


class Refused(Scrambled, frozen=True):
    """A layer that its program does not let pass."""

    @property
    def media_type(self) -> str:
        return REFUSED


@pytest.fixture(params=[Ours, Debians])
def daemon(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Peer]:
    (tmp_path / "unscramble.py").write_text(UNSCRAMBLE)
    tables = TABLES.replace("{directory}", str(tmp_path))

    kind: type[Peer] = request.param
    with peer(kind, start=False) as prepared:
        prepared.config_path.write_text(prepared.config_path.read_text() + tables)
        prepared.start()
        yield prepared


@pytest.mark.parametrize("way", ["import", "pull"])
def test_a_container_runs_on_layers_that_a_program_made_readable(daemon: Peer, tmp_path: Path, way: str) -> None:
    name, archive = IMAGE.format("scrambled"), tmp_path / "image.tar"
    plain = BuiltLayer(tar_of([entry("etc/plain", b"plain\n")]))
    write_archive(archive, name, [BuiltImage(layers=[Scrambled(busybox_layer().tar), plain])])
    if way == "import":
        daemon.ctr("images", "import", str(archive))
    else:
        with docker_registry(tmp_path) as registry:
            push(archive, registry, "scrambled:1")
            daemon.ctr("images", "pull", "--plain-http", f"{registry}/scrambled:1")
            daemon.ctr("images", "tag", f"{registry}/scrambled:1", name)
    ran = daemon.ctr("run", "--rm", name, "c", "cat", "/etc/passwd", "/etc/plain")
    assert ran.stdout.startswith(b"root:x:0:0:root")
    assert ran.stdout.endswith(b"plain\n")


def test_a_served_differ_runs_the_programs_of_its_own_config(tmp_path: Path) -> None:
    archive, name = tmp_path / "image.tar", IMAGE.format("scrambled")
    write_archive(archive, name, [BuiltImage(layers=[Scrambled(busybox_layer().tar)])])
    (tmp_path / "unscramble.py").write_text(UNSCRAMBLE)
    (tmp_path / "differ.toml").write_text("version = 3\n" + TABLES.replace("{directory}", str(tmp_path)))
    with tempfile.TemporaryDirectory(prefix="sp-", dir="/tmp") as short, peer(Ours, start=False) as daemon:
        with daemon.config_path.open("a") as file:
            file.write(f'[proxy_plugins.d]\ntype = "diff"\naddress = "{short}/d.sock"\n')
            file.write('[plugins."io.containerd.service.v1.diff-service"]\ndefault = ["d"]\n')
        daemon.start()
        flags = ("--content", f"unix://{daemon.address}", "--config", str(tmp_path / "differ.toml"))
        with served("aiocontainerd_differ.plugin", Path(short), "d", *flags):
            daemon.ctr("images", "import", str(archive))
            assert daemon.ctr("run", "--rm", name, "c", "echo", "hello").stdout == b"hello\n"


def test_what_a_program_complains_of_is_the_clients_error(daemon: Peer, tmp_path: Path) -> None:
    archive = tmp_path / "image.tar"
    write_archive(archive, IMAGE.format("refused"), [BuiltImage(layers=[Refused(busybox_layer().tar)])])
    refused = daemon.ctr("images", "import", str(archive), check=False)
    assert refused.returncode == 1
    told = refused.stderr.decode()
    if isinstance(daemon, Ours):
        assert "ctr: failed to extract layer sha256:" in told
        assert "stream processor acme.refuse: exit status 7: no key of yours fits" in told
    else:  # where it reads the end of the stream before it learns of the exit
        assert "no key" in told or "ctr: wrong diff id calculated on extraction" in told
    assert daemon.ctr("snapshots", "ls").stdout.splitlines()[1:] == []
