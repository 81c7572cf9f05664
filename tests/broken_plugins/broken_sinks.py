"""An event sink, and one with a mistake for the suite to find."""

from __future__ import annotations

import anyio.to_thread

from aiocontainerd.plugin import Envelope, typeurl


class Whole:
    """Keeps nothing, and keeps the contract."""

    filters = ("topic~=^/",)

    async def deliver(self, envelope: Envelope) -> None:
        await anyio.to_thread.run_sync(len, envelope.event.value)


class OnlyKnownPayloads(Whole):
    """Decodes what it forwards, and is lost where it cannot."""

    async def deliver(self, envelope: Envelope) -> None:
        typeurl.unmarshal(envelope.event)
        await super().deliver(envelope)
