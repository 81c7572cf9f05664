"""Answers of a stream that can be sent from where they come about."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from aiocontainerd.wire.codec import Encoded

Push = Callable[[Encoded], bool]
"""Function that sends a message now, or returns False where the client does not take it yet. It never waits."""


@runtime_checkable
class Feed(Protocol):
    """What a method of a server stream may return: an asynchronous iterator that can also push its answers."""

    def push_to(self, push: Push) -> None:
        """Send answers by `push` from now on. Those that it does not take, and all after them, are iterated."""
        ...
