"""Keys of `[timeouts]`: who declares one, which are known, and how a written key is checked.

The daemon declares the keys of `CORE`. A plugin declares the keys that it reads in its registration:

    CONNECT = Timeout("acme.timeout.connect", "5s", "Connecting to the Acme service.")

    @register(kinds.EVENT_SINK, "acme", timeouts=(CONNECT,))
    class Acme:
        async def start(self, context: InitContext[Config]) -> None:
            limit_s = context.timeout_s(CONNECT)

A key below `PLUGIN_TIMEOUTS` limits the calls to every plugin. With a plugin's URI behind it, it limits the calls to
that plugin alone: `io.containerd.timeout.plugin.work.io.containerd.snapshotter.v1.native`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping

import msgspec

from aiocontainerd.interfaces import rules

PREFIX = "io.containerd.timeout."
PLUGIN_TIMEOUTS = rules.PREFIX
"""Beginning of the keys that may have a plugin's URI behind them."""
UNDECLARED_S = 1.0
"""A key that nobody declared limits to one second, as in containerd (facts/runtime 9)."""


class Timeout(msgspec.Struct, frozen=True):
    """A key of `[timeouts]`: its whole name, its default as a duration such as `1m30s`, one sentence for operators.

    The default `0s` means no limit.
    """

    key: str
    default: str
    doc: str


PLUGIN_INIT = Timeout(f"{PLUGIN_TIMEOUTS}init", "30s", "Starting a plugin.")
PLUGIN_STOP = Timeout(
    f"{PLUGIN_TIMEOUTS}stop", "10s", "Stopping a plugin; a process of its own is killed after four fifths of it."
)
PLUGIN_QUICK = Timeout(rules.QUICK, "10s", "A call that a plugin answers from memory or an index.")
PLUGIN_WORK = Timeout(rules.WORK, "2m0s", "A call that touches disks or other processes.")
PLUGIN_LONG = Timeout(rules.LONG, "1h0m0s", "A call that moves whole layers.")
PLUGIN_TASK = Timeout(rules.TASK, "5m0s", "A call that asks a shim; never less than the `shim.*` limits together.")
PLUGIN_CONTENT = Timeout(
    f"{PLUGIN_TIMEOUTS}content", "1m0s", "A call to the daemon's content by a plugin in a process of its own."
)
PLUGIN_CONNECT = Timeout(
    f"{PLUGIN_TIMEOUTS}connect", "5s", "Connecting to a plugin behind a socket, and each question of what it can do."
)
PLUGIN_HANG = Timeout(
    f"{PLUGIN_TIMEOUTS}hang",
    "30s",
    "A plugin's own process that answers nothing for this long is killed and started again; no limit leaves it.",
)
PLUGIN_RETRY = Timeout(
    f"{PLUGIN_TIMEOUTS}retry",
    "1m0s",
    "Longest pause before a plugin behind a socket is connected to, or the process of a plugin started, again.",
)
SERVER_STOP = Timeout(f"{PREFIX}server.stop", "5s", "What calls in flight have to end when a server stops.")
NOTIFY = Timeout(f"{PREFIX}notify", "5s", "Telling the service manager that the daemon serves, or stops.")

CORE = (
    NOTIFY, PLUGIN_CONNECT, PLUGIN_CONTENT, PLUGIN_HANG, PLUGIN_INIT, PLUGIN_LONG, PLUGIN_QUICK, PLUGIN_RETRY,
    PLUGIN_STOP, PLUGIN_TASK, PLUGIN_WORK, SERVER_STOP,
)  # fmt: skip
"""What the daemon itself reads."""

STOCK_KEYS = frozenset(
    f"{PREFIX}{name}"
    for name in (
        "bolt.open", "cri.defercleanup", "metrics.shimstats", "shim.cleanup", "shim.load", "shim.shutdown",
        "task.state",
    )
)  # fmt: skip
"""Keys that containerd's own `config default` writes. If nothing here declares one, it gets a warning, no error."""


def declared(timeouts: Iterable[Timeout]) -> dict[str, Timeout]:
    """Return the daemon's own keys and those of `timeouts`, sorted by name."""
    found = {timeout.key: timeout for timeout in (*CORE, *timeouts)}
    return {key: found[key] for key in sorted(found)}


def split_plugin_key(key: str) -> tuple[str, str]:
    """Return class and URI of a key `<class>.<URI of a plugin>`; the URI of any other key is ""."""
    if not key.startswith(PLUGIN_TIMEOUTS):
        return key, ""
    name, _, uri = key.removeprefix(PLUGIN_TIMEOUTS).partition(".")
    return f"{PLUGIN_TIMEOUTS}{name}", uri


def seconds_for(uri: str, own: Iterable[Timeout], timeout_s: Callable[[str], float]) -> dict[str, float]:
    """Return the seconds of each key that a plugin may read: the daemon's, as they hold for it, and its `own`."""
    asked = {key: f"{key}.{uri}" if key.startswith(PLUGIN_TIMEOUTS) else key for key in declared(own)}
    return {key: timeout_s(full) for key, full in asked.items()}


def is_declared(key: str, known: Mapping[str, Timeout]) -> bool:
    """Return whether a key, or the class of a key `<class>.<URI>`, is declared."""
    return key in known or split_plugin_key(key)[0] in known


def nearest(key: str, known: Iterable[str], uris: Collection[str]) -> str:
    """Return the declared key nearest to `key` in spelling, with the same URI behind it; "" if none is near."""
    name, uri = split_plugin_key(key)
    found = difflib.get_close_matches(name if uri in uris else key, list(known), n=1)
    if not found:
        return ""
    return f"{found[0]}.{uri}" if uri in uris and found[0].startswith(PLUGIN_TIMEOUTS) else found[0]
