"""Make the runtime spec of a container from an image's config and the wishes of whoever runs it.

Pure functions. The defaults are those of containerd's client library and `ctr` (facts/runtime 7.1, 7.2). An image
decides what runs inside its container and nothing else: its labels become neither spec annotations nor container
labels.
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
    """A mount that the container shall get."""

    destination: str
    source: str
    type: str = "bind"
    options: tuple[str, ...] = ()


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """The changes that a user asks for to the image's config and the defaults.

    `args` replace the image's command and keep its entrypoint. With 0, `memory_bytes` and `cpus` set no limit.
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
    """Return the whole spec. Raises InvalidArgument when neither `image` nor `wishes` names a program."""
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
    """Encode the spec as a container record holds it."""
    return typeurl.Any(typeurl.SPEC_URL, json.dumps(spec, separators=(",", ":")).encode())


def from_any(value: typeurl.Any | None) -> Spec:
    """Decode the spec of a container record. Raises InvalidArgument when the record has no readable spec."""
    if value is None or value.type_url.rpartition("/")[2] != "Spec":
        raise InvalidArgument("the container has no OCI spec")
    spec = msgspec.json.decode(value.value)
    if not isinstance(spec, dict):
        raise InvalidArgument("the container's OCI spec is not an object")
    return spec


def exec_process(spec: Spec, args: Sequence[str], *, tty: bool, cwd: str = "", user: User | None = None) -> typeurl.Any:
    """Return the process of an exec: the container's own process with other arguments."""
    process = {**spec.get("process", {}), "args": list(args), "terminal": tty}
    if cwd:
        process["cwd"] = cwd
    if user is not None:
        process["user"] = _user(user)
    if tty:
        process["env"] = merge_env(process.get("env") or (), ["TERM=xterm"])
    return typeurl.Any(typeurl.PROCESS_URL, json.dumps(process, separators=(",", ":")).encode())


def merge_env(base: Sequence[str], changes: Sequence[str]) -> list[str]:
    """Return `base` with each `KEY=value` of `changes` set. A bare `KEY` in `changes` removes the variable."""
    merged = {entry.partition("=")[0]: entry for entry in base}
    for change in changes:
        key, assigned, _ = change.partition("=")
        if assigned:
            merged[key] = change
        else:
            merged.pop(key, None)
    return list(merged.values())


def command_of(image: ContainerConfig, args: Sequence[str]) -> list[str]:
    """Return the entrypoint followed by `args`, or by the image's command when `args` is empty."""
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
    """Return the mounts of /etc/hosts and /etc/resolv.conf that a container on the host's network needs."""
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
    """Parse `type=bind,src=/a,dst=/b,options=rbind:ro`. Raises InvalidArgument naming the part that is wrong."""
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
