"""Give the parts of the store what they share: mutations, reads, the current call, events, numbers, pins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TypeVar

import msgspec

from aiocontainerd import context
from aiocontainerd.errors import InvalidArgument
from aiocontainerd_metadata_sqlite import resources
from aiocontainerd_metadata_sqlite.cache import Name
from aiocontainerd_metadata_sqlite.engine import Engine
from aiocontainerd_metadata_sqlite.references import MAX_NS, MIN_NS
from aiocontainerd_metadata_sqlite.resources import Connection

if TYPE_CHECKING:
    import betterproto2

T = TypeVar("T")
_NUMBERS_AT_ONCE = 1000


class Caller(msgspec.Struct, frozen=True):
    """Namespace and lease of the current call; "" for no lease."""

    namespace: str
    lease: str


async def _claim_nothing(_resource_type: str) -> None:
    return


class Publisher(Protocol):
    """The part of the event bus that the store uses."""

    def publish(self, topic: str, event: betterproto2.Message, *, namespace: str | None = None) -> None: ...


class Session:
    """The database, and what belongs to every mutation of it."""

    def __init__(self, engine: Engine, bus: Publisher) -> None:
        self.engine = engine
        self.pinned: Counter[tuple[str, str, str]] = Counter()
        """Resources (namespace, type, key) that calls in progress work on. A sweep spares them."""
        self.dirty: set[str] = set()
        """Types whose backend may have objects without a record: `content` and `snapshots/<snapshotter>`."""
        self.changes = 0
        """Committed changes of records since the start, by clients and by collections."""
        self.claim: Callable[[str], Awaitable[None]] = _claim_nothing
        """Is awaited with the type of a backend before anything is made in it (`owned`)."""
        self._bus = bus
        self._callbacks: list[Callable[[bool], None]] = []
        self._numbers: Iterator[int] = iter(())

    def caller(self) -> Caller:
        """Return the current call. Raise FailedPrecondition if it has no namespace, InvalidArgument for a bad one."""
        return Caller(context.namespace(), context.lease())

    async def mutate(
        self,
        function: Callable[[Connection], T],
        *,
        deletion: bool = False,
        frees: bool = False,
        then: Callable[[T], None] | None = None,
    ) -> T:
        """Commit `function`, then call `then(result)` and the callbacks of `on_mutation`.

        `deletion`, or `frees`, is for what must pass on a full disk.
        """

        def committed(result: T) -> None:
            self.changes += 1
            if then is not None:
                then(result)
            for callback in self._callbacks:
                callback(deletion)

        return await self.engine.write(function, then=committed, frees=deletion or frees)

    async def read(self, function: Callable[[Connection], T]) -> T:
        """Run a query in a snapshot that has everything acknowledged so far."""
        return await self.engine.read(function)

    async def lookup(
        self, name: Name, function: Callable[[Connection], T], size_bytes: Callable[[T], int] | None = None
    ) -> T:
        """Return what `function` reads of one resource; see `Engine.lookup`."""
        if size_bytes is None:
            return await self.engine.lookup(name, function)
        return await self.engine.lookup(name, function, size_bytes)

    def on_mutation(self, callback: Callable[[bool], None]) -> None:
        """See `MetadataStore.on_mutation`."""
        self._callbacks.append(callback)

    def publish(self, topic: str, message: betterproto2.Message, namespace: str) -> None:
        """Publish an event of a committed change."""
        self._bus.publish(topic, message, namespace=namespace)

    def skip_numbers(self) -> None:
        """Give back the numbers that are reserved but not used: a backend may have higher ones."""
        self._numbers = iter(())

    async def next_number(self) -> int:
        """Return the next unused backend number. Numbers are reserved 1 000 at a time."""
        number = next(self._numbers, None)
        while number is None:
            first = await self.engine.write(
                lambda db: resources.reserve_numbers(db, resources.BACKEND_NUMBERS, _NUMBERS_AT_ONCE)
            )
            self._numbers = iter(range(first, first + _NUMBERS_AT_ONCE))
            number = next(self._numbers, None)
        return number

    @contextmanager
    def pin(self, *names: tuple[str, str, str]) -> Iterator[None]:
        """Keep resources from being swept while the block runs."""
        self.pinned.update(names)
        try:
            yield
        finally:
            self.unpin(names)

    def unpin(self, names: Sequence[tuple[str, str, str]]) -> None:
        """Undo one pin of each of `names`."""
        self.pinned.subtract(names)
        for name in names:
            if self.pinned[name] <= 0:
                del self.pinned[name]


def epoch_or(epoch_ns: int | None, now_ns: int) -> int:
    """Return the time to record. Raise InvalidArgument for an epoch that 64 bits of nanoseconds cannot hold."""
    if epoch_ns is None:
        return now_ns
    if not MIN_NS <= epoch_ns <= MAX_NS:
        raise InvalidArgument(f"source date epoch {epoch_ns} ns is out of range")
    return epoch_ns
