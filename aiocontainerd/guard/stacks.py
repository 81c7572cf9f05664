"""Read the stacks that `faulthandler` wrote for a process that hung or crashed, and find the line to name. Pure."""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import aiocontainerd

_CORE = str(Path(aiocontainerd.__file__).parent)
_LIBRARY = sysconfig.get_path("stdlib")
_SITE = "-packages"
_LOOPS = re.compile(r"/(anyio|asyncio|uvloop|grpclib)/")
_FRAME = re.compile(r'^  File "(.*)", line (\d+) in (.*)$')
_THREAD = re.compile(r"^(Current thread|Thread) 0x", re.MULTILINE)


def place(text: str) -> str:
    """Return `file:line in function` of the code that the process was in, "" if no stack has any of a plugin.

    The thread that got the signal comes first, which is that of the event loop. In it, the innermost line counts that
    is neither the daemon's own nor Python's.
    """
    threads = sorted(_threads(text), key=lambda lines: not lines.startswith("Current"))
    return next((found for lines in threads if (found := _innermost(lines))), "")


def _threads(text: str) -> Iterator[str]:
    starts = [match.start() for match in _THREAD.finditer(text)]
    for start, end in zip(starts, [*starts[1:], len(text)][: len(starts)], strict=True):
        yield text[start:end]


def _innermost(lines: str) -> str:
    frames = (match.groups() for line in lines.splitlines() if (match := _FRAME.match(line)))
    return next((f"{file}:{line} in {function}" for file, line, function in frames if _is_plugins(file)), "")


def _is_plugins(file: str) -> bool:
    if file.startswith(("<", _CORE)) or _LOOPS.search(file):
        return False
    return not file.startswith(_LIBRARY) or _SITE in file
