"""Migrate older config versions to version 4: which key moves where (facts/core 16). Works on trees alone."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from aiocontainerd import kinds
from aiocontainerd.config.records import CURRENT_VERSION, ConfigError
from aiocontainerd.config.source import KeyPath, Origin, Tree

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
"""Version 1 named plugins by their id alone."""

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

_GONE = ("plugin_dir",)
_NEEDS_ADDRESS = (GRPC_TCP, DEBUG, METRICS)

Origins = dict[KeyPath, Origin]


def version_of(tree: Tree, default: int) -> int:
    """Return the version that a file declares. Raises ConfigError if it is no number, or newer than this program."""
    version = tree.get("version", default)
    if not isinstance(version, int) or isinstance(version, bool):
        raise ConfigError(f"version must be a number, got {version!r}")
    if version > CURRENT_VERSION:
        raise ConfigError(
            f"expected containerd config version equal to or less than `{CURRENT_VERSION}`, got `{version}`"
        )
    return version


def migrate(tree: Tree, origins: Origins, version: int) -> None:
    """Migrate `tree` in place from `version` to the current one. `origins` moves along."""
    if version <= 1:
        _rename_tables(tree, origins, _SHORT_NAMES)
    for name in _GONE:
        tree.pop(name, None)
    if version < CURRENT_VERSION:
        _move_sections(tree, origins)
        _rename_tables(tree, origins, _RENAMED_PLUGINS)
        _move_sched_core(tree, origins)
    tree["version"] = CURRENT_VERSION


def _rename_tables(tree: Tree, origins: Origins, names: Mapping[str, str]) -> None:
    plugins = tree.get("plugins", {})
    for old, new in names.items():
        if old in plugins:
            plugins[new] = plugins.pop(old)
            _move_origins(origins, ("plugins", old), ("plugins", new))
    for key in ("disabled_plugins", "required_plugins"):
        if isinstance(tree.get(key), list):
            tree[key] = [names.get(uri, uri) for uri in tree[key]]


def _move_sections(tree: Tree, origins: Origins) -> None:
    for (section, key), (uri, new_key) in _SECTIONS.items():
        table = tree.get(section)
        if isinstance(table, dict) and key in table:
            _set_plugin_key(tree, uri, new_key, table.pop(key))
            _move_origins(origins, (section, key), ("plugins", uri, new_key))
    for section in ("grpc", "ttrpc", "metrics"):
        if tree.get(section) == {}:
            del tree[section]
    plugins = tree.get("plugins", {})
    for uri in _NEEDS_ADDRESS:
        if uri in plugins and not plugins[uri].get("address"):
            del plugins[uri]
    _derive_ttrpc(tree, origins)


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
    runtime = tree.get("plugins", {}).get(TASK_RUNTIME, {})
    if "sched_core" not in runtime:
        return
    if runtime.pop("sched_core"):
        env = tree["plugins"].setdefault(SHIM_MANAGER, {}).setdefault("env", [])
        if isinstance(env, list):
            env.append("SCHED_CORE=1")
        _move_origins(origins, ("plugins", TASK_RUNTIME, "sched_core"), ("plugins", SHIM_MANAGER, "env"))


def _set_plugin_key(tree: Tree, uri: str, key: str, value: Any) -> None:
    tree.setdefault("plugins", {}).setdefault(uri, {}).setdefault(key, value)


def _move_origins(origins: Origins, old: KeyPath, new: KeyPath) -> None:
    for key in [k for k in origins if k[: len(old)] == old]:
        origins[new + key[len(old) :]] = origins.pop(key)
