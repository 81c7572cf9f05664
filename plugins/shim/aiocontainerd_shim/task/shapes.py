"""The Go types of what a shim reads as JSON, so that JSON which does not fit is refused as containerd refuses it.

They are those of the runtime-spec's Go package: the fields of each struct, its name under "".
"""

from __future__ import annotations

from aiocontainerd.gojson import Shape

_STRINGS: Shape = ["string"]
_CAPABILITIES: Shape = {
    "": "specs.LinuxCapabilities", "bounding": _STRINGS, "effective": _STRINGS, "inheritable": _STRINGS,
    "permitted": _STRINGS, "ambient": _STRINGS,
}  # fmt: skip
PROCESS: dict[str, Shape] = {
    "": "specs.Process",
    "terminal": "bool",
    "consoleSize": {"": "specs.Box", "height": "uint", "width": "uint"},
    "user": {
        "": "specs.User", "uid": "uint32", "gid": "uint32", "umask": "uint32", "additionalGids": ["uint32"],
        "username": "string",
    },
    "args": _STRINGS,
    "commandLine": "string",
    "env": _STRINGS,
    "cwd": "string",
    "capabilities": _CAPABILITIES,
    "rlimits": [{"": "specs.POSIXRlimit", "type": "string", "hard": "uint64", "soft": "uint64"}],
    "noNewPrivileges": "bool",
    "apparmorProfile": "string",
    "oomScoreAdj": "int",
    "selinuxLabel": "string",
}  # fmt: skip
RESOURCES: dict[str, Shape] = {
    "": "specs.LinuxResources",
    "memory": {
        "": "specs.LinuxMemory", "limit": "int64", "reservation": "int64", "swap": "int64", "kernel": "int64",
        "kernelTCP": "int64", "swappiness": "uint64", "disableOOMKiller": "bool", "useHierarchy": "bool",
        "checkBeforeUpdate": "bool",
    },
    "cpu": {
        "": "specs.LinuxCPU", "shares": "uint64", "quota": "int64", "burst": "uint64", "period": "uint64",
        "realtimeRuntime": "int64", "realtimePeriod": "uint64", "cpus": "string", "mems": "string", "idle": "int64",
    },
    "pids": {"": "specs.LinuxPids", "limit": "int64"},
    "hugepageLimits": [{"": "specs.LinuxHugepageLimit", "pageSize": "string", "limit": "uint64"}],
}  # fmt: skip
