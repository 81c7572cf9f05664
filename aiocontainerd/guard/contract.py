"""Read off a Protocol what to guard: its methods with their rules, and what they return.

The rules stand on the methods (`interfaces/rules.py`). What a method returns is guarded too if its annotation is a
Protocol with rules (a reader, a task), or a list of them; so is what a property holds (`metadata.containers`).
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from inspect import isasyncgenfunction, iscoroutinefunction, isfunction
from typing import Any

import msgspec

from aiocontainerd.interfaces import protocol_of
from aiocontainerd.interfaces.rules import WORK, Rule, late_counts, name_of, rule_of, why_unguarded

_WITHOUT_RULE = Rule(timeout=WORK, always=True)
_WITHOUT_RULE_STREAM = Rule(timeout=WORK, always=True, each_item=True)


class Given(msgspec.Struct, frozen=True):
    """What a method returns, or a property holds: an object of a Protocol, or a list of them (`several`).

    `name` stands before the names of its methods in counters and messages, as in `writer.commit`.
    """

    protocol: type
    name: str
    several: bool = False


class GuardedInterface(msgspec.Struct, frozen=True, kw_only=True):
    """What is guarded of an object. Everything else passes through."""

    calls: Mapping[str, Rule]
    """Methods that are awaited."""
    streams: Mapping[str, Rule]
    """Methods that return an asynchronous iterator."""
    gives: Mapping[str, Given] = {}
    """Methods, awaited or not, that return guarded objects."""
    parts: Mapping[str, Given] = {}
    """Properties that hold guarded objects."""
    late_counts: bool = True

    @property
    def closes(self) -> bool:
        """Whether the object is a resource that its user closes."""
        return "close" in self.calls


def contract_of(kind: str, plugin_id: str, instance: type) -> GuardedInterface | None:
    """Return what to guard of a plugin's instance, None for a kind that is not guarded.

    A kind without a Protocol has the public asynchronous methods of the instance's class. A plugin of any other kind
    may be a PluginInfoProvider besides.
    """
    protocol = protocol_of(kind, plugin_id)
    if protocol is None:
        return of_class(instance)
    return None if why_unguarded(protocol) else _of_plugin(protocol)


@cache
def _of_plugin(protocol: type) -> GuardedInterface:
    from aiocontainerd.interfaces.services import PluginInfoProvider  # it imports most contracts

    contract = of_protocol(protocol)
    return msgspec.structs.replace(contract, calls={**of_protocol(PluginInfoProvider).calls, **contract.calls})


@cache
def of_protocol(protocol: type) -> GuardedInterface:
    """Return what a Protocol says."""
    rules = {name: rule for name, member in _members(protocol) if (rule := rule_of(member)) is not None}
    gives: dict[str, Given] = {}
    parts: dict[str, Given] = {}
    for name, member in _members(protocol):
        if isfunction(member) and (given := _given(member)) is not None:
            gives[name] = given
        elif isinstance(member, property) and member.fget is not None and (part := _given(member.fget)) is not None:
            parts[name] = msgspec.structs.replace(part, name=name)
    return GuardedInterface(
        calls={name: rule for name, rule in rules.items() if not rule.each_item},
        streams={name: rule for name, rule in rules.items() if rule.each_item},
        gives=gives,
        parts=parts,
        late_counts=late_counts(protocol),
    )


@cache
def of_class(instance: type) -> GuardedInterface:
    """Return what a class without a Protocol has: its public asynchronous methods, by their own rules if any.

    A method without a rule has the deadline class *work* and is never refused.
    """
    functions = {name: getattr(instance, name, None) for name in dir(instance) if not name.startswith("_")}
    return GuardedInterface(
        calls={n: rule_of(f) or _WITHOUT_RULE for n, f in functions.items() if iscoroutinefunction(f)},
        streams={n: rule_of(f) or _WITHOUT_RULE_STREAM for n, f in functions.items() if isasyncgenfunction(f)},
    )


def _members(protocol: type) -> Iterator[tuple[str, Any]]:
    """Return the members of a Protocol by name, also inherited ones. An overriding member replaces the other."""
    found: dict[str, Any] = {}
    for base in reversed(protocol.__mro__):
        if getattr(base, "_is_protocol", False) and base.__module__ != "typing":
            found |= vars(base)
    yield from found.items()


def _given(function: Any) -> Given | None:
    """Return the guarded type that a function returns, or None."""
    annotations = {"return": function.__annotations__.get("return")}
    alone = types.SimpleNamespace(
        __annotations__=annotations
    )  # the parameters' types may be there for the checker only
    returned = typing.get_type_hints(alone, function.__globals__)["return"]
    outer = typing.get_origin(returned)
    several = isinstance(outer, type) and issubclass(outer, typing.Sequence)
    inner = typing.get_args(returned) if several or outer in (typing.Union, types.UnionType) else (returned,)
    for one in inner:
        if isinstance(one, type) and _has_rules(one):
            return Given(one, name_of(one), several)
    return None


def _has_rules(one: type) -> bool:
    return any(rule_of(member) is not None for _, member in _members(one))
