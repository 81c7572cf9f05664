"""What a child of the fork server does: lives on as a shim, or cleans up after one and answers."""

from __future__ import annotations

import os
import socket
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from aiocontainerd_shim.fork import protocol
from aiocontainerd_shim.fork.protocol import Reply, Request
from aiocontainerd_shim.program import cleanup, serve
from aiocontainerd_shim.program.bootstrap import Identity

if TYPE_CHECKING:
    from aiocontainerd_shim.rest.memory import Duty


def start(request: Request, listener: socket.socket) -> NoReturn:
    """Become the shim that serves `listener`."""
    serve.end(lambda: _rest(request, listener))


def _rest(request: Request, listener: socket.socket) -> int:
    serve.settle(request.bundle, request.shim_cgroup, request.oom_score_adj)
    return serve.rest(listener, request.bundle, partial(_work, request), debug=request.debug)


def _work(request: Request, duty: Duty) -> None:
    serve.work(identity_of(request), duty)


def delete(request: Request, connection: socket.socket) -> NoReturn:
    """Remove what a dead shim left, and answer."""
    try:
        try:
            reply = Reply(result=bytes(cleanup.clean_up(identity_of(request))))
        except Exception as failure:  # noqa: BLE001 - the edge of the process: whatever is wrong is the answer
            reply = protocol.failed(failure)
        connection.sendall(protocol.frame(reply))
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
        env=protocol.unpack_env(request.env),
    )
