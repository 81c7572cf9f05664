"""Listening sockets of the daemon, with the owner and mode that clients expect (facts/core 16)."""

from __future__ import annotations

import contextlib
import os
import socket
import stat

from aiocontainerd.errors import AlreadyExists, InvalidArgument

MAX_PATH_BYTES = 104
BACKLOG = 4096
"""Connections that may wait to be accepted, as Go has it; the kernel lowers it to `net.core.somaxconn`. A client that
connects without waiting, as gRPC's do, fails where more come at once."""
SOCKET_MODE = 0o660
PARENT_MODE = 0o770


class UnixSocket:
    """A bound unix socket that does not listen yet, and its file."""

    def __init__(self, path: str, sock: socket.socket) -> None:
        self.path = path
        self.sock = sock
        self._inode = os.stat(path).st_ino

    def remove(self) -> None:
        """Close the socket and remove its file, unless another process has put its own there."""
        self.sock.close()
        with contextlib.suppress(FileNotFoundError):
            if os.stat(self.path).st_ino == self._inode:
                os.unlink(self.path)


def bind_unix(path: str, uid: int, gid: int) -> UnixSocket:
    """Bind a unix socket of mode 0660 owned by uid:gid. Its directory is made if absent.

    A socket that nobody listens on is replaced. Raises InvalidArgument for a path over 104 bytes, or a path that is no
    socket; AlreadyExists if a running process listens there.
    """
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise InvalidArgument(f'unix socket path "{path}" too long ({len(path)} > {MAX_PATH_BYTES} bytes)')
    os.makedirs(os.path.dirname(path) or ".", PARENT_MODE, exist_ok=True)
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.bind(path)
        os.chmod(path, SOCKET_MODE)
        os.chown(path, uid, gid)
    except OSError:
        sock.close()
        raise
    return UnixSocket(path, sock)


def bind_tcp(address: str) -> socket.socket:
    """Bind `host:port`. Raises InvalidArgument for an address of another form, OSError if it is taken."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        raise InvalidArgument(f'TCP address "{address}" must be host:port')
    host = host.removeprefix("[").removesuffix("]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, int(port)))
    except OSError:
        sock.close()
        raise
    return sock


def _remove_stale(path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise InvalidArgument(f'"{path}" exists and is no socket')
    if _is_listening(path):
        raise AlreadyExists(f'a running process listens on "{path}"')
    os.unlink(path)


def _is_listening(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return True
