"""Run a program to its end, with a deadline, in a session of its own, without pipes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import anyio
from anyio.abc import Process

from aiocontainerd.errors import DeadlineExceeded, Unknown, os_text

_LARGEST_OUTPUT = 4 << 20


class Output:
    """The output and the exit status of a program."""

    def __init__(self, status: int, stdout: bytes, stderr: bytes) -> None:
        self.status = status
        self.stdout = stdout
        self.stderr = stderr

    def __repr__(self) -> str:
        return f"<Output {self.ending}: {len(self.stdout)} + {len(self.stderr)} bytes>"

    @property
    def ending(self) -> str:
        """How the program ended, in the words that Go programs use."""
        return (
            f"exit status {self.status}"
            if self.status >= 0
            else f"signal: {(signal.strsignal(-self.status) or '').lower()}"
        )

    def printed(self) -> str:
        """Return standard output and standard error as one text."""
        return (self.stdout + self.stderr).decode(errors="replace")

    def text(self) -> str:
        """Return the same without white space around it."""
        return self.printed().strip()


async def run(
    argv: Sequence[str],
    *,
    stdin: bytes = b"",
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout_s: float,
) -> Output:
    """Run a program to its end. It and its children are killed at the deadline or when the caller is cancelled.

    Raises DeadlineExceeded naming the command and the limit, Unknown when the program cannot be executed.
    """
    try:
        with anyio.move_on_after(timeout_s):
            return await _run(argv, stdin, cwd, env)
        raise DeadlineExceeded(f"{argv[0]} {argv[-1]} did not end within {timeout_s:g}s")
    except OSError as error:
        if argv[0] == "/":  # Go's exec looks it up as a name
            raise Unknown('exec: "/": is a directory') from error
        raise Unknown(f"fork/exec {argv[0]}: {os_text(OSError(error.errno, error.strerror))}") from error


async def _run(argv: Sequence[str], stdin: bytes, cwd: Path | None, env: Mapping[str, str] | None) -> Output:
    """Run a program with files in memory for its output. With pipes we would wait for whatever it leaves running."""
    with _memory_file(stdin) as given, _memory_file() as stdout, _memory_file() as stderr:
        with anyio.CancelScope(shield=True):  # a start that is cancelled half way leaves a process that nobody ends
            process = await anyio.open_process(
                list(argv), stdin=given, stdout=stdout, stderr=stderr, cwd=cwd, env=env, start_new_session=True
            )
        try:
            status = await process.wait()
        finally:
            with anyio.CancelScope(shield=True):
                await _end(process)
        return Output(status, _content(stdout), _content(stderr))


@contextmanager
def _memory_file(data: bytes = b"") -> Iterator[int]:
    descriptor = os.memfd_create("program-stdio", os.MFD_CLOEXEC)
    try:
        os.pwrite(descriptor, data, 0)
        yield descriptor
    finally:
        os.close(descriptor)


def _content(descriptor: int) -> bytes:
    return os.pread(descriptor, _LARGEST_OUTPUT, 0)


async def _end(process: Process) -> None:
    if process.returncode is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    await process.aclose()
