"""Keep the connection of one proxy plugin: connect, ask what is behind it, connect again when it is lost.

A connection is `absent` while nobody listens at the address, and `failed` while somebody listens but cannot be used or
a process that the daemon keeps does not run. It is `hangs` while such a process answers nothing. Else it is
`connecting` or `ready`. A call to an absent plugin connects at once. A call to a failed one gets the reason as its
error, until the pause before the next try is over.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from enum import StrEnum

import anyio

from aiocontainerd import durations
from aiocontainerd.config.timeouts import PLUGIN_CONNECT, PLUGIN_RETRY
from aiocontainerd.errors import LocalDeadline, Unavailable
from aiocontainerd.rpc.grpc_client import GrpcClient, Unreachable
from aiocontainerd_proxy.backoff import Backoff
from aiocontainerd_proxy.limits import Limits
from aiocontainerd_proxy.peer import Peer, ask

log = logging.getLogger(__name__)

_STOPPED = "it has been stopped"


class State(StrEnum):
    """The state of a connection."""

    ABSENT = "absent"
    CONNECTING = "connecting"
    READY = "ready"
    HANGS = "hangs"
    FAILED = "failed"


class NotReady(Unavailable):
    """Raised for calls made while there is no usable connection. The text names the reason."""


async def _open_gate() -> None:
    return


async def _lives_on() -> str:
    return ""


class Link:
    """One connection and its state. `keep` runs as a task; everything else is for callers.

    Each try to connect first awaits `gate`, which raises NotReady if the plugin cannot be running. `fate` returns how
    the process behind a lost connection ended, "" where it runs or nobody here knows. Every change of state calls
    `changed`. Calls have `slack_s` seconds more than their limits, for a peer that has the same. `limits` gives the
    limit of one connect and the longest pause between two. What `gate` and `fate` tell is logged by whoever keeps the
    process.
    """

    def __init__(
        self,
        uri: str,
        address: str,
        limits: Limits,
        *,
        gate: Callable[[], Awaitable[None]] = _open_gate,
        fate: Callable[[], Awaitable[str]] = _lives_on,
        slack_s: float = 0.0,
        changed: Callable[[Link], None] = lambda _link: None,
    ) -> None:
        self.uri = uri
        self.kind, _, plugin_id = uri.rpartition(".")
        self.address, _, remote = address.partition("#")
        self.remote_name = remote or plugin_id
        """Name of the plugin on the other side: the part of the address after `#`, else its id here."""
        self.state = State.CONNECTING
        self.reason = ""
        self.peer = Peer()
        self.connects = 0
        self._limits = limits
        self._gate = gate
        self.fate = fate
        self.slack_s = slack_s
        self._changed = changed
        self._lost = anyio.Event()
        self._wanted = anyio.Event()
        self._tried = anyio.Event()
        self._retry_at = 0.0
        self._told = (State.CONNECTING, "")
        self.transport = GrpcClient(self.address, on_lost=self._on_lost)

    def __repr__(self) -> str:
        return f"<Link {self.uri} at {self.address} {self.state}{f': {self.reason}' if self.reason else ''}>"

    def statistics(self) -> dict[str, int]:
        """Return how often it connected."""
        return {"connects": self.connects}

    async def keep(self) -> None:
        """Connect, and connect again, until cancelled."""
        backoff = Backoff(lambda: self._limits(PLUGIN_RETRY))
        try:
            while True:
                if await self._try(backoff.next_s):
                    backoff.reset()
                    await self._lost.wait()
                    continue
                with anyio.move_on_after(backoff.take()):
                    await self._wanted.wait()
        finally:
            self._told = (State.FAILED, _STOPPED)  # the plugin was stopped on purpose: no warning
            self._fail(*self._told, math.inf)

    def wake(self) -> None:
        """Try to connect now, whatever the last try said."""
        self._retry_at = 0.0
        self._wanted.set()

    async def ready(self) -> GrpcClient:
        """Return the transport once it is connected. Raise NotReady naming plugin, address and reason."""
        if self.state in (State.READY, State.HANGS) and self.transport.is_connected:
            return self.transport
        if self.state is State.FAILED and anyio.current_time() < self._retry_at:
            raise self.not_ready()
        if self.state is not State.CONNECTING:
            self._become(State.CONNECTING)
            self._wanted.set()
        await self._tried.wait()
        if self.state is not State.READY:
            raise self.not_ready()
        return self.transport

    def answers(self, silent_s: float) -> None:
        """Note for how many seconds the process has answered nothing; 0 says that it answers."""
        if self.state is State.READY and silent_s:
            self._become(State.HANGS, f"has answered nothing for {durations.render(silent_s)}")
        elif self.state is State.HANGS and not silent_s:
            self._become(State.READY)

    def not_ready(self) -> NotReady:
        """Return the error for calls made while there is no usable connection."""
        return NotReady(f"plugin {self.uri} at {self.address} is {self.state}: {self.reason}")

    async def _try(self, pause: float) -> bool:
        """Try once to connect; return whether it worked. `pause` is in seconds, until the next try."""
        self._wanted, self._lost = anyio.Event(), anyio.Event()
        self._become(State.CONNECTING)
        try:
            await self._gate()
            await self._meet()
        except NotReady as error:
            self._told = (State.FAILED, error.message)
            self._fail(State.FAILED, error.message, pause)
        except Unreachable as error:
            ending = await self.fate()
            if ending:
                self._told = (State.FAILED, ending)
            somebody = ending or self.transport.is_connected or not isinstance(error.__cause__, OSError)
            reason = ending or error.message.removeprefix(f"connection to {self.address}: ")
            self._fail(State.FAILED if somebody else State.ABSENT, reason, pause)
        except (LocalDeadline, TimeoutError):
            self._fail(State.FAILED, f"no answer within {durations.render(self._limits(PLUGIN_CONNECT))}", pause)
        except Exception as error:  # noqa: BLE001 - callers wait for an outcome, whatever it is
            self._fail(State.FAILED, str(error) or type(error).__name__, pause)
        else:
            self.connects += 1
            self._become(State.READY)
        return self.state is State.READY

    async def _meet(self) -> None:
        """Connect, and ask the peer what it is."""
        limit_s = self._limits(PLUGIN_CONNECT)
        with anyio.fail_after(limit_s):
            await self.transport.connect()
        timeout_s = None if math.isinf(limit_s) else limit_s
        self.peer = await ask(self.transport, self.kind, self.remote_name, timeout_s=timeout_s)

    def _fail(self, state: State, reason: str, pause: float) -> None:
        self.transport.close()
        self._retry_at = anyio.current_time() + pause
        self._become(state, reason)

    def _become(self, state: State, reason: str = "") -> None:
        """Change the state. Calls that wait for the outcome of a try go on once there is one."""
        if state is not State.CONNECTING:
            self._tried.set()
        elif self._tried.is_set():
            self._tried = anyio.Event()
        self.state, self.reason = state, reason
        if state is not State.CONNECTING and (state, reason) != self._told:
            self._told = (state, reason)
            level = logging.WARNING if state is State.FAILED else logging.INFO
            log.log(level, "plugin %s at %s is %s%s", self.uri, self.address, state, f": {reason}" if reason else "")
        self._changed(self)

    def _on_lost(self) -> None:
        self._lost.set()
        if self.state in (State.READY, State.HANGS):
            self._told = (State.ABSENT, "")
            level = logging.WARNING if self.fate is _lives_on else logging.DEBUG
            log.log(level, "plugin %s at %s has gone", self.uri, self.address)
            self._become(State.CONNECTING)
