"""The version of an OCI spec: what it says, what it really needs, and the same spec in an older version.

Clients write the version of the library that they were built with, whatever the spec uses. Some OCI runtimes refuse a
version that they do not know: crun before 1.9 takes 1.1.0 and nothing newer. Most specs use nothing that came after
1.0, so they can be handed over in an older version. The tables are those of the runtime-spec's own changelog.
Pure functions.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

import msgspec

from aiocontainerd import gojson

Version = tuple[int, int, int]

BASE = "1.0.2"
"""Every OCI runtime takes specs of this version."""
KNOWN = ("1.3.0", "1.2.1", "1.2.0", "1.1.0")
"""The later versions, from the newest down."""

_FIELDS: dict[str, tuple[str, ...]] = {
    "1.3.0": ("linux.netDevices", "linux.memoryPolicy", "linux.intelRdt.schemata", "linux.intelRdt.enableMonitoring"),
    "1.2.1": ("process.execCPUAffinity",),
    "1.1.0": (
        "domainname", "process.scheduler", "process.ioPriority", "mounts.*.uidMappings", "mounts.*.gidMappings",
        "linux.timeOffsets", "linux.resources.unified", "linux.resources.cpu.idle", "linux.resources.cpu.burst",
        "linux.resources.memory.checkBeforeUpdate", "linux.intelRdt.enableCMT", "linux.intelRdt.enableMBM",
        "linux.seccomp.defaultErrnoRet", "linux.seccomp.listenerPath", "linux.seccomp.listenerMetadata",
        "linux.seccomp.syscalls.*.errnoRet",
    ),
}  # fmt: skip
"""The fields that came with a version. A star stands for every element of a list."""
_ACTIONS_1_1 = ("SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_NOTIFY")
_VALUES: dict[str, dict[str, Collection[str]]] = {
    "1.2.1": {
        "linux.seccomp.architectures.*": (
            "SCMP_ARCH_LOONGARCH64", "SCMP_ARCH_M68K", "SCMP_ARCH_SH", "SCMP_ARCH_SHEB",
        ),
    },
    "1.2.0": {"mounts.*.options.*": ("idmap", "ridmap")},
    "1.1.0": {
        "linux.namespaces.*.type": ("time",),
        "linux.seccomp.flags.*": ("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",),
        "linux.seccomp.architectures.*": ("SCMP_ARCH_RISCV64",),
        "linux.seccomp.defaultAction": _ACTIONS_1_1,
        "linux.seccomp.syscalls.*.action": _ACTIONS_1_1,
    },
}  # fmt: skip
"""The values that came with a version, in fields that are older."""
_TRIPLE = re.compile(r"(\d+)\.(\d+)\.(\d+)")


class _Spec(msgspec.Struct):
    ociVersion: str = ""  # noqa: N815 - the spec's own name


def version_of(config: bytes) -> str:
    """Return what a config.json says of its version; an empty string for none, or for other bytes."""
    try:
        return gojson.decode(config, _Spec).ociVersion
    except msgspec.MsgspecError:
        return ""


def triple(version: str) -> Version:
    """Return the numbers of a version without `-rc.1` and the like; zeros for what is no version."""
    found = _TRIPLE.match(version)
    return (int(found[1]), int(found[2]), int(found[3])) if found else (0, 0, 0)


def is_later(version: str, highest: str) -> bool:
    """Return whether a runtime that takes specs up to `highest` may refuse one of `version`.

    A runtime that takes every version known here is trusted with the next one of the same major number, too.
    """
    number = triple(version)
    return number[0] == triple(highest)[0] and number > triple(highest) and highest != KNOWN[0]


def first_later(config: bytes, highest: str) -> str:
    """Return a field or value of a spec that came after version `highest`; an empty string if it uses none."""
    spec: object = gojson.decode(config, object)
    later = [version for version in KNOWN if triple(version) > triple(highest)]
    for path in (path for version in later for path in _FIELDS.get(version, ())):
        if any(_reached(spec, path.split("."))):
            return path
    for version in later:
        for path, values in _VALUES.get(version, {}).items():
            for value in _reached(spec, path.split(".")):
                if value in values:
                    return f"{path.removesuffix('.*')} {value}"
    return ""


def in_version(config: bytes, version: str) -> bytes:
    """Return a spec with another version, and everything else as it was."""
    spec = gojson.decode(config, dict[str, msgspec.Raw])
    spec["ociVersion"] = msgspec.Raw(msgspec.json.encode(version))
    return msgspec.json.encode(spec)


def _reached(value: object, path: list[str]) -> Iterator[object]:
    """Yield every value at a path."""
    if not path:
        yield value
    elif path[0] == "*":
        for element in value if isinstance(value, list) else ():
            yield from _reached(element, path[1:])
    elif isinstance(value, dict) and path[0] in value:
        yield from _reached(value[path[0]], path[1:])
