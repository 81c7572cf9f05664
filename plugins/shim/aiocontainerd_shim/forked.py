"""What a child of the fork server does: lives on as a shim, or cleans up after one and answers."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import NoReturn

from aiocontainerd_shim import cleanup, fork_protocol, serve
from aiocontainerd_shim.bootstrap import Identity
from aiocontainerd_shim.fork_protocol import Reply, Request


def start(request: Request, listener: socket.socket) -> NoReturn:
    """Become the shim that serves `listener`."""
    serve.become_shim(listener, identity_of(request), request.shim_cgroup, request.oom_score_adj, rests=True)


def delete(request: Request, connection: socket.socket) -> NoReturn:
    """Remove what a dead shim left, and answer."""
    try:
        try:
            reply = Reply(result=bytes(cleanup.clean_up(identity_of(request))))
        except Exception as failure:  # noqa: BLE001 - the edge of the process: whatever is wrong is the answer
            reply = fork_protocol.failed(failure)
        connection.sendall(fork_protocol.frame(reply))
    finally:
        os._exit(0)


def identity_of(request: Request) -> Identity:
    """Who the shim of a request is."""
    return Identity(
        namespace=request.namespace,
        id=request.id,
        bundle=Path(request.bundle),
        grpc_address=request.grpc_address,
        ttrpc_address=request.ttrpc_address,
        debug=request.debug,
        env=request.env,
    )
