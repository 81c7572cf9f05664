"""`aiocontainerd-plugin serve` as a program: what it answers, tells and leaves behind, and how it fails."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from aiocontainerd import api, kinds
from aiocontainerd.client.client import Client
from aiocontainerd.errors import AlreadyExists, InvalidArgument, NotFound
from aiocontainerd.interfaces.snapshotter import Kind
from aiocontainerd.testing.processes import ended

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

MODULE = """
import os, sys
from aiocontainerd.plugin import InitContext, PluginConfig, kinds, register
from aiocontainerd.testing.fakes import FakeContentStore, FakeSnapshotter

class Config(PluginConfig, frozen=True):
    fails: bool = False

@register(kinds.SNAPSHOTTER, "one", config=Config)
class One(FakeSnapshotter):
    def __init__(self, config, context):
        super().__init__()
        if config.fails:
            raise OSError("no such disk")
        context.capabilities.append("rebase")
        context.exports["directories"] = f"{context.root} {context.state}"
        print("printed", flush=True)
        context.tasks.start_soon(self.wait, context)

    async def wait(self, context):
        print(f"ready {await context.ready()}", flush=True)

    async def aclose(self):
        print("closed", flush=True)

@register(kinds.SNAPSHOTTER, "two")
class Two(FakeSnapshotter):
    pass

@register(kinds.CONTENT, "blobs")
class Blobs(FakeContentStore):
    pass
"""


DIFFER = """
from aiocontainerd.plugin import kinds, register

@register(kinds.DIFFER, "layers", requires=(kinds.METADATA,))
class Layers:
    def __init__(self, context):
        self.content = context.get(kinds.METADATA, "bolt").content

    async def apply(self, layer, mounts, options): ...

    async def compare(self, lower, upper, options): ...
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sv-", dir="/tmp") as name:
        (Path(name) / "acme_program.py").write_text(MODULE)
        yield Path(name)


def command(directory: Path, *args: str) -> list[str]:
    return [
        sys.executable, "-m", "aiocontainerd.cli.plugin.main", "serve", "--address", str(directory / "s"),
        "--root", str(directory / "root"), "--state", str(directory / "state"), *args,
    ]  # fmt: skip


@asynccontextmanager
async def serving(
    directory: Path, *args: str, env: Mapping[str, str] | None = None
) -> AsyncIterator[subprocess.Popen[bytes]]:
    """Run the program until it says that it serves. It must end well on SIGTERM."""
    read, write = os.pipe()
    process = await anyio.to_thread.run_sync(_start, directory, args, env or {}, write)
    os.close(write)
    try:
        assert await anyio.to_thread.run_sync(os.read, read, 1) == b"\n", (directory / "log").read_text()
        yield process
        process.send_signal(signal.SIGTERM)
        assert await anyio.to_thread.run_sync(process.wait, 10) == 0
    finally:
        os.close(read)
        process.kill()
        process.wait()
    assert not (directory / "s").exists()


def _start(directory: Path, args: Sequence[str], env: Mapping[str, str], ready: int) -> subprocess.Popen[bytes]:
    given = {**os.environ, "PYTHONPATH": str(directory), **env}
    line = command(directory, *args, "--ready-fd", str(ready))
    with (directory / "log").open("wb") as log:
        return subprocess.Popen(line, pass_fds=(ready,), stdout=log, stderr=log, env=given)


def failing(directory: Path, *args: str) -> str:
    done = subprocess.run(
        command(directory, *args), capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(directory)}
    )
    assert done.returncode == 1
    assert not (directory / "s").exists()
    (line,) = done.stderr.splitlines()
    return line


async def test_a_plugin_is_served_with_its_capabilities_and_health(directory: Path) -> None:
    async with serving(directory, "acme_program:One"), Client(str(directory / "s")) as client:
        snapshots = client.snapshots("whatever it is called there")
        assert [mount.type for mount in await snapshots.prepare("ns/1/a")] == ["bind"]
        assert (await snapshots.stat("ns/1/a")).kind == Kind.ACTIVE
        with pytest.raises(AlreadyExists):
            await snapshots.prepare("ns/1/a")
        await snapshots.cleanup()
        (plugin,) = await client.introspection.plugins([f"type=={kinds.SNAPSHOTTER},id==one"])
        assert plugin.capabilities == ("rebase",)
        uri = f"{kinds.SNAPSHOTTER}.one"
        assert plugin.exports["directories"] == f"{directory}/root/{uri} {directory}/state/{uri}"
        health = await client.connection.call(
            "grpc.health.v1.Health", "Check", api.health.HealthCheckRequest(), api.health.HealthCheckResponse
        )
        assert health.status == api.health.HealthCheckResponseServingStatus.SERVING
    log = (directory / "log").read_text()
    assert "closed" in log
    assert "ready True" in log


async def test_several_plugins_are_told_apart_by_name(directory: Path) -> None:
    async with serving(directory, "acme_program"), Client(str(directory / "s")) as client:
        await client.snapshots("one").prepare("a")
        with pytest.raises(NotFound):
            await client.snapshots("two").stat("a")
        with pytest.raises(InvalidArgument, match="snapshotter not loaded: three"):
            await client.snapshots("three").stat("a")
        assert [info async for info in client.content.walk()] == []


async def test_the_service_manager_is_told(directory: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(directory / "notify"))
        manager.settimeout(10)
        async with serving(directory, "acme_program:One", env={"NOTIFY_SOCKET": str(directory / "notify")}):
            assert await anyio.to_thread.run_sync(manager.recv, 100) == b"READY=1"
        assert await anyio.to_thread.run_sync(manager.recv, 100) == b"STOPPING=1"


async def test_two_processes_cannot_have_the_same_directory(directory: Path) -> None:
    async with serving(directory, "acme_program:One"):
        other = command(directory, "acme_program:One")
        other[other.index(str(directory / "s"))] = str(directory / "t")
        done = await anyio.to_thread.run_sync(
            lambda: subprocess.run(other, capture_output=True, env={**os.environ, "PYTHONPATH": str(directory)})
        )
        assert done.returncode == 1
        assert b"is in use by another daemon" in done.stderr


def test_a_plugin_that_does_not_load_is_one_line(directory: Path) -> None:
    (directory / "c.toml").write_text(f'version = 4\n[plugins."{kinds.SNAPSHOTTER}.one"]\nfails = true\n')
    line = failing(directory, "acme_program:One", "--config", str(directory / "c.toml"))
    assert 'level=error msg="cannot serve acme_program:One: plugin io.containerd.snapshotter.v1.one is not' in line
    assert "no such disk" in line


def test_a_differ_without_content_says_what_it_needs(directory: Path) -> None:
    (directory / "acme_program.py").write_text(DIFFER)
    assert "it needs the content of a daemon: name its socket with --content" in failing(directory, "acme_program")


def test_a_daemon_that_does_not_answer_for_its_content_is_given_up_at_the_limit(directory: Path) -> None:
    asks = '\n    async def start(self): await self.content.info("sha256:" + "0" * 64)\n'
    (directory / "acme_program.py").write_text(DIFFER + asks)
    (directory / "c.toml").write_text(
        'version = 4\n[timeouts]\n"io.containerd.timeout.plugin.content" = "1ms"\n'
        f'"io.containerd.timeout.plugin.content.{kinds.DIFFER}.layers" = "50ms"\n'
    )
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(directory / "silent"))
        silent.listen()
        line = failing(
            directory, "acme_program", "--content", str(directory / "silent"), "--config", str(directory / "c.toml")
        )
    words = "is not loaded: grpc call /containerd.services.content.v1.Content/Info"
    assert f"plugin {kinds.DIFFER}.layers {words}" in line


def test_a_mistake_in_the_config_is_one_line(directory: Path) -> None:
    (directory / "c.toml").write_text(f'version = 4\n[plugins."{kinds.SNAPSHOTTER}.one"]\nfials = true\n')
    line = failing(directory, "acme_program:One", "--config", str(directory / "c.toml"))
    assert "unknown key" in line
    assert 'did you mean \\"fails\\"' in line


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("no_such_module", "there is no module no_such_module"),
        ("acme_program:Oen", "module acme_program has no Oen; did you mean One?"),
    ],
)
def test_a_target_that_is_not_there_is_one_line(directory: Path, target: str, words: str) -> None:
    assert words in failing(directory, target)


def test_an_address_that_is_taken_is_one_line(directory: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(directory / "s"))
        other.listen()
        done = subprocess.run(
            command(directory, "acme_program:One"),
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(directory)},
        )
    assert done.returncode == 1
    assert "a running process listens on" in done.stderr
    (directory / "s").unlink()


def test_it_ends_with_the_process_that_started_it(directory: Path) -> None:
    script = (
        "import os, subprocess, sys; r, w = os.pipe()\n"
        "p = subprocess.Popen([*sys.argv[1:], '--ready-fd', str(w), '--parent', str(os.getpid())], pass_fds=(w,))\n"
        "os.read(r, 1); print(p.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    parent = subprocess.run(
        [sys.executable, "-c", script, *command(directory, "acme_program:One")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(directory)},
    )
    assert parent.returncode == -signal.SIGKILL
    pid = int(parent.stdout.split()[-1])
    for _ in range(500):
        if ended(pid):
            break
        os.sched_yield()
        signal.sigtimedwait([], 0.01)
    else:
        os.kill(pid, signal.SIGKILL)
        raise AssertionError("the process outlived its parent")
