"""Objects of one event loop for use in another: their methods run where they live, results come back.

Records and plain values travel as they are. What has methods to await, such as a reader, travels as a stand-in, in
both directions. Methods that are not awaited are called where they are asked for: they read fields.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import msgspec

from aiocontainerd.errors import ContainerdError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiocontainerd.events import EventBus

log = logging.getLogger(__name__)

_PLAIN = (msgspec.Struct, str, bytes, bytearray, memoryview, int, float, list, tuple, dict, Mapping, set, frozenset)
_END = object()


async def run_in(loop: asyncio.AbstractEventLoop, function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    """Await `function(*args)` in another loop, in the context of this call. Cancelling this cancels it there."""

    async def there() -> Any:
        try:
            return await function(*args)
        except (SystemExit, KeyboardInterrupt) as error:
            raise _harmless(error) from error

    # The one way between loops; it makes a task there, which the future of this call owns.
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(there(), loop))


def carried(value: Any, loop: asyncio.AbstractEventLoop) -> Any:
    """`value`, which lives in `loop`, for use in any other loop."""
    if value is None or isinstance(value, _PLAIN):
        return value
    if isinstance(value, Away):
        return value
    if hasattr(value, "__anext__"):
        return _stream(value, loop)
    return _stand_in_class(type(value))(value, loop)


class Away:
    """Base of the stand-ins. What is not awaited is the object's own."""

    def __init__(self, target: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._target = target
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        return _called_here(found, self._loop) if callable(found) else carried(found, self._loop)

    def __repr__(self) -> str:
        return repr(self._target)

    async def _call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        here = asyncio.get_running_loop()
        given = [carried_back(value, here) for value in args]
        named = {key: carried_back(value, here) for key, value in kwargs.items()}

        async def there() -> Any:
            return await getattr(self._target, name)(*given, **named)

        result = await run_in(self._loop, there)
        return self if result is self._target else carried(result, self._loop)


def carried_back(value: Any, here: asyncio.AbstractEventLoop) -> Any:
    """An argument, which lives here, for use over there; an object that lives there anyway is itself again."""
    return value._target if isinstance(value, Away) else carried(value, here)


_classes: WeakKeyDictionary[type, type[Away]] = WeakKeyDictionary()


def _stand_in_class(target: type) -> type[Away]:
    """The stand-ins of a class: its methods are those of the class, so that they can be looked for there."""
    made = _classes.get(target)
    if made is None:
        members: dict[str, Any] = {}
        for name in dir(target):
            found = inspect.getattr_static(target, name)
            if name in ("__aenter__", "__aexit__") or not name.startswith("_"):
                if inspect.iscoroutinefunction(found):
                    members[name] = _method(name)
                elif inspect.isasyncgenfunction(found):
                    members[name] = _streaming(name)
        made = _classes[target] = type(f"Away{target.__name__}", (Away,), members)
    return made


def _method(name: str) -> Callable[..., Awaitable[Any]]:
    async def method(self: Away, *args: Any, **kwargs: Any) -> Any:
        return await self._call(name, args, kwargs)

    method.__name__ = method.__qualname__ = name
    return method


def _streaming(name: str) -> Callable[..., AsyncIterator[Any]]:
    def streaming(self: Away, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        return _stream(getattr(self._target, name)(*args, **kwargs), self._loop)

    streaming.__name__ = streaming.__qualname__ = name
    return streaming


def _called_here(function: Callable[..., Any], loop: asyncio.AbstractEventLoop) -> Callable[..., Any]:
    def called(*args: Any, **kwargs: Any) -> Any:
        return carried(function(*args, **kwargs), loop)

    return called


async def _stream(iterator: AsyncIterator[Any], loop: asyncio.AbstractEventLoop) -> AsyncIterator[Any]:
    """The items of an iterator of another loop; one task there runs all of it, as what it opens expects."""
    pump = _Pump(iterator)
    running = asyncio.run_coroutine_threadsafe(pump.run(), loop)
    try:
        while True:
            wanted: Future[Any] = Future()
            loop.call_soon_threadsafe(pump.asked.put_nowait, wanted)
            item = await asyncio.wrap_future(wanted)
            if item is _END:
                return
            yield carried(item, loop)
    finally:
        running.cancel()


class _Pump:
    """Gives the items of an iterator to whoever asks, in the loop of the iterator."""

    def __init__(self, iterator: AsyncIterator[Any]) -> None:
        self.asked: asyncio.Queue[Future[Any]] = asyncio.Queue()
        self._iterator = iterator

    async def run(self) -> None:
        try:
            while await self._give(await self.asked.get()):
                continue
        finally:
            if hasattr(self._iterator, "aclose"):
                await self._iterator.aclose()

    async def _give(self, wanted: Future[Any]) -> bool:
        """Give the next item to who wants it; False after the last one."""
        try:
            item = await anext(self._iterator, _END)
        except (SystemExit, KeyboardInterrupt) as error:
            _settle(wanted, error=_harmless(error))
            return False
        except BaseException as error:
            _settle(wanted, error=error)
            raise
        _settle(wanted, item)
        return item is not _END


def _harmless(error: BaseException) -> RuntimeError:
    """An error that says what would end the loop, and with it the thread, that it is raised in."""
    return RuntimeError(f"{type(error).__name__}: {error}")


def _settle(future: Future[Any], item: Any = None, *, error: BaseException | None = None) -> None:
    if not future.set_running_or_notify_cancel():
        return
    if error is None:
        future.set_result(item)
    else:
        future.set_exception(error)


class LoopBus:
    """An event bus of another loop. Nothing here waits for that loop: what it refuses is logged."""

    def __init__(self, bus: EventBus, loop: asyncio.AbstractEventLoop) -> None:
        self._bus = bus
        self._loop = loop

    def __repr__(self) -> str:
        return repr(self._bus)

    def publish(self, topic: str, event: Any, *, namespace: str | None = None) -> None:
        """As EventBus's, in the namespace of this call."""
        self._loop.call_soon_threadsafe(
            _logging_failures, partial(self._bus.publish, topic, event, namespace=namespace)
        )

    def forward(self, envelope: Any) -> None:
        """As EventBus's."""
        self._loop.call_soon_threadsafe(_logging_failures, partial(self._bus.forward, envelope))

    @contextmanager
    def subscribe(self, *filters: str) -> Iterator[AsyncIterator[Any]]:
        """As EventBus's; asking for the first event raises what a filter is refused with."""
        subscribed = _Subscribed(self._bus.subscribe(*filters))
        self._loop.call_soon_threadsafe(subscribed.enter)
        try:
            yield _stream(subscribed.envelopes(), self._loop)
        finally:
            self._loop.call_soon_threadsafe(subscribed.leave)


class _Subscribed:
    """A subscription, in the loop of its bus."""

    def __init__(self, manager: AbstractContextManager[Any]) -> None:
        self._manager = manager
        self._subscription: Any = None
        self._error: ContainerdError | None = None

    def enter(self) -> None:
        try:
            self._subscription = self._manager.__enter__()
        except ContainerdError as error:
            self._error = error

    def leave(self) -> None:
        if self._subscription is not None:
            self._manager.__exit__(None, None, None)

    async def envelopes(self) -> AsyncIterator[Any]:
        if self._error is not None:
            raise self._error
        async for envelope in self._subscription:
            yield envelope


def _logging_failures(function: Callable[[], None]) -> None:
    try:
        function()
    except ContainerdError as error:
        log.warning("an event of a plugin in a thread is not published: %s", error)
