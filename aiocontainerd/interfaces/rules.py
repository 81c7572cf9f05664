"""Say how a method of a contract is guarded: decorators for the methods of the Protocols in this package.

    class Snapshotter(Protocol):
        @deadline(QUICK)
        async def stat(self, key: str) -> Info: ...

        @deadline(WORK, always=True)
        async def remove(self, key: str) -> None: ...

        @items(WORK)
        def walk(self, filters: Sequence[str] = ()) -> AsyncIterator[Info]: ...

A deadline class is a key of `[timeouts]`. `always=True` lets calls through an open circuit breaker. It is for methods
that end, free or look at something, since those are the way out of trouble.

The guard (`aiocontainerd/guard/`) reads the rules from the Protocol of the plugin's kind. It also guards what a method
returns, or a property holds, if the annotation is a Protocol with rules, or a list of them.

Authors of a kind without a contract write the same decorators on the methods of their own class. A method without one
has `@deadline(WORK, always=True)`, or `@items(WORK, always=True)` if it is an asynchronous generator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

PREFIX = "io.containerd.timeout.plugin."
QUICK = f"{PREFIX}quick"
"""Deadline class of methods that answer from memory or an index."""
WORK = f"{PREFIX}work"
"""Deadline class of methods that touch disks or other processes."""
LONG = f"{PREFIX}long"
"""Deadline class of methods that move whole layers."""
TASK = f"{PREFIX}task"
"""Deadline class of methods that ask a shim."""

_RULE = "__aiocontainerd_rule__"
_NAME = "__aiocontainerd_name__"
_LATE_COUNTS = "__aiocontainerd_late_counts__"
_UNGUARDED = "__aiocontainerd_unguarded__"

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound=type)


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """How one method is guarded. `timeout` "" is no deadline, for the reason in `unlimited`.

    `always` lets its calls through an open breaker; `each_item` means that it returns an asynchronous iterator, whose
    deadline is for each item.
    """

    timeout: str = ""
    unlimited: str = ""
    always: bool = False
    each_item: bool = False


def deadline(timeout: str, *, always: bool = False) -> Callable[[F], F]:
    """Give an awaited method the deadline of a class: QUICK, WORK, LONG or TASK."""
    return _marking(Rule(timeout=timeout, always=always))


def unlimited(why: str, *, always: bool = False) -> Callable[[F], F]:
    """Give an awaited method no deadline, for a reason that the operations page repeats."""
    return _marking(Rule(unlimited=why, always=always))


def items(timeout: str, *, always: bool = False) -> Callable[[F], F]:
    """Give each item of a method that returns an asynchronous iterator the deadline of a class."""
    return _marking(Rule(timeout=timeout, always=always, each_item=True))


def guarded(*, name: str = "", late_counts: bool = True) -> Callable[[C], C]:
    """Say of a Protocol what holds for all of its methods.

    `name` stands before a method's name in counters and messages where another plugin's method returned the object;
    without it, it is the Protocol's own name in lower case. With `late_counts` False, a DeadlineExceeded that the
    plugin raises itself is an answer and no failure: it names a shim or sandbox that does not answer in time, which
    says nothing about the next one.
    """

    def mark(protocol: C) -> C:
        setattr(protocol, _LATE_COUNTS, late_counts)
        if name:
            setattr(protocol, _NAME, name)
        return protocol

    return mark


def unguarded(why: str) -> Callable[[C], C]:
    """Say that instances of a Protocol's kind are given to other plugins as they are, and why."""

    def mark(protocol: C) -> C:
        setattr(protocol, _UNGUARDED, why)
        return protocol

    return mark


def rule_of(method: object) -> Rule | None:
    """Return the rule that a decorator gave a method."""
    return getattr(method, _RULE, None)


def why_unguarded(protocol: type) -> str:
    """Return the reason of `@unguarded`, "" for a Protocol that is guarded."""
    return str(vars(protocol).get(_UNGUARDED, ""))


def late_counts(protocol: type) -> bool:
    """Return whether a DeadlineExceeded that the plugin raises itself is a failure."""
    return bool(getattr(protocol, _LATE_COUNTS, True))


def name_of(protocol: type) -> str:
    """Return what stands before the names of a Protocol's methods in counters and messages."""
    return str(vars(protocol).get(_NAME) or protocol.__name__.lower())


def _marking(rule: Rule) -> Callable[[F], F]:
    def mark(method: F) -> F:
        setattr(method, _RULE, rule)
        return method

    return mark
