"""The async client library: pulls, imports, unpacks and runs against any containerd's socket, ours or another.

    async with Client("/run/containerd/containerd.sock", namespace="default") as client:
        await client.pull("docker.io/library/busybox:latest")
        for image in await client.images.list(): ...

Each service has a client with the methods of its interface in `interfaces`; `Client.stores` gives them to the
functions of `distribution`. Imports `distribution`, `rpc`, `wire`, `interfaces`, `oci`, `sys` and the words, and needs
none of the daemon's packages. Imported by `cli`, `testing` and plugins that call another daemon.

    client          the client of one daemon
    connection      calls with namespace, lease and deadline
    content, snapshots, diff, images, containers, leases, namespaces, tasks
                    one service each
    daemon          version, introspection, events; `plugins` is health and reload
    run             running a container; `attach` attaches to a process, `stdio` and `terminal` are what it needs
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aiocontainerd.client.client import Client as Client


def __getattr__(name: str) -> Any:
    """Import `Client` when it is asked for: a program that uses one module of this package need not load the rest."""
    if name != "Client":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from aiocontainerd.client.client import Client

    return Client
