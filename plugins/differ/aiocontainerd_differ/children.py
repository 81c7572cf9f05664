"""Start the child processes of the differ, and read their answers."""

from __future__ import annotations

import ast
import errno
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from importlib.util import find_spec

import anyio
import msgspec
from anyio.abc import Process

from aiocontainerd.errors import ContainerdError, ResourceExhausted, Unknown
from aiocontainerd_differ.unpack import Result

_MODULES = ("aiocontainerd_differ", "aiocontainerd", "isal", "zstandard")
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class _Answer(msgspec.Struct, frozen=True):
    digest: str = ""
    size: int = 0
    error: str = ""
    errno: int = 0


def program(call: str) -> list[str]:
    """Return the command of a child that makes a call of `worker.py`.

    To start quickly, the child gets the directories of its modules instead of setting up site packages, and call and
    answer are Python literals, which need no other parser.
    """
    places = list(dict.fromkeys(_place_of(module) for module in _MODULES))
    code = f"import sys; sys.path[:0] = {places!r}; from aiocontainerd_differ.worker import Job, apply, diff; {call}"
    return [sys.executable, "-I", "-S", "-c", code]


@asynccontextmanager
async def running(command: Sequence[str], *, pass_fds: Sequence[int] = ()) -> AsyncIterator[Process]:
    """Run a child for the length of the block. Kill it if the block fails: by itself it may notice that late."""
    async with await anyio.open_process(command, pass_fds=pass_fds, env={}) as process:
        try:
            yield process
        except BaseException:
            with suppress(ProcessLookupError):
                process.kill()
            raise


def check(answer: bytes, complaint: bytes, status: int, action: str) -> None:
    """Raise Unknown with the last line of the child's standard error if it failed or gave no answer."""
    if status != 0 or not answer:
        reason = complaint.decode(errors="replace").strip().rpartition("\n")[2] or "no message"
        raise Unknown(f"{action} process ended with {status}: {reason}")


def decode_answer(answer: bytes) -> Result:
    """Return the child's result. Raise the error that it reported."""
    decoded = msgspec.convert(ast.literal_eval(answer.decode()), _Answer)
    if decoded.error:
        raise system_error(decoded.error, decoded.errno)
    return Result(decoded.digest, decoded.size)


def system_error(text: str, number: int) -> ContainerdError:
    """Return ResourceExhausted for a full disk, Unknown for anything else."""
    return ResourceExhausted(text) if number in _NO_SPACE else Unknown(text)


def _place_of(module: str) -> str:
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise Unknown(f"python module {module} is not installed")
    return os.path.dirname(os.path.dirname(spec.origin))
