"""A plugin cannot hurt quietly: one that hangs, fails or blocks costs its own calls, and is named."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import pytest

from aiocontainerd import durations
from aiocontainerd.guard.health import LONGEST_PAUSE_S
from aiocontainerd.testing.images import BuiltImage, BuiltLayer, busybox_layer, entry, tar_of, write_archive
from harness import SCRIPTS, Ours, Peer, peer

pytestmark = [pytest.mark.root, pytest.mark.integration, pytest.mark.timeout(180)]

IMAGE = "docker.io/library/busybox:1"
URI = "io.containerd.snapshotter.v1.acme"
LIMIT_S = 0.5
COMMAND_S = 20.0

MODULE = '''
import asyncio
import time
from pathlib import Path

from aiocontainerd.plugin import kinds, register

MODE = Path("{mode}")
TASKS = []


@register(kinds.SNAPSHOTTER, "acme")
class Acme:
    """A snapshotter whose every call does what the mode file says."""

    async def _act(self, call):
        mode = MODE.read_text()
        if mode == f"hang {call}":
            await asyncio.Event().wait()
        if mode == f"ignore {call}":
            while True:
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    pass
        if mode == f"block {call}":
            time.sleep(1.2)  # the line that blocks
        if mode == f"fail {call}":
            raise OSError("disk on fire")
        if mode == f"leave {call}":
            TASKS.append(asyncio.get_running_loop().create_task(self._linger()))

    async def _linger(self):
        await asyncio.sleep(3600)

    async def stat(self, key):
        await self._act("stat")

    async def usage(self, key): ...
    async def mounts(self, key): return []
    async def update(self, info, paths=()): return info
    async def commit(self, name, key, labels=None, parent=""): ...
    async def remove(self, key): ...
    async def cleanup(self): await self._act("cleanup")

    async def prepare(self, key, parent="", labels=None):
        await self._act("prepare")
        return []

    async def view(self, key, parent="", labels=None):
        await self._act("view")
        return []

    async def walk(self, filters=()):
        await self._act("walk")
        return
        yield
'''

CONFIG = """
[timeouts]
"io.containerd.timeout.plugin.work.io.containerd.snapshotter.v1.acme" = "500ms"
"io.containerd.timeout.plugin.long.io.containerd.snapshotter.v1.acme" = "1s"

[python_plugins.acme]
module = "acme_snapshotter"
"""


class WithAcme(Ours):
    """Our daemon with the snapshotter of this module."""

    may_block: Mapping[str, Sequence[str]] = MappingProxyType({"acme_snapshotter.py": ["_act"]})

    def default_config(self) -> str:
        self.mode("works")
        (self.directory / "acme_snapshotter.py").write_text(MODULE.replace("{mode}", str(self.directory / "mode")))
        return super().default_config() + CONFIG

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "PYTHONPATH": str(self.directory)}

    def mode(self, text: str) -> None:
        """Set what the snapshotter does from now on."""
        (self.directory / "mode").write_text(text)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "busybox.tar"
    write_archive(
        path, IMAGE, [BuiltImage(layers=[busybox_layer(), BuiltLayer(tar_of([entry("etc/hello", b"hello\n")]))])]
    )
    return path


@pytest.fixture
def daemon(archive: Path) -> Iterator[WithAcme]:
    with peer(WithAcme) as started:
        assert isinstance(started, WithAcme)
        started.ctr("images", "import", str(archive))
        yield started
        started.mode("works")


def prepare(daemon: Peer, key: str) -> subprocess.CompletedProcess[bytes]:
    """Prepare a snapshot with the snapshotter of this module."""
    return daemon.ctr("snapshots", "--snapshotter", "acme", "prepare", key, check=False, timeout_s=COMMAND_S)


def actr(daemon: Peer, *args: str, status: int = 0) -> str:
    command = [str(SCRIPTS / "actr"), "-a", str(daemon.address), "-n", daemon.namespace, *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S)
    assert done.returncode == status, f"{done.stdout}{done.stderr}\n{daemon.log()[-4000:]}"
    return done.stdout + done.stderr


def answered(ask: Callable[[], str], pattern: str, failing: Peer | None) -> str:
    """Return the answer once it matches.

    A call that a breaker let through meanwhile fails, too, and opens it for longer.
    """
    until = time.monotonic() + LONGEST_PAUSE_S + COMMAND_S
    while not re.search(pattern, answer := ask()):
        assert time.monotonic() < until, f"no {pattern!r} in\n{answer}"
        if failing is not None:
            prepare(failing, "again")
        time.sleep(0.2)
    return answer


def logged(daemon: Peer, pattern: str, limit_s: float = COMMAND_S) -> str:
    """Return the log once it has a line that matches."""
    until = time.monotonic() + limit_s
    while not re.search(pattern, daemon.log()):
        assert time.monotonic() < until, f"no {pattern!r} in\n{daemon.log()[-4000:]}"
        time.sleep(0.05)
    return daemon.log()


def test_a_hang_is_answered_with_plugin_hook_elapsed_and_limit(daemon: WithAcme) -> None:
    daemon.mode("hang prepare")
    answer = prepare(daemon, "a")
    assert answer.returncode == 1, "the client had to be killed"
    text = answer.stderr.decode()
    assert f"plugin {URI}: prepare took longer than 500ms (io.containerd.timeout.plugin.work)" in text
    elapsed = re.search(r"given up after ([\d.]+m?s)", text)
    assert elapsed, text
    assert LIMIT_S <= durations.parse(elapsed[1]) < COMMAND_S
    assert "deadline exceeded" in text


def test_a_reload_changes_the_deadline_of_the_next_call(daemon: WithAcme) -> None:
    daemon.config_path.write_text(daemon.default_config().replace("500ms", "1100ms"))
    key = f"io.containerd.timeout.plugin.work.{URI}"
    assert actr(daemon, "reload") == f"timeouts: applied ({key} = 1.1s)\n"
    daemon.mode("hang prepare")
    text = prepare(daemon, "a").stderr.decode()
    assert f"plugin {URI}: prepare took longer than 1.1s (io.containerd.timeout.plugin.work)" in text
    assert re.search(r"prepare +1 +1 +1 .* 1\.1s \(io", actr(daemon, "plugins", "explain", URI))
    assert actr(daemon, "reload") == "nothing changed\n"


@pytest.mark.parametrize("mode", ["hang prepare", "ignore prepare", "hang walk", "hang cleanup"])
def test_everything_else_goes_on_while_a_snapshotter_hangs(daemon: WithAcme, mode: str) -> None:
    daemon.mode(mode)
    hanging = subprocess.Popen(
        daemon.ctr_command("snapshots", "--snapshotter", "acme", "prepare", "a"),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        began = time.monotonic()
        daemon.ctr("snapshots", "prepare", "other", timeout_s=COMMAND_S)
        for subject in ("snapshots", "images", "containers", "tasks", "content", "namespaces"):
            daemon.ctr(subject, "ls", timeout_s=COMMAND_S)
        assert daemon.ctr("run", "--rm", IMAGE, "c", "cat", "/etc/hello").stdout == b"hello\n"
        daemon.ctr("images", "tag", IMAGE, "docker.io/library/other:1")
        daemon.ctr("images", "rm", "--sync", "docker.io/library/other:1", timeout_s=COMMAND_S)
        assert time.monotonic() - began < 3 * COMMAND_S
    finally:
        hanging.wait(COMMAND_S)


def test_a_call_that_ignores_its_cancellation_is_left_behind_and_shown(daemon: WithAcme) -> None:
    daemon.mode("ignore prepare")
    answer = prepare(daemon, "a")
    assert answer.returncode == 1, "the client had to be killed"
    assert b"it ignores its cancellation and was left running" in answer.stderr
    logged(
        daemon, rf"plugin {re.escape(URI)}: prepare did not end within 1s of its cancellation.*acme_snapshotter\.py:\d+"
    )
    assert re.search(r"Abandoned call: +prepare, for", actr(daemon, "plugins", "explain", URI))
    assert daemon.stop() == 1
    assert f"ending without plugins that cannot be stopped: {URI}" in daemon.log()


def test_the_breaker_opens_and_closes(daemon: WithAcme) -> None:
    daemon.mode("fail prepare")
    for number in range(5):
        assert b"disk on fire" in prepare(daemon, f"a{number}").stderr
    refused = answered(lambda: prepare(daemon, "b").stderr.decode(), "is refused", daemon)
    assert f"plugin {URI}: prepare is refused after " in refused
    assert re.search(
        r"\d+ failures in a row \(the last: OSError: disk on fire \(\S+:\d+ in _act\)\); tried again in [\d.]+m?s",
        refused,
    )
    assert "unavailable" in refused
    answered(
        lambda: actr(daemon, "plugins", "explain", "acme"),
        r"prepare .*refused for [\d.]+m?s after \d+ failures in a row",
        daemon,
    )
    answered(lambda: actr(daemon, "plugins", "health"), rf"{re.escape(URI)} .* prepare", daemon)
    assert daemon.ctr("snapshots", "--snapshotter", "acme", "view", "v", timeout_s=COMMAND_S).returncode == 0
    daemon.mode("works")
    answered(lambda: str(prepare(daemon, "c").returncode), "^0$", None)
    logged(daemon, rf"plugin {re.escape(URI)}: prepare works again")


def test_a_blocked_loop_is_told_with_plugin_file_and_line(daemon: WithAcme) -> None:
    daemon.mode("block prepare")
    prepare(daemon, "a")
    line = 1 + MODULE.splitlines().index("            time.sleep(1.2)  # the line that blocks")
    where = rf"{re.escape(str(daemon.directory))}/acme_snapshotter\.py:{line}"
    log = logged(daemon, rf"plugin {re.escape(URI)} blocks the event loop at {where}")
    prepare(daemon, "b")
    assert log.count("blocks the event loop") == daemon.log().count("blocks the event loop"), "told once a minute"
    assert re.search(rf"Blocked the loop: +2 times, .*last at {where} for 1", actr(daemon, "plugins", "explain", URI))


def test_what_a_plugin_leaves_behind_is_attributed_to_it(daemon: WithAcme) -> None:
    daemon.mode("leave prepare")
    prepare(daemon, "a")
    told = actr(daemon, "plugins", "explain", URI)
    assert re.search(r"Package: +acme\n", told)
    assert re.search(r"prepare +1 +0 +0 +[\d.]+[mu]?s +[\d.]+[mu]?s  500ms", told), told
    assert daemon.stop() == 0
    assert f"plugin {URI} leaves 1 tasks running at its end" in daemon.log()


def test_the_watchdog_costs_an_idle_daemon_nothing(daemon: WithAcme) -> None:
    def used() -> float:
        fields = Path(f"/proc/{daemon.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100

    windows: list[float] = []
    while not windows or windows[-1] > 0.06:  # what a start leaves to be done is done at some time
        assert len(windows) < 10, f"seconds in windows of three: {windows}"
        before = used()
        time.sleep(3)
        windows.append(used() - before)
