"""Log what plugins print, under their names: a daemon's standard output tells nobody who wrote a line.

What is written while a plugin is at work becomes a log record of that plugin, line by line: in its hooks, its init, its
tasks, calls of it, and the threads that anyio starts for it. Everything else is passed on. Programs that a plugin
starts, and C code, write past this: they have the descriptors themselves. No plugin closes the streams.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from aiocontainerd.guard.clock import running

LONGEST_LINE = 16 << 10
"""Characters after which a line without an end is logged in parts."""
_PREFIX = "io.containerd."


class TaggedStream:
    """A stream in the place of `sys.stdout` or `sys.stderr`; `under` is what was there."""

    def __init__(self, under: TextIO, name: str) -> None:
        self._under = under
        self._name = name
        self._rest: dict[str, str] = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<TaggedStream {self._name}>"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._under, name)

    def write(self, text: str) -> int:
        """Log the lines of a plugin that are complete; pass on what is nobody's."""
        clock = running.get()
        if clock is None or not clock.uri:
            return self._under.write(text)
        with self._lock:
            *lines, rest = (self._rest.pop(clock.uri, "") + text).split("\n")
            if len(rest) > LONGEST_LINE:
                lines, rest = [*lines, rest], ""
            if rest:
                self._rest[clock.uri] = rest
        for line in filter(str.strip, lines):
            self._log(clock.uri, line)
        return len(text)

    @property
    def buffer(self) -> Any:
        """The stream of bytes: what a plugin writes there is logged as well, whatever bytes it is."""
        clock = running.get()
        return self._under.buffer if clock is None or not clock.uri else _Bytes(self)

    def close(self) -> None:
        """Flush. The stream is not a plugin's: the descriptor stays open."""
        self.flush()

    def writelines(self, lines: Iterator[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def flush_rest(self) -> None:
        """Log the lines that have no end."""
        with self._lock:
            rests, self._rest = self._rest, {}
        for uri, rest in rests.items():
            self._log(uri, rest)

    def _log(self, uri: str, line: str) -> None:
        logger = logging.getLogger(f"aiocontainerd.plugin.{uri.removeprefix(_PREFIX)}")
        logger.info("%s", line.rstrip(), extra={"fields": {"plugin": uri, "stream": self._name}})


class _Bytes:
    """The `buffer` of a tagged stream for a plugin."""

    def __init__(self, stream: TaggedStream) -> None:
        self._stream = stream

    def write(self, data: bytes) -> int:
        self._stream.write(bytes(data).decode(errors="backslashreplace"))
        return len(data)

    def flush(self) -> None:
        self._stream.flush()


@contextmanager
def tagged() -> Iterator[None]:
    """Log what plugins print while the block runs. The handlers of the log keep the streams that were there."""
    before = sys.stdout, sys.stderr
    streams = TaggedStream(before[0], "stdout"), TaggedStream(before[1], "stderr")
    sys.stdout, sys.stderr = streams
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream in streams:
            stream.flush_rest()
