"""Resolves the name of a runtime to the program of its shim (facts/runtime 2.1)."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from aiocontainerd.errors import Unknown, os_text
from aiocontainerd.gotext import quoted

_PREFIX = "containerd-shim"


def binary_name(runtime: str) -> str:
    """Return the file name of a runtime's shim: `io.containerd.runc.v2` is `containerd-shim-runc-v2`.

    Raises Unknown, in containerd's words, if the name has another form.
    """
    if not runtime:
        raise Unknown("no runtime name")
    parts = runtime.split(".")
    if "/" in runtime or len(parts) < 2 or not parts[0]:
        raise Unknown(
            f"invalid runtime name {runtime}, correct runtime name should be either format like "
            "`io.containerd.runc.v2` or a full path to the binary"
        )
    return f"{_PREFIX}-{parts[-2]}-{parts[-1]}"


def search_path() -> list[str]:
    """Return where to look for shims, in order: working directory, PATH, beside the daemon's own programs."""
    listed = [entry for entry in os.environ.get("PATH", os.defpath).split(os.pathsep) if entry]
    own = [os.path.join(sys.prefix, "bin"), os.path.dirname(os.path.realpath(sys.executable))]
    return [os.getcwd(), *listed, *own]


class Resolver:
    """Finds shim programs and remembers where they are."""

    def __init__(self, directories: Callable[[], Sequence[str]] = search_path) -> None:
        self._directories = directories
        self._found: dict[str, Path] = {}

    def __repr__(self) -> str:
        return f"<Resolver {self._found}>"

    def resolve(self, runtime: str) -> Path:
        """Return the shim of a runtime name or absolute path. Raises Unknown with what was looked for."""
        if runtime not in self._found:
            self._found[runtime] = self._custom(runtime) if os.path.isabs(runtime) else self._named(runtime)
        return self._found[runtime]

    @staticmethod
    def _custom(path: str) -> Path:
        try:
            os.stat(path)
        except OSError as error:
            raise Unknown(f"invalid custom binary path: {os_text(error, 'stat')}") from error
        return Path(path)

    def _named(self, runtime: str) -> Path:
        name = binary_name(runtime)
        for directory in self._directories():
            candidate = os.path.join(directory, name)
            if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
                return Path(candidate)
        raise Unknown(f"runtime {quoted(runtime)} binary not installed {quoted(name)}: file does not exist")
