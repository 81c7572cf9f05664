"""What runs beside the daemons of a test: proxy plugins, and other stacks made of our .proto files."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from harness import REPOSITORY, SCRIPTS, listens

UNTIL_S = 20.0


def wait_for(condition: object, what: str, limit_s: float = UNTIL_S) -> None:
    """Wait until a value or a call is true. Raise AssertionError naming `what`."""
    until = time.monotonic() + limit_s
    while not (condition() if callable(condition) else condition):
        assert time.monotonic() < until, f"waited {limit_s:g} s for {what}"
        time.sleep(0.02)


@contextmanager
def process(command: Sequence[str], socket: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the process of a proxy plugin until it listens; end it and wait for it afterwards."""
    began = subprocess.Popen(command, stdin=subprocess.DEVNULL, cwd=socket.parent)
    try:
        wait_for(lambda: listens(socket) or began.poll() is not None, "the proxy plugin's socket")
        assert began.poll() is None
        yield began
    finally:
        began.terminate()
        began.wait(10)


@contextmanager
def served(target: str, directory: Path, name: str, *flags: str) -> Iterator[Path]:
    """Serve one of our plugins by `aiocontainerd-plugin`; yield its socket."""
    socket = directory / f"{name}.sock"
    command = [
        str(SCRIPTS / "aiocontainerd-plugin"), "serve", target, "--address", str(socket),
        "--root", str(directory / f"{name}-root"), "--state", str(directory / f"{name}-state"), *flags,
    ]  # fmt: skip
    with process(command, socket) as running:
        yield socket
        running.send_signal(signal.SIGTERM)
        assert running.wait(10) == 0
    assert not socket.exists()


def protoc(out: Path, *services: str) -> Path:
    """Modules that protoc makes of our .proto files, for grpcio: the types, and services such as `diff/v1/diff`."""
    protos = REPOSITORY / "aiocontainerd" / "api" / "proto"
    files = ["containerd/types/types.proto", *(f"containerd/services/{name}.proto" for name in services)]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{protos}", f"--python_out={out}"]
    subprocess.run([*command, f"--grpc_python_out={out}", *files], check=True)
    return out
