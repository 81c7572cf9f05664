"""Make the runtime spec of a container from an image's config and the wishes of whoever runs it.

Pure functions. The defaults are those of containerd's client library and `ctr` (facts/runtime 7.1, 7.2). An image
decides what runs inside its container and nothing else: its labels become neither spec annotations nor container
labels.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec

from aiocontainerd import typeurl
from aiocontainerd.errors import InvalidArgument
from aiocontainerd.oci import spec_defaults as defaults
from aiocontainerd.oci.host import HostFacts
from aiocontainerd.oci.image import ContainerConfig
from aiocontainerd.oci.user import User

_NONE: Mapping[str, str] = MappingProxyType({})
_UNKNOWN = HostFacts()
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

    `args` replace the image's entrypoint and command. With 0, `memory_bytes` and `cpus` set no limit.
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


def make(
    namespace: str, container_id: str, image: ContainerConfig, user: User, wishes: Wishes, host: HostFacts = _UNKNOWN
) -> Spec:
    """Return the whole spec. Raises InvalidArgument when neither `image` nor `wishes` names a program.

    `host` counts where `needs_host` says so.
    """
    spec: Spec = {
        "ociVersion": "1.1.0",
        "process": _process(image, user, wishes, host),
        "root": {"path": "rootfs", **({"readonly": True} if wishes.read_only else {})},
        "mounts": [*_default_mounts(wishes), *(_mount(mount) for mount in wishes.mounts), *_host_files(wishes)],
        "linux": _linux(namespace, container_id, wishes),
    }
    if wishes.hostname:
        spec["hostname"] = wishes.hostname
    if wishes.labels or wishes.annotations:
        spec["annotations"] = {**wishes.annotations, **wishes.labels}
    if wishes.privileged:
        _privilege(spec, host)
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
    """Return `base` with each `KEY=value` of `changes` set, as containerd's client library does it.

    A change takes the place of the last entry of its key, else it is appended. A bare `KEY` in `changes` removes that
    entry. Entries of `base` are kept as they are, also bare or repeated ones; empty ones are dropped.
    """
    merged = list(base)
    places = {entry.partition("=")[0]: place for place, entry in enumerate(base)}
    for change in changes:
        key, assigned, _ = change.partition("=")
        if key in places:
            merged[places[key]] = change if assigned else ""
        elif assigned:
            merged.append(change)
    return [entry for entry in merged if entry]


def needs_host(wishes: Wishes) -> bool:
    """Return whether a spec of these wishes depends on the host and the capabilities of the caller."""
    return wishes.privileged or wishes.net_host


def command_of(image: ContainerConfig, args: Sequence[str]) -> list[str]:
    """Return `args`, or the image's entrypoint followed by its command when `args` is empty."""
    command = list(args) or [*(image.entrypoint or ()), *(image.cmd or ())]
    if not command:
        raise InvalidArgument("no arguments specified: neither the image nor the command line says what to run")
    return command


def _process(image: ContainerConfig, user: User, wishes: Wishes, host: HostFacts) -> dict[str, Any]:
    return {
        **({"terminal": True} if wishes.tty else {}),
        "user": _user(user),
        "args": command_of(image, wishes.args),
        "env": _env(image, wishes, host),
        "cwd": wishes.cwd or image.working_dir or "/",
        "capabilities": defaults.capabilities(defaults.CAPABILITIES),
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
        "noNewPrivileges": True,
    }


def _env(image: ContainerConfig, wishes: Wishes, host: HostFacts) -> list[str]:
    env = merge_env(image.env or (defaults.DEFAULT_PATH,), merge_env((), wishes.env))
    if wishes.tty:
        env.append("TERM=xterm")
    return merge_env(env, [f"HOSTNAME={host.name}"]) if wishes.net_host else env


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


def _default_mounts(wishes: Wishes) -> list[dict[str, Any]]:
    """Return the default mounts without those that a wish replaces."""
    replaced = {wish.destination for wish in wishes.mounts}
    return [mount for mount in defaults.mounts() if mount["destination"] not in replaced]


def _host_files(wishes: Wishes) -> list[dict[str, Any]]:
    """Return the mounts of /etc/hosts and /etc/resolv.conf that a container on the host's network needs."""
    if not wishes.net_host:
        return []
    paths = ("/etc/hosts", "/etc/resolv.conf")
    return [_mount(MountWish(path, path, "bind", ("rbind", "ro"))) for path in paths]


def _mount(wish: MountWish) -> dict[str, Any]:
    made = {"destination": wish.destination, "type": wish.type, "source": wish.source, "options": list(wish.options)}
    return {key: value for key, value in made.items() if value}


def _privilege(spec: Spec, host: HostFacts) -> None:
    spec["process"]["capabilities"] = defaults.capabilities(host.capabilities)
    spec["linux"]["devices"] = list(host.devices)
    spec["linux"].pop("maskedPaths")
    spec["linux"].pop("readonlyPaths")
    spec["linux"]["resources"]["devices"] = [{"allow": True, "access": "rwm"}]
    for mount in spec["mounts"]:
        if mount["type"] in ("sysfs", "cgroup"):
            mount["options"] = ["rw" if option == "ro" else option for option in mount["options"]]


def parse_mount(text: str) -> MountWish:
    """Parse `type=bind,src=/a,dst=/b,options=rbind:ro`, a line of CSV. Raises InvalidArgument naming the wrong part."""
    values: dict[str, str] = {}
    for part in next(csv.reader([text]), []):
        key, assigned, value = part.partition("=")
        name = {"src": "source", "dst": "destination", "target": "destination"}.get(key, key)
        if not assigned or name not in ("type", "source", "destination", "options"):
            raise InvalidArgument(f'mount "{text}": "{part}" is none of type=, src=, dst=, options=')
        values[name] = value
    if not values.get("destination"):
        raise InvalidArgument(f'mount "{text}": dst= is missing')
    options = tuple(option for option in values.get("options", "").split(":") if option)
    return MountWish(values["destination"], values.get("source", ""), values.get("type", ""), options)
