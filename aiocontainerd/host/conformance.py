"""Check that an instance has what the Protocol of its kind asks for, when it is loaded."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import msgspec

from aiocontainerd.host.registration import PluginError
from aiocontainerd.interfaces import PROTOCOLS, protocol_of

_AWAITABLE = ("Awaitable", "Coroutine", "Future", "Task")


class Member(msgspec.Struct, frozen=True):
    """A member of a Protocol, and how it is used."""

    name: str
    is_method: bool
    is_awaited: bool = False
    is_stream: bool = False


def check(kind: str, instance: object) -> None:
    """Raise PluginError, which names the first member that an instance lacks or has in another form."""
    protocol = protocol_of(kind)
    if protocol is None:
        return
    if instance is None:
        raise PluginError(f"init returned None, not a {protocol.__name__} ({_file(kind)})")
    for member in members(protocol):
        problem = _problem(member, instance)
        if problem:
            raise PluginError(f"{type(instance).__name__}{problem} (contract: {_file(kind)})")


@cache
def members(protocol: type) -> tuple[Member, ...]:
    """Return the members of a Protocol in the order they are written, inherited ones first."""
    found: dict[str, Member] = {}
    for base in reversed(protocol.__mro__):
        if not getattr(base, "_is_protocol", False) or base.__module__ == "typing":
            continue
        for name in (*inspect.get_annotations(base), *vars(base)):
            if not name.startswith("_"):
                found[name] = _member(name, vars(base).get(name))
    return tuple(found.values())


def _member(name: str, value: object) -> Member:
    if not inspect.isfunction(value):
        return Member(name, is_method=False)
    returned = str(inspect.get_annotations(value).get("return", ""))
    return Member(
        name,
        is_method=True,
        is_awaited=inspect.iscoroutinefunction(value),
        is_stream=returned.startswith("AsyncIterator"),
    )


def _problem(member: Member, instance: object) -> str:
    missing = object()
    value = getattr(instance, member.name, missing)
    if value is missing:
        return f" has no {'method' if member.is_method else 'attribute'} {member.name}"
    if not member.is_method:
        return ""
    if not callable(value):
        return f".{member.name} is {type(value).__name__}, not a method"
    return f".{member.name} {_wrong_form(member, value)}" if _wrong_form(member, value) else ""


def _wrong_form(member: Member, method: Any) -> str:
    if not (inspect.isfunction(method) or inspect.ismethod(method)):
        return ""
    if member.is_awaited:
        return awaited_problem(method, member.name)
    if inspect.iscoroutinefunction(method):
        if member.is_stream:
            return "is awaited, not iterated: yield its items, or write it without async"
        return f"is async; write `def {member.name}`"
    return ""


def awaited_problem(method: Any, name: str) -> str:
    """Return the reason why a function cannot be awaited, or "" when it can or nobody can tell."""
    if inspect.isasyncgenfunction(method):
        return "yields; return its answer instead"
    if inspect.iscoroutinefunction(method) or not (inspect.isfunction(method) or inspect.ismethod(method)):
        return ""
    returned = str(inspect.get_annotations(inspect.unwrap(getattr(method, "__func__", method))).get("return", ""))
    return "" if any(word in returned for word in _AWAITABLE) else f"is not async; write `async def {name}`"


def _file(kind: str) -> str:
    return f"aiocontainerd/interfaces/{PROTOCOLS[kind].partition(':')[0]}.py"
