"""Traces of a namespace: directories that an OCI runtime makes once for a namespace and never removes.

Runtimes make missing parent directories with the first container. One is the cgroup `/<namespace>`, the parent of
`/<namespace>/<id>`, where clients of containerd put containers that no service manager places. The other is
`/run/containerd/runc/<namespace>`. No runtime removes them, since another container may be about to use them. A daemon
that stops knows better: its servers are closed, so no container can come, and a namespace without a bundle has none.
Then it removes these directories if they are empty, and nothing else.

Each namespace's traces are kept on disk, so that the daemon after a killed one knows them too. Everything here is
blocking file work; call it off the event loop.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Collection
from pathlib import Path

import msgspec

from aiocontainerd import gojson
from aiocontainerd.errors import ContainerdError
from aiocontainerd.sys import cgroup
from aiocontainerd.typeurl import Any
from aiocontainerd.wire.anys import unmarshal_given
from aiocontainerd_runtime_v2 import bundle as bundles
from aiocontainerd_runtime_v2.bundle import Layout

log = logging.getLogger(__name__)

RUNTIME_ROOT = "/run/containerd/runc"
"""Where shims have their OCI runtime keep its state, unless the options say otherwise (facts/runtime 6.1)."""
_DIRECTORY = ".traces"
"""Placement the namespaces' directories, and no identifier, so that it is taken for none of them."""
_OPTIONS = "containerd.runc.v1.Options"


class Trace(msgspec.Struct, frozen=True):
    """Whether containers of a namespace had cgroups below `/<namespace>`, and the runtime's directories for it."""

    cgroup: bool = False
    directories: tuple[str, ...] = ()


class _LinuxPart(msgspec.Struct):
    path: str = msgspec.field(name="cgroupsPath", default="")


class _SpecPart(msgspec.Struct):
    linux: _LinuxPart | None = None


class Traces:
    """The traces of every namespace that has had a task here."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._directory = layout.state / _DIRECTORY
        self._lock = threading.Lock()
        self._known: dict[str, Trace] = {}
        self._roots: dict[tuple[str, bytes], str] = {}

    def __repr__(self) -> str:
        return f"<Traces {self._known}>"

    def note(self, namespace: str, spec: bytes | None, options: Any | None) -> None:
        """Write down what the OCI runtime will make for a container, before it is created. Raises OSError."""
        directory = os.path.join(self._root(options), namespace)
        with self._lock:
            known = self._known.get(namespace) or self._read(namespace)
            new = Trace(
                cgroup=known.cgroup or _is_below(namespace, spec),
                directories=known.directories if directory in known.directories else (*known.directories, directory),
            )
            if new != known:
                bundles.write_own(self._directory, namespace, msgspec.json.encode(new))
            self._known[namespace] = new

    def remove(self, besides: Collection[Path] = ()) -> None:
        """Remove the empty traces of namespaces without bundles. Call it when nobody can create containers any more.

        `besides` are work directories of tasks that are gone, on a read-only file system.
        """
        for path in self._directory.glob("*"):
            namespace = path.name
            if not self._layout.has_bundles(namespace, besides) and self._removed(namespace):
                path.unlink()
                self._known.pop(namespace, None)

    def _removed(self, namespace: str) -> bool:
        """Remove the traces of a namespace if they are empty.

        Return whether none is left; if not, the next stop tries again.
        """
        trace = self._read(namespace)
        gone = [_remove_directory(directory) for directory in trace.directories]
        if trace.cgroup:
            gone.append(cgroup.remove_empty(namespace))
        return all(gone)

    def _read(self, namespace: str) -> Trace:
        try:
            return msgspec.json.decode((self._directory / namespace).read_bytes(), type=Trace)
        except (OSError, msgspec.DecodeError):
            return Trace()

    def _root(self, options: Any | None) -> str:
        if options is None or not options.type_url.endswith(_OPTIONS):
            return RUNTIME_ROOT
        key = (options.type_url, options.value)
        if key not in self._roots:
            self._roots[key] = _root_in(options)
        return self._roots[key]


def _root_in(options: Any) -> str:
    try:
        root = getattr(unmarshal_given(options), "root", "")
    except ContainerdError:
        return RUNTIME_ROOT  # the shim tells the same error
    return root if os.path.isabs(root) else RUNTIME_ROOT


def _is_below(namespace: str, spec: bytes | None) -> bool:
    """Return whether the cgroup is a child of `/<namespace>`: only then was that made for our containers."""
    try:
        linux = gojson.decode(spec or b"{}", _SpecPart).linux
    except msgspec.MsgspecError:
        return False  # making the bundle tells the same error
    return linux is not None and os.path.dirname(os.path.normpath(linux.path)) == f"/{namespace}"


def _remove_directory(path: str) -> bool:
    try:
        Path(path).rmdir()
    except FileNotFoundError:
        return True
    except OSError as error:
        log.debug("%s could not be removed: %s", path, error)
        return False
    return True
