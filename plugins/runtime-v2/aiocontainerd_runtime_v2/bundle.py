"""Bundles: the directories by which a shim and its container are found again (facts/runtime 2.2).

Everything here is blocking file work; call it off the event loop. A bundle is complete at every moment of the daemon's
life: files that are read after a restart are renamed into place. Nothing is flushed to disk: when the machine goes
down, the container is gone, and its bundle is of no use.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import stat
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from aiocontainerd import gojson, identifiers
from aiocontainerd.errors import AlreadyExists, ContainerdError, InvalidArgument, Unknown
from aiocontainerd.sys import mount
from aiocontainerd_runtime_v2 import bootstrap
from aiocontainerd_runtime_v2.bootstrap import Endpoint

log = logging.getLogger(__name__)

_SHARED = 0o711
_PRIVATE = 0o700
_GROUP = 0o710
_PRIVATE_FILE = 0o600
_SHIM_PATH = "shim-binary-path"
_BOOTSTRAP = "bootstrap.json"
_LEGACY_ADDRESS = "address"


class Unmount(Protocol):
    """Detaches everything mounted at or below a path."""

    def __call__(self, path: str, flags: int = 0) -> None: ...


class Bundle(msgspec.Struct, frozen=True, order=True):
    """One task's directories: `path` below the state directory, `work` below the root directory."""

    namespace: str
    id: str
    path: Path
    work: Path

    @property
    def rootfs(self) -> Path:
        """Where the shim mounts the container's root."""
        return self.path / "rootfs"

    @property
    def log(self) -> Path:
        """The fifo that the shim logs to."""
        return self.path / "log"


class Layout(msgspec.Struct, frozen=True):
    """Where one plugin keeps its bundles. `unmount` and `mounted` are the doors to the kernel."""

    state: Path
    root: Path
    unmount: Unmount = mount.unmount_recursive
    mounted: Callable[[str], Sequence[object]] = mount.mounts_under

    def bundle(self, namespace: str, task_id: str) -> Bundle:
        """Return the bundle of a task, whether or not it exists."""
        return Bundle(namespace, task_id, self.state / namespace / task_id, self.root / namespace / task_id)

    def prepare(self) -> None:
        """Make the base directories, passable so that a shim's user may reach its own bundle."""
        for directory in (self.state, self.root):
            _make_base(directory)

    def create(self, namespace: str, task_id: str, spec: bytes | None) -> Bundle:
        """Make a bundle around a container's `config.json`.

        Raises InvalidArgument for a bad id, AlreadyExists if the directory exists. On failure nothing is left.
        """
        validate(task_id)
        bundle = self.bundle(namespace, task_id)
        _make_base(bundle.path.parent)
        _make_base(bundle.work.parent)
        try:
            bundle.path.mkdir(mode=_PRIVATE)
        except FileExistsError:
            raise AlreadyExists(f"bundle {bundle.path}") from None
        try:
            self._fill(bundle, spec)
        except BaseException:
            self.remove(bundle)
            raise
        return bundle

    def _fill(self, bundle: Bundle, spec: bytes | None) -> None:
        self._remove_tree(bundle.work)
        _make(bundle.work, _SHARED)
        _make(bundle.rootfs, _SHARED)
        (bundle.path / "work").symlink_to(bundle.work)
        os.mkfifo(bundle.log, _PRIVATE)
        if spec is not None:
            _let_container_root_in(bundle.path, spec)
            (bundle.path / "config.json").write_bytes(spec)

    def remove(self, bundle: Bundle) -> None:
        """Unmount the root and delete both directories. A missing directory is no error.

        Raises OSError if a mount cannot be detached; then nothing below it is deleted.
        """
        self._remove_tree(bundle.path, bundle.rootfs)
        self._remove_tree(bundle.work)

    def _remove_tree(self, path: Path, mounted: Path | None = None) -> None:
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)  # whatever it is, it is in the place of a directory of ours
            return
        if mounted is not None and mounted.is_dir():
            self.unmount(str(mounted), mount.MNT_DETACH)
            mounted.rmdir()
        hidden = path.with_name(f".{path.name}")
        shutil.rmtree(hidden, ignore_errors=True)
        path.rename(hidden)
        shutil.rmtree(hidden)

    def sweep(self) -> None:
        """Remove bundles and work directories whose removal was cut short, unless something is mounted below one."""
        for base in (self.state, self.root):
            for space in _entries(base):
                for hidden in space.glob(".*"):
                    if not is_identifier(hidden.name[1:]) or hidden.is_symlink() or not hidden.is_dir():
                        continue
                    if self.mounted(str(hidden)):
                        log.warning("%s is left of a bundle and stays, because something is mounted below it", hidden)
                    else:
                        shutil.rmtree(hidden, ignore_errors=True)

    def present(self) -> list[Bundle]:
        """Return every bundle on disk, sorted.

        Any entry that is no directory with an identifier as its name is left out.
        """
        return [self.bundle(space.name, entry.name) for space in _entries(self.state) for entry in _entries(space)]

    def has_bundles(self, namespace: str, besides: Collection[Path] = ()) -> bool:
        """Return whether anything is left of a task of this namespace, even half removed, `besides` these paths."""
        bases = (self.state / namespace, self.root / namespace)
        entries = (entry for base in bases if base.is_dir() for entry in base.iterdir())
        return any(entry.is_dir() and entry not in besides for entry in entries)

    def strays(self, known: set[Bundle]) -> list[Bundle]:
        """Return the bundles with nothing but a work directory. `known` are the bundles that are complete."""
        work = [self.bundle(space.name, entry.name) for space in _entries(self.root) for entry in _entries(space)]
        return [bundle for bundle in work if bundle not in known]


def validate(task_id: str) -> None:
    """Raise InvalidArgument `invalid task id ...` unless `task_id` is an identifier."""
    try:
        identifiers.validate(task_id)
    except InvalidArgument as bad:
        raise InvalidArgument(f"invalid task id {task_id}: {bad.message}") from bad


def is_empty(bundle: Bundle) -> bool:
    """Return whether a bundle holds nothing or cannot be read."""
    try:
        return not os.listdir(bundle.path)
    except OSError:
        return True


def write_shim_path(bundle: Bundle, binary: Path) -> None:
    """Write which program the bundle's shim is."""
    _write_atomically(bundle.path / _SHIM_PATH, os.fsencode(binary), _PRIVATE_FILE)


def read_shim_path(bundle: Bundle) -> Path | None:
    """Return the program of the bundle's shim; None if the bundle joined another shim or is half made."""
    text = _read(bundle.path / _SHIM_PATH)
    return Path(os.fsdecode(text).strip()) if text and text.strip() else None


def write_endpoint(bundle: Bundle, endpoint: Endpoint) -> None:
    """Write where the bundle's shim listens."""
    _write_atomically(bundle.path / _BOOTSTRAP, bootstrap.to_json(endpoint), 0o644)


def read_endpoint(bundle: Bundle) -> Endpoint | None:
    """Return where the bundle's shim listens; None if that was never written or is malformed."""
    for name in (_BOOTSTRAP, _LEGACY_ADDRESS):
        data = _read(bundle.path / name)
        if data:
            try:
                return bootstrap.parse(data)
            except ContainerdError:
                continue
    return None


def read_config(bundle: Bundle) -> bytes:
    """Return the OCI spec in a bundle; nothing if it cannot be read."""
    return _read(bundle.path / "config.json")


def write_sandbox(bundle: Bundle, sandbox_id: str) -> None:
    """Write whose shim the bundle joined."""
    _write_atomically(bundle.path / "sandbox", sandbox_id.encode(), _PRIVATE_FILE)


def write_private(bundle: Bundle, name: str, data: bytes) -> None:
    """Write a file of the daemon's own into a bundle."""
    _write_atomically(bundle.path / name, data, _PRIVATE_FILE)


def write_own(directory: Path, name: str, data: bytes) -> None:
    """Write a file of the runtime's own into a directory; make the directory if it is missing."""
    directory.mkdir(mode=_PRIVATE, exist_ok=True)
    _write_atomically(directory / name, data, _PRIVATE_FILE)


def _entries(directory: Path) -> list[Path]:
    try:
        found = sorted(directory.iterdir())
    except OSError:
        return []
    return [entry for entry in found if is_identifier(entry.name) and entry.is_dir() and not entry.is_symlink()]


def is_identifier(name: str) -> bool:
    """Return whether `name` may name a directory here."""
    try:
        identifiers.validate(name)
    except InvalidArgument:
        return False
    return True


def _make_base(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    if stat.S_IMODE(directory.stat().st_mode) != _SHARED:  # on a read-only file system nothing can be set, even again
        directory.chmod(_SHARED)


def _make(directory: Path, mode: int) -> None:
    directory.mkdir()
    directory.chmod(mode)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _write_atomically(path: Path, data: bytes, mode: int) -> None:
    temporary = path.with_name(f".{path.name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(data)
    temporary.rename(path)


class _IdMapping(msgspec.Struct, rename="camel"):
    container_id: int = msgspec.field(name="containerID")
    host_id: int = msgspec.field(name="hostID")
    size: int


class _LinuxPart(msgspec.Struct, rename="camel"):
    gid_mappings: list[_IdMapping] = []


class _SpecPart(msgspec.Struct):
    linux: _LinuxPart | None = None


_SHAPE: dict[str, gojson.Shape] = {
    "": "v2.ociSpecUserNS",
    "Linux": {
        "": "v2.linuxSpecUserNS",
        "GIDMappings": [
            {"": "specs.LinuxIDMapping", "containerID": "uint32", "hostID": "uint32", "size": "uint32"},
        ],
    },
}  # fmt: skip


def root_gid(spec: bytes) -> int | None:
    """Return the host's group for the container's group 0, if the spec maps groups.

    Raises Unknown for bad JSON, in Go's words.
    """
    try:
        linux = gojson.decode(spec, _SpecPart).linux
    except msgspec.MsgspecError as error:
        wrong = gojson.syntax_error(spec) or gojson.type_error(spec, _SHAPE)
        raise Unknown(wrong or f"container spec: {error}") from error
    for mapping in linux.gid_mappings if linux else ():
        if mapping.container_id == 0 and mapping.size > 0:
            return mapping.host_id
    return None


def _let_container_root_in(directory: Path, spec: bytes) -> None:
    gid = root_gid(spec)
    if gid is None:
        return
    try:
        os.chown(directory, -1, gid)
    except OSError as error:
        if error.errno != errno.EPERM or os.geteuid() == 0:
            raise
    directory.chmod(_GROUP)
