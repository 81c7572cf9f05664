"""Errors that travel to clients: one exception for each class of containerd's, with its wire code (facts/core 15).

The message of an error travels as `<context>: <class text>`. Clients strip the class text and raise their own error of
that class, so the class text must come last. `to_status` appends it unless the context ends in it already. Where
containerd's own services refuse a request, the text has no class text; such an error is raised with `complete=True`.
"""

from __future__ import annotations

import asyncio
import errno
import os
from typing import ClassVar


class ContainerdError(Exception):
    """An error that travels to clients with a status code. Only subclasses are raised.

    With `complete` the message travels as it is, without the class text.
    """

    code: ClassVar[int] = 2
    text: ClassVar[str] = ""

    def __init__(self, *args: object, complete: bool = False) -> None:
        super().__init__(*args)
        self.complete = complete

    @property
    def message(self) -> str:
        """The context, as it was given to the exception; without a context, the class text."""
        return str(self.args[0]) if self.args else self.text


class Unknown(ContainerdError):
    """A failure that fits no other class. The message travels as it is."""


class Cancelled(ContainerdError):
    """The caller gave up."""

    code, text = 1, "context canceled"


class InvalidArgument(ContainerdError):
    """The request can never work, whatever the state of the daemon."""

    code, text = 3, "invalid argument"


class DeadlineExceeded(ContainerdError):
    """A named deadline passed before the answer came."""

    code, text = 4, "context deadline exceeded"


class LocalDeadline(DeadlineExceeded):
    """A limit of this program passed before a peer answered.

    A peer that answers DEADLINE_EXCEEDED tells of a limit of its own; that is a plain DeadlineExceeded.
    """


class NotFound(ContainerdError):
    """The named object does not exist."""

    code, text = 5, "not found"


class AlreadyExists(ContainerdError):
    """An object of that name exists already."""

    code, text = 6, "already exists"


class PermissionDenied(ContainerdError):
    """The caller or the daemon may not do this."""

    code, text = 7, "permission denied"


class ResourceExhausted(ContainerdError):
    """A limit was reached, such as the size of a message."""

    code, text = 8, "resource exhausted"


class FailedPrecondition(ContainerdError):
    """The state of the object does not allow the operation now."""

    code, text = 9, "failed precondition"


class Conflict(FailedPrecondition):
    """Another change of the same object came first."""

    text = "conflict"


class NotModified(FailedPrecondition):
    """The object is already as requested."""

    text = "not modified"


class ReadOnlyFileSystem(FailedPrecondition):
    """The file system below the object takes no changes. The message names a path."""

    text = "read-only file system"
    path = ""
    """What could not be changed, as far as the operating system said."""


class Aborted(ContainerdError):
    """The daemon gave up the operation. The caller may try it again."""

    code, text = 10, "aborted"


class OutOfRange(ContainerdError):
    """The offset is past the end of the object."""

    code, text = 11, "out of range"


class Unimplemented(ContainerdError):
    """The daemon or the plugin lacks this function (status UNIMPLEMENTED)."""

    code, text = 12, "not implemented"


class Internal(ContainerdError):
    """The daemon's own state is broken."""

    code, text = 13, "internal"


class Unavailable(ContainerdError):
    """The request cannot be served now and may work later."""

    code, text = 14, "unavailable"


class DataLoss(ContainerdError):
    """Bytes are missing or damaged."""

    code, text = 15, "data loss"


class Unauthenticated(ContainerdError):
    """The caller has no valid credentials."""

    code, text = 16, "unauthorized"


_BY_CODE: dict[int, type[ContainerdError]] = {
    c.code: c
    for c in (
        Unknown, Cancelled, InvalidArgument, DeadlineExceeded, NotFound, AlreadyExists, PermissionDenied,
        ResourceExhausted, FailedPrecondition, Aborted, OutOfRange, Unimplemented, Internal,
        Unavailable, DataLoss, Unauthenticated,
    )
}  # fmt: skip


def from_status(code: int, message: str) -> ContainerdError:
    """Return the error of a peer's status. The message loses its class text, as in containerd's clients."""
    kind = _BY_CODE.get(code, Unknown)
    if kind is FailedPrecondition:
        for special in (Conflict, NotModified, ReadOnlyFileSystem):
            if message == special.text or message.endswith(f": {special.text}"):
                kind = special
    if kind.text and message.endswith(f": {kind.text}"):
        message = message[: -len(kind.text) - 2]
    return kind(message)


MAX_TEXT_CHARACTERS = 4096
"""Longest text of an error that travels."""


def to_status(error: BaseException) -> tuple[int, str]:
    """Return the code and message with which `error` travels. A foreign exception is UNKNOWN with its own text."""
    code, message = _status(error)
    return code, sendable(message)


def sendable(text: str) -> str:
    """Return `text` with a question mark for each character that UTF-8 cannot encode, such as stray bytes of a path.

    A text that names something huge is cut: it travels in headers, and clients refuse long ones.
    """
    if len(text) > MAX_TEXT_CHARACTERS:
        text = f"{text[:MAX_TEXT_CHARACTERS]}... ({len(text)} characters)"
    return text.encode(errors="replace").decode()


TOLD_AS = "__told_as__"
"""Attribute of an error that a plugin did not mean as an answer: what clients are told of it."""


def _status(error: BaseException) -> tuple[int, str]:
    if isinstance(error, ContainerdError):
        return error.code, error.message if error.complete else _with_class_text(error.message, error.text)
    if isinstance(error, TimeoutError) and error.errno is None:
        return DeadlineExceeded.code, _with_class_text(str(error), DeadlineExceeded.text)
    if isinstance(error, asyncio.CancelledError):
        return Cancelled.code, Cancelled.text
    if isinstance(error, NotImplementedError):
        return Unimplemented.code, _with_class_text(str(error), Unimplemented.text)
    if isinstance(error, OSError):
        return (ReadOnlyFileSystem if error.errno == errno.EROFS else Unknown).code, os_text(error)
    told = getattr(error, TOLD_AS, "")
    if told:
        return Unknown.code, told
    if isinstance(error, Exception) and not isinstance(error, BaseExceptionGroup):
        return Unknown.code, safe_text(error) or type(error).__name__
    return Unknown.code, f"{type(error).__name__}: {safe_text(error)}".removesuffix(": ")


def text_of(error: BaseException) -> str:
    """Return the text of any exception for people; that of the operating system is in Go's words."""
    return os_text(error) if isinstance(error, OSError) else safe_text(error)


def safe_text(error: BaseException) -> str:
    """Return the text of an exception whose `__str__` may fail, too; of a group, with those in it."""
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(f"{type(one).__name__}: {safe_text(one)}" for one in error.exceptions)
    try:
        return str(error)
    except Exception as failure:  # noqa: BLE001 - `__str__` is a plugin's code, too
        return f"(its text cannot be told: __str__ raised {type(failure).__name__})"


def is_ordered(error: BaseException) -> bool:
    """Return whether an exception is a cancellation that somebody asked for.

    Anything else that a plugin raises is its own failure, which the daemon survives: `SystemExit`, `KeyboardInterrupt`
    (signals do not become exceptions in the daemon), and a `CancelledError` that the plugin itself raised.
    """
    if not isinstance(error, asyncio.CancelledError):
        return False
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def os_text(error: OSError, verb: str = "") -> str:
    """Return an error of the operating system in Go's words, without its number: `open /x: no such file or directory`.

    `verb` says what was tried with the path of the error; without a path it is left out.
    """
    reason = error.strerror or str(error) or type(error).__name__
    reason = reason if reason[1:2].isupper() else reason[:1].lower() + reason[1:]
    named = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    if not named:
        return reason
    return f"{verb} {' '.join(named)}: {reason}" if verb else f"{' '.join(named)}: {reason}"


def _with_class_text(message: str, text: str) -> str:
    if not text or message == text or message.endswith(f": {text}"):
        return message
    return f"{message}: {text}" if message else text
