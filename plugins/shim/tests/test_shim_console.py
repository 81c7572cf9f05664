"""Terminals: the console socket, and the pump between pty and fifos."""

from __future__ import annotations

import array
import asyncio
import fcntl
import io
import os
import socket
import stat
import struct
import termios
import threading
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiocontainerd_shim.io.console import Console, ConsoleSocket
from aiocontainerd_shim.io.stdio import Stdio

from aiocontainerd.errors import Unknown

pytestmark = pytest.mark.anyio


@pytest.fixture
def no_leaks() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


def fifo(path: Path) -> str:
    os.mkfifo(path, 0o700)
    return str(path)


def writer_of(path: str) -> io.FileIO:
    return io.FileIO(path, "wb")


def raw_pty() -> tuple[int, int]:
    master, slave = os.openpty()
    tty.setraw(slave)
    return master, slave


class Client(threading.Thread):
    """A client that waits in open(2) and reads to the end, slowly when asked."""

    def __init__(self, path: str, pause_s: float = 0) -> None:
        super().__init__(daemon=True)
        self._path, self._pause = path, threading.Event()
        self._pause_s = pause_s
        self.data = b""
        self.start()

    def run(self) -> None:
        with open(self._path, "rb", buffering=0) as pipe:
            while data := pipe.read(65536):
                self.data += data
                self._pause.wait(self._pause_s)

    async def result(self) -> bytes:
        await asyncio.to_thread(self.join, 10)
        assert not self.is_alive(), "the client never met the end"
        return self.data


def send_fds(path: str, *fds: int) -> None:
    with socket.socket(socket.AF_UNIX) as runtime:
        runtime.connect(path)
        runtime.sendmsg([b"/dev/ptmx"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


async def read_some(fd: int) -> bytes:
    os.set_blocking(fd, False)
    for _ in range(500):
        try:
            if data := os.read(fd, 65536):
                return data
        except BlockingIOError:
            pass
        await asyncio.sleep(0.01)
    raise AssertionError("nothing came")


async def write_until_full(fd: int) -> None:
    """Write until nothing has been taken for a while."""
    os.set_blocking(fd, False)
    refused = 0
    while refused < 10:
        try:
            os.write(fd, b"x" * 4000)
            refused = 0
        except BlockingIOError:
            refused += 1
            await asyncio.sleep(0.01)


async def test_console_socket_receives_the_master_and_leaves_nothing(no_leaks: None) -> None:
    console_socket = ConsoleSocket()
    assert os.path.basename(console_socket.path) == "pty.sock"
    assert os.path.basename(os.path.dirname(console_socket.path)).startswith("pty")
    master, slave = raw_pty()
    received = asyncio.ensure_future(console_socket.receive())
    await asyncio.to_thread(send_fds, console_socket.path, master)
    fd = await received
    assert os.isatty(fd)
    assert not os.get_inheritable(fd)
    console_socket.close()
    console_socket.close()
    assert not os.path.exists(os.path.dirname(console_socket.path))
    for each in (fd, master, slave):
        os.close(each)


async def test_console_socket_lies_in_the_runtime_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: None
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    console_socket = ConsoleSocket()
    directory = Path(console_socket.path).parent
    assert directory.parent == tmp_path
    assert stat.S_IMODE(directory.stat().st_mode) == 0o1755
    console_socket.close()


async def test_message_must_carry_one_descriptor(no_leaks: None) -> None:
    console_socket = ConsoleSocket()
    for fds in ((), (0, 1)):
        received = asyncio.ensure_future(console_socket.receive())
        await asyncio.to_thread(send_fds, console_socket.path, *fds)
        with pytest.raises(Unknown, match=f"carried {len(fds)} file descriptors"):
            await received
    console_socket.close()


async def test_receiving_has_a_deadline(no_leaks: None) -> None:
    console_socket = ConsoleSocket()
    with pytest.raises(Unknown, match=r"no console came on .* within 0\.01 s"):
        await console_socket.receive(timeout_s=0.01)
    console_socket.close()


async def test_output_and_input_pass_and_the_client_meets_the_end(tmp_path: Path, no_leaks: None) -> None:
    stdio = Stdio(stdin=fifo(tmp_path / "in"), stdout=fifo(tmp_path / "out"), terminal=True)
    client = Client(stdio.stdout)
    master, slave = raw_pty()
    console = Console(master)
    await console.attach(stdio)
    os.write(slave, b"prompt> ")
    with writer_of(stdio.stdin) as typed:
        typed.write(b"ls\n")
        assert await read_some(slave) == b"ls\n"
    os.close(slave)
    assert await console.drained(5)
    assert await client.result() == b"prompt> "
    await console.aclose()
    await console.aclose()


async def test_resize_sets_the_window_size(no_leaks: None) -> None:
    master, slave = raw_pty()
    console = Console(master)
    console.resize(width=120, height=40)
    rows, columns, _, _ = struct.unpack("HHHH", fcntl.ioctl(slave, termios.TIOCGWINSZ, b"\0" * 8))
    assert (columns, rows) == (120, 40)
    os.close(slave)
    await console.aclose()


async def test_late_client_gets_the_last_words(tmp_path: Path, no_leaks: None) -> None:
    out = fifo(tmp_path / "out")
    master, slave = raw_pty()
    console = Console(master)
    await console.attach(Stdio(stdout=out, terminal=True))
    os.write(slave, b"last words")
    os.close(slave)
    assert await console.drained(5)
    assert await Client(out).result() == b"last words"
    await console.aclose()


async def test_client_may_go_and_come_back(tmp_path: Path, no_leaks: None) -> None:
    stdio = Stdio(stdin=fifo(tmp_path / "in"), stdout=fifo(tmp_path / "out"), terminal=True)
    master, slave = raw_pty()
    console = Console(master)
    await console.attach(stdio)
    for turn in (b"one", b"two"):
        reader = os.open(stdio.stdout, os.O_RDONLY | os.O_NONBLOCK)
        os.write(slave, turn)
        assert await read_some(reader) == turn
        os.close(reader)
        with writer_of(stdio.stdin) as typed:
            typed.write(turn)
        assert await read_some(slave) == turn
    os.close(slave)
    await console.aclose()


async def test_slow_reader_slows_the_container_and_loses_nothing(tmp_path: Path, no_leaks: None) -> None:
    out = fifo(tmp_path / "out")
    client = Client(out, pause_s=0.005)
    master, slave = raw_pty()
    console = Console(master)
    await console.attach(Stdio(stdout=out, terminal=True))
    data = bytes(range(256)) * 4096

    def write_all() -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(slave, rest) :]
        os.close(slave)

    await asyncio.to_thread(write_all)
    assert await console.drained(10)
    assert await client.result() == data
    await console.aclose()


async def test_drained_gives_up_when_nobody_reads(tmp_path: Path, no_leaks: None) -> None:
    out = fifo(tmp_path / "out")
    master, slave = raw_pty()
    console = Console(master)
    await console.attach(Stdio(stdout=out, terminal=True))
    await write_until_full(slave)
    os.close(slave)
    assert await asyncio.wait_for(console.drained(10), 2)
    await console.aclose()


async def test_drained_waits_for_a_client_that_does_not_read_now(tmp_path: Path, no_leaks: None) -> None:
    out = fifo(tmp_path / "out")
    reader = os.open(out, os.O_RDONLY | os.O_NONBLOCK)
    master, slave = raw_pty()
    console = Console(master)
    await console.attach(Stdio(stdout=out, terminal=True))
    await write_until_full(slave)
    os.close(slave)
    assert not await console.drained(0.2)
    os.close(reader)
    await console.aclose()


async def test_close_io_ends_input_but_not_output(tmp_path: Path, no_leaks: None) -> None:
    stdio = Stdio(stdin=fifo(tmp_path / "in"), stdout=fifo(tmp_path / "out"), terminal=True)
    client = Client(stdio.stdout)
    master, slave = raw_pty()
    console = Console(master)
    await console.attach(stdio)
    with writer_of(stdio.stdin) as typed:
        typed.write(b"bye")
    await console.close_stdin()
    assert await read_some(slave) == b"bye"
    os.write(slave, b"still here")
    os.close(slave)
    assert await console.drained(5)
    assert await client.result() == b"still here"
    await console.aclose()


async def test_unread_input_does_not_block_output(tmp_path: Path, no_leaks: None) -> None:
    stdio = Stdio(stdin=fifo(tmp_path / "in"), stdout=fifo(tmp_path / "out"), terminal=True)
    reader = os.open(stdio.stdout, os.O_RDONLY | os.O_NONBLOCK)
    master, slave = raw_pty()
    console = Console(master)
    await console.attach(stdio)
    typed = os.open(stdio.stdin, os.O_WRONLY | os.O_NONBLOCK)
    await write_until_full(typed)
    os.write(slave, b"alive")
    assert await read_some(reader) == b"alive"
    for fd in (typed, reader, slave):
        os.close(fd)
    await console.aclose()


async def test_output_of_a_file_uri_goes_to_the_file(tmp_path: Path, no_leaks: None) -> None:
    master, slave = raw_pty()
    console = Console(master)
    await console.attach(Stdio(stdout=f"file://{tmp_path}/logs/log", terminal=True))
    os.write(slave, b"logged")
    os.close(slave)
    assert await console.drained(5)
    assert (tmp_path / "logs" / "log").read_bytes() == b"logged"
    await console.aclose()


async def test_unwanted_output_is_thrown_away(no_leaks: None) -> None:
    master, slave = raw_pty()
    console = Console(master)
    await console.attach(Stdio(terminal=True))
    await asyncio.to_thread(os.write, slave, b"x" * 100000)
    os.close(slave)
    assert await console.drained(5)
    await console.aclose()


async def test_regular_file_feeds_the_terminal(tmp_path: Path, no_leaks: None) -> None:
    (tmp_path / "keys").write_bytes(b"typed by a file")
    master, slave = raw_pty()
    console = Console(master)
    await console.attach(Stdio(stdin=str(tmp_path / "keys"), terminal=True))
    assert await read_some(slave) == b"typed by a file"
    os.close(slave)
    await console.aclose()


async def test_logger_gets_the_terminals_output_on_fd_3(tmp_path: Path, no_leaks: None) -> None:
    program = tmp_path / "logger"
    program.write_text(f"#!/bin/sh\nexec 5>&-\ncat <&3 >{tmp_path}/log\n")
    program.chmod(0o755)
    master, slave = raw_pty()
    console = Console(master)
    await console.attach(Stdio(stdout=f"binary://{program}", terminal=True), namespace="n", container_id="c")
    os.write(slave, b"shown")
    os.close(slave)
    assert await console.drained(5)
    assert (tmp_path / "log").read_bytes() == b"shown"
    await console.aclose()


async def test_unknown_scheme_is_refused(no_leaks: None) -> None:
    master, slave = raw_pty()
    console = Console(master)
    with pytest.raises(Unknown, match=r"^failed to start console copy: unknown STDIO scheme ftp$"):
        await console.attach(Stdio(stdout="ftp://x/y", terminal=True))
    await console.aclose()
    os.close(slave)


async def test_no_descriptor_stays_after_many_terminals(tmp_path: Path, no_leaks: None) -> None:
    stdio = Stdio(stdin=fifo(tmp_path / "in"), stdout=fifo(tmp_path / "out"), terminal=True)
    for turn in range(50):
        master, slave = raw_pty()
        console = Console(master)
        await console.attach(stdio)
        os.write(slave, b"x" * turn)
        os.close(slave)
        if turn % 2:
            assert await console.drained(5)
        await console.aclose()


async def test_cancelled_receive_leaves_nothing_open(no_leaks: None) -> None:
    console_socket = ConsoleSocket()
    received = asyncio.ensure_future(console_socket.receive())
    await asyncio.sleep(0.01)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(console_socket.path)
        await asyncio.sleep(0.01)
        received.cancel()
        with pytest.raises(asyncio.CancelledError):
            await received
    console_socket.close()
