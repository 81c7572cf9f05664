"""The program `containerd-shim-aio-v2`: start, delete, info and serve, as any v2 daemon runs them (facts/runtime 3).

Flags are Go's: one dash or two, `-flag value` or `-flag=value`. `start` binds the socket, prints where, and goes on
as the shim in a forked child, which saves a second start of the interpreter; `serve` is the same shim on a socket
given as fd 3.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from aiocontainerd import __version__
from aiocontainerd.errors import ContainerdError, InvalidArgument, text_of
from aiocontainerd_shim.program import bootstrap
from aiocontainerd_shim.program.bootstrap import Identity

RUNTIME_NAME = "io.containerd.aio.v2"
LISTENER_FD = 3
_ACTIONS = ("start", "delete", "serve")


class UsageError(Exception):
    """Raised for an unknown flag, action or missing argument on the command line."""


class Flags(msgspec.Struct, kw_only=True):
    """The command line."""

    namespace: str = ""
    id: str = ""
    address: str = ""
    publish_binary: str = ""
    bundle: str = ""
    socket: str = ""
    debug_socket: str = ""
    debug: bool = False
    info: bool = False
    v: bool = False
    version: bool = False
    action: str = ""


def parse_flags(argv: Sequence[str]) -> Flags:
    """Read a command line. Raises UsageError."""
    flags, rest = Flags(), list(argv)
    while rest and rest[0].startswith("-") and rest[0] != "--":
        name, equals, value = rest.pop(0).lstrip("-").partition("=")
        field = name.replace("-", "_")
        if field not in Flags.__struct_fields__ or field == "action":
            raise UsageError(f"flag provided but not defined: -{name}")
        if isinstance(getattr(flags, field), bool):
            setattr(flags, field, not equals or value in ("1", "t", "T", "true", "TRUE", "True"))
            continue
        if not equals and not rest:
            raise UsageError(f"flag needs an argument: -{name}")
        setattr(flags, field, value if equals else rest.pop(0))
    flags.action = rest[0] if rest else ""
    return flags


def main() -> None:
    """Run the program."""
    try:
        sys.exit(run(sys.argv[1:]))
    except (UsageError, ContainerdError, OSError) as failure:
        sys.stderr.write(f"{RUNTIME_NAME}: {text_of(failure)}\n")
        sys.exit(2 if isinstance(failure, UsageError) else 1)


def run(argv: Sequence[str]) -> int:
    """Carry out a command line; return the exit status."""
    flags = parse_flags(argv)
    if flags.v or flags.version:
        program = Path(sys.argv[0]).name
        sys.stdout.write(f"{program}:\n  Version:  {__version__}\n  Python:   {sys.version.split()[0]}\n")
        return 0
    if flags.info:
        return _info()
    if not flags.namespace:
        raise InvalidArgument("shim namespace cannot be empty")
    if flags.action == "start":
        return _start(identity_of(flags))
    if flags.action == "delete":
        return _delete(identity_of(flags))
    if flags.action in ("", "serve"):
        return _serve(identity_of(flags))
    raise UsageError(f"unknown action {flags.action!r}: one of {', '.join(_ACTIONS)}")


def identity_of(flags: Flags) -> Identity:
    """Return who the shim is. Its bundle is a sibling of the working directory, named by the container's id."""
    return Identity(
        namespace=flags.namespace,
        id=flags.id,
        bundle=Path.cwd().parent / flags.id if flags.id else Path.cwd(),
        grpc_address=flags.address,
        ttrpc_address=os.environ.get("TTRPC_ADDRESS", ""),
        debug=flags.debug,
        env=dict(os.environ),
    )


def _start(identity: Identity) -> int:
    from aiocontainerd_shim.oci import tries
    from aiocontainerd_shim.program import serve

    planned = bootstrap.plan(sys.stdin.buffer.read(bootstrap.STDIN_LIMIT_BYTES), identity)
    listener = bootstrap.open_listener(planned, identity.bundle)
    if listener is not None:
        score = bootstrap.oom_score_adj_for_child_of(os.getppid())
        if os.fork() == 0:
            os.setpgid(0, 0)
            tries.happen_in(identity.bundle)
            place = serve.Place(bundle=str(identity.bundle), cgroup=planned.shim_cgroup, oom_score_adj=score)
            serve.become_shim(listener, identity, place)
    sys.stdout.buffer.write(planned.result())
    sys.stdout.flush()
    return 0


def _serve(identity: Identity) -> int:
    from aiocontainerd_shim.program import serve

    serve.run(socket.socket(fileno=LISTENER_FD), identity)
    return 0


def _delete(identity: Identity) -> int:
    from aiocontainerd_shim.oci import tries
    from aiocontainerd_shim.program.cleanup import clean_up

    tries.happen_in(identity.bundle)
    sys.stdout.buffer.write(bytes(clean_up(identity)))
    return 0


def _info() -> int:
    from aiocontainerd_shim.program.info import runtime_info

    sys.stdout.buffer.write(runtime_info(RUNTIME_NAME, sys.stdin.buffer.read(bootstrap.STDIN_LIMIT_BYTES)))
    return 0
