"""When the event loop began the round of callbacks that it is in: what the watchdog reads from its own thread.

A round is all that runs between two waits for events. The loop stamps its beginning at a cost of some ten nanoseconds
and without taking the interpreter's lock, so nothing has to wake up to see it.
"""

from __future__ import annotations

import asyncio
import ctypes
import inspect
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

_UV_CHECK = 2
"""`UV_CHECK` of libuv's `uv_handle_type`."""
_COROUTINE = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR | inspect.CO_ITERABLE_COROUTINE
_kept: list[object] = []
"""Memory of handles that libuv may still look at while it closes them."""


class Pulse(Protocol):
    """Of one loop; made and closed in its thread."""

    @property
    def beat(self) -> float:
        """Changes with every round that the loop begins, and only then."""
        ...

    def began(self, frame: FrameType | None) -> float:
        """`time.monotonic` of the beginning of the round in which the loop's thread runs `frame`."""
        ...

    def here(self) -> float:
        """The beat of the round that runs; called by the loop itself."""
        ...

    def close(self) -> None:
        """Stamp no more."""
        ...


def pulse_of(loop: asyncio.AbstractEventLoop) -> Pulse:
    """The pulse of a loop, the best that its kind allows."""
    selector = getattr(loop, "_selector", None)
    if selector is not None:
        return SelectorPulse(selector)
    try:
        return UvPulse(loop)
    except (AttributeError, ImportError, KeyError, OSError, ValueError):
        return NoPulse()


class SelectorPulse:
    """Of asyncio's own loop: the end of every `select`."""

    def __init__(self, selector: Any) -> None:
        self.beat = time.monotonic()
        self._selector = selector
        select: Callable[..., Any] = selector.select

        def stamping(timeout: float | None = None) -> Any:
            found = select(timeout)
            self.beat = time.monotonic()
            return found

        selector.select = stamping

    def began(self, _frame: FrameType | None) -> float:
        """The end of the last wait."""
        return self.beat

    def here(self) -> float:
        """The beat."""
        return self.beat

    def close(self) -> None:
        """Leave the selector as it was."""
        del self._selector.select


class UvPulse:
    """Of uvloop: a check handle, which libuv calls after each wait and before it runs tasks and timers.

    What it calls is libuv's own `uv_update_time`, with the handle in the place of a loop: it writes the time, in
    milliseconds, where a loop has it, which is in the memory behind the handle. So the stamp is made in C alone.
    Callbacks of sockets run before the check; for those, libuv's time of the end of the wait is taken, which code that
    asks the loop for the time, or sets a timer, moves on. Raises ValueError for a libuv that has these elsewhere.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        import uvloop.loop

        pointer_of: Any = vars(uvloop.loop)["libuv_get_loop_t_ptr"]  # which its type stubs leave out
        self._uv = uv = ctypes.PyDLL(uvloop.loop.__file__)
        uv.uv_now.restype = ctypes.c_uint64
        uv.uv_loop_size.restype = uv.uv_handle_size.restype = ctypes.c_size_t
        capsule = ctypes.pythonapi.PyCapsule_GetPointer
        capsule.restype, capsule.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
        self._loop = ctypes.c_void_p(capsule(pointer_of(loop), None))
        self._handle = ctypes.create_string_buffer(uv.uv_loop_size())
        self._stamp = self._found_stamp()
        uv.uv_check_init(self._loop, self._handle)
        uv.uv_check_start(self._handle, uv.uv_update_time)
        uv.uv_unref(self._handle)

    def _found_stamp(self) -> ctypes.c_uint64:
        """Where `uv_update_time` writes."""
        size = ctypes.sizeof(self._handle) // 8
        self._uv.uv_update_time(self._handle)
        words = (ctypes.c_uint64 * size).from_buffer(self._handle)
        written = [at for at, word in enumerate(words) if word]
        if len(written) != 1 or written[0] * 8 < self._uv.uv_handle_size(_UV_CHECK):
            raise ValueError("libuv keeps its time where a handle is")
        return ctypes.c_uint64.from_buffer(self._handle, written[0] * 8)

    @property
    def beat(self) -> float:
        """The time of the last check."""
        return self._stamp.value / 1000

    def began(self, frame: FrameType | None) -> float:
        """The last check for what runs in a task, which sockets' callbacks do not; else the end of the last wait."""
        while frame is not None:
            if frame.f_code.co_flags & _COROUTINE:
                return self.beat
            frame = frame.f_back
        now: int = self._uv.uv_now(self._loop)
        return max(self.beat, now / 1000)

    def here(self) -> float:
        """The beat."""
        return self.beat

    def close(self) -> None:
        """Close the handle; libuv is done with it within a round."""
        self._uv.uv_close(self._handle, None)
        _kept.append(self._handle)


class NoPulse:
    """Of a loop that tells nothing: a round began when it was looked at, and ends with the sign of life."""

    def __init__(self) -> None:
        self.beat = 0.0

    def began(self, _frame: FrameType | None) -> float:
        """Now."""
        return time.monotonic()

    def here(self) -> float:
        """A new beat."""
        self.beat = time.monotonic()
        return self.beat

    def close(self) -> None:
        """There is nothing to leave."""
