"""An event sink that writes JSON lines to a file or a URL: `[plugins."io.containerd.event-sink.v1.webhook"]`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import anyio
import msgspec

from aiocontainerd.plugin import (
    Checked,
    Duration,
    Envelope,
    FilterText,
    InitContext,
    PluginConfig,
    Secret,
    SkipPlugin,
    errors,
    kinds,
    register,
)
from aiocontainerd_event_webhook.lines import line_of
from aiocontainerd_event_webhook.targets import Refused, Target, Unreached, target_of


def _target(text: str) -> None:
    if text:
        target_of(text, Secret())


class Pause(Duration):
    """A duration of more than 0."""

    __slots__ = ()

    def __init__(self, text: str) -> None:
        super().__init__(text)
        if not self:
            raise ValueError(f"it is {text}, and must be more than 0")


class Config(PluginConfig, frozen=True):
    """`target` is a path or an http(s) URL, `filters` are containerd's. `token` goes along as `Authorization: Bearer`.

    A line that does not get through within `timeout` is tried `attempts` times, with pauses from `backoff`, each
    twice the one before, to `backoff_max`. All of it must fit into the daemon's deadline for a delivery, by default
    2m (`io.containerd.timeout.plugin.work`).
    """

    target: Annotated[str, Checked(_target)] = ""
    filters: tuple[FilterText, ...] = ()
    token: Secret = Secret()
    timeout: Pause = Pause("10s")
    attempts: Annotated[int, msgspec.Meta(ge=1)] = 5
    backoff: Pause = Pause("500ms")
    backoff_max: Pause = Pause("15s")


@register(kinds.EVENT_SINK, "webhook", config=Config)
class Webhook:
    """One line for one event, in order; queueing is the core's."""

    def __init__(self, config: Config) -> None:
        self.filters = config.filters
        self._config = config
        self._timeout_s = config.timeout.seconds
        self._pauses_s = list(pauses_s(config))
        self._target: Target | None = None
        self._delivered = self._retried = 0

    def __repr__(self) -> str:
        return f"<Webhook {self._target} {self.statistics()}>"

    def statistics(self) -> dict[str, int]:
        """Return how many lines got through, and how many attempts were tried again."""
        return {"delivered": self._delivered, "retried": self._retried}

    async def start(self, context: InitContext[Config]) -> None:
        """Open the target. Raise SkipPlugin if none is configured."""
        if not self._config.target:
            raise SkipPlugin("no target is configured")
        self._target = target_of(self._config.target, self._config.token)
        context.exports["target"] = str(self._target)

    async def aclose(self) -> None:
        if self._target is not None:
            await self._target.aclose()

    async def deliver(self, envelope: Envelope) -> None:
        """Write one event, with retries. Raise Unavailable where the last one fails, or none would help."""
        line = line_of(envelope)
        for pause_s in self._pauses_s:
            try:
                return await self._write(line)
            except Unreached:
                self._retried += 1
                await anyio.sleep(pause_s)
        try:
            await self._write(line)
        except Unreached as error:
            raise errors.Unavailable(f"{error} (attempt {len(self._pauses_s) + 1}, the last)") from error

    async def _write(self, line: bytes) -> None:
        assert self._target is not None, "started"
        try:
            with anyio.fail_after(self._timeout_s):
                await self._target.write(line)
        except TimeoutError:
            raise Unreached(f"{self._target}: no answer within {self._config.timeout}") from None
        except Refused as error:
            raise errors.Unavailable(str(error)) from error
        self._delivered += 1


def pauses_s(config: Config) -> Iterator[float]:
    """Yield the seconds between one attempt and the next."""
    pause_s, longest_s = config.backoff.seconds, config.backoff_max.seconds
    for _ in range(config.attempts - 1):
        yield min(pause_s, longest_s)
        pause_s *= 2
