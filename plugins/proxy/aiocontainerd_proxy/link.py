"""The connection of one proxy plugin: made when it is possible, asked what is behind it, made again when lost.

States: `absent` (nobody listens at the address), `connecting`, `ready`, `failed` (somebody listens but cannot be used,
or a process of our own is not running). A call while it is absent tries at once; while it has failed, the next try
waits for its time, and until then calls are answered with the reason.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from enum import StrEnum

import anyio

from aiocontainerd import durations
from aiocontainerd.errors import DeadlineExceeded, Unavailable
from aiocontainerd.rpc.grpc_client import GrpcClient, Unreachable
from aiocontainerd_proxy.peer import Peer, ask

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
CONNECT_TIMEOUT_S = 5.0
"""Connecting and each question to the peer."""
_STOPPED = "it has been stopped"


class State(StrEnum):
    """Where a connection is."""

    ABSENT = "absent"
    CONNECTING = "connecting"
    READY = "ready"
    FAILED = "failed"


class NotReady(Unavailable):
    """There is no usable connection now."""


async def _open_gate() -> None:
    return


class Link:
    """One connection and its state. `keep` is its task; everything else is for callers.

    `gate` is awaited before every try; it raises NotReady where there is no point in trying. `changed` is told of every
    change of state.
    """

    def __init__(
        self,
        uri: str,
        address: str,
        *,
        gate: Callable[[], Awaitable[None]] = _open_gate,
        changed: Callable[[Link], None] = lambda _link: None,
    ) -> None:
        self.uri = uri
        self.kind, _, plugin_id = uri.rpartition(".")
        self.address, _, remote = address.partition("#")
        self.remote_name = remote or plugin_id
        """What the plugin is called on the other side: the part of the address after `#`, else its id here."""
        self.state = State.CONNECTING
        self.reason = ""
        self.peer = Peer()
        self.connects = 0
        self._gate = gate
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
        """How often it connected."""
        return {"connects": self.connects}

    async def keep(self) -> None:
        """Connect, and connect again, until cancelled."""
        pause = FIRST_PAUSE_S
        try:
            while True:
                if await self._try(pause):
                    pause = FIRST_PAUSE_S
                    await self._lost.wait()
                    continue
                with anyio.move_on_after(pause):
                    await self._wanted.wait()
                pause = min(pause * 2, LONGEST_PAUSE_S)
        finally:
            self._told = (State.FAILED, _STOPPED)  # an end that somebody wanted is no warning
            self._fail(*self._told, math.inf)

    def wake(self) -> None:
        """Try now, whatever the last try said."""
        self._retry_at = 0.0
        self._wanted.set()

    async def ready(self) -> GrpcClient:
        """The transport, once it is connected. Raises NotReady naming plugin, address and reason."""
        if self.state is State.READY and self.transport.is_connected:
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

    def not_ready(self) -> NotReady:
        """What a call is answered that cannot be made now."""
        return NotReady(f"plugin {self.uri} at {self.address} is {self.state}: {self.reason}")

    async def _try(self, pause: float) -> bool:
        self._wanted, self._lost = anyio.Event(), anyio.Event()
        self._become(State.CONNECTING)
        try:
            await self._gate()
            await self._meet()
        except NotReady as error:
            self._fail(State.FAILED, error.message, pause)
        except Unreachable as error:
            somebody = self.transport.is_connected or not isinstance(error.__cause__, OSError)
            reason = error.message.removeprefix(f"connection to {self.address}: ")
            self._fail(State.FAILED if somebody else State.ABSENT, reason, pause)
        except (DeadlineExceeded, TimeoutError):
            self._fail(State.FAILED, f"no answer within {durations.render(CONNECT_TIMEOUT_S)}", pause)
        except Exception as error:  # noqa: BLE001 - whatever it is, callers are waiting for an outcome
            self._fail(State.FAILED, str(error) or type(error).__name__, pause)
        else:
            self.connects += 1
            self._become(State.READY)
        return self.state is State.READY

    async def _meet(self) -> None:
        """Connect and ask who is there."""
        with anyio.fail_after(CONNECT_TIMEOUT_S):
            await self.transport.connect()
        self.peer = await ask(self.transport, self.kind, self.remote_name, timeout_s=CONNECT_TIMEOUT_S)

    def _fail(self, state: State, reason: str, pause: float) -> None:
        self.transport.close()
        self._retry_at = anyio.current_time() + pause
        self._become(state, reason)

    def _become(self, state: State, reason: str = "") -> None:
        """Change the state; whoever waits for the outcome of a try goes on when there is one."""
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
        if self.state is State.READY:
            self._told = (State.ABSENT, "")
            log.warning("plugin %s at %s has gone", self.uri, self.address)
            self._become(State.CONNECTING)
