"""The dispatcher: every call of one plugin to another goes through a guard.

A guard is a thin object of a class made for one plugin and one interface. Its methods are those of the interface that
the plugin's instance has; each runs the plugin's method as a `Call` with a deadline, a circuit breaker and counters
(`dispatch_interfaces`, `dispatch_call`, `dispatch_deadlines`, `health`). Everything else of the instance passes
through.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from inspect import isasyncgenfunction, iscoroutinefunction
from typing import Any
from weakref import WeakSet

from aiocontainerd.guard import interface
from aiocontainerd.guard.call import Call
from aiocontainerd.guard.clock import running
from aiocontainerd.guard.deadlines import Deadlines
from aiocontainerd.guard.health import OPENS_AFTER, MethodRecord, PluginHealth
from aiocontainerd.guard.interface import NAMED, TASK, WITHIN_TASK, Interface, interface_of
from aiocontainerd.guard.stream import guarded_stream

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
        self._records: WeakSet[MethodRecord] = WeakSet()

    def __repr__(self) -> str:
        return f"<Dispatcher {list(self._deadlines.values())}>"

    def guard(self, health: PluginHealth, kind: str, instance: object) -> Any:
        """The guard of a plugin's instance; the instance itself where its kind, or it, has nothing to guard."""
        interface = interface_of(kind, type(instance))
        return instance if interface is None else self._guarded(health, interface, "", instance)

    def set_deadlines(self) -> None:
        """Take the deadlines that `timeout_s` gives now for the calls that begin from here on."""
        for record in self._records:
            self._set_deadline(record)

    def _guarded(self, health: PluginHealth, interface: Interface, role: str, instance: object) -> Any:
        if isinstance(instance, Guard) or not _speaks(type(instance), interface):
            return instance  # a guard is of the plugin that gave it to this one
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
            if hasattr(target, name):
                record = self._record(health, prefix + name, timeout, interface, name)
                members[name] = self._call(name, record, health, interface)
        for name, timeout in interface.streams.items():
            if hasattr(target, name):
                members[name] = _stream(name, self._record(health, prefix + name, timeout, interface, name))
        for name, given in interface.gives.items():
            if hasattr(target, name):
                members[name] = self._giving(name, health, given)
        for name, part in interface.parts.items():
            members[name] = property(self._part(health, name, part))
        return type(f"Guarded{target.__name__}", (Guard,), members)

    def _call(self, name: str, record: MethodRecord, health: PluginHealth, interface: Interface) -> Method:
        method = _method(name, record)
        if name in interface.returns:
            method = self._wrapping(method, health, interface.returns[name])
        elif name in interface.each:
            method = self._wrapping_each(method, health, interface.each[name])
        elif name == "__aenter__":
            method = _entering(method)
        method.__name__ = method.__qualname__ = name
        return method

    def _record(
        self, health: PluginHealth, label: str, timeout: str, interface: Interface, method: str
    ) -> MethodRecord:
        record = health.methods.get(label)
        if record is None:
            given = interface.returns.get(method)
            record = health.methods[label] = MethodRecord(
                health,
                label,
                timeout,
                releases=given is not None and NAMED[given].closes(),
                refuses=method not in interface.always,
                late_counts=interface.late_counts,
            )
        self._records.add(record)
        self._set_deadline(record)
        return record

    def _set_deadline(self, record: MethodRecord) -> None:
        limit_s = record.limit_s = self._limit_s(record.timeout, record.plugin.uri)
        record.deadlines = self._deadlines.setdefault(limit_s, Deadlines(limit_s)) if limit_s else None

    def _limit_s(self, timeout: str, uri: str) -> float:
        """Seconds of a class for a plugin. That of a task is above those of the shim, and none where one has none."""
        limit_s = self._timeout_s(f"{timeout}.{uri}") if timeout else 0.0
        if timeout != TASK or not limit_s:
            return limit_s
        within = [self._timeout_s(key) for key in WITHIN_TASK]
        return max(limit_s, sum(within) + interface.TASK_MARGIN_S) if all(within) else 0.0

    def _wrapping(self, method: Method, health: PluginHealth, role: str) -> Method:
        """The method with a guard around what it gives."""
        interface = NAMED[role]

        async def wrapping(self: Guard, /, *args: Any, **kwargs: Any) -> Any:
            return guarded(health, interface, role, await method(self, *args, **kwargs))

        guarded = self._guarded
        return wrapping

    def _wrapping_each(self, method: Method, health: PluginHealth, role: str) -> Method:
        """The method with a guard around each of the objects that it gives."""
        interface = NAMED[role]

        async def wrapping(self: Guard, /, *args: Any, **kwargs: Any) -> Any:
            return [guarded(health, interface, role, one) for one in await method(self, *args, **kwargs)]

        guarded = self._guarded
        return wrapping

    def _giving(self, name: str, health: PluginHealth, role: str) -> Callable[..., Any]:
        """A method that is not awaited, with a guard around what it gives."""
        interface, guarded = NAMED[role], self._guarded

        def giving(self: Guard, /, *args: Any, **kwargs: Any) -> Any:
            return guarded(health, interface, role, getattr(self._target, name)(*args, **kwargs))

        giving.__name__ = giving.__qualname__ = name
        return giving

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
        hasattr(target, name) for name in (*interface.parts, *interface.gives)
    )


def _method(name: str, record: MethodRecord) -> Method:
    async def method(self: Guard, /, *args: Any, **kwargs: Any) -> Any:
        if record.failures >= OPENS_AFTER:
            record.admit()
        caller = running.get()
        call = Call(record, record.deadlines, getattr(self._target, name), args, kwargs)
        if caller is not None:
            caller.stop()
        try:
            return await call.waiter
        except asyncio.CancelledError:
            await call.leave()
            raise
        finally:
            if caller is not None:
                caller.go_on()
            del call  # an error keeps this frame, and the call keeps the error

    return method


def _entering(method: Method) -> Method:
    """`__aenter__` of a guard gives the guard where the instance gives itself."""

    async def entering(self: Guard, /) -> Any:
        entered = await method(self)
        return self if entered is self._target else entered

    return entering


def _stream(name: str, record: MethodRecord) -> Callable[..., AsyncIterator[Any]]:
    def stream(self: Guard, /, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        return guarded_stream(record, getattr(self._target, name), args, kwargs)

    stream.__name__ = stream.__qualname__ = name
    return stream
