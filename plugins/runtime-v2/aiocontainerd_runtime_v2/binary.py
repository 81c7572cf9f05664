"""Runs shim actions by executing the shim's program (facts/runtime 3.1). This launcher serves every runtime."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import anyio.to_thread

from aiocontainerd.errors import Unimplemented, Unknown
from aiocontainerd.gotext import quoted
from aiocontainerd.interfaces.shim import ShimCommand
from aiocontainerd.sys import programs
from aiocontainerd.sys.programs import Output
from aiocontainerd.typeurl import Any
from aiocontainerd_runtime_v2 import bootstrap

log = logging.getLogger(__name__)

_OPTIONS_ON_STDIN = ("shim-runc-v1", "shim-runhcs-v1")


class BinaryLauncher:
    """One shim program, executed for each action in a session of its own."""

    cleans_up = False
    rests = False
    runtimes: Sequence[str] = ()

    def __init__(self, binary: Path) -> None:
        self.binary = binary
        self._wants_options = any(name in binary.name for name in _OPTIONS_ON_STDIN)

    def __repr__(self) -> str:
        return f"<BinaryLauncher {self.binary}>"

    async def start(self, command: ShimCommand, *, timeout_s: float) -> bytes:
        """Return what `start` printed.

        Raises Unknown with that text if it failed, DeadlineExceeded after `timeout_s`. Shims of containerd 1.7
        and older take the runtime options on stdin and fail on BootstrapParams. The first start notices that
        and remembers it.
        """
        try:
            output = await self._start_once(command, timeout_s)
        except Unknown as refused:
            raise Unknown(f": {refused.message}") from refused  # what it printed, and why it ended
        if output.status != 0 and not self._wants_options and f"type with url {command.id}: " in output.text():
            self._wants_options = True
            output = await self._start_once(command, timeout_s)
        if output.status != 0:
            raise Unknown(f"{output.printed()}: {output.ending}")
        return output.stdout + output.stderr

    async def _start_once(self, command: ShimCommand, timeout_s: float) -> Output:
        stdin = bootstrap.options_of(command.stdin) if self._wants_options else command.stdin
        arguments = [*_flags(command), *_debug(command), "start"]
        return await self._run(arguments, command, stdin, timeout_s)

    async def delete(self, command: ShimCommand, *, timeout_s: float) -> bytes:
        """Return what `delete` printed. Raises as `start` does."""
        arguments = [*_flags(command), "-bundle", str(command.bundle), *_debug(command), "delete"]
        output = await self._run(arguments, command, b"", timeout_s)
        if output.stderr.strip():
            log.info(
                "the delete action of task %s/%s printed: %s",
                command.namespace,
                command.id,
                output.stderr.decode(errors="replace"),
            )
        if output.status != 0:
            raise Unknown(f"{output.text()}: {output.ending}")
        return output.stdout

    async def stats(self, bundle: Path, pid: int) -> Any:
        """Raise Unimplemented: the shims of a program are asked themselves."""
        raise Unimplemented(f"{self.binary} does not measure {bundle} (pid {pid})")

    async def info(self, options: bytes, *, timeout_s: float) -> bytes:
        """Return the RuntimeInfo message that `-info` printed for a marshalled Any of options."""
        output = await programs.run([str(self.binary), "-info"], stdin=options, timeout_s=timeout_s)
        if output.status != 0:
            raise Unknown(f"failed to run [{self.binary} -info]: {output.ending} (stderr: {quoted(output.text())})")
        return output.stdout

    async def _run(self, arguments: Sequence[str], command: ShimCommand, stdin: bytes, timeout_s: float) -> Output:
        env = {**os.environ, **environment(command)}
        cwd = command.bundle if await anyio.to_thread.run_sync(command.bundle.is_dir) else None
        return await programs.run([str(self.binary), *arguments], stdin=stdin, cwd=cwd, env=env, timeout_s=timeout_s)


def environment(command: ShimCommand) -> dict[str, str]:
    """Return what the environment of a shim action has besides the daemon's own."""
    return {
        "GOMAXPROCS": "2",
        "MAX_SHIM_VERSION": "2",
        "TTRPC_ADDRESS": command.ttrpc_address,
        "GRPC_ADDRESS": command.grpc_address,
        "NAMESPACE": command.namespace,
        **command.env,
    }


def _flags(command: ShimCommand) -> list[str]:
    return [
        "-namespace", command.namespace, "-address", command.grpc_address,
        "-publish-binary", command.publish_binary, "-id", command.id,
    ]  # fmt: skip


def _debug(command: ShimCommand) -> list[str]:
    return ["-debug"] if command.debug else []
