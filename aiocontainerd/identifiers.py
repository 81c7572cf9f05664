"""Identifiers of namespaces, containers, sandboxes and topic components (facts/core 1)."""

from __future__ import annotations

import re

from aiocontainerd.errors import InvalidArgument
from aiocontainerd.gotext import quoted

MAX_LENGTH = 76
PATTERN = r"^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$"
_IDENTIFIER = re.compile(PATTERN[:-1] + r"\Z")


def validate(identifier: str) -> None:
    """Raise InvalidArgument in containerd's words for a malformed identifier."""
    if not identifier:
        raise InvalidArgument("identifier must not be empty")
    if len(identifier.encode()) > MAX_LENGTH:
        raise InvalidArgument(f"identifier {quoted(identifier)} greater than maximum length ({MAX_LENGTH} characters)")
    if not _IDENTIFIER.match(identifier):
        raise InvalidArgument(f"identifier {quoted(identifier)} must match {PATTERN}")
