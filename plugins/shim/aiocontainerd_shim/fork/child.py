"""A child of the fork server: it lives on as a shim, or cleans up after a dead one and answers."""

from __future__ import annotations

import os
import socket
from functools import partial
from pathlib import Path
from typing import NoReturn

from aiocontainerd_shim.fork import protocol
from aiocontainerd_shim.fork.protocol import Reply, Request
from aiocontainerd_shim.program import cleanup, serve
from aiocontainerd_shim.program.bootstrap import Identity
from aiocontainerd_shim.program.serve import Place


def start(request: Request, listener: socket.socket) -> NoReturn:
    """Become the shim that serves `listener`."""
    place = Place(
        bundle=request.bundle, cgroup=request.shim_cgroup, oom_score_adj=request.oom_score_adj, debug=request.debug
    )
    serve.become_resting_shim(listener, partial(identity_of, request), place)


def delete(request: Request, connection: socket.socket) -> NoReturn:
    """Remove what a dead shim left behind, answer, and end."""
    try:
        try:
            reply = Reply(result=bytes(cleanup.clean_up(identity_of(request))))
        except Exception as failure:  # noqa: BLE001 - the edge of the process: whatever is wrong is the answer
            reply = protocol.failed(failure)
        connection.sendall(protocol.frame(reply))
    finally:
        os._exit(0)


def identity_of(request: Request) -> Identity:
    """Return who the shim of a request is."""
    return Identity(
        namespace=request.namespace,
        id=request.id,
        bundle=Path(request.bundle),
        grpc_address=request.grpc_address,
        ttrpc_address=request.ttrpc_address,
        debug=request.debug,
        env=protocol.unpack_env(request.env),
    )
