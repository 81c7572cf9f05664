"""Starting a shim: what the daemon says, where the shim listens, what the daemon is told (facts/runtime 3.1-3.4).

There are two dialects of a start. A daemon of 2.2 or newer writes BootstrapParams to stdin and reads a BootstrapResult.
An older one writes the runtime options or nothing, and reads the bare address, which means protocol version 2.
"""

from __future__ import annotations

import errno
import hashlib
import os
import socket
from collections.abc import Iterable
from pathlib import Path

import msgspec

from aiocontainerd import api, gojson
from aiocontainerd.errors import ContainerdError, InvalidArgument
from aiocontainerd_shim.task.records import OPTIONS_URL, RuncOptions, options_from_wire

SOCKET_DIR = "/run/containerd/s"
STDIN_LIMIT_BYTES = 10 << 20
GROUP_ANNOTATIONS = ("io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id")
_PATH_LIMIT_BYTES = 106


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Who a shim is, from the flags and environment of the binary."""

    namespace: str
    id: str
    bundle: Path
    grpc_address: str = ""
    ttrpc_address: str = ""
    debug: bool = False
    env: dict[str, str] = {}


class Params(msgspec.Struct, frozen=True, kw_only=True):
    """The contents of stdin. `legacy` asks for the bare address."""

    legacy: bool
    socket_dir: str = ""
    options: RuncOptions = RuncOptions()


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The plan of a start: listen on `path`; link `socket_dir` into the bundle unless it is empty."""

    path: str
    socket_dir: str
    shim_cgroup: str
    legacy: bool

    def result(self) -> bytes:
        """Return what the daemon is told: the shim's address, in the daemon's dialect."""
        address = f"unix://{self.path}"
        if self.legacy:
            return address.encode()
        return bytes(api.bootstrap.BootstrapResult(version=3, address=address, protocol="ttrpc"))


class _Spec(msgspec.Struct):
    annotations: dict[str, str] | None = None


def read_params(stdin: bytes, identity: Identity) -> Params:
    """Return the contents of `start`'s stdin. In the older dialect it may be empty, or options of any type."""
    try:
        params = api.bootstrap.BootstrapParams.parse(stdin)
    except Exception:  # noqa: BLE001 - malformed bytes make the parser raise nearly anything
        params = None
    if params and (params.instance_id, params.namespace) == (identity.id, identity.namespace):
        options = _options(extension.value for extension in params.extensions)
        return Params(legacy=False, socket_dir=params.socket_dir or "", options=options)
    try:
        value = api.protobuf.Any.parse(stdin)
    except Exception:  # noqa: BLE001 - as above
        return Params(legacy=True)
    return Params(legacy=True, options=_options([value]))


def group_of(identity: Identity) -> str:
    """Return the name that containers of one shim have in common; without a group, the container's id."""
    try:
        spec = gojson.decode((identity.bundle / "config.json").read_bytes(), _Spec)
    except (OSError, msgspec.MsgspecError):
        return identity.id
    annotations = spec.annotations or {}
    return next((annotations[name] for name in GROUP_ANNOTATIONS if annotations.get(name)), identity.id)


def socket_path(directory: str, identity: Identity, group: str, *debug: str) -> str:
    """Return where the shim of a group listens. Raises InvalidArgument if the path is too long for a socket."""
    joined = os.path.normpath("/".join((identity.grpc_address, identity.namespace, group, *debug)))
    path = f"{directory}/{hashlib.sha256(joined.encode()).hexdigest()}"
    if len(path) > _PATH_LIMIT_BYTES:
        raise InvalidArgument(f"{path}: unix socket path too long (> {_PATH_LIMIT_BYTES})")
    return path


def plan(stdin: bytes, identity: Identity) -> Plan:
    """Decide where the shim of `identity` listens. Raises InvalidArgument."""
    params = read_params(stdin, identity)
    path = socket_path(params.socket_dir or default_socket_dir(), identity, group_of(identity))
    shim_cgroup = params.options.shim_cgroup
    return Plan(path=path, socket_dir=params.socket_dir, shim_cgroup=shim_cgroup, legacy=params.legacy)


def open_listener(planned: Plan, bundle: Path) -> socket.socket | None:
    """Return the socket for a new shim; None if the group's shim serves already."""
    if planned.socket_dir:
        _link_socket_dir(bundle, planned.socket_dir)
    return listen(planned.path)


def listen(path: str) -> socket.socket | None:
    """Return a socket that listens on `path`, mode 0600; None if another shim answers there already."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if not _bind(listener, path):
            listener.close()
            return None
        os.chmod(path, 0o600)
        listener.listen(128)
    except BaseException:
        listener.close()
        raise
    return listener


def remove_stale_socket(identity: Identity) -> None:
    """Remove the socket of a dead shim. If another shim of the group answers on it, it stays."""
    link = identity.bundle / "s"
    directory = str(link.readlink()) if link.is_symlink() else default_socket_dir()
    path = Path(socket_path(directory, identity, group_of(identity)))
    if path.exists() and not _answers(str(path)):
        path.unlink(missing_ok=True)


def default_socket_dir() -> str:
    """Return containerd's directory for shim sockets; without root, the first usual place that can be made."""
    if os.geteuid() == 0:
        return SOCKET_DIR
    uid, runtime_dir = os.geteuid(), os.environ.get("XDG_RUNTIME_DIR")
    places = [SOCKET_DIR, f"{runtime_dir}/containerd/s" if runtime_dir else "", f"/run/{uid}/containerd/s"]
    for place in filter(None, places):
        try:
            os.makedirs(place, mode=0o700, exist_ok=True)
        except OSError:
            continue
        if os.access(place, os.W_OK):
            return place
    return f"/tmp/containerd-s-{uid}"


def oom_score_adj_for_child_of(pid: int | str) -> int | None:
    """Return the OOM score adjustment for a shim of daemon `pid`: one above, at most 1000; None if unknown."""
    try:
        return min(int(Path(f"/proc/{pid}/oom_score_adj").read_text()) + 1, 1000)
    except (OSError, ValueError):
        return None


def set_oom_score_adj(score: int | None) -> None:
    """Set the own OOM score adjustment. It is no failure if that is not permitted."""
    if score is None:
        return
    fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, b"%d" % score)
    except PermissionError:
        return
    finally:
        os.close(fd)


def _link_socket_dir(bundle: Path, directory: str) -> None:
    link = bundle / "s"
    link.unlink(missing_ok=True)
    link.symlink_to(directory)


def _bind(listener: socket.socket, path: str) -> bool:
    try:
        listener.bind(path)
    except OSError as failure:
        if failure.errno != errno.EADDRINUSE:
            raise
        if _answers(path):
            return False
        os.unlink(path)
        listener.bind(path)
    return True


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def _options(values: Iterable[api.protobuf.Any | None]) -> RuncOptions:
    for value in values:
        if value is not None and value.type_url.rpartition("/")[2] == OPTIONS_URL:
            try:
                return options_from_wire(value)
            except ContainerdError:
                continue  # Create refuses them
    return RuncOptions()
