"""Tell the service manager about readiness and stopping, through the socket that it names (sd_notify(3))."""

from __future__ import annotations

import os
import socket

READY = "READY=1"
STOPPING = "STOPPING=1"


def notify(state: str) -> bool:
    """Send `state` to the service manager. Return False when there is none. Raises OSError naming the socket."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    target = "\0" + address[1:] if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        try:
            sender.connect(target)
        except OSError as error:
            raise OSError(error.errno, error.strerror, address) from None
        sender.sendall(state.encode())
    return True
