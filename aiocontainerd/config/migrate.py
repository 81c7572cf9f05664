"""Migrate older config versions to version 4: which key moves where (facts/core 16). Works on trees alone."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from aiocontainerd import kinds
from aiocontainerd.config import hints
from aiocontainerd.config.records import CURRENT_VERSION, ConfigError
from aiocontainerd.config.source import KeyPath, Origin, Origins, Tree
from aiocontainerd.config.spelling import move_origins, rename_origins

GRPC = f"{kinds.SERVER}.grpc"
GRPC_TCP = f"{kinds.SERVER}.grpc-tcp"
TTRPC = f"{kinds.SERVER}.ttrpc"
DEBUG = f"{kinds.SERVER}.debug"
METRICS = f"{kinds.SERVER}.metrics"
TASK_RUNTIME = f"{kinds.RUNTIME}.task"
SHIM_MANAGER = f"{kinds.SHIM}.manager"

TTRPC_SUFFIX = ".ttrpc"
_TABLE_OF_GRPC: KeyPath = ("plugins", GRPC)
_TABLE_OF_TTRPC: KeyPath = ("plugins", TTRPC)
GRPC_ADDRESS: KeyPath = (*_TABLE_OF_GRPC, "address")

_SHORT_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "aufs": f"{kinds.SNAPSHOTTER}.aufs",
        "bolt": f"{kinds.METADATA}.bolt",
        "btrfs": f"{kinds.SNAPSHOTTER}.btrfs",
        "cgroups": "io.containerd.monitor.v1.cgroups",
        "content": f"{kinds.CONTENT}.content",
        "cri": f"{kinds.GRPC}.cri",
        "linux": "io.containerd.runtime.v1.linux",
        "otlp": f"{kinds.TRACING_PROCESSOR}.otlp",
        "tracing": f"{kinds.INTERNAL}.tracing",
        "devmapper": f"{kinds.SNAPSHOTTER}.devmapper",
        "diff-service": f"{kinds.SERVICE}.diff-service",
        "native": f"{kinds.SNAPSHOTTER}.native",
        "opt": f"{kinds.INTERNAL}.opt",
        "overlayfs": f"{kinds.SNAPSHOTTER}.overlayfs",
        "restart": f"{kinds.INTERNAL}.restart",
        "scheduler": f"{kinds.GC}.scheduler",
        "task": TASK_RUNTIME,
        "walking": f"{kinds.DIFFER}.walking",
        "zfs": f"{kinds.SNAPSHOTTER}.zfs",
    }
)
"""Version 1 named plugins by their id alone. Any other name is that of a service, or of what serves one."""

_SECTIONS: Mapping[KeyPath, tuple[str, str]] = MappingProxyType(
    {
        ("grpc", "address"): (GRPC, "address"),
        ("grpc", "uid"): (GRPC, "uid"),
        ("grpc", "gid"): (GRPC, "gid"),
        ("grpc", "max_recv_message_size"): (GRPC, "max_recv_message_size"),
        ("grpc", "max_send_message_size"): (GRPC, "max_send_message_size"),
        ("grpc", "tcp_address"): (GRPC_TCP, "address"),
        ("grpc", "tcp_tls_ca"): (GRPC_TCP, "tls_ca"),
        ("grpc", "tcp_tls_cert"): (GRPC_TCP, "tls_cert"),
        ("grpc", "tcp_tls_key"): (GRPC_TCP, "tls_key"),
        ("grpc", "tcp_tls_common_name"): (GRPC_TCP, "tls_common_name"),
        ("ttrpc", "address"): (TTRPC, "address"),
        ("ttrpc", "uid"): (TTRPC, "uid"),
        ("ttrpc", "gid"): (TTRPC, "gid"),
        ("debug", "address"): (DEBUG, "address"),
        ("debug", "uid"): (DEBUG, "uid"),
        ("debug", "gid"): (DEBUG, "gid"),
        ("metrics", "address"): (METRICS, "address"),
        ("metrics", "grpc_histogram"): (f"{kinds.METRICS}.grpc-prometheus", "grpc_histogram"),
    }
)
"""Keys of server sections up to version 3, and the plugin keys that replace them."""

_RENAMED_PLUGINS: Mapping[str, str] = MappingProxyType(
    {
        "io.containerd.internal.v1.restart": f"{kinds.CONTAINER_MONITOR}.restart",
        "io.containerd.monitor.v1.cgroups": f"{kinds.TASK_MONITOR}.cgroups",
    }
)

_LEGACY = ("grpc", "ttrpc", "metrics")
_NEEDS_ADDRESS = (GRPC_TCP, DEBUG, METRICS)
_SERVERS = frozenset(uri for uri, _ in _SECTIONS.values())


def version_of(tree: Tree) -> int:
    """Return the version that a file declares, 1 if it declares none: an imported file does not take its importer's.

    Raises ConfigError if it is no number, or newer than this program.
    """
    version = tree.get("version", 1)
    if not isinstance(version, int) or isinstance(version, bool):
        raise ConfigError(f"version must be a number, got {version!r}; write version = {CURRENT_VERSION}")
    if version < 0:
        raise ConfigError(f"there is no config version {version}; write version = {CURRENT_VERSION}")
    if version > CURRENT_VERSION:
        raise ConfigError(
            f"expected containerd config version equal to or less than `{CURRENT_VERSION}`, got `{version}`; "
            f"write version = {CURRENT_VERSION}, and leave out what only version {version} has"
        )
    return version


def migrate(tree: Tree, origins: Origins, version: int) -> list[tuple[KeyPath, str]]:
    """Migrate `tree` in place from `version` to the current one. `origins` moves along.

    Return what has no effect, each key with what to say of it. Such keys are gone from the tree.
    """
    if version <= 1:
        _name_in_full(tree, origins)
    idle = _move_sections(tree, origins) if version < CURRENT_VERSION else _old_sections(tree)
    if version < CURRENT_VERSION:
        _rename_tables(tree, origins, _RENAMED_PLUGINS)
        _move_sched_core(tree, origins)
    tree["version"] = CURRENT_VERSION
    return idle


def _name_in_full(tree: Tree, origins: Origins) -> None:
    lists = [tree.get(key, []) for key in ("disabled_plugins", "required_plugins")]
    named = [*tree.get("plugins", {}), *(name for names in lists for name in names)]
    _rename_tables(tree, origins, {name: _in_full(name) for name in named if "." not in name})


def _in_full(name: str) -> str:
    kind = kinds.SERVICE if name.endswith("-service") else kinds.GRPC
    return _SHORT_NAMES.get(name, f"{kind}.{name}")


def _rename_tables(tree: Tree, origins: Origins, names: Mapping[str, str]) -> None:
    plugins = tree.get("plugins", {})
    renames: dict[KeyPath, str] = {}
    for old, new in names.items():
        if old in plugins:
            plugins[new] = plugins.pop(old)
            renames["plugins", old] = new
    rename_origins(origins, renames)
    for key in ("disabled_plugins", "required_plugins"):
        if isinstance(tree.get(key), list):
            tree[key] = [names.get(uri, uri) for uri in tree[key]]


def _move_sections(tree: Tree, origins: Origins) -> list[tuple[KeyPath, str]]:
    """Move the keys of server sections to plugins' tables. A key that is empty or zero has its default (facts/core 16).

    A plugin that has a table already keeps it as it is.
    """
    plugins = tree.setdefault("plugins", {})
    taken = {uri for uri in plugins if uri in _SERVERS}
    idle: list[tuple[KeyPath, str]] = []
    for (section, key), (uri, new_key) in _SECTIONS.items():
        value = tree.get(section, {}).pop(key, None)
        if value and uri in taken:
            idle.append(((section, key), f'[{section}] {key} has no effect beside [plugins."{uri}"]'))
        elif value:
            plugins.setdefault(uri, {})[new_key] = value
            move_origins(origins, (section, key), ("plugins", uri, new_key))
            _note_table(origins, uri, new_key)
    if plugins.get(GRPC_TCP, {}).get("address") and GRPC_TCP not in taken:
        _copy_sizes(plugins, origins)
    for uri in _NEEDS_ADDRESS:
        if uri not in taken and not plugins.get(uri, {}).get("address"):
            plugins.pop(uri, None)
    _derive_ttrpc(tree, origins)
    return idle + _left(tree)


def _note_table(origins: Origins, uri: str, key: str) -> None:
    """Let the table of a plugin come from where its first key was written."""
    if ("plugins", uri, key) in origins:
        origins.setdefault(("plugins", uri), origins["plugins", uri, key])


def _copy_sizes(plugins: Tree, origins: Origins) -> None:
    """Give the TCP port the message sizes of `[grpc]`, which it shared with the socket."""
    for key in ("max_recv_message_size", "max_send_message_size"):
        if key in plugins.get(GRPC, {}):
            plugins[GRPC_TCP][key] = plugins[GRPC][key]
            origins["plugins", GRPC_TCP, key] = origins["plugins", GRPC, key]


def _left(tree: Tree) -> list[tuple[KeyPath, str]]:
    """Take unknown keys out of the server sections, and the sections out of the tree; return key and reason."""
    left = {section: tree.pop(section, {}) for section in _LEGACY}
    return [((section, key), hints.in_section(section, key)) for section, table in left.items() for key in table]


def _old_sections(tree: Tree) -> list[tuple[KeyPath, str]]:
    """Take sections of version 3, which nobody reads, out of a tree of version 4; return key and remedy."""
    sections = [section for section in _LEGACY if tree.pop(section, None)]
    debug = tree.get("debug", {})
    keys = [key for key in ("address", "uid", "gid") if debug.pop(key, None)]
    return [((section,), hints.in_old_section(section)) for section in sections] + [
        (("debug", key), hints.in_old_section("debug", key)) for key in keys
    ]


def _derive_ttrpc(tree: Tree, origins: Origins) -> None:
    """Set an unset ttrpc address: before version 4 it was the gRPC address with `.ttrpc`, and had the same owner."""
    grpc = tree.get("plugins", {}).get(GRPC, {})
    if tree.get("plugins", {}).get(TTRPC, {}).get("address"):
        return
    address = grpc.get("address")
    if not (address and isinstance(address, str)):
        tree.get("plugins", {}).get(TTRPC, {}).pop("address", None)
        return
    ttrpc = {"address": f"{address}{TTRPC_SUFFIX}", **{key: grpc[key] for key in ("uid", "gid") if key in grpc}}
    tree["plugins"][TTRPC] = ttrpc
    for key in ttrpc:
        if (*_TABLE_OF_GRPC, key) in origins:
            origins[*_TABLE_OF_TTRPC, key] = origins[*_TABLE_OF_GRPC, key]


def move_ttrpc(tree: Tree, origins: Origins, address: str, origin: Origin) -> None:
    """Put the ttrpc socket beside the gRPC socket of a flag, unless a file sets its address."""
    ttrpc = tree.setdefault("plugins", {}).setdefault(TTRPC, {})
    derived = origins.get((*_TABLE_OF_TTRPC, "address")) == origins.get(GRPC_ADDRESS)
    if derived or not ttrpc.get("address"):
        ttrpc["address"] = f"{address}{TTRPC_SUFFIX}"
        origins[*_TABLE_OF_TTRPC, "address"] = origin


def _move_sched_core(tree: Tree, origins: Origins) -> None:
    """Move `sched_core` to the shim's environment. What is no boolean stays, and is a key without effect."""
    runtime = tree.get("plugins", {}).get(TASK_RUNTIME, {})
    if not isinstance(runtime.get("sched_core"), bool):
        return
    if runtime.pop("sched_core"):
        env = tree["plugins"].setdefault(SHIM_MANAGER, {}).setdefault("env", [])
        if isinstance(env, list):
            env.append("SCHED_CORE=1")
        move_origins(origins, ("plugins", TASK_RUNTIME, "sched_core"), ("plugins", SHIM_MANAGER, "env"))
        _note_table(origins, SHIM_MANAGER, "env")
