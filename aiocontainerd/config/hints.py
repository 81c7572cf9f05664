"""Say what is wrong with a key that nobody reads, and where it should be. Pure.

A hint names a remedy that would work, or there is none: a key that only looks a little alike is worse than silence.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from aiocontainerd.config import stock
from aiocontainerd.config.records import CURRENT_VERSION, File
from aiocontainerd.config.source import KeyPath, dotted

_NEAR = 0.7
_NEAR_URI = 0.8
_PREFIX = "io.containerd."
_TYPES = re.compile(r"Expected `(?P<wanted>\w+)[^`]*`.*, got `(?P<got>\w+)`\Z")
_FORMS: Mapping[str, str] = MappingProxyType(
    {"str": "one text in quotes", "int": "a whole number", "float": "a number", "bool": "true or false"}
)
"""Type -> how its values are written."""
_TOP = frozenset(field.name for field in msgspec.structs.fields(File))
_HOMES: Mapping[str, str] = MappingProxyType(
    {
        "address": 'plugins."io.containerd.server.v1.grpc"',
        "uid": 'plugins."io.containerd.server.v1.grpc"',
        "gid": 'plugins."io.containerd.server.v1.grpc"',
        "max_recv_message_size": 'plugins."io.containerd.server.v1.grpc"',
        "max_send_message_size": 'plugins."io.containerd.server.v1.grpc"',
        "level": "debug",
        "format": "debug",
        "sandbox_image": 'plugins."io.containerd.grpc.v1.cri"',
        "SystemdCgroup": 'plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options',
    }
)
"""Keys that people write outside of their tables, and the tables where every version reads them."""
_SERVERS: Mapping[str, str] = MappingProxyType(
    {
        "grpc": "io.containerd.server.v1.grpc",
        "ttrpc": "io.containerd.server.v1.ttrpc",
        "metrics": "io.containerd.server.v1.metrics",
        "debug": "io.containerd.server.v1.debug",
    }
)


def nearest(name: str, known: Iterable[str], question: str = "did you mean") -> str:
    """Return `; did you mean "..."?` with the known name that is nearest in spelling, "" if none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=_NEAR)
    return f'; {question} "{near[0]}"?' if near else ""


def nearest_uri(uri: str, known: Iterable[str]) -> str:
    """Return the same for the URI of a plugin. What all URIs have in common does not make two of them alike.

    The id alone is enough where one plugin has it: the kind was another one in other versions.
    """
    if "*" in uri:
        return "; name each plugin, a pattern has no effect"
    whole = {_own_part(one): one for one in known}
    near = difflib.get_close_matches(_own_part(uri), list(whole), n=1, cutoff=_NEAR_URI)
    same = [one for one in whole.values() if one.rpartition(".")[2] == uri.rpartition(".")[2].lower()]
    found = [whole[one] for one in near if len(same) != 1 or whole[one] in same] or same[: len(same) == 1]
    return f'; did you mean "{found[0]}"?' if found else ""


def _own_part(uri: str) -> str:
    """Return what a plugin's URI does not share with all others."""
    return uri.lower().removeprefix("io.").removeprefix("containerd.")


def top_level(key: str, value: Any) -> str:
    """Return what is wrong with an unknown key outside of all tables, or with an unknown table."""
    if key in stock.DROPPED:
        return f"{key} has no effect; containerd dropped it, too"
    return f"unknown {'table' if isinstance(value, dict) else 'key'} {dotted((key,))}{_home(key, value)}"


def _home(key: str, value: Any) -> str:
    """Return where an unknown top-level key should be, "" if nothing is like it."""
    if key == "plugin":
        return '; did you mean "plugins"?'
    if key == "enabled_plugins":
        return "; every plugin is enabled that disabled_plugins does not name"
    if key.startswith("io.containerd."):
        return f'; a plugin\'s table is written [plugins."{key}"]'
    if key == "io":
        return f'; a plugin\'s table is written [plugins."{dotted_inside(key, value)}"]'
    return f"; it belongs below [{_HOMES[key]}]" if key in _HOMES else nearest(key, _TOP)


def in_old_section(section: str, key: str = "") -> str:
    """Return what is wrong with a section of version 3, or a key of it, in a file of version 4."""
    subject = f"{key} in [{section}]" if key else f"[{section}]"
    return (
        f'{subject} has no effect in version {CURRENT_VERSION}; write it below [plugins."{_SERVERS[section]}"], '
        f"or begin the file with version = {CURRENT_VERSION - 1}"
    )


def in_section(section: str, key: str) -> str:
    """Return what is wrong with an unknown key of a server section."""
    return f"[{section}] has no key {key}; it has no effect{nearest(key, _fields(section))}"


def plugin_table(name: str, value: Any, installed: Collection[str]) -> str:
    """Return what is wrong with a table of `[plugins]` that no plugin has. `installed` are the plugins' URIs."""
    if not isinstance(value, dict):
        return f"plugins.{name} is no table of a plugin and has no effect"
    if name == "io":
        uri = dotted_inside(name, value)
        return f'[plugins.{uri}] has no effect without quotes; write [plugins."{uri}"]'
    if "." not in name:
        whole = whole_name(name)
        remedy = f'; write [plugins."{whole}"], only version 1 has short names' if whole else ""
        return f"[plugins.{name}] has no effect{remedy}"
    for uri in (*installed, *stock.PLUGINS):
        if name.startswith(f"{uri}."):
            return f'[plugins."{name}"] has no effect; write [plugins."{uri}"{name.removeprefix(uri)}]'
    return f'no plugin "{name}" is installed, its table has no effect{nearest_uri(name, {*installed, *stock.PLUGINS})}'


def dotted_inside(name: str, value: Any) -> str:
    """Return the URI that was written without quotes, so that each part became a table in the one before."""
    while isinstance(value, dict) and value and name.rpartition(".")[0] not in stock.KINDS:
        inner, value = next(iter(value.items()))
        name = f"{name}.{inner}"
    return name


def proxy_type(name: str, written: str) -> str:
    """Return what is wrong with the type of a proxy plugin."""
    return f'proxy_plugins.{name}.type: "{written}" is none; use "snapshot", "content" or "diff"'


def wrong_type(key: KeyPath, what: str, value: Any) -> str:
    """Return how to write a value that has the wrong type. `what` is the message of msgspec."""
    found = _TYPES.match(what)
    if found is None or not key:
        return ""
    wanted, got = found["wanted"], found["got"]
    if wanted == "table":
        several = isinstance(value, list) and any(isinstance(one, dict) for one in value)
        return f"; write [{dotted(key)}] in single brackets" if several else f"; write a table: [{dotted(key)}]"
    if wanted == "array":
        return f"; write it in brackets: {dotted(key[-1:])} = [...]"
    if wanted == "str" and got in ("int", "float", "bool"):
        return "; write it in quotes"
    return f"; write {_FORMS[wanted]}{', without quotes' if got == 'str' else ''}" if wanted in _FORMS else ""


def without_quotes(key: KeyPath, value: Any, fields: Collection[str]) -> str:
    """Return how to write a table whose name has dots, "" for a key that is no such name. `fields` are a table's keys.

    Without quotes, each part of the name is a table in the one before: `[proxy_plugins.acme.v1]`.
    """
    name = list(key[1:])
    while isinstance(value, dict) and value and not set(value) & set(fields):
        inner, value = next(iter(value.items()))
        name.append(inner)
    if not isinstance(value, dict) or len(name) < 2:
        return ""
    return f"; write the whole name in quotes: [{dotted((key[0], '.'.join(name)))}]"


def whole_name(name: str) -> str:
    """Return the URI of a plugin of containerd by its id, "" if there is none."""
    return min((uri for uri in stock.PLUGINS if uri.rpartition(".")[2] == name), default="")


def _fields(section: str) -> tuple[str, ...]:
    kind = next(field.type for field in msgspec.structs.fields(File) if field.name == section)
    return tuple(field.name for field in msgspec.structs.fields(kind))
