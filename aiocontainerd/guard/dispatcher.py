"""Make the guards: every call of one plugin to another goes through one.

A guard is a thin object of a class made for one plugin and one contract. Its methods are those of the contract that
the plugin's instance has (`contract`). Each runs the plugin's method as a `Call` with a deadline, a circuit breaker and
counters (`call`, `deadlines`, `health`); a method that returns a stream runs it as `stream` says. Everything else of
the instance passes through.

A pass through a guard makes one task. Guards are not stacked: an object that another plugin's guard returned is passed
on as it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from inspect import isasyncgenfunction, iscoroutinefunction
from typing import Any
from weakref import WeakSet

from aiocontainerd.guard.call import Call
from aiocontainerd.guard.clock import running
from aiocontainerd.guard.contract import Given, GuardedInterface, contract_of, of_protocol
from aiocontainerd.guard.deadlines import Deadlines, limit_s
from aiocontainerd.guard.health import OPENS_AFTER, MethodRecord, PluginHealth
from aiocontainerd.guard.stream import guarded_stream
from aiocontainerd.interfaces.rules import Rule

Method = Callable[..., Any]
Awaited = Callable[..., Awaitable[Any]]


class Guard:
    """Base of the guards. What the contract does not name is the instance's own."""

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
        self._classes: dict[tuple[str, str, type], type[Guard]] = {}
        self._records: WeakSet[MethodRecord] = WeakSet()

    def __repr__(self) -> str:
        return f"<Dispatcher {list(self._deadlines.values())}>"

    def guard(self, health: PluginHealth, kind: str, instance: object) -> Any:
        """Return the guard of a plugin's instance; the instance itself if its kind, or it, has nothing to guard."""
        contract = contract_of(kind, health.uri.removeprefix(f"{kind}."), type(instance))
        return instance if contract is None else self._guarded(health, contract, "", instance)

    def set_deadlines(self) -> None:
        """Take the deadlines that `timeout_s` gives now for the calls that begin from here on."""
        for record in self._records:
            self._set_deadline(record)

    def _guarded(self, health: PluginHealth, contract: GuardedInterface, role: str, instance: object) -> Any:
        """Return the guard of an object; `role` is the name of what a method gave or a property holds."""
        target = type(instance)
        if isinstance(instance, Guard) or not _speaks(target, contract):
            return instance  # a guard is of the plugin that gave it to this one
        key = (health.uri, role, target)
        made = self._classes.get(key)
        if made is None:
            made = self._classes[key] = self._make(health, contract, role, target)
        return made(instance)

    def _make(self, health: PluginHealth, contract: GuardedInterface, role: str, target: type) -> type[Guard]:
        members: dict[str, Any] = {
            "__slots__": (),
            "__module__": target.__module__,
            "__class__": property(lambda _self: target),  # so that isinstance takes a guard for what it guards
        }
        for name, rule in contract.calls.items():
            if hasattr(target, name):
                members[name] = self._call(name, self._record(health, contract, role, name, rule, target), contract)
        for name, rule in contract.streams.items():
            if hasattr(target, name):
                members[name] = _stream(name, self._record(health, contract, role, name, rule, target))
        for name, given in contract.gives.items():
            if name not in contract.calls and hasattr(target, name):
                members[name] = self._giving(name, self._wrapper(health, given))
        for name, part in contract.parts.items():
            members[name] = property(self._part(name, self._wrapper(health, part)))
        return type(f"Guarded{target.__name__}", (Guard,), members)

    def _call(self, name: str, record: MethodRecord, contract: GuardedInterface) -> Method:
        method = _method(name, record)
        if name in contract.gives:
            method = _wrapping(method, self._wrapper(record.plugin, contract.gives[name]))
        elif name == "__aenter__":
            method = _entering(method)
        return _named(method, name)

    def _record(
        self, health: PluginHealth, contract: GuardedInterface, role: str, name: str, rule: Rule, target: type
    ) -> MethodRecord:
        label = f"{role}.{name}" if role else name
        record = health.methods.get(label)
        if record is None:
            given = contract.gives.get(name)
            record = health.methods[label] = MethodRecord(
                health,
                label,
                rule.timeout,
                releases=given is not None and of_protocol(given.protocol).closes,
                refuses=not rule.always,
                late_counts=contract.late_counts,
                module=target.__module__,
            )
        self._records.add(record)
        self._set_deadline(record)
        return record

    def _set_deadline(self, record: MethodRecord) -> None:
        seconds = record.limit_s = limit_s(self._timeout_s, record.timeout, record.plugin.uri)
        cut_off_s = seconds + record.plugin.slack_s
        record.deadlines = self._deadlines.setdefault(cut_off_s, Deadlines(cut_off_s)) if seconds else None

    def _wrapper(self, health: PluginHealth, given: Given) -> Callable[[Any], Any]:
        """Return a function that puts guards around what is given."""
        contract, guarded = of_protocol(given.protocol), self._guarded
        if given.several:
            return lambda results: [guarded(health, contract, given.name, result) for result in results]
        return lambda result: guarded(health, contract, given.name, result)

    def _giving(self, name: str, wrap: Callable[[Any], Any]) -> Method:
        """Return a method that is not awaited, with guards around what it returns."""

        def giving(self: Guard, /, *args: Any, **kwargs: Any) -> Any:
            return wrap(getattr(self._target, name)(*args, **kwargs))

        return _named(giving, name)

    def _part(self, name: str, wrap: Callable[[Any], Any]) -> Callable[[Guard], Any]:
        """Return a guard around an attribute, kept for as long as the attribute is the same object."""

        def part(self: Guard) -> Any:
            target = getattr(self._target, name)
            kept = self._parts.get(name)
            if kept is None or kept._target is not target:
                made = wrap(target)
                if not isinstance(made, Guard):
                    return made
                kept = self._parts[name] = made
            return kept

        return part


def _speaks(target: type, contract: GuardedInterface) -> bool:
    """Return whether a class has something of a contract, and not merely a method of the same name."""
    functions = (getattr(target, name, None) for name in (*contract.calls, *contract.streams))
    return any(iscoroutinefunction(function) or isasyncgenfunction(function) for function in functions) or any(
        hasattr(target, name) for name in (*contract.parts, *contract.gives)
    )


def _method(name: str, record: MethodRecord) -> Awaited:
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


def _wrapping(method: Awaited, wrap: Callable[[Any], Any]) -> Awaited:
    """Return the method with guards around what it returns."""

    async def wrapping(self: Guard, /, *args: Any, **kwargs: Any) -> Any:
        return wrap(await method(self, *args, **kwargs))

    return wrapping


def _entering(method: Awaited) -> Awaited:
    """`__aenter__` of a guard gives the guard where the instance gives itself."""

    async def entering(self: Guard, /) -> Any:
        entered = await method(self)
        return self if entered is self._target else entered

    return entering


def _stream(name: str, record: MethodRecord) -> Method:
    def stream(self: Guard, /, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        return guarded_stream(record, getattr(self._target, name), args, kwargs)

    return _named(stream, name)


def _named(method: Method, name: str) -> Method:
    method.__name__ = method.__qualname__ = name
    return method
