"""Top-level records of a config file, version 4, with their defaults (facts/core 16)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

import msgspec

from aiocontainerd.config.values import Checked, Duration, DurationText, EnvEntry, OwnerId, SocketAddress, TcpAddress

CURRENT_VERSION = 4
DEFAULT_PATH = "/etc/containerd/config.toml"
DEFAULT_IMPORTS = "/etc/containerd/conf.d/*.toml"
"""Import pattern in printed configs. Only imports that a file names are followed (facts/core 16)."""
DEFAULT_ROOT = "/var/lib/containerd"
DEFAULT_STATE = "/run/containerd"
DEFAULT_ADDRESS = "/run/containerd/containerd.sock"
MESSAGE_SIZE = 16 << 20

IsolationMode = Literal["none", "process"]
"""Where a plugin lives: in the daemon, or in a process of its own that the daemon keeps."""


_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*(:[^\W\d]\w*(\.[^\W\d]\w*)*)?\Z")
_VERSIONS = re.compile(r"\s*(===|~=|==|!=|<=|>=|<|>)\s*v?\d[\w.*+!-]*\s*\Z")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}\Z")


class ConfigError(Exception):
    """Raised for a config that cannot be used. The text names file, line and key, and the nearest key if any."""


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the top-level records."""


class Isolation(msgspec.Struct, frozen=True, kw_only=True):
    """A plugin's own process. `module` is the path it was registered from; ids of None are the daemon's own."""

    module: str
    uid: int | None = None
    gid: int | None = None


class Debug(Record, frozen=True):
    """`level` is trace, debug, info, warn, error, fatal or panic, in any case ("" is info); `format` is text or json.

    A plugin that keeps the event loop for longer than `block_threshold` is named in the log; "0s" does not look.
    """

    level: str = ""
    format: str = ""
    log_trace_id: bool = False
    block_threshold: Duration = Duration("200ms")


class Cgroup(Record, frozen=True):
    """`path`: the cgroup that the daemon joins; "" leaves it where it was started."""

    path: str = ""


class StreamProgram(Record, frozen=True):
    """A program that turns a layer of a media type in `accepts` into `returns`, from standard input to standard output.

    `path` is looked for in the daemon's PATH; `env` (`NAME=value`) is added to the daemon's own. The program has the
    input's type in `STREAM_PROCESSOR_MEDIATYPE`, and on descriptor 3 the payload that a client sent for it.
    """

    accepts: tuple[str, ...] = ()
    returns: str = ""
    path: str = ""
    args: tuple[str, ...] = ()
    env: tuple[EnvEntry, ...] = ()


def _decryption(compression: str) -> StreamProgram:
    layer = f"application/vnd.oci.image.layer.v1.tar{compression}"
    return StreamProgram(
        accepts=(f"{layer}+encrypted",),
        returns=layer,
        path="ctd-decoder",
        args=("--decryption-keys-path", "/etc/containerd/ocicrypt/keys"),
        env=("OCICRYPT_KEYPROVIDER_CONFIG=/etc/containerd/ocicrypt/ocicrypt_keyprovider.conf",),
    )


STREAM_PROCESSORS: Mapping[str, StreamProgram] = MappingProxyType(
    {
        "io.containerd.ocicrypt.decoder.v1.tar": _decryption(""),
        "io.containerd.ocicrypt.decoder.v1.tar.gzip": _decryption("+gzip"),
    }
)
"""Containerd's own, for encrypted images (facts/core 8, 16). A table with the same id replaces one whole."""


def _module_path(text: str) -> None:
    if not _MODULE.match(text):
        raise ValueError(f'"{text}" is no path of a module; write it as acme.plugin or acme.plugin:Plugin')


ModulePath = Annotated[str, Checked(_module_path)]
"""The path of a Python module, with or without the name of a class or function in it."""


def _sha256(text: str) -> None:
    if text and not _SHA256.match(text):
        raise ValueError(f'"{text}" is no SHA-256; it has 64 hexadecimal digits')


Sha256 = Annotated[str, Checked(_sha256)]
"""A SHA-256 in hex, or "" for none."""


def _version_range(text: str) -> None:
    if text and not all(_VERSIONS.match(part) for part in text.split(",")):
        raise ValueError(f'"{text}" is no range of versions; write it as >=1.2,<2')


VersionRange = Annotated[str, Checked(_version_range)]
"""Versions of a package, such as `>=1.2,<2`, or "" for any."""


class ProxyPlugin(Record, frozen=True):
    """A plugin that runs in a process of its own, behind a gRPC socket."""

    type: str = ""
    address: str = ""
    platform: str = ""
    exports: dict[str, str] = {}
    capabilities: tuple[str, ...] = ()


class PythonPlugin(Record, frozen=True):
    """A plugin that is loaded by its module path, such as `acme.plugin` or `acme.plugin:Plugin`.

    `isolation` keeps it apart from the daemon; `uid` and `gid` are those of its process, the daemon's own if absent.
    """

    module: ModulePath
    isolation: IsolationMode = "none"
    uid: OwnerId | None = None
    gid: OwnerId | None = None


class AllowedPackage(Record, frozen=True):
    """One package, or a pattern of names, that may bring plugins.

    `kinds` are the kinds it may bring, as patterns, none for every kind; `version` is a range such as `>=1.2,<2`;
    `record_sha256` pins the RECORD of the installed package, whose files must then be as it says.
    """

    distribution: str
    kinds: tuple[str, ...] = ()
    version: VersionRange = ""
    record_sha256: Sha256 = ""


class PluginPolicy(Record, frozen=True):
    """`allow`: which packages may bring plugins; any may until one is named, then only those may.

    An entry is a name or pattern, or a table with `distribution`, `kinds`, `version` and `record_sha256`. `replace`:
    plugins of the daemon, such as `io.containerd.snapshotter.v1.native`, whose id another package may take over.
    """

    allow: tuple[str | AllowedPackage, ...] = ()
    replace: tuple[str, ...] = ()


class GrpcSection(Record, frozen=True):
    """`[grpc]` up to version 3."""

    address: SocketAddress = ""
    tcp_address: TcpAddress = ""
    tcp_tls_ca: str = ""
    tcp_tls_cert: str = ""
    tcp_tls_key: str = ""
    tcp_tls_common_name: str = ""
    uid: OwnerId = 0
    gid: OwnerId = 0
    max_recv_message_size: int = 0
    max_send_message_size: int = 0


class TtrpcSection(Record, frozen=True):
    """`[ttrpc]` up to version 3."""

    address: SocketAddress = ""
    uid: OwnerId = 0
    gid: OwnerId = 0


class DebugSection(Debug, frozen=True):
    """`[debug]` up to version 3."""

    address: str = ""
    uid: OwnerId = 0
    gid: OwnerId = 0


class MetricsSection(Record, frozen=True):
    """`[metrics]` up to version 3."""

    address: str = ""
    grpc_histogram: bool = False


class Settings(Record, frozen=True):
    """Everything outside `[plugins]`."""

    version: int = CURRENT_VERSION
    root: str = DEFAULT_ROOT
    state: str = DEFAULT_STATE
    temp: str = ""
    disabled_plugins: tuple[str, ...] = ()
    required_plugins: tuple[str, ...] = ()
    oom_score: Annotated[int, msgspec.Meta(ge=-1000, le=1000)] = 0
    imports: tuple[str, ...] = ()
    debug: Debug = Debug()
    cgroup: Cgroup = Cgroup()
    timeouts: dict[str, DurationText] = {}
    stream_processors: dict[str, StreamProgram] = {}
    proxy_plugins: dict[str, ProxyPlugin] = {}
    python_plugins: dict[str, PythonPlugin] = {}
    plugin_isolation: dict[str, IsolationMode] = {}
    plugin_policy: PluginPolicy = PluginPolicy()


class File(Settings, frozen=True):
    """Everything that a file of any version may have outside of the plugins' tables, before it is migrated.

    Keys below `[plugins]` are checked when it is known which plugins there are.
    """

    plugins: dict[str, Any] = {}
    grpc: GrpcSection = GrpcSection()
    ttrpc: TtrpcSection = TtrpcSection()
    debug: DebugSection = DebugSection()
    metrics: MetricsSection = MetricsSection()
