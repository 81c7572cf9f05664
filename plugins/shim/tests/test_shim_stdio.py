"""Streams without a terminal: the container holds the client's pipes itself."""

from __future__ import annotations

import array
import asyncio
import fcntl
import io
import os
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from aiocontainerd_shim.io import relay
from aiocontainerd_shim.io.stdio import ProcessIO, Stdio, adopt_io, open_io

from aiocontainerd.errors import Unknown

pytestmark = pytest.mark.anyio
PIPE_BYTES = 65536


def fd_count() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def no_leaks() -> Iterator[None]:
    before = fd_count()
    yield
    assert fd_count() == before


def fifo(path: Path) -> str:
    os.mkfifo(path, 0o700)
    return str(path)


def writer_of(path: str | Path) -> io.FileIO:
    return io.FileIO(os.fspath(path), "wb")


async def opened(stdio: Stdio) -> ProcessIO:
    return await open_io(stdio, namespace="default", container_id="c1", io_uid=0, io_gid=0)


def run(streams: ProcessIO, script: str) -> subprocess.Popen[bytes]:
    stdin, stdout, stderr = streams.child_fds()
    process = subprocess.Popen(["/bin/sh", "-c", script], stdin=stdin, stdout=stdout, stderr=stderr)
    streams.child_started()
    streams.process_runs()
    return process


def fail(streams: ProcessIO, script: str) -> None:
    """Run a program as an OCI runtime that fails."""
    stdin, stdout, stderr = streams.child_fds()
    subprocess.run(["/bin/sh", "-c", script], stdin=stdin, stdout=stdout, stderr=stderr, check=False)


def wait_until_full(pipe: int) -> None:
    count = array.array("i", [0])
    until = time.monotonic() + 10
    while count[0] < PIPE_BYTES:
        fcntl.ioctl(pipe, termios.FIONREAD, count)
        assert time.monotonic() < until, count
        time.sleep(0.01)


class Client(threading.Thread):
    """A client as Go's: it waits in open(2) and reads to the end."""

    def __init__(self, path: str) -> None:
        super().__init__(daemon=True)
        self._path = path
        self.data = b""
        self.start()

    def run(self) -> None:
        with open(self._path, "rb") as pipe:
            self.data = pipe.read()

    async def result(self) -> bytes:
        await asyncio.to_thread(self.join, 10)
        assert not self.is_alive(), "the client never met the end"
        return self.data


async def test_unset_streams_are_dev_null(no_leaks: None) -> None:
    streams = await opened(Stdio())
    assert [os.readlink(f"/proc/self/fd/{fd}") for fd in streams.child_fds()] == ["/dev/null"] * 3
    await streams.aclose()


async def test_waiting_client_gets_everything_and_the_end_when_the_process_has_gone(
    tmp_path: Path, no_leaks: None
) -> None:
    out, err = fifo(tmp_path / "out"), fifo(tmp_path / "err")
    client_out, client_err = Client(out), Client(err)
    await asyncio.sleep(0.05)
    streams = await opened(Stdio(stdout=out, stderr=err))
    await asyncio.sleep(0.05)
    process = run(streams, "echo to out; echo to err >&2")
    assert await client_out.result() == b"to out\n"
    assert await client_err.result() == b"to err\n"
    process.wait()
    assert await streams.drained(5)
    await streams.aclose()


async def test_opening_does_not_wait_for_a_reader_and_a_late_one_misses_nothing(tmp_path: Path, no_leaks: None) -> None:
    out = fifo(tmp_path / "out")
    streams = await asyncio.wait_for(opened(Stdio(stdout=out)), 1)
    run(streams, "echo last words").wait()
    assert await streams.drained(5)
    await asyncio.sleep(0.1)
    assert await Client(out).result() == b"last words\n"
    await streams.aclose()


async def test_client_may_go_and_come_back(tmp_path: Path, no_leaks: None) -> None:
    out = fifo(tmp_path / "out")
    first = os.open(out, os.O_RDONLY | os.O_NONBLOCK)
    streams = await opened(Stdio(stdout=out, stdin=fifo(tmp_path / "in")))
    process = run(streams, "echo one; read x; echo two; read x; echo three")
    with writer_of(tmp_path / "in") as stdin:
        while True:
            try:
                if os.read(first, 10) == b"one\n":
                    break
            except BlockingIOError:
                await asyncio.sleep(0.01)
        os.close(first)
        stdin.write(b"\n")
        await asyncio.sleep(0.1)
        second = Client(out)
        stdin.write(b"\n")
    assert await second.result() == b"two\nthree\n"
    assert process.wait() == 0
    await streams.aclose()


async def test_large_output_waits_for_a_slow_reader(tmp_path: Path, no_leaks: None) -> None:
    out = fifo(tmp_path / "out")
    reader = os.open(out, os.O_RDONLY | os.O_NONBLOCK)
    streams = await opened(Stdio(stdout=out))
    process = run(streams, "head -c 300000 /dev/zero")
    await asyncio.sleep(0.1)
    assert process.poll() is None
    assert not await streams.drained(0.05)
    os.set_blocking(reader, True)

    def read_all() -> int:
        total = 0
        while data := os.read(reader, 5000):
            total += len(data)
        return total

    assert await asyncio.to_thread(read_all) == 300000
    assert await streams.drained(5)
    os.close(reader)
    process.wait()
    await streams.aclose()


async def test_stdin_ends_after_close_io_and_the_clients_end(tmp_path: Path, no_leaks: None) -> None:
    stdin, out = fifo(tmp_path / "in"), fifo(tmp_path / "out")
    client = Client(out)
    streams = await opened(Stdio(stdin=stdin, stdout=out))
    process = run(streams, "cat; echo end")
    with writer_of(stdin) as writer:
        writer.write(b"first ")
    await asyncio.sleep(0.05)
    assert process.poll() is None
    with writer_of(stdin) as writer:
        writer.write(b"second ")
        await streams.close_stdin()
        await asyncio.sleep(0.05)
        assert process.poll() is None
    assert await client.result() == b"first second end\n"
    process.wait()
    await streams.aclose()


async def test_plain_file_is_appended_to_and_shared(tmp_path: Path, no_leaks: None) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"old\n")
    streams = await opened(Stdio(stdout=str(log), stderr=str(log)))
    run(streams, "echo out; echo err >&2").wait()
    await streams.aclose()
    assert log.read_bytes() == b"old\nout\nerr\n"


async def test_file_scheme_makes_parents_and_takes_both_streams(tmp_path: Path, no_leaks: None) -> None:
    log = tmp_path / "a b" / "c" / "log"
    streams = await opened(Stdio(stdout=f"file://{tmp_path}/a%20b/c/log"))
    run(streams, "echo out; echo err >&2").wait()
    await streams.aclose()
    assert log.read_bytes() == b"out\nerr\n"
    assert log.stat().st_mode & 0o777 == 0o644
    assert log.parent.stat().st_mode & 0o777 == 0o755


async def test_unknown_scheme_is_refused(no_leaks: None) -> None:
    with pytest.raises(Unknown, match=r"^failed to create init process I/O: unknown STDIO scheme http$"):
        await opened(Stdio(stdout="http://x/y"))


async def test_a_log_file_that_cannot_be_made_is_told_as_containerd_tells_it(tmp_path: Path, no_leaks: None) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dir").mkdir()
    told = {
        f"file://{tmp_path}/file/a/b": f"mkdir {tmp_path}/file: not a directory",
        f"file://{tmp_path}/dir": f"open {tmp_path}/dir: is a directory",
        "file:relative/x.log": "open : no such file or directory",
        "FILE:x.log": "open : no such file or directory",
    }
    for uri, text in told.items():
        with pytest.raises(Unknown) as failed:
            await opened(Stdio(stdout=uri))
        assert failed.value.message == f"failed to create init process I/O: {text}"


async def test_missing_path_is_named_and_nothing_is_left_open(tmp_path: Path, no_leaks: None) -> None:
    out, gone = fifo(tmp_path / "out"), tmp_path / "gone"
    with pytest.raises(Unknown) as failed:
        await opened(Stdio(stdout=out, stderr=str(gone)))
    assert failed.value.message == (
        "failed to start io pipe copy: unable to copy pipes: "
        f'containerd-shim: opening file "{gone}" failed: open {gone}: no such file or directory'
    )


async def test_early_close_lets_the_client_meet_the_end(tmp_path: Path, no_leaks: None) -> None:
    out = fifo(tmp_path / "out")
    client = Client(out)
    await asyncio.sleep(0.5)  # its thread is in open(2) by then, which nothing tells
    streams = await opened(Stdio(stdout=out))
    await streams.aclose()
    await streams.aclose()
    assert await client.result() == b""


async def test_descriptors_are_close_on_exec(tmp_path: Path, no_leaks: None) -> None:
    before = set(os.listdir("/proc/self/fd"))
    streams = await opened(Stdio(stdin=fifo(tmp_path / "in"), stdout=fifo(tmp_path / "out")))
    after = set(os.listdir("/proc/self/fd")) - before
    mine = [int(fd) for fd in after if os.path.exists(f"/proc/self/fd/{fd}")]
    assert len(mine) >= 5
    assert not any(os.get_inheritable(fd) for fd in mine)
    await streams.aclose()


async def test_adopted_pipes_are_held_until_their_writers_go(tmp_path: Path, no_leaks: None) -> None:
    stdin, out = fifo(tmp_path / "in"), fifo(tmp_path / "out")
    dead = await opened(Stdio(stdin=stdin, stdout=out))
    process = run(dead, "read x; echo $x; read x; echo $x")
    streams = await adopt_io(Stdio(stdin=stdin, stdout=out))
    await dead.aclose()
    with writer_of(stdin) as writer:
        writer.write(b"a\nb\n")
    assert process.wait() == 0
    assert await streams.drained(5)
    assert await Client(out).result() == b"a\nb\n"
    await streams.aclose()


async def test_adopting_after_the_end_is_drained_at_once(tmp_path: Path, no_leaks: None) -> None:
    streams = await adopt_io(Stdio(stdout=fifo(tmp_path / "out"), stderr=str(tmp_path / "gone")))
    assert await streams.drained(1)
    await streams.aclose()


@pytest.mark.root
async def test_pipes_are_given_to_the_io_owner(tmp_path: Path, no_leaks: None) -> None:
    out = fifo(tmp_path / "out")
    streams = await open_io(Stdio(stdout=out), namespace="n", container_id="c", io_uid=1234, io_gid=4321)
    assert (os.stat(out).st_uid, os.stat(out).st_gid) == (1234, 4321)
    await streams.aclose()


async def test_no_descriptor_stays_after_many_processes(tmp_path: Path, no_leaks: None) -> None:
    stdio = Stdio(stdin=fifo(tmp_path / "in"), stdout=fifo(tmp_path / "out"), stderr=fifo(tmp_path / "err"))
    for _ in range(100):
        streams = await opened(stdio)
        streams.child_started()
        assert await streams.drained(1)
        await streams.aclose()


def test_the_modules_load_nothing_heavy() -> None:
    code = """if True:
        import sys, aiocontainerd_shim.io.console
        print([name for name in ("anyio", "uvloop", "betterproto2", "urllib.request") if name in sys.modules])
    """
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout
    assert seen == "[]\n"


async def test_what_a_runtime_says_before_the_process_runs_is_no_output_of_it(tmp_path: Path, no_leaks: None) -> None:
    out, err = fifo(tmp_path / "out"), fifo(tmp_path / "err")
    client_out, client_err = Client(out), Client(err)
    streams = await opened(Stdio(stdout=out, stderr=err))
    fail(streams, "echo no such program >&2; exit 1")
    assert streams.runtime_said() == b"no such program\n"
    await streams.aclose()
    assert (await client_out.result(), await client_err.result()) == (b"", b"")


async def test_what_a_runtime_says_is_taken_back_from_the_end_of_a_file(tmp_path: Path, no_leaks: None) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    for _ in range(2):
        streams = await opened(Stdio(stdout=f"file://{log}"))
        fail(streams, "echo words >&2")
        assert streams.runtime_said() == b"words\n"
        await streams.aclose()
        assert log.read_text() == "before\n"


async def test_a_file_that_somebody_else_writes_is_not_shortened(tmp_path: Path, no_leaks: None) -> None:
    log = tmp_path / "log"
    with log.open("ab") as other:
        streams = await opened(Stdio(stdout=f"file://{log}"))
        os.write(streams.child_fds()[2], b"words\n")
        other.write(b"of another\n")
        other.flush()
        assert streams.runtime_said() == b"words\nof another\n"
        await streams.aclose()
    assert log.read_bytes() == b"words\nof another\n"


async def test_stderr_comes_through_by_the_shim_itself_where_there_is_no_cat(
    tmp_path: Path, no_leaks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "PROGRAM", "aiocontainerd-no-such-program")
    err = fifo(tmp_path / "err")
    client = Client(err)
    streams = await opened(Stdio(stderr=err))
    run(streams, "for n in 1 2 3; do echo $n >&2; done").wait()
    assert await client.result() == b"1\n2\n3\n"
    assert await streams.drained(5)
    await streams.aclose()


async def test_stderr_that_nobody_takes_is_not_waited_for(tmp_path: Path, no_leaks: None) -> None:
    err = fifo(tmp_path / "err")
    streams = await opened(Stdio(stderr=err))
    process = run(streams, "exec head -c 300000 /dev/zero >&2")
    (held,) = streams.held.outputs
    await asyncio.to_thread(wait_until_full, held[1])
    process.kill()
    process.wait()
    async with asyncio.timeout(5):
        assert await streams.drained(60)
    await streams.aclose()


async def test_a_silent_stderr_passes_from_worker_to_worker(tmp_path: Path, no_leaks: None) -> None:
    err = fifo(tmp_path / "err")
    client = Client(err)
    first = await opened(Stdio(stdin=fifo(tmp_path / "in"), stderr=err))
    process = run(first, "read x; echo late >&2")
    assert first.idle
    held = first.held
    assert (held.relayed, held.relay is not None) == (err, True)
    copies = msgspec.structs.replace(
        held,
        stdin=os.dup(held.stdin),
        outputs=[(path, os.dup(fd)) for path, fd in held.outputs],
        relay=(os.dup(held.relay[0]), os.dup(held.relay[1])) if held.relay else None,
    )
    await first.aclose()
    second = ProcessIO.holding(copies)
    os.write(copies.stdin, b"\n")
    process.wait()
    assert await client.result() == b"late\n"
    assert await second.drained(5)
    await second.aclose()
