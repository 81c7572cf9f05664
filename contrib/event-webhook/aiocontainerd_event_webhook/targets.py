"""Write lines: append to a file, or post each line to a URL."""

from __future__ import annotations

import errno
import io
import os
import threading
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from anyio import to_thread

if TYPE_CHECKING:
    import aiohttp

    from aiocontainerd.plugin import Secret

_TRY_AGAIN = (408, 425, 429)


class Unreached(Exception):
    """A line did not get through; another attempt may."""


class Refused(Exception):
    """A line was refused; another attempt would be, too."""


class Target(Protocol):
    """Takes lines. `str` is its name in messages, without secrets."""

    async def write(self, line: bytes) -> None:
        """Write one line. Raise Unreached or Refused."""
        ...

    async def aclose(self) -> None: ...


def target_of(text: str, token: Secret) -> Target:
    """Return the target of a path or URL. Raise ValueError, saying what is wrong with it."""
    if text.startswith("/"):
        return FileTarget(text)
    url = urlsplit(text)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError(f"{text!r} is neither an absolute path nor an http or https URL")
    if url.username is not None or url.password is not None:
        raise ValueError("a URL cannot have a user and a password in it; use the key `token`")
    return UrlTarget(text, token)


class FileTarget:
    """A file, opened for every line, so that it can be rotated at any time.

    A write that hangs is left behind in its thread, and others fail until it ends: it costs one thread, not all.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._writing = threading.Lock()

    def __str__(self) -> str:
        return self._path

    async def write(self, line: bytes) -> None:
        try:
            await to_thread.run_sync(self._append, line, abandon_on_cancel=True)
        except OSError as error:
            raise Unreached(f"{self._path}: {error.strerror}") from error

    def _append(self, line: bytes) -> None:
        if not self._writing.acquire(blocking=False):
            raise OSError(errno.EBUSY, "a write before this one has not ended")
        try:
            self._append_alone(line)
        finally:
            self._writing.release()

    def _append_alone(self, line: bytes) -> None:
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            before = os.fstat(file).st_size
            if os.write(file, line) != len(line):  # the disk is full: half a line would spoil the next one
                os.ftruncate(file, before)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(file)

    async def aclose(self) -> None:
        """Do nothing: nothing is open."""


class UrlTarget:
    """A URL: each line is the body of one POST, one after the other over one connection."""

    def __init__(self, url: str, token: Secret) -> None:
        self._url = url
        self._token = token
        self._session: aiohttp.ClientSession | None = None

    def __str__(self) -> str:
        return urlsplit(self._url)._replace(query="", fragment="").geturl()

    async def write(self, line: bytes) -> None:
        import aiohttp

        session = self._session = self._session or self._opened()
        try:
            async with session.post(self._url, data=io.BytesIO(line), allow_redirects=False) as response:
                status = response.status
        except (aiohttp.ClientError, OSError) as error:
            raise Unreached(f"{self}: {error}") from error
        if status >= 500 or status in _TRY_AGAIN:
            raise Unreached(f"{self}: status {status}")
        if status >= 300:  # a redirect would lose the body
            raise Refused(f"{self}: status {status}")

    def _opened(self) -> aiohttp.ClientSession:
        import aiohttp

        headers = {"Content-Type": "application/x-ndjson"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token.reveal()}"
        return aiohttp.ClientSession(headers=headers)

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()
