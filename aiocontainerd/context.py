"""Namespace and lease of the current call, in a context variable that the call's tasks inherit (facts/core 1, 9)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import msgspec

from aiocontainerd import identifiers
from aiocontainerd.errors import FailedPrecondition, InvalidArgument

GRPC_NAMESPACE_HEADER = "containerd-namespace"
TTRPC_NAMESPACE_HEADER = "containerd-namespace-ttrpc"
GRPC_LEASE_HEADER = "containerd-lease"


class CallContext(msgspec.Struct, frozen=True):
    """The namespace and the lease in the headers of a call. An empty string stands for a missing header."""

    namespace: str = ""
    lease: str = ""


_NOTHING = CallContext()
_current: ContextVar[CallContext] = ContextVar("aiocontainerd-call", default=_NOTHING)


def current() -> CallContext:
    """Return the context of the current call. Outside of a call it is empty."""
    return _current.get()


def namespace() -> str:
    """Return the namespace of the current call.

    Raises FailedPrecondition when the call named no namespace, InvalidArgument when the name is no identifier.
    """
    name = _current.get().namespace
    if not name:
        raise FailedPrecondition("namespace is required")
    try:
        identifiers.validate(name)
    except InvalidArgument as bad:
        raise InvalidArgument(f"namespace validation: {bad.message}") from bad
    return name


def lease() -> str:
    """Return the lease of the current call, or an empty string."""
    return _current.get().lease


def enter(call: CallContext) -> None:
    """Make `call` the context of the current task. A front end does so in the task of each request."""
    _current.set(call)


@contextmanager
def use(*, namespace: str | None = None, lease: str | None = None) -> Iterator[CallContext]:
    """Run a block under another namespace or lease. An argument left out keeps the current value."""
    before = _current.get()
    call = CallContext(
        before.namespace if namespace is None else namespace,
        before.lease if lease is None else lease,
    )
    token = _current.set(call)
    try:
        yield call
    finally:
        _current.reset(token)
