"""Tell the service manager about readiness and stopping, through the socket that it names (sd_notify(3))."""

from __future__ import annotations

import errno
import os
import socket

from aiocontainerd import durations

READY = "READY=1"
STOPPING = "STOPPING=1"


def notify(state: str, limit_s: float = 0) -> bool:
    """Send `state` to the service manager. Return False when there is none.

    Wait no longer than `limit_s` seconds for room in its socket; 0 means no limit. Raises OSError naming the socket.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    target = "\0" + address[1:] if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.settimeout(limit_s or None)
        try:
            sender.connect(target)
            sender.sendall(state.encode())
        except TimeoutError:
            reason = f"took no message within {durations.render(limit_s)}"
            raise TimeoutError(errno.ETIMEDOUT, reason, address) from None
        except OSError as error:
            raise OSError(error.errno, error.strerror, address) from None
    return True
