"""The error table, both ways (facts/core 15)."""

from __future__ import annotations

import asyncio
import errno
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiocontainerd import errors
from aiocontainerd.errors import ContainerdError, from_status, to_status

TABLE: list[tuple[type[ContainerdError], int, str]] = [
    (errors.Cancelled, 1, "context canceled"),
    (errors.InvalidArgument, 3, "invalid argument"),
    (errors.DeadlineExceeded, 4, "context deadline exceeded"),
    (errors.NotFound, 5, "not found"),
    (errors.AlreadyExists, 6, "already exists"),
    (errors.PermissionDenied, 7, "permission denied"),
    (errors.ResourceExhausted, 8, "resource exhausted"),
    (errors.FailedPrecondition, 9, "failed precondition"),
    (errors.Conflict, 9, "conflict"),
    (errors.NotModified, 9, "not modified"),
    (errors.ReadOnlyFileSystem, 9, "read-only file system"),
    (errors.Aborted, 10, "aborted"),
    (errors.OutOfRange, 11, "out of range"),
    (errors.Unimplemented, 12, "not implemented"),
    (errors.Internal, 13, "internal"),
    (errors.Unavailable, 14, "unavailable"),
    (errors.DataLoss, 15, "data loss"),
    (errors.Unauthenticated, 16, "unauthorized"),
]
table = pytest.mark.parametrize(("kind", "code", "text"), TABLE)


def test_every_class_is_in_the_table() -> None:
    defined = {
        value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, ContainerdError)
    }
    assert defined == {kind for kind, _, _ in TABLE} | {ContainerdError, errors.Unknown, errors.LocalDeadline}


def test_an_error_of_a_read_only_file_system_is_a_failed_precondition() -> None:
    error = OSError(errno.EROFS, os.strerror(errno.EROFS), "/x")
    assert to_status(error) == (9, "/x: read-only file system")
    assert isinstance(from_status(*to_status(error)), errors.ReadOnlyFileSystem)


@table
def test_an_error_travels_as_context_and_class_text(kind: type[ContainerdError], code: int, text: str) -> None:
    assert to_status(kind("image x")) == (code, f"image x: {text}")
    assert to_status(kind()) == (code, text)
    assert to_status(kind("")) == (code, text)


@table
def test_the_class_text_is_not_said_twice(kind: type[ContainerdError], code: int, text: str) -> None:
    assert to_status(kind(f"image x: {text}")) == (code, f"image x: {text}")
    assert to_status(kind(text)) == (code, text)


@table
def test_what_a_peer_answers_becomes_the_same_error(kind: type[ContainerdError], code: int, text: str) -> None:
    error = from_status(code, f"image x: {text}")
    assert type(error) is kind
    assert error.message == "image x"
    assert to_status(error) == (code, f"image x: {text}")
    assert type(from_status(code, text)) is kind


def test_precondition_failures_are_conflicts_only_where_their_text_ends_so() -> None:
    assert type(from_status(9, "conflict of interest")) is errors.FailedPrecondition
    assert type(from_status(9, "no conflict")) is errors.FailedPrecondition
    assert type(from_status(9, "x: not modified")) is errors.NotModified


@pytest.mark.parametrize("code", [2, 0, 17, 99, -1])
def test_codes_of_no_class_are_unknown_and_keep_their_message(code: int) -> None:
    error = from_status(code, "something: unknown")
    assert type(error) is errors.Unknown
    assert error.message == "something: unknown"
    assert to_status(error) == (2, "something: unknown")


@pytest.mark.parametrize("error", [errors.NotFound("layer x: caf\udce9"), OSError("layer x: caf\udce9")])
def test_a_text_that_is_no_utf_8_travels_all_the_same(error: Exception) -> None:
    assert to_status(error)[1].startswith("layer x: caf?")


def test_a_complete_text_has_no_class_text() -> None:
    assert to_status(errors.NotFound("task x not found", complete=True)) == (5, "task x not found")
    assert to_status(errors.NotFound("task x not found")) == (5, "task x not found: not found")


@pytest.mark.parametrize(
    ("error", "verb", "text"),
    [
        (OSError(errno.ENOENT, "No such file or directory", "/x"), "open", "open /x: no such file or directory"),
        (OSError(errno.EIO, "Input/output error", b"/x"), "", "/x: input/output error"),
        (OSError(errno.EXDEV, "Cross-device", "/a", None, "/b"), "rename", "rename /a /b: cross-device"),
        (OSError(errno.ENOSPC, "No space left on device"), "write", "no space left on device"),
        (OSError("RFS specific error"), "", "RFS specific error"),
    ],
)  # fmt: skip
def test_a_system_error_is_told_in_gos_words(error: OSError, verb: str, text: str) -> None:
    assert errors.os_text(error, verb) == text
    assert "Errno" not in to_status(error)[1]


def test_foreign_exceptions_have_codes_too() -> None:
    assert to_status(TimeoutError()) == (4, "context deadline exceeded")
    assert to_status(TimeoutError("the disk")) == (4, "the disk: context deadline exceeded")
    slow = OSError(errno.ETIMEDOUT, "Connection timed out", "/nfs")
    assert to_status(slow) == (2, "/nfs: connection timed out"), "the kernel's limit is nobody's deadline"
    assert to_status(asyncio.CancelledError()) == (1, "context canceled")
    assert to_status(NotImplementedError()) == (12, "not implemented")
    assert to_status(NotImplementedError("Pause")) == (12, "Pause: not implemented")
    assert to_status(ValueError("broken")) == (2, "broken")
    assert to_status(ValueError()) == (2, "ValueError")


@given(st.sampled_from(TABLE), st.text())
def test_a_round_trip_keeps_code_and_message(row: tuple[type[ContainerdError], int, str], context: str) -> None:
    kind, code, _ = row
    status = to_status(kind(context))
    assert status[0] == code
    assert to_status(from_status(*status)) == status
