"""The async client library: pulls, imports, unpacks and runs against any containerd's socket, ours or another.

    async with Client("/run/containerd/containerd.sock", namespace="default") as client:
        for image in await client.images.list(): ...

`client.client` is the door; `pull`, `archive`, `unpack` and `run` are what is made of its calls.
"""

from __future__ import annotations

from aiocontainerd.client.client import Client as Client
