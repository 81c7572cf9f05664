"""The daemon's start and stop, as a process of its own with the built-in plugins alone (facts/core 16)."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from aiocontainerd.config import load
from aiocontainerd.config.records import DEFAULT_ADDRESS
from aiocontainerd.daemon import run, servers, serving
from aiocontainerd.host.registry import Registry
from aiocontainerd.sys import systemd

PROBE = """
import asyncio, logging, os, signal, socket, sys, tempfile, time
import anyio, anyio.to_thread
from aiocontainerd.plugin import Registration, hookimpl, kinds

print("imported")

async def init(context):
    print("printed", end="")
    print(" in parts")
    logging.getLogger().warning("logged to root")
    logging.getLogger("some.library").warning("logged by a library")
    await anyio.to_thread.run_sync(lambda: print("from a thread", file=sys.stderr))
    if os.environ.get("HANG") == "init":
        time.sleep(3)
    generated = sorted(m for m in sys.modules if m.startswith("aiocontainerd.api.gen."))
    with open(os.environ["PROBE"], "w") as out:
        print("sigpipe", signal.getsignal(signal.SIGPIPE).name, file=out)
        print("tmpdir", os.environ.get("TMPDIR"), tempfile.gettempdir(), file=out)
        print("oom", open("/proc/self/oom_score_adj").read().strip(), file=out)
        print("generated", *generated, file=out)
    context.tasks.start_soon(wait, context)
    if os.environ.get("HANG") == "stop":
        context.on_stop(hang)
    if os.environ.get("HANG") == "stubborn":
        context.on_stop(stubborn)
    return object()

async def wait(context):
    if await context.ready():
        assert type(context.daemon.grpc_address) is str  # it travels by codecs that take nothing else
        with socket.socket(socket.AF_UNIX) as client:
            refused = client.connect_ex(context.daemon.grpc_address)
        with open(os.environ["PROBE"], "a") as out:
            print("ready", refused, file=out)
        while os.environ.get("HANG") == "block" and not os.path.exists(os.environ["PROBE"] + ".released"):
            time.sleep(0.05)

class Server:
    address = "nowhere"

    async def start(self):
        pass

    async def stop(self, grace_s):
        with open(os.environ["PROBE"], "a") as out:
            print("grace", grace_s, file=out)

async def init_server(context):
    return Server()

async def hang():
    await anyio.sleep_forever()

async def stubborn():
    with anyio.CancelScope(shield=True):
        await anyio.sleep_forever()

class Ping:
    service_name = "grpc.health.v1.Health"

    async def check(self, request):
        return request

    async def list(self, request):
        return request

    async def watch(self, request):
        yield request

async def init_ping(context):
    return Ping()

@hookimpl
def register_plugins():
    return [
        Registration(kind="io.containerd.internal.v1", id="probe", init=init),
        Registration(kind=kinds.GRPC, id="ping", init=init_ping),
        Registration(kind=kinds.SERVER, id="probe", requires=(kinds.ALL,), init=init_server),
    ]
"""
CONFIG = """
version = 4
temp = "{directory}/temp"
oom_score = 777
[plugin_policy]
allow = ["nothing-that-is-installed"]
[python_plugins.probe]
module = "acme_probe"
[timeouts]
"io.containerd.timeout.plugin.stop" = "200ms"
"io.containerd.timeout.server.stop" = "1250ms"
"io.containerd.timeout.notify" = "20ms"
"""
WAIT_S = 20.0


class Process:
    """A daemon process and the service manager's socket it tells."""

    def __init__(self, directory: Path, *, config: str = CONFIG, hang: str = "", full: bool = False) -> None:
        self.directory = directory
        self.log = directory / "log"
        (directory / "acme_probe.py").write_text(PROBE)
        (directory / "c.toml").write_text(config.format(directory=directory))
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.manager.settimeout(WAIT_S)
        self.manager.bind(str(directory / "notify"))
        if full:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, suppress(BlockingIOError):
                sender.setblocking(False)
                sender.connect(str(directory / "notify"))
                while sender.send(b"x"):
                    pass
        environment = {
            **os.environ, "NOTIFY_SOCKET": str(directory / "notify"), "PYTHONPATH": str(directory), "HANG": hang,
            "PROBE": str(directory / "probe"),
        }  # fmt: skip
        command = [
            sys.executable, "-m", "aiocontainerd.cli.daemon", "--config", str(directory / "c.toml"),
            "--address", str(directory / "c.sock"), "--root", str(directory / "root"),
            "--state", str(directory / "state"),
        ]  # fmt: skip
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log, env=environment)

    def told(self) -> str:
        return self.manager.recv(64).decode()

    def logged(self, text: str) -> None:
        until = time.monotonic() + WAIT_S
        while text not in self.log.read_text():
            assert time.monotonic() < until, f"{text} is not in the log:\n{self.log.read_text()}"
            time.sleep(0.01)

    def wait(self) -> int:
        return self.process.wait(WAIT_S)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.manager.close()


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    made = Process(tmp_path)
    yield made
    made.end()


def connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ready_is_told_when_it_serves_and_stopping_before_it_does_not(process: Process, number: int) -> None:
    assert process.told() == systemd.READY
    assert connects(process.directory / "c.sock")
    assert connects(process.directory / "c.sock.ttrpc")
    process.process.send_signal(number)
    assert process.told() == systemd.STOPPING
    assert process.wait() == 0
    assert not (process.directory / "c.sock").exists()
    assert "containers run on" in process.log.read_text()


def test_directories_are_private_and_temp_is_everybodys_tmpdir(process: Process) -> None:
    assert process.told() == systemd.READY
    modes = {name: (process.directory / name).stat().st_mode & 0o777 for name in ("root", "state", "temp")}
    assert modes == {"root": 0o700, "state": 0o711, "temp": 0o700}
    temp = str(process.directory / "temp")
    probed = (process.directory / "probe").read_text().splitlines()
    assert probed[:3] == ["sigpipe SIG_IGN", f"tmpdir {temp} {temp}", "oom 777"]


def test_no_generated_package_is_imported_before_plugins_need_one(process: Process) -> None:
    assert process.told() == systemd.READY
    assert (process.directory / "probe").read_text().splitlines()[3] == "generated"


def test_sigusr1_dumps_and_sighup_reloads(process: Process) -> None:
    assert process.told() == systemd.READY
    process.process.send_signal(signal.SIGUSR1)
    process.logged("stacks are in ")
    dump = process.directory / "temp" / f"containerd.{process.process.pid}.stacks.log"
    assert "io.containerd.internal.v1.probe ok" in dump.read_text()
    assert "--- plugin io.containerd.internal.v1.probe" in dump.read_text()
    process.process.send_signal(signal.SIGHUP)
    process.logged("reloaded the config: 0 changes")
    assert connects(process.directory / "c.sock")


def test_the_log_is_short_when_all_is_well(process: Process) -> None:
    assert process.told() == systemd.READY
    process.logged("successfully booted")
    log = process.log.read_text()
    assert re.search(r'level=info msg="plugins: \d+ ok, \d+ skip"', log)
    assert "plugin=io.containerd.server.v1.grpc-tcp state=skip" in log
    assert "plugin=io.containerd.server.v1.grpc state=" not in log


def test_a_stop_that_hangs_is_cut_at_its_limit(tmp_path: Path) -> None:
    process = Process(tmp_path, hang="stop")
    try:
        assert process.told() == systemd.READY
        process.process.terminate()
        assert process.wait() == 0
        assert "plugin io.containerd.internal.v1.probe did not stop within 200ms" in process.log.read_text()
    finally:
        process.end()


def test_a_stop_that_ignores_its_cancellation_cannot_keep_the_process(tmp_path: Path) -> None:
    process = Process(tmp_path, hang="stubborn")
    try:
        assert process.told() == systemd.READY
        process.process.terminate()
        assert process.wait() == 1
        assert (
            'msg="ending without plugins that cannot be stopped: io.containerd.internal.v1.probe"'
            in process.log.read_text()
        )
    finally:
        process.end()


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    process = Process(tmp_path, config=CONFIG.replace("200ms", "60s"), hang="stop")
    try:
        assert process.told() == systemd.READY
        process.process.terminate()
        assert process.told() == systemd.STOPPING
        process.process.terminate()
        assert process.wait() == 0
        assert "stopping at once on a second SIGTERM" in process.log.read_text()
    finally:
        process.end()


def test_a_service_manager_that_is_gone_does_not_stop_the_daemon(tmp_path: Path) -> None:
    process = Process(tmp_path)
    try:
        os.unlink(tmp_path / "notify")
        process.logged("successfully booted")
        assert "cannot tell the service manager READY=1" in process.log.read_text()
        process.process.terminate()
        assert process.wait() == 0
    finally:
        process.end()


def test_a_service_manager_that_takes_no_messages_does_not_keep_the_daemon(tmp_path: Path) -> None:
    process = Process(tmp_path, full=True)
    try:
        process.logged("successfully booted")
        assert re.search(
            "cannot tell the service manager READY=1: .*took no message within 20ms", process.log.read_text()
        )
    finally:
        process.end()


def test_plugins_are_told_when_the_sockets_accept(process: Process) -> None:
    assert process.told() == systemd.READY
    process.process.terminate()
    assert process.wait() == 0
    assert "ready 0" in (process.directory / "probe").read_text().splitlines()


def test_calls_have_the_configured_time_to_end_when_a_server_stops(process: Process) -> None:
    assert process.told() == systemd.READY
    process.process.terminate()
    assert process.wait() == 0
    assert "grace 1.25" in (process.directory / "probe").read_text().splitlines()


def test_a_daemon_without_services_is_one_line_and_status_1(tmp_path: Path) -> None:
    process = Process(tmp_path, config='version = 4\n[plugin_policy]\nallow = ["nothing-that-is-installed"]\n')
    try:
        assert process.wait() == 1
        log = process.log.read_text()
        assert "\ncontainerd: there is no gRPC service to serve: plugin_policy.allow does not name aiocontainerd" in log
        assert "Traceback" not in log
        assert not (tmp_path / "c.sock").exists()
    finally:
        process.end()


def test_an_oom_score_out_of_range_is_told(tmp_path: Path) -> None:
    process = Process(tmp_path, config=CONFIG.replace("777", "5000"))
    try:
        assert process.wait() == 1
        assert "oom_score: expected `int` <= 1000" in process.log.read_text()
        assert "Traceback" not in process.log.read_text()
    finally:
        process.end()


def test_a_client_is_told_who_blocks_the_event_loop(tmp_path: Path) -> None:
    process = Process(tmp_path, hang="block")
    finding = tmp_path / "c.sock.blocked"
    try:
        process.logged("blocks the event loop")
        until = time.monotonic() + WAIT_S
        while not finding.exists():
            assert time.monotonic() < until
            time.sleep(0.01)
        line = next(n for n, text in enumerate(PROBE.splitlines(), 1) if "time.sleep(0.05)" in text)
        for command in (["explain", "probe"], ["health"], ["ls"]):
            done = subprocess.run(
                [sys.executable, "-m", "aiocontainerd.cli.actr.main", "-a", tmp_path / "c.sock", "plugins", *command],
                capture_output=True, text=True, timeout=WAIT_S,
            )  # fmt: skip
            assert done.returncode == 1
            assert done.stderr == (
                f"actr: the daemon at {tmp_path}/c.sock does not answer: plugin io.containerd.internal.v1.probe blocks "
                f"the event loop at {tmp_path}/acme_probe.py:{line}\n"
            )
        (tmp_path / "probe.released").touch()
        until = time.monotonic() + WAIT_S
        while finding.exists():
            assert time.monotonic() < until, "the finding stays"
            time.sleep(0.01)
    finally:
        process.end()


def test_a_plugin_that_blocks_its_start_is_named(tmp_path: Path) -> None:
    process = Process(tmp_path, hang="init")
    try:
        line = next(n for n, text in enumerate(PROBE.splitlines(), 1) if "time.sleep(3)" in text)
        process.logged(f"blocks the event loop at {tmp_path}/acme_probe.py:{line} ")
    finally:
        process.end()


def test_what_plugins_print_and_log_has_their_names(process: Process) -> None:
    process.told()
    log, uri = process.log.read_text(), "io.containerd.internal.v1.probe"
    for line in (
        "level=info msg=imported plugin=python_plugins.probe stream=stdout",
        f'level=info msg="printed in parts" plugin={uri} stream=stdout',
        f'level=info msg="from a thread" plugin={uri} stream=stderr',
        f'level=warning msg="logged to root" plugin={uri}',
        f'level=warning msg="logged by a library" plugin={uri}',
    ):
        assert log.count(f" {line}\n") == 1, line


@pytest.mark.parametrize("written", ["", 'address = ""\n'])
def test_an_empty_address_is_the_default_one_for_whoever_is_told_it(tmp_path: Path, written: str) -> None:
    (tmp_path / "c.toml").write_text(f'version = 4\n[plugins."{serving.GRPC_SERVER}"]\n{written}')
    registry, config = Registry(), load(tmp_path / "c.toml")
    for one in servers.register_plugins():
        registry.add(one)
    assert run._configured_address(config, registry, serving.GRPC_SERVER) == DEFAULT_ADDRESS
