"""The async client library: pulls, imports, unpacks and runs against any containerd's socket, ours or another.

    async with Client("/run/containerd/containerd.sock", namespace="default") as client:
        for image in await client.images.list(): ...

`client.client` is the door; `pull`, `archive`, `unpack` and `run` are what is made of its calls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aiocontainerd.client.client import Client as Client


def __getattr__(name: str) -> Any:
    """`Client`, imported when it is asked for: the daemon uses `client.convert` and must not wait for the rest."""
    if name != "Client":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from aiocontainerd.client.client import Client

    return Client
