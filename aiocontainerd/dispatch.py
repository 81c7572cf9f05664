"""The dispatcher: every call of one plugin to another goes through a guard.

A guard is a thin object of a class made for one plugin and one interface. Its methods are those of the interface that
the plugin's instance has; each runs the plugin's method as a `Call` with a deadline, a circuit breaker and counters
(`dispatch_interfaces`, `dispatch_call`, `dispatch_records`). Everything else of the instance passes through.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from inspect import isasyncgenfunction, iscoroutinefunction
from typing import Any

from aiocontainerd.attribution import PluginHealth
from aiocontainerd.dispatch_call import Call, Deadlines
from aiocontainerd.dispatch_interfaces import BY_KIND, NAMED, Interface
from aiocontainerd.dispatch_records import OPENS_AFTER, MethodRecord
from aiocontainerd.dispatch_stream import guarded_stream

Method = Callable[..., Awaitable[Any]]


class Guard:
    """Base of the guards. What the interface does not name is the instance's own."""

    __slots__ = ("_parts", "_target")

    def __init__(self, target: object) -> None:
        self._target = target
        self._parts: dict[str, Guard] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    def __repr__(self) -> str:
        return repr(self._target)


class Dispatcher:
    """Makes guards. `timeout_s` gives the seconds of a key of `[timeouts]`, here `<class>.<URI of the plugin>`."""

    def __init__(self, timeout_s: Callable[[str], float]) -> None:
        self._timeout_s = timeout_s
        self._deadlines: dict[float, Deadlines] = {}
        self._classes: dict[tuple[str, str], type[Guard]] = {}

    def __repr__(self) -> str:
        return f"<Dispatcher {list(self._deadlines.values())}>"

    def guard(self, health: PluginHealth, kind: str, instance: object) -> Any:
        """The guard of a plugin's instance; the instance itself where its kind, or it, has nothing to guard."""
        interface = BY_KIND.get(kind)
        return instance if interface is None else self._guarded(health, interface, "", instance)

    def _guarded(self, health: PluginHealth, interface: Interface, role: str, instance: object) -> Any:
        if not _speaks(type(instance), interface):
            return instance
        key = (health.uri, f"{role}:{id(type(instance))}")
        made = self._classes.get(key)
        if made is None:
            made = self._classes[key] = self._make(health, interface, role, type(instance))
        return made(instance)

    def _make(self, health: PluginHealth, interface: Interface, role: str, target: type) -> type[Guard]:
        members: dict[str, Any] = {
            "__slots__": (),
            "__module__": target.__module__,
            "__class__": property(lambda _self: target),  # so that isinstance takes a guard for what it guards
        }
        prefix = f"{role}." if role else ""
        for name, timeout in interface.calls().items():
            if not hasattr(target, name):
                continue
            record, deadlines = self._record(health, prefix + name, timeout, interface, name)
            method = _method(name, record, deadlines)
            if name in interface.returns:
                method = self._wrapping(method, health, interface.returns[name])
            if name == "__aenter__":
                method = _entering(method)
            method.__name__ = method.__qualname__ = name
            members[name] = method
        for name, timeout in interface.streams.items():
            if hasattr(target, name):
                record, deadlines = self._record(health, prefix + name, timeout, interface, name)
                members[name] = _stream(name, record, deadlines)
        for name, part in interface.parts.items():
            members[name] = property(self._part(health, name, part))
        return type(f"Guarded{target.__name__}", (Guard,), members)

    def _record(
        self, health: PluginHealth, label: str, timeout: str, interface: Interface, method: str
    ) -> tuple[MethodRecord, Deadlines | None]:
        limit_s = self._timeout_s(f"{timeout}.{health.uri}") if timeout else 0.0
        record = health.methods.get(label)
        if record is None:
            record = health.methods[label] = MethodRecord(
                health, label, timeout, limit_s, releases=method in interface.returns, breaks=interface.breaks
            )
        if not limit_s:
            return record, None
        return record, self._deadlines.setdefault(limit_s, Deadlines(limit_s))

    def _wrapping(self, method: Method, health: PluginHealth, role: str) -> Method:
        """The method with a guard around the resource that it gives."""
        interface = NAMED[role]

        async def wrapping(self: Guard, /, *args: Any, **kwargs: Any) -> Any:
            return guarded(health, interface, role, await method(self, *args, **kwargs))

        guarded = self._guarded
        return wrapping

    def _part(self, health: PluginHealth, name: str, role: str) -> Callable[[Guard], Any]:
        """A guard around an attribute, kept for as long as the attribute is the same object."""
        interface, guarded = NAMED[role], self._guarded

        def part(self: Guard) -> Any:
            target = getattr(self._target, name)
            kept = self._parts.get(name)
            if kept is None or kept._target is not target:
                made = guarded(health, interface, role, target)
                if not isinstance(made, Guard):
                    return made
                kept = self._parts[name] = made
            return kept

        return part


def _speaks(target: type, interface: Interface) -> bool:
    """Whether a class has something of an interface, and not merely a method of the same name."""
    functions = (getattr(target, name, None) for name in (*interface.calls(), *interface.streams))
    return any(iscoroutinefunction(function) or isasyncgenfunction(function) for function in functions) or any(
        hasattr(target, name) for name in interface.parts
    )


def _method(name: str, record: MethodRecord, deadlines: Deadlines | None) -> Method:
    async def method(self: Guard, /, *args: Any, **kwargs: Any) -> Any:
        if record.failures >= OPENS_AFTER:
            record.admit()
        call = Call(record, deadlines, getattr(self._target, name), args, kwargs)
        try:
            return await call.waiter
        except asyncio.CancelledError:
            await call.leave()
            raise
        finally:
            del call  # an error keeps this frame, and the call keeps the error

    return method


def _entering(method: Method) -> Method:
    """`__aenter__` of a guard gives the guard where the instance gives itself."""

    async def entering(self: Guard, /) -> Any:
        entered = await method(self)
        return self if entered is self._target else entered

    return entering


def _stream(name: str, record: MethodRecord, deadlines: Deadlines | None) -> Callable[..., AsyncIterator[Any]]:
    def stream(self: Guard, /, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        return guarded_stream(record, deadlines, getattr(self._target, name), args, kwargs)

    stream.__name__ = stream.__qualname__ = name
    return stream
