"""The runtime spec of a container, made of an image's configuration and the wishes of who runs it.

Pure functions: the default of containerd's client library with the choices of `ctr` (facts/runtime 7.1, 7.2). An image
decides what runs inside of its container and nothing else; its labels never become spec or container labels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec

from aiocontainerd import typeurl
from aiocontainerd.errors import InvalidArgument
from aiocontainerd.oci import spec_defaults as defaults
from aiocontainerd.oci.image import ContainerConfig
from aiocontainerd.oci.user import User

_NONE: Mapping[str, str] = MappingProxyType({})
CPU_PERIOD_US = 100_000
Spec = dict[str, Any]


class MountWish(msgspec.Struct, frozen=True):
    """A mount into the container."""

    destination: str
    source: str
    type: str = "bind"
    options: tuple[str, ...] = ()


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """What who runs a container wants other than the image and the defaults say.

    `args` replace the image's command and leave its entrypoint. `memory_bytes` and `cpus` 0 mean no limit.
    """

    args: Sequence[str] = ()
    env: Sequence[str] = ()
    cwd: str = ""
    tty: bool = False
    hostname: str = ""
    net_host: bool = False
    mounts: Sequence[MountWish] = ()
    privileged: bool = False
    read_only: bool = False
    memory_bytes: int = 0
    cpus: float = 0.0
    annotations: Mapping[str, str] = _NONE
    labels: Mapping[str, str] = _NONE


def make(namespace: str, container_id: str, image: ContainerConfig, user: User, wishes: Wishes) -> Spec:
    """The whole spec. Raises InvalidArgument where nothing says what to run."""
    spec: Spec = {
        "ociVersion": "1.1.0",
        "process": _process(image, user, wishes),
        "root": {"path": "rootfs", **({"readonly": True} if wishes.read_only else {})},
        "mounts": [*defaults.mounts(), *_host_files(wishes), *(_mount(mount) for mount in wishes.mounts)],
        "linux": _linux(namespace, container_id, wishes),
    }
    if wishes.hostname:
        spec["hostname"] = wishes.hostname
    if wishes.labels or wishes.annotations:
        spec["annotations"] = {**wishes.labels, **wishes.annotations}
    if wishes.privileged:
        _privilege(spec)
    return spec


def to_any(spec: Spec) -> typeurl.Any:
    """The spec as a container record holds it."""
    return typeurl.Any(typeurl.SPEC_URL, json.dumps(spec, separators=(",", ":")).encode())


def from_any(value: typeurl.Any | None) -> Spec:
    """The spec of a container record. Raises InvalidArgument where it has none that can be read."""
    if value is None or value.type_url.rpartition("/")[2] != "Spec":
        raise InvalidArgument("the container has no OCI spec")
    spec = msgspec.json.decode(value.value)
    if not isinstance(spec, dict):
        raise InvalidArgument("the container's OCI spec is not an object")
    return spec


def exec_process(spec: Spec, args: Sequence[str], *, tty: bool, cwd: str = "", user: User | None = None) -> typeurl.Any:
    """The process of an exec: the container's own with other arguments."""
    process = {**spec.get("process", {}), "args": list(args), "terminal": tty}
    if cwd:
        process["cwd"] = cwd
    if user is not None:
        process["user"] = _user(user)
    if tty:
        process["env"] = merge_env(process.get("env") or (), ["TERM=xterm"])
    return typeurl.Any(typeurl.PROCESS_URL, json.dumps(process, separators=(",", ":")).encode())


def merge_env(base: Sequence[str], changes: Sequence[str]) -> list[str]:
    """`base` with the `KEY=value` of `changes` set; a bare `KEY` in `changes` unsets it."""
    merged = {entry.partition("=")[0]: entry for entry in base}
    for change in changes:
        key, assigned, _ = change.partition("=")
        if assigned:
            merged[key] = change
        else:
            merged.pop(key, None)
    return list(merged.values())


def command_of(image: ContainerConfig, args: Sequence[str]) -> list[str]:
    """What to run: the entrypoint with `args`, or with the image's command where there are none."""
    command = [*(image.entrypoint or ()), *(args or image.cmd or ())]
    if not command:
        raise InvalidArgument("no arguments specified: neither the image nor the command line says what to run")
    return command


def _process(image: ContainerConfig, user: User, wishes: Wishes) -> dict[str, Any]:
    env = list(image.env or (defaults.DEFAULT_PATH,))
    if not any(entry.startswith("PATH=") for entry in env):
        env.insert(0, defaults.DEFAULT_PATH)
    added = ["TERM=xterm"] if wishes.tty else []
    return {
        **({"terminal": True} if wishes.tty else {}),
        "user": _user(user),
        "args": command_of(image, wishes.args),
        "env": merge_env(env, [*added, *wishes.env]),
        "cwd": wishes.cwd or image.working_dir or "/",
        "capabilities": defaults.capabilities(defaults.CAPABILITIES),
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
        "noNewPrivileges": True,
    }


def _user(user: User) -> dict[str, Any]:
    extra = {"additionalGids": list(user.additional_gids)} if user.additional_gids else {}
    return {"uid": user.uid, "gid": user.gid, **extra}


def _linux(namespace: str, container_id: str, wishes: Wishes) -> dict[str, Any]:
    kinds = [kind for kind in defaults.NAMESPACES if not (wishes.net_host and kind == "network")]
    return {
        "cgroupsPath": f"/{namespace}/{container_id}",
        "namespaces": [{"type": kind} for kind in kinds],
        "resources": _resources(wishes),
        "maskedPaths": list(defaults.MASKED_PATHS),
        "readonlyPaths": list(defaults.READONLY_PATHS),
    }


def _resources(wishes: Wishes) -> dict[str, Any]:
    cpu: dict[str, int] = {"shares": defaults.CPU_SHARES}
    if wishes.cpus > 0:
        cpu |= {"quota": int(wishes.cpus * CPU_PERIOD_US), "period": CPU_PERIOD_US}
    resources: dict[str, Any] = {"devices": defaults.device_rules(), "cpu": cpu}
    if wishes.memory_bytes > 0:
        resources["memory"] = {"limit": wishes.memory_bytes}
    return resources


def _host_files(wishes: Wishes) -> list[dict[str, Any]]:
    """With the host's network come the files that say how to use it."""
    if not wishes.net_host:
        return []
    paths = ("/etc/hosts", "/etc/resolv.conf")
    return [_mount(MountWish(path, path, "bind", ("rbind", "ro"))) for path in paths]


def _mount(wish: MountWish) -> dict[str, Any]:
    made: dict[str, Any] = {"destination": wish.destination, "type": wish.type, "source": wish.source}
    return {**made, "options": list(wish.options)} if wish.options else made


def _privilege(spec: Spec) -> None:
    spec["process"]["capabilities"] = defaults.capabilities(defaults.ALL_CAPABILITIES)
    spec["process"]["noNewPrivileges"] = False
    spec["linux"].pop("maskedPaths")
    spec["linux"].pop("readonlyPaths")
    spec["linux"]["resources"]["devices"] = [{"allow": True, "access": "rwm"}]
    for mount in spec["mounts"]:
        if mount["type"] in ("sysfs", "cgroup"):
            mount["options"] = ["rw" if option == "ro" else option for option in mount["options"]]


def parse_mount(text: str) -> MountWish:
    """A mount as `type=bind,src=/a,dst=/b,options=rbind:ro`. Raises InvalidArgument naming what is wrong."""
    values: dict[str, str] = {}
    for part in text.split(","):
        key, assigned, value = part.partition("=")
        name = {"src": "source", "dst": "destination", "target": "destination"}.get(key, key)
        if not assigned or name not in ("type", "source", "destination", "options"):
            raise InvalidArgument(f'mount "{text}": "{part}" is none of type=, src=, dst=, options=')
        values[name] = value
    if not values.get("destination"):
        raise InvalidArgument(f'mount "{text}": dst= is missing')
    options = tuple(option for option in values.get("options", "").split(":") if option)
    return MountWish(values["destination"], values.get("source", ""), values.get("type", "bind"), options)
