"""Unpack or write one layer in a child process. It loads nothing of the daemon, and may be killed at any time.

The answer is a Python literal. The process ends when its standard input does: then the daemon has ended or given up.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable

from aiocontainerd.oci.tar_header import InvalidArchive
from aiocontainerd_differ.inflate import BrokenStream
from aiocontainerd_differ.unpack import Job, Result, unpack

_RECURSION = 5000


def apply(job: Job) -> None:
    """Unpack a layer. Write the answer to standard output."""
    _prepare()
    os.write(1, _answer(lambda: unpack(job)))


def diff(*, lower: str, upper: str, guide: str, compression: str, epoch_s: int | None) -> None:
    """Write the difference from `lower` to `upper` as a layer to standard output, and the answer to standard error."""
    from aiocontainerd_differ.layer import write_layer

    _prepare()

    def write() -> Result:
        lower_fd, upper_fd = _open_directory(lower), _open_directory(upper)
        guide_fd = _open_directory(guide) if guide else None
        return write_layer(lower_fd, upper_fd, compression, epoch_s, _write_out, guide_fd)

    os.write(2, _answer(write))


def _prepare() -> None:
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    sys.setrecursionlimit(_RECURSION)


def _open_directory(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _write_out(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


def _answer(work: Callable[[], Result]) -> bytes:
    answer: dict[str, str | int | None]
    try:
        result = work()
        answer = {"digest": result.digest, "size": result.size}
    except (InvalidArchive, BrokenStream) as error:
        answer = {"error": str(error)}
    except OSError as error:
        answer = {"error": f"{error.strerror}: {_text(error.filename)}", "errno": error.errno}
    except (RecursionError, MemoryError) as error:
        answer = {"error": f"the tree is too deep or too large: {type(error).__name__}"}
    return repr(answer).encode()


def _text(name: object) -> str:
    return os.fsdecode(name) if isinstance(name, bytes) else str(name)


def _exit_with_parent() -> None:
    while os.read(0, 64):
        pass
    os._exit(1)
