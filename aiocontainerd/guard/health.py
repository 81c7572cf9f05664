"""Keep what the daemon knows of each plugin: counters, latencies and breaker of each method, tasks, blocks of the loop.

The guards, the watchdog and the host write it. `actr plugins explain` and the metrics read it.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Protocol

import msgspec

from aiocontainerd import durations
from aiocontainerd.errors import ReadOnlyFileSystem, Unavailable, to_status
from aiocontainerd.guard.latencies import Latencies

if TYPE_CHECKING:
    from aiocontainerd.guard.deadlines import Deadlines

log = logging.getLogger(__name__)

OPENS_AFTER = 5
"""Failures in a row that open a breaker."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 60.0
"""How long an open breaker refuses calls: doubled by every trial that fails."""


class MethodHealth(msgspec.Struct, frozen=True, kw_only=True):
    """A method as `actr plugins explain` shows it. Durations in seconds; `retry_s` 0 is a closed breaker."""

    method: str
    timeout: str
    limit_s: float
    calls: int
    errors: int
    expired: int
    cancelled: int
    in_flight: int
    abandoned: int
    p50_s: float
    p99_s: float
    failures_in_a_row: int
    retry_s: float
    last_error: str


class MethodRecord:
    """Counters of one method, and its circuit breaker. Metrics read the attributes.

    `calls` counts calls that ended, `errors` what they raised, answers such as NotFound included. `expired` counts
    calls that missed their deadline, `cancelled` calls whose caller gave up, `abandoned` calls that ignored their
    cancellation and were left running.

    Five failures in a row open the breaker. A failure is a missed deadline, or an exception that is not a
    ContainerdError. With `refuses` False an open breaker lets calls through. With `late_counts` False, a
    DeadlineExceeded that the plugin raises itself is an answer (`interfaces/rules.py`).
    """

    __slots__ = (
        "__weakref__",
        "_pause_s",
        "_reopens_at",
        "abandoned",
        "calls",
        "cancelled",
        "deadlines",
        "errors",
        "expired",
        "failures",
        "in_flight",
        "label",
        "last_error",
        "late",
        "late_counts",
        "latencies",
        "limit_s",
        "method",
        "module",
        "plugin",
        "refuses",
        "releases",
        "timeout",
        "trying",
    )

    def __init__(
        self,
        plugin: PluginHealth,
        method: str,
        timeout: str,
        *,
        releases: bool = False,
        refuses: bool = True,
        late_counts: bool = True,
        module: str = "",
    ) -> None:
        self.plugin = plugin
        self.module = module
        """The module of the plugin's class, whose lines are named in errors."""
        self.method = method
        self.label = f"{plugin.uri}: {method}"
        self.timeout = timeout
        self.limit_s = 0.0
        """The limit of calls that begin now, in seconds; 0 is no deadline."""
        self.deadlines: Deadlines | None = None
        self.releases = releases
        """Whether a result that reaches nobody has to be closed."""
        self.refuses = refuses
        """Whether an open breaker refuses calls."""
        self.late_counts = late_counts
        """Whether a DeadlineExceeded that the plugin raises is a failure."""
        self.latencies = Latencies()
        self.calls = self.errors = self.expired = self.cancelled = self.abandoned = self.in_flight = 0
        self.last_error = ""
        self.failures = self.late = 0
        self.trying = False
        self._pause_s = 0.0
        self._reopens_at = 0.0

    def __repr__(self) -> str:
        return f"<MethodRecord {self.label} {self.calls} calls, {self.errors} errors, {self.in_flight} in flight>"

    @property
    def retry_s(self) -> float:
        """Seconds until an open breaker lets a call through; 0 if it lets one through now."""
        if self.failures < OPENS_AFTER or not self.refuses:
            return 0.0
        return max(0.0, self._reopens_at - time.monotonic())

    def admit(self) -> None:
        """Let a call try an open breaker, if its pause is over. Raises Unavailable that says when to retry."""
        if not self.refuses:
            return
        wait_s = self.retry_s
        if wait_s or self.trying:
            when = f"tried again in {durations.render(round(wait_s, 1))}" if wait_s else "it is being tried again now"
            raise Unavailable(
                f"plugin {self.plugin.uri}: {self.method} is refused after {self.failures} failures in a row "
                f"(the last: {self.last_error}); {when}"
            )
        self.trying = True

    def succeeded(self) -> None:
        """Close the breaker."""
        if self.failures >= OPENS_AFTER:
            log.info("plugin %s: %s works again", self.plugin.uri, self.method)
        self.failures, self.late, self.trying, self._pause_s = 0, 0, False, 0.0

    def failed(self, text: str, *, trial: bool, late: bool = False) -> None:
        """Count a failure. Open the breaker after five in a row; after a failed `trial`, for twice as long.

        A plugin that missed its deadline in all of them is `stuck`.
        """
        self.note_error(text)
        self.failures += 1
        self.late = self.late + 1 if late else 0
        if trial:
            self.trying = False
        if trial or self.failures == OPENS_AFTER:
            self._pause_s = min(self._pause_s * 2 or FIRST_PAUSE_S, LONGEST_PAUSE_S)
            self._reopens_at = time.monotonic() + self._pause_s
            pause = f"are refused for {durations.render(self._pause_s)}" if self.refuses else "go on: none is refused"
            log.warning(
                "plugin %s: %s failed %d times in a row; calls %s; the last failure: %s",
                self.plugin.uri,
                self.method,
                self.failures,
                pause,
                text,
            )
            if self.late >= OPENS_AFTER and self.plugin.stuck is not None:
                self.plugin.stuck(text)

    def note_error(self, text: str) -> None:
        """Count an error, whether or not it counts against the plugin."""
        self.errors += 1
        self.last_error = text
        self.plugin.last_error = f"{self.method}: {text}"
        self.plugin.last_error_at = time.time()

    def health(self) -> MethodHealth:
        """Return the method as `actr plugins explain` shows it."""
        latencies = self.latencies
        return MethodHealth(
            method=self.method,
            timeout=self.timeout,
            limit_s=self.limit_s,
            calls=self.calls,
            errors=self.errors,
            expired=self.expired,
            cancelled=self.cancelled,
            in_flight=self.in_flight,
            abandoned=self.abandoned,
            p50_s=latencies.quantile_s(0.5),
            p99_s=latencies.quantile_s(0.99),
            failures_in_a_row=self.failures,
            retry_s=self.retry_s,
            last_error=self.last_error,
        )


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """A time in which a plugin kept the event loop from running. `where` is `file:line`."""

    plugin: str
    where: str
    seconds: float


class Condition(msgspec.Struct, frozen=True):
    """What a plugin is now, in one word, and why. A loaded one beside the daemon is `ready`, or cannot be used now."""

    state: str
    reason: str = ""


READY = "ready"


class LeftCall(Protocol):
    """A call that ignored its cancellation and still runs."""

    record: MethodRecord
    started: float

    @property
    def elapsed_s(self) -> float:
        """Seconds since it began."""
        ...


class PluginHealth:
    """What one plugin did."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.methods: dict[str, MethodRecord] = {}
        """By name. The methods of an object that the plugin gave have its name in front, as in `writer.commit`."""
        self.abandoned: set[LeftCall] = set()
        """Calls that were left running, until they end."""
        self.last_error = ""
        self.last_error_at = 0.0
        self.blocked = 0
        self.blocked_s = 0.0
        self.last_block: Block | None = None
        self.tasks: set[str] = set()
        """Names of the running tasks that it started through its context."""
        self.leaked: list[str] = []
        """Names of tasks that still ran when it had been stopped."""
        self.rss_bytes: Callable[[], int | None] = _in_the_daemon
        """Memory of the plugin's own process; None for one that has none."""
        self.condition: Condition | None = None
        """Set by whoever keeps the connection of a plugin beside the daemon; None for a plugin inside."""
        self.read_only = False
        """Whether its file system takes no changes, as a refused call told, or the daemon found (`daemon/disks.py`)."""
        self.refused_in: set[str] = set()
        """Directories in which a call could not change something, for as long as `read_only`."""
        self.slack_s = 0.0
        """Seconds by which a guard cuts off later than the limit: a process that has the same limit names the line."""
        self.stuck: Callable[[str], object] | None = None
        """Called with the last error when a method missed its deadline five times in a row."""
        self.restart: Callable[[], Awaitable[int]] | None = None
        """End the plugin's own process, start another one and return its id; None for a plugin without one."""

    def __repr__(self) -> str:
        calls = sum(record.calls for record in self.methods.values())
        return f"<PluginHealth {self.uri} {calls} calls, blocked {self.blocked} times>"

    def note_block(self, block: Block) -> None:
        """Count a time in which this plugin kept the event loop."""
        self.blocked += 1
        self.blocked_s += block.seconds
        self.last_block = block

    def note_condition(self, state: str, reason: str = "") -> None:
        """Note what a plugin beside the daemon is now: `ready`, or a word of its own and why it cannot be used."""
        self.condition = Condition(state, reason)

    def note_read_only(self, error: ReadOnlyFileSystem) -> None:
        """Note, and log once, that a call was refused because the file system of the plugin is read-only."""
        if not self.read_only:
            log.warning("plugin %s refuses changes: %s", self.uri, to_status(error)[1])
        self.read_only = True
        if error.path:
            self.refused_in.add(os.path.dirname(error.path))

    def method_health(self) -> list[MethodHealth]:
        """Return every method that was called, the most called first."""
        used = [record for record in self.methods.values() if record.calls or record.in_flight or record.abandoned]
        return [record.health() for record in sorted(used, key=lambda record: (-record.calls, record.method))]


def _in_the_daemon() -> int | None:
    return None
