"""Plugins beside the daemon, with real peers: stock containerd on either end, and a stack that is not ours."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aiocontainerd.config import load
from aiocontainerd.testing.images import BuiltImage, busybox_layer, write_archive
from aiocontainerd.testing.processes import ended
from harness import REPOSITORY, SCRIPTS, Debians, Ours, Peer, docker_registry, peer, push
from outside import process, protoc, served, wait_for

pytestmark = [pytest.mark.root, pytest.mark.integration, pytest.mark.timeout(120)]

IMAGE = "docker.io/library/busybox:1"
NATIVE = "aiocontainerd_snapshotter_native.plugin"
CONTENT = "aiocontainerd_content_local.plugin"
DIFFER = "aiocontainerd_differ.plugin"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "busybox.tar"
    write_archive(path, IMAGE, [BuiltImage(layers=[busybox_layer()])])
    return path


@pytest.fixture
def tmp() -> Iterator[Path]:
    """Yield a directory with a short name, for sockets."""
    with tempfile.TemporaryDirectory(prefix="px-", dir="/tmp") as directory:
        yield Path(directory)


def exports(daemon: Peer, plugin_id: str) -> dict[str, str]:
    """Return the exports of a plugin as `ctr plugins ls -d` prints them."""
    text = daemon.ctr("plugins", "ls", "-d", f"id=={plugin_id}").stdout.decode()
    return {key: value.strip() for key, value in re.findall(r"^ {2,}(\S+) +(.*)$", text, re.MULTILINE) if value.strip()}


def state(daemon: Peer, plugin_id: str) -> str:
    return exports(daemon, plugin_id).get("state", "")


def config(directory: Path, text: str) -> str:
    return f'version = 3\n[plugins."io.containerd.shim.v1.manager"]\nsocket_dir = "{directory}/s"\n{text}'


def runs(daemon: Peer, snapshotter: str, container: str = "c") -> None:
    ran = daemon.ctr("run", "--rm", "--snapshotter", snapshotter, IMAGE, container, "echo", "hello")
    assert ran.stdout == b"hello\n"


def test_stock_containerd_pulls_and_runs_on_plugins_of_ours(tmp: Path, archive: Path) -> None:
    with served(NATIVE, tmp, "x") as snapshots, served(CONTENT, tmp, "c") as content:
        text = 'version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.content.v1.content"]\n'
        text += f'[proxy_plugins.x]\ntype = "snapshot"\naddress = "{snapshots}"\n'
        text += f'[proxy_plugins.c]\ntype = "content"\naddress = "{content}"\n'
        with docker_registry(tmp) as registry, peer(Debians, config=text) as stock:
            push(archive, registry, "busybox:1")
            stock.ctr("images", "pull", "--plain-http", "--snapshotter", "x", f"{registry}/busybox:1")
            stock.ctr("images", "tag", f"{registry}/busybox:1", IMAGE)
            runs(stock, "x")
            assert b"Committed" in stock.ctr("snapshots", "--snapshotter", "x", "ls").stdout
            stock.ctr("images", "rm", "--sync", IMAGE, f"{registry}/busybox:1")
            assert stock.ctr("content", "ls", "-q").stdout == b""
            native = tmp / "x-root" / "io.containerd.snapshotter.v1.native" / "snapshots"
            assert list(native.iterdir()) == []


@pytest.fixture
def stock(archive: Path) -> Iterator[Peer]:
    with peer(Debians) as started:
        started.ctr("images", "import", str(archive))
        yield started


def test_our_daemon_pulls_and_runs_on_stock_containerd(stock: Peer, tmp: Path, archive: Path) -> None:
    text = config(
        tmp,
        f"""
[plugins."io.containerd.service.v1.diff-service"]
default = ["stock"]
[proxy_plugins.s]
type = "snapshot"
address = "{stock.address}#overlayfs"
[proxy_plugins.c]
type = "io.containerd.content.v1"
address = "{stock.address}"
[proxy_plugins.stock]
type = "diff"
address = "{stock.address}"
""",
    ).replace("version = 3\n", 'version = 3\ndisabled_plugins = ["io.containerd.content.v1.content"]\n')
    with docker_registry(tmp) as registry, peer(Ours, config=text) as ours:
        push(archive, registry, "busybox:1")
        mine = ours.namespace
        stock.ctr("images", "import", str(archive), namespace=mine)
        ours.ctr("images", "pull", "--plain-http", "--snapshotter", "s", f"{registry}/busybox:1")
        ours.ctr("images", "tag", f"{registry}/busybox:1", IMAGE)
        runs(ours, "s")
        assert state(ours, "s") == "ready"
        assert b"containerd.io/gc.root" not in ours.ctr("content", "ls").stdout
        ours.ctr("images", "rm", "--sync", IMAGE, f"{registry}/busybox:1")
        assert ours.ctr("snapshots", "--snapshotter", "s", "ls").stdout.splitlines()[1:] == []
        left = stock.ctr("snapshots", "ls", namespace=mine).stdout.decode().splitlines()[1:]
        assert [line for line in left if line.startswith(f"{mine}/")] == []
        assert len(left) == 1, "the other user's snapshot in the same namespace stays"
        ours.stop()
        stock.ctr("images", "rm", "--sync", IMAGE, namespace=mine)


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return protoc(tmp_path_factory.mktemp("stubs"), "snapshots/v1/snapshots")


@contextmanager
def foreign(stubs: Path, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the proxy snapshotter on grpcio."""
    script = Path(__file__).with_name("grpcio_snapshotter.py")
    socket = directory / "g.sock"
    socket.unlink(missing_ok=True)
    with process([sys.executable, str(script), str(stubs), str(directory / "g"), str(socket)], socket) as running:
        yield running


def test_a_proxy_snapshotter_of_another_stack_comes_and_goes(tmp: Path, stubs: Path, archive: Path) -> None:
    address = tmp / "g.sock"
    text = config(tmp, f'[proxy_plugins.g]\ntype = "snapshot"\naddress = "{address}"\n')
    text += 'capabilities = ["rebase"]\n[proxy_plugins.g.exports]\nroot = "/srv/g"\n'
    with peer(Ours, config=text) as daemon:
        daemon.ctr("images", "import", str(archive))
        runs(daemon, "native", "before")
        assert exports(daemon, "g").items() >= {"state": "absent", "address": str(address), "root": "/srv/g"}.items()
        assert re.search(
            r"^\S+snapshotter\.v1 +g +\S+/\S+ +absent +.*no such file or directory",
            actr(daemon, "plugins", "ls"),
            re.MULTILINE,
        )
        refused = daemon.ctr("snapshots", "--snapshotter", "g", "prepare", "k", check=False)
        assert refused.returncode == 1
        assert f"plugin io.containerd.snapshotter.v1.g at {address} is absent:" in refused.stderr.decode()
        assert "unavailable" in refused.stderr.decode()
        with foreign(stubs, tmp) as proxy:
            runs(daemon, "g", "one")
            assert state(daemon, "g") == "ready"
            daemon.ctr("snapshots", "--snapshotter", "g", "prepare", "kept")
            snapshots = daemon.ctr("snapshots", "--snapshotter", "g", "ls").stdout
            proxy.kill()
            proxy.wait()
            wait_for(lambda: state(daemon, "g") == "absent", "the loss to be seen")
            assert "unavailable" in daemon.ctr("snapshots", "--snapshotter", "g", "ls", check=False).stderr.decode()
            runs(daemon, "native", "meanwhile")
        with foreign(stubs, tmp):
            assert daemon.ctr("snapshots", "--snapshotter", "g", "ls").stdout == snapshots
            runs(daemon, "g", "two")
            daemon.ctr("snapshots", "--snapshotter", "g", "rm", "kept")
            daemon.ctr("images", "rm", "--sync", IMAGE)
            wait_for(lambda: (tmp / "g" / "records.json").read_text() == "{}", "the collection")
            assert (tmp / "g" / "cleaned").exists()


def test_a_differ_beside_the_daemon_works_on_its_content(tmp: Path, archive: Path) -> None:
    text = config(tmp, f'[proxy_plugins.d]\ntype = "diff"\naddress = "{tmp}/d.sock"\n')
    text += '[plugins."io.containerd.service.v1.diff-service"]\ndefault = ["d"]\n'
    with (
        docker_registry(tmp) as registry,
        peer(Ours, config=text) as daemon,
        served(DIFFER, tmp, "d", "--content", f"unix://{daemon.address}"),
    ):
        push(archive, registry, "busybox:1")
        daemon.ctr("images", "pull", "--plain-http", f"{registry}/busybox:1")
        daemon.ctr("images", "tag", f"{registry}/busybox:1", IMAGE)
        runs(daemon, "overlayfs")
        daemon.ctr("snapshots", "prepare", "k")
        assert daemon.ctr("snapshots", "diff", "--keep", "k").stdout.startswith(b"\x1f\x8b")
        assert b"containerd.io/uncompressed" in daemon.ctr("content", "ls").stdout


ISOLATED = """
[plugin_isolation]
"io.containerd.snapshotter.v1.native" = "process"
"io.containerd.content.v1.content" = "process"
"io.containerd.differ.v1.walking" = "process"
"""


def next_process(daemon: Peer, before: int) -> int:
    """Return the process of the native snapshotter after another one, once it serves."""

    def serves() -> bool:
        shown = exports(daemon, "native")
        return shown["state"] == "ready" and shown["pid"] not in ("0", str(before))

    wait_for(serves, "the next process")
    return int(exports(daemon, "native")["pid"])


def plugin_cgroups(pid: int) -> list[str]:
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return [line for line in lines if re.search(r"/aiocontainerd-\w+-io\.containerd\.snapshotter\.v1\.native$", line)]


def test_isolated_processes_serve_and_are_started_again(tmp: Path, archive: Path) -> None:
    with peer(Ours, config=config(tmp, ISOLATED)) as daemon:
        daemon.ctr("images", "import", str(archive))
        runs(daemon, "native")
        assert exports(daemon, "native")["root"] == str(daemon.root / "io.containerd.snapshotter.v1.native")
        first = int(exports(daemon, "native")["pid"])
        assert Path(f"/proc/{first}/cmdline").read_bytes().count(NATIVE.encode()) == 1
        assert plugin_cgroups(first)
        snapshots = daemon.ctr("snapshots", "--snapshotter", "native", "ls").stdout
        pid = first
        for pause in ("1s", "2s"):
            os.kill(pid, signal.SIGKILL)
            pid = next_process(daemon, pid)
            assert f"was ended by SIGKILL; started again in {pause}" in daemon.log()
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: state(daemon, "native") == "failed", "the failure to be seen")
        assert exports(daemon, "native")["reason"] == "was ended by SIGKILL; started again in 4s"
        refused = daemon.ctr("snapshots", "--snapshotter", "native", "prepare", "k", check=False)
        assert "is failed: was ended by SIGKILL; started again in 4s: unavailable" in refused.stderr.decode()
        pid = next_process(daemon, pid)
        assert exports(daemon, "native")["starts"] == "4"
        assert daemon.ctr("snapshots", "--snapshotter", "native", "ls").stdout == snapshots
        runs(daemon, "native")
        log = daemon.log()
        assert "plugin=io.containerd.snapshotter.v1.native" in log
        told = [line for line in log.splitlines() if "the process of plugin" in line and "SIGKILL" in line]
        assert len(told) == 3, "\n".join(told)
        assert re.search(
            r"^process \d+ serves$", actr(daemon, "plugins", "restart", "snapshotter.v1.native"), re.MULTILINE
        )
        pid = int(exports(daemon, "native")["pid"])
        assert exports(daemon, "native")["starts"] == "5"
        assert daemon.ctr("snapshots", "--snapshotter", "native", "ls").stdout == snapshots
        daemon.stop(signal.SIGKILL)
        wait_for(lambda: ended(pid), "the process to end with the daemon")
        daemon.start()
        assert daemon.ctr("snapshots", "--snapshotter", "native", "ls").stdout == snapshots
        runs(daemon, "native")


def test_a_plugin_declared_in_toml_runs_as_another_user(tmp: Path) -> None:
    text = config(
        tmp,
        f'[python_plugins.acme]\nmodule = "{CONTENT}"\nisolation = "process"\nuid = 65534\n',
    ).replace("version = 3\n", 'version = 3\n[plugin_policy]\nallow = ["aiocontainerd-[!c]*"]\n')
    with peer(Ours, config=text, start=False) as daemon:
        daemon.directory.chmod(0o711)
        daemon.start()
        wait_for(lambda: state(daemon, "content") == "ready", "the process")
        status = Path(f"/proc/{exports(daemon, 'content')['pid']}/status").read_text()
        assert re.search(r"^Uid:\t65534\t65534\t65534\t65534$", status, re.MULTILINE)
        assert re.search(r"^Groups:\s*$", status, re.MULTILINE)
        digest = daemon.ctr("content", "ingest", "ref", stdin=b"data").returncode
        assert digest == 0
        assert b"4 B" in daemon.ctr("content", "ls").stdout.replace(b"4B", b"4 B")


PAGE = REPOSITORY / "docs" / "plugins" / "from-a-go-proxy.md"


def blocks(language: str) -> list[str]:
    """Return the code of a language on the page for authors of Go proxy plugins."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_the_page_for_authors_of_go_proxies_does_what_it_says(
    tmp: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,), (ours_proxy, stock_proxy, declared, moved), (line,) = blocks("python"), blocks("toml"), blocks("sh")
    (tmp / "acme_copies.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp))
    command = [word.replace("/run/acme", str(tmp)).replace("/var/lib", str(tmp)) for word in line.split()]
    with (
        process([str(SCRIPTS / command[0]), *command[1:]], tmp / "acme.sock"),
        peer(Debians, config=stock_proxy.replace("/run/acme", str(tmp))) as stock,
    ):
        stock.ctr("images", "import", str(archive))
        runs(stock, "acme-copies")
    for text in (ours_proxy, declared, moved):
        (tmp / "checked.toml").write_text(text)
        load(tmp / "checked.toml")
    with peer(Ours, config=config(tmp, declared.removeprefix("version = 3\n"))) as ours:
        ours.ctr("images", "import", str(archive))
        runs(ours, "acme-copies")
        assert exports(ours, "acme-copies")["isolation"] == "process"


def test_proxy_and_isolated_plugins_come_and_go_while_the_daemon_runs(tmp: Path, stubs: Path, archive: Path) -> None:
    empty = config(tmp, "")
    (tmp / "acme_copies.py").write_text(blocks("python")[0])
    acme = f"{declared_copies()}\n[proxy_plugins.g]\ntype = 'snapshot'\naddress = '{tmp}/g.sock'\n"
    with pytest.MonkeyPatch.context() as patch, foreign(stubs, tmp):
        patch.setenv("PYTHONPATH", str(tmp))
        with peer(Ours, config=empty) as daemon:
            daemon.ctr("images", "import", str(archive))
            daemon.config_path.write_text(empty + acme)
            told = actr(daemon, "reload")
            assert told.count("added") == 2, told
            runs(daemon, "g", "one")
            runs(daemon, "acme-copies", "two")
            pid = int(exports(daemon, "acme-copies")["pid"])
            daemon.ctr("images", "rm", "--sync", IMAGE)
            daemon.config_path.write_text(empty)
            told = actr(daemon, "reload")
            assert told.count("removed") == 2, told
            assert exports(daemon, "g") == {}
            assert not Path(f"/proc/{pid}").exists()


def declared_copies() -> str:
    return blocks("toml")[2].removeprefix("version = 3\n")


def actr(daemon: Peer, *args: str) -> str:
    command = [str(SCRIPTS / "actr"), "--address", str(daemon.address), *args]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
