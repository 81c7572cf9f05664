"""Terminals through stock `ctr`: the size at start, a resize while the program runs, what is typed."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Sequence

import pytest

from aiocontainerd.testing.images import BuiltImage, busybox_layer, write_archive
from harness import Ours, Peer, peer

pytestmark = [pytest.mark.root, pytest.mark.integration, pytest.mark.timeout(90)]

IMAGE = "docker.io/library/busybox:1"
LIMIT_S = 20.0


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    archive = tmp_path_factory.mktemp("image") / "busybox.tar"
    write_archive(archive, IMAGE, [BuiltImage(layers=[busybox_layer()])])
    with peer(Ours) as started:
        started.ctr("images", "import", str(archive))
        yield started


class Terminal:
    """A `ctr` under a pseudo terminal whose size a test can change."""

    def __init__(self, command: Sequence[str], rows: int, columns: int) -> None:
        self._parent, child = pty.openpty()
        self._set_size(child, rows, columns)
        self.process = subprocess.Popen(
            list(command), stdin=child, stdout=child, stderr=child, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(child)
        self.printed = ""

    def resize(self, rows: int, columns: int) -> None:
        """Change the size; the program in the foreground is told by SIGWINCH."""
        self._set_size(self._parent, rows, columns)
        self.process.send_signal(signal.SIGWINCH)

    def type(self, text: str) -> None:
        os.write(self._parent, text.encode())

    def expect(self, pattern: str) -> None:
        """Read until `pattern` was printed."""
        until = time.monotonic() + LIMIT_S
        while not re.search(pattern, self.printed):
            assert time.monotonic() < until, f"{pattern!r} was not printed: {self.printed!r}"
            if select.select([self._parent], [], [], 0.1)[0]:
                self.printed += os.read(self._parent, 4096).decode(errors="replace")

    def close(self) -> int:
        """Wait for the end; the exit status."""
        try:
            return self.process.wait(LIMIT_S)
        finally:
            os.close(self._parent)

    @staticmethod
    def _set_size(descriptor: int, rows: int, columns: int) -> None:
        fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


SCRIPT = """
until stty size | grep -q '^31 101$'; do sleep 0.05; done; echo first size
read word; echo "got $word"
until stty size | grep -q '^42 133$'; do sleep 0.05; done; echo second size
exit 5
"""


def converse(terminal: Terminal) -> int:
    """Return a script that waits for a size, a typed word and another size; its exit status."""
    terminal.expect("first size")
    terminal.type("typed\n")
    terminal.expect("got typed")
    terminal.resize(42, 133)
    terminal.expect("second size")
    return terminal.close()


def test_a_run_on_a_terminal_follows_its_size_and_takes_what_is_typed(daemon: Peer) -> None:
    assert converse(Terminal(daemon.ctr_command("run", "--rm", "-t", IMAGE, "t", "sh", "-c", SCRIPT), 31, 101)) == 5


def test_an_exec_on_a_terminal_follows_its_size_and_takes_what_is_typed(daemon: Peer) -> None:
    daemon.ctr("run", "-d", IMAGE, "e", "sleep", "1000")
    assert (
        converse(
            Terminal(daemon.ctr_command("tasks", "exec", "--exec-id", "x", "-t", "e", "sh", "-c", SCRIPT), 31, 101)
        )
        == 5
    )
    daemon.ctr("tasks", "rm", "-f", "e")
    daemon.ctr("containers", "rm", "e")


def test_a_large_output_arrives_whole(daemon: Peer) -> None:
    done = daemon.ctr("run", "--rm", IMAGE, "large", "dd", "if=/dev/zero", "bs=1024", "count=65536")
    assert len(done.stdout) == 64 << 20


def test_stdin_of_an_exec_arrives_whole_and_ends(daemon: Peer) -> None:
    daemon.ctr("run", "-d", IMAGE, "in", "sleep", "1000")
    data = os.urandom(1 << 20)
    assert daemon.ctr("tasks", "exec", "--exec-id", "c", "in", "cat", stdin=data).stdout == data
    daemon.ctr("tasks", "rm", "-f", "in")
    daemon.ctr("containers", "rm", "in")
