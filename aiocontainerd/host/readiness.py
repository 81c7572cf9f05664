"""Whether the daemon serves: what `InitContext.ready` waits for."""

from __future__ import annotations

import anyio


class Readiness:
    """Decided once: the daemon serves, or it stops before it ever did."""

    def __init__(self) -> None:
        self._decided = anyio.Event()
        self._serves = False

    def __repr__(self) -> str:
        state = "undecided" if not self.decided else "serves" if self._serves else "stopped before it served"
        return f"<Readiness {state}>"

    @property
    def decided(self) -> bool:
        """Whether `wait` returns at once."""
        return self._decided.is_set()

    def serves(self) -> None:
        """Note that the sockets accept."""
        self._decide(True)

    def stops(self) -> None:
        """Note that the daemon stops. Does nothing where it served."""
        self._decide(False)

    async def wait(self) -> bool:
        """Wait for the decision. Return True once the daemon serves, False where it stops before."""
        await self._decided.wait()
        return self._serves

    def _decide(self, serves: bool) -> None:
        if not self.decided:
            self._serves = serves
            self._decided.set()
