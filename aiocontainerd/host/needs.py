"""The kinds that a plugin names: are they spelled right, and who brings one that nobody here has. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType

from aiocontainerd import kinds
from aiocontainerd.host.registration import PluginError, Registration

BROUGHT_BY: Mapping[str, str] = MappingProxyType(
    {
        kinds.CONTENT: "aiocontainerd-content-local",
        kinds.DIFFER: "aiocontainerd-differ",
        kinds.GC: "aiocontainerd-gc",
        kinds.GRPC: "aiocontainerd-services",
        kinds.LEASE: "aiocontainerd-services",
        kinds.METADATA: "aiocontainerd-metadata-sqlite",
        kinds.RUNTIME: "aiocontainerd-runtime-v2",
        kinds.SERVICE: "aiocontainerd-services",
        kinds.SHIM: "aiocontainerd-runtime-v2",
        kinds.SHIM_LAUNCHER: "aiocontainerd-shim",
        kinds.SNAPSHOTTER: "aiocontainerd-snapshotter-overlayfs or aiocontainerd-snapshotter-native",
        kinds.TTRPC: "aiocontainerd-services",
        kinds.WARNING: "aiocontainerd-services",
    }
)
"""Kind -> the first-party package with a plugin of it. Kinds that are not here come with the daemon, or from nobody."""

KNOWN = frozenset(
    value for name, value in vars(kinds).items() if name.isupper() and isinstance(value, str) and value != kinds.ALL
)
_NEAR = 0.75
_OURS = "io.containerd."
_SUCH_AS = {"kind": "kinds.SNAPSHOTTER", "id": "'acme'"}
_ID = re.compile(r"[A-Za-z0-9._+-]+")
_VERSION = re.compile(r"\.v\d+$")


def nearest(kind: str, known: Collection[str] = KNOWN) -> str:
    """Return the kind that is nearest to one in spelling, "" if none is near.

    What all kinds have in common, `io.containerd.` and the version, says nothing: only the rest is compared.
    """
    words = {_word(one): one for one in sorted(known)}
    found = difflib.get_close_matches(_word(kind), words, n=1, cutoff=_NEAR)
    return words[found[0]] if found else ""


def check_kind(registration: Registration) -> None:
    """Raise PluginError for a kind that looks like a misspelled one of containerd's. Kinds of one's own are legal.

    Also for an id that is empty or a kind, and for `requires` that is a text and no list.
    """
    for name in ("kind", "id"):
        value = getattr(registration, name)
        if not isinstance(value, str):
            raise PluginError(f"a plugin has the {name} {value!r}; write a text, such as {_SUCH_AS[name]}")
    if registration.id in KNOWN or not registration.id:
        raise PluginError(f"a plugin has the kind {registration.kind!r} and the id {registration.id!r}: kind, then id")
    if not _ID.fullmatch(registration.id):
        raise PluginError(
            f"a plugin has the id {registration.id!r}, which is also a directory and a key of the config; "
            "write letters, digits, and any of . _ - +"
        )
    near = "" if registration.kind in KNOWN else nearest(registration.kind)
    if near:
        raise PluginError(f"plugin {registration.id} has the unknown kind {registration.kind}; did you mean {near}?")
    for name in ("requires", "wants"):
        named = getattr(registration, name)
        listed = isinstance(named, Iterable) and not isinstance(named, str)
        if not listed or not all(isinstance(kind, str) and kind for kind in named):
            raise PluginError(f"plugin {registration.uri} has {name}={named!r}; write a list of kinds")


def why_none(kind: str, here: Iterable[tuple[str, str, str]]) -> str:
    """Return why no plugin of a kind is loaded, and what to do. `here` has kind, URI and reason of all plugins."""
    rows = list(here)
    of_kind = [(uri, reason) for other, uri, reason in rows if other == kind]
    if of_kind:
        return "; ".join(f"{uri} is not loaded{f' ({reason})' if reason else ''}" for uri, reason in of_kind)
    if kind in BROUGHT_BY:
        return f"no installed package brings one: pip install {BROUGHT_BY[kind]}"
    named = next((other for other, uri, _ in rows if kind in (uri, uri.removeprefix(f"{other}."))), "")
    if named:
        return f"requires names kinds, and {kind} is one plugin; write {named}"
    near = "" if kind in KNOWN else nearest(kind, {*KNOWN, *(other for other, _, _ in rows)})
    return f"no plugin here has this kind{f'; did you mean {near}?' if near else ''}"


def _word(kind: str) -> str:
    return _VERSION.sub("", kind.removeprefix(_OURS))
