"""Check that an instance has what the Protocol of its kind asks for, when it is loaded."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from aiocontainerd.guard import diagnosis
from aiocontainerd.host.registration import PluginError
from aiocontainerd.interfaces import PROTOCOLS, protocol_of

_SIMPLE: Mapping[str, type] = MappingProxyType({"str": str, "bool": bool, "Path": Path})
"""Types of attributes, as a Protocol writes them."""
_AWAITABLE = ("Awaitable", "Coroutine", "Future", "Task")


class Member(msgspec.Struct, frozen=True):
    """A member of a Protocol, and how it is used."""

    name: str
    is_method: bool
    is_awaited: bool = False
    is_stream: bool = False
    function: Any = None
    holds: str = ""
    """The type of an attribute, as written."""

    @property
    def empty(self) -> object:
        """An empty value of the attribute's type."""
        return _SIMPLE[self.holds]() if self.holds in _SIMPLE else ()


def check(kind: str, instance: object) -> None:
    """Raise PluginError, which names the first member that an instance lacks or has in another form."""
    protocol = protocol_of(kind)
    if protocol is None:
        return
    if instance is None or isinstance(instance, type):
        given = "None" if instance is None else f"the class {instance.__name__}; write {instance.__name__}()"
        raise PluginError(f"init returned {given}, not a {protocol.__name__} ({_file(kind)})")
    for member in members(protocol):
        problem = _problem(member, instance)
        if problem:
            raise PluginError(f"{type(instance).__name__}{problem} (contract: {_file(kind)})")
    problem = _wrong_override(instance)
    if problem:
        raise PluginError(f"{type(instance).__name__}{problem}")
    unwritten = _unwritten(type(instance))
    if unwritten:
        base, names = unwritten
        raise PluginError(f"{type(instance).__name__} lacks {', '.join(names)}, which {base} asks for")
    unstarted = _unstarted(instance)
    if unstarted:
        raise PluginError(f"{type(instance).__name__}{unstarted}")


@cache
def members(protocol: type) -> tuple[Member, ...]:
    """Return the members of a Protocol in the order they are written, inherited ones first."""
    found: dict[str, Member] = {}
    for base in reversed(protocol.__mro__):
        if not getattr(base, "_is_protocol", False) or base.__module__ == "typing":
            continue
        for name in (*inspect.get_annotations(base), *vars(base)):
            if not name.startswith("_"):
                found[name] = _member(name, vars(base).get(name), str(inspect.get_annotations(base).get(name, "")))
    return tuple(found.values())


def _member(name: str, value: object, written: str = "") -> Member:
    if not inspect.isfunction(value):
        getter = getattr(value, "fget", None)
        holds = str(inspect.get_annotations(getter).get("return", "")) if getter is not None else written
        if holds.startswith("ClassVar["):
            holds = holds.removeprefix("ClassVar[").removesuffix("]")
        return Member(name, is_method=False, holds=holds)
    returned = str(inspect.get_annotations(value).get("return", ""))
    return Member(
        name,
        is_method=True,
        is_awaited=inspect.iscoroutinefunction(value),
        is_stream=returned.startswith("AsyncIterator"),
        function=value,
    )


def _problem(member: Member, instance: object) -> str:
    missing = object()
    try:
        value = getattr(instance, member.name)
    except AttributeError as error:
        if inspect.getattr_static(instance, member.name, missing) is not missing:
            return f".{member.name} cannot be read: {diagnosis.describe(error, type(instance).__module__)}"
        value = missing
    except Exception as error:  # noqa: BLE001 - a property is the plugin's code
        return f".{member.name} cannot be read: {diagnosis.describe(error, type(instance).__module__)}"
    if value is missing:
        return f" has no {'method' if member.is_method else 'attribute'} {member.name}{_like(member.name, instance)}"
    if not member.is_method:
        return _wrong_value(member, value)
    if not callable(value):
        return f".{member.name} is {type(value).__name__}, not a method"
    if getattr(value, "__func__", None) is member.function:
        return f" has no method {member.name}: it inherits that of the contract, which does nothing"
    problem = _wrong_form(member, value) or wrong_arity(member.function, value)
    return f".{member.name} {problem}" if problem else ""


def _wrong_value(member: Member, value: Any) -> str:
    """Return what is wrong with the value of an attribute, "" if it is right or has a type of its own."""
    if member.holds == "Sequence[str]":
        if isinstance(value, str):
            return f".{member.name} is a text; write ({value!r},)"
        if not isinstance(value, Sequence | Set) or not all(isinstance(one, str) for one in value):
            return f".{member.name} is {value!r}; write a tuple of texts"
    wanted = _SIMPLE.get(member.holds)
    if wanted is not None and not isinstance(value, wanted):
        return f".{member.name} is {value!r}, not {wanted.__name__}"
    return ""


def _wrong_override(instance: object) -> str:
    """Return what is wrong with a method that overrides one of a base class of ours, "" if nothing is."""
    cls = type(instance)
    for base in cls.__mro__:
        if not _is_ours(base) or getattr(base, "_is_protocol", False):
            continue
        for name, function in vars(base).items():
            own = getattr(instance, name, None)
            overrides = inspect.isfunction(function) and getattr(own, "__func__", own) is not function
            if name.startswith("_") or not overrides or not callable(own):
                continue
            awaited = inspect.iscoroutinefunction(function)
            problem = _wrong_form(Member(name, is_method=True, is_awaited=awaited, function=function), own)
            problem = problem or wrong_arity(function, own)
            if problem:
                return f".{name} {problem} (base class: {base.__name__})"
    return ""


def _unstarted(instance: Any) -> str:
    """Return what leaves out the `start` of a base class of ours, "" if it ran or there is none to run."""
    cls = type(instance)
    for base in cls.__mro__:
        if not _is_ours(base) or "is_started" not in vars(base) or instance.is_started:
            continue
        if cls.start is vars(base)["start"]:
            return f" is not started; write `await it.start()` in init, where `it` is the {cls.__name__}"
        code = getattr(cls.start, "__code__", None)
        at = f" ({diagnosis.short(code.co_filename)}:{code.co_firstlineno})" if code is not None else ""
        return f".start leaves out that of {base.__name__}; write `await super().start()` in it{at}"
    return ""


def _is_ours(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == "aiocontainerd"


def _like(name: str, instance: object) -> str:
    """Return the public name of an instance that its author may have meant."""
    near = difflib.get_close_matches(name, [one for one in dir(instance) if not one.startswith("_")], n=1)
    return f"; it has {near[0]}" if near else ""


def wrong_arity(wanted: Any, method: Any) -> str:
    """Return why a bound method cannot be called in each way that the function of a contract can, "" if it can."""
    try:
        own = inspect.signature(method)
    except (TypeError, ValueError):
        return ""
    parameters = list(inspect.signature(wanted).parameters.values())[1:]
    for args, kwargs in _forms(parameters):
        try:
            own.bind(*args, **kwargs)
        except TypeError as error:
            given = ", ".join(parameter.name for parameter in parameters)
            return f"takes ({', '.join(own.parameters)}), and is called with ({given}): {error}"
    return ""


def _forms(parameters: Sequence[inspect.Parameter]) -> Iterator[tuple[list[str], dict[str, str]]]:
    """Yield ways to call a function: with what it needs, with everything by position, with what is optional by name."""
    named = [one for one in parameters if one.kind is one.KEYWORD_ONLY]
    placed = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    needed = [one.name for one in placed if one.default is one.empty]
    optional = {one.name: "" for one in placed if one.default is not one.empty}
    yield needed, {one.name: "" for one in named if one.default is one.empty}
    yield [one.name for one in placed], {one.name: "" for one in named}
    yield needed, {**optional, **{one.name: "" for one in named}}


def _unwritten(cls: type) -> tuple[str, list[str]] | None:
    """Return the base class of ours, and its methods that a plugin has to write and did not."""
    for base in cls.__mro__:
        if not _is_ours(base):
            continue
        names = [name for name, value in vars(base).items() if _is_to_be_written(value) and getattr(cls, name) is value]
        if names:
            return base.__name__, names
    return None


def _is_to_be_written(value: object) -> bool:
    """Return whether a function does nothing but raise NotImplementedError."""
    code = getattr(value, "__code__", None)
    return code is not None and code.co_names == ("NotImplementedError",)


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
