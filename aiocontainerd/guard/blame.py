"""Decide what an error of a call means: is it an answer or a failure, and which plugin does it count against.

An error counts against the plugin whose guard saw it first. That guard marks it, and the guards that it passes on its
way to the caller leave their plugins alone.
"""

from __future__ import annotations

import errno
import os
from inspect import isawaitable

from aiocontainerd.errors import (
    TOLD_AS,
    ContainerdError,
    DeadlineExceeded,
    ReadOnlyFileSystem,
    Unimplemented,
    Unknown,
    os_text,
)
from aiocontainerd.guard import diagnosis
from aiocontainerd.guard.health import MethodRecord

_TOLD = "__told_of_plugin__"
_CAUSES = 10
"""How many causes of an error are looked at; they may lead in a circle."""


def explained(record: MethodRecord, error: BaseException, returned: object) -> BaseException:
    """Return the error, or one of ours that tells what it means.

    That the method is not a coroutine function, or that nobody wrote it. That a file system is read-only: no fault of
    the plugin.
    """
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        refused = ReadOnlyFileSystem(os_text(error))
        refused.path = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
        refused.__cause__ = error
        return refused
    if isinstance(error, TypeError) and returned is not None and not isawaitable(returned):
        return Unknown(
            f"plugin {record.plugin.uri}: {record.method} gave {type(returned).__name__}, which cannot be awaited; "
            f"declare it with async def"
        )
    if isinstance(error, NotImplementedError) and not str(error):
        where = diagnosis.place(error, record.module)
        return Unimplemented(
            f"plugin {record.plugin.uri} has no method {record.method}{f' ({where})' if where else ''}"
        )
    return error


def is_answer(error: BaseException, *, late_counts: bool) -> bool:
    """Return whether an error is one that a working plugin gives its clients.

    A DeadlineExceeded of the plugin's own is a failure, unless the plugin drives something that has deadlines by
    itself, such as a shim (`late_counts` False).
    """
    if isinstance(error, DeadlineExceeded):
        return not late_counts
    return isinstance(error, ContainerdError | NotImplementedError)


def named(record: MethodRecord, error: Exception) -> Exception:
    """Return the error; for a bare TimeoutError, one that says whose limit passed: neither ours nor the caller's."""
    if not isinstance(error, TimeoutError) or error.errno is not None:
        return error
    told = DeadlineExceeded(
        f"plugin {record.plugin.uri}: {record.method} missed a deadline of its own"
        + (f": {error}" if str(error) else "")
    )
    told.__cause__ = error
    return told


def marked(record: MethodRecord, error: Exception) -> Exception:
    """Mark an error as counted against a plugin, unless it is marked already; return it."""
    if not hasattr(error, _TOLD):
        try:
            setattr(error, _TOLD, record.plugin.uri)
            if not isinstance(error, ContainerdError | OSError | NotImplementedError):
                setattr(error, TOLD_AS, f"plugin {record.plugin.uri}: {record.method}: {text_of(record, error)}")
        except AttributeError:  # a class with slots: it counts against the others, too
            pass
    return error


def is_anothers(error: BaseException | None, uri: str) -> bool:
    """Return whether the error, or one that caused it, counts against another plugin than `uri`."""
    for _ in range(_CAUSES):
        if error is None:
            return False
        if getattr(error, _TOLD, uri) != uri:
            return True
        error = error.__cause__
    return False


def text_of(record: MethodRecord, error: BaseException) -> str:
    """Return what logs and counters say of an error: if it is no answer, also its place and what to do."""
    if isinstance(error, ContainerdError):
        return error.message
    return diagnosis.describe(error, record.module)
