"""Tell that a method of a service failed: a plugin of somebody else's in one line, our own with its traceback."""

from __future__ import annotations

import dataclasses
import logging
import sysconfig
import traceback
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from aiocontainerd import errors
from aiocontainerd.wire import codec

if TYPE_CHECKING:
    from aiocontainerd.rpc.binding import BoundMethod

_OURS = "aiocontainerd"
_CARRIERS = frozenset({"anyio", "asyncio", "betterproto2", "grpclib", "msgspec", "pluggy", "uvloop"})
"""Packages whose frames are not where an error is made."""
_LIBRARY = sysconfig.get_path("stdlib")
_LONGEST = 1000


def tell(log: logging.Logger, error: BaseException, bound: BoundMethod) -> None:
    """Log an error that is no answer of a service."""
    implementation = type(getattr(bound.call, "__self__", None))
    if isinstance(error, OSError):  # the host's doing, such as a full disk: its text says all
        log.error("%s (%s) failed: %s", bound.path, implementation.__name__, errors.os_text(error))
    elif isinstance(getattr(error, errors.TOLD_AS, None), str) and _place(error):
        log.error("%s failed: %s", bound.path, getattr(error, errors.TOLD_AS))
    elif implementation.__module__.startswith(_OURS) and not _place(error):
        log.error("%s (%s) failed unexpectedly", bound.path, implementation.__name__, exc_info=error)
        return
    else:
        text = " ".join(errors.safe_text(error)[:_LONGEST].split())
        what = f"{type(error).__name__}: {text}".removesuffix(": ")
        log.error("%s (%s) failed: %s%s", bound.path, implementation.__name__, what, _place(error))
    log.debug("%s failed here", bound.path, exc_info=error)


class WrongAnswerError(Exception):
    """Error for a method that returned something else than a message of its class. The text names both."""


def wrong_answer(bound: BoundMethod, answer: Any, error: Exception) -> WrongAnswerError:
    """Return what is wrong with an answer that cannot be encoded."""
    method: Any = bound.call
    what = f"{method.__qualname__} returned {'None' if answer is None else type(answer).__name__}"
    code = getattr(method, "__code__", None)
    where = f" ({_short(code.co_filename)}:{code.co_firstlineno})" if code is not None else ""
    if not isinstance(answer, bound.response_class):
        return WrongAnswerError(f"{what}, not {bound.response_class.__name__}{where}")
    return WrongAnswerError(f"{what} with a wrong value in {_wrong_field(answer)}: {errors.safe_text(error)}{where}")


def _wrong_field(message: Any) -> str:
    for field in dataclasses.fields(message):
        alone = type(message)()
        setattr(alone, field.name, getattr(message, field.name))
        try:
            codec.encode(alone)
        except Exception:  # noqa: BLE001 - that is the one
            return f"{field.name}, {getattr(message, field.name)!r}"[:_LONGEST]
    return "one of its fields"


def _place(error: BaseException) -> str:
    """Return the innermost line of somebody else's code, "" if there is none."""
    found = [(frame, line) for frame, line in traceback.walk_tb(error.__traceback__) if _is_foreign(frame)]
    if not found:
        return ""
    frame, line = found[-1]
    return f" ({_short(frame.f_code.co_filename)}:{line} in {frame.f_code.co_name})"


def _is_foreign(frame: FrameType) -> bool:
    package = frame.f_globals.get("__name__", "").partition(".")[0]
    library = frame.f_code.co_filename.startswith(("<", _LIBRARY)) and "-packages" not in frame.f_code.co_filename
    return not package.startswith(_OURS) and package not in _CARRIERS and not library


def _short(name: str) -> str:
    file = Path(name)
    return f"{file.parent.name}/{file.name}"
