"""Run an unpack beside the event loop: in a thread for a small layer, else in a child process.

A child does not need the daemon's interpreter lock, and can be killed. It takes some 25 ms to start.
"""

from __future__ import annotations

import os
import threading

import anyio
import anyio.to_thread

from aiocontainerd.errors import Unknown
from aiocontainerd.oci.tar_header import InvalidArchive
from aiocontainerd_differ.children import check, decode_answer, program, running, system_error
from aiocontainerd_differ.inflate import BrokenStream
from aiocontainerd_differ.targets import Target, in_user_namespace
from aiocontainerd_differ.unpack import Job, Result, Stopped, unpack

SMALL_BYTES = 128 << 10
"""Blobs up to this size are unpacked in a thread."""


async def run_unpack(blob_fd: int, size: int, target: Target, *, sniff: bool, max_entries: int) -> Result:
    """Unpack the blob of `size` bytes into `target`. Raise Unknown or ResourceExhausted with the reason alone."""
    root_fd = await anyio.to_thread.run_sync(os.open, target.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        job = Job(
            blob_fd=blob_fd,
            root_fd=root_fd,
            overlay=target.overlay,
            lowers=list(target.lowers),
            in_user_namespace=in_user_namespace(),
            sniff=sniff,
            max_entries=max_entries,
        )
        return await (_in_thread(job) if size <= SMALL_BYTES else _in_child(job))
    finally:
        os.close(root_fd)


async def _in_thread(job: Job) -> Result:
    """Unpack in a thread. A cancelled call waits until the thread stops, before its next entry or chunk."""
    stop, turn = threading.Event(), threading.Lock()

    def run() -> Result:
        with turn:
            if stop.is_set():
                raise Stopped
            return unpack(job, stop.is_set, ahead=False)

    try:
        return await anyio.to_thread.run_sync(run, abandon_on_cancel=True)
    except (InvalidArchive, BrokenStream, OverflowError, RecursionError, ValueError) as error:
        raise Unknown(str(error)) from error
    except OSError as error:
        raise system_error(f"{error.strerror}: {error.filename}", error.errno or 0) from error
    finally:
        stop.set()
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(_wait_for, turn)


def _wait_for(turn: threading.Lock) -> None:
    with turn:
        pass


async def _in_child(job: Job) -> Result:
    command = program(f"apply(Job(**{vars(job)!r}))")
    async with running(command, pass_fds=(job.blob_fd, job.root_fd)) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        answer = b"".join([part async for part in process.stdout])
        complaint = b"".join([part async for part in process.stderr])
        status = await process.wait()
    check(answer, complaint, status, "unpack")
    return decode_answer(answer)
