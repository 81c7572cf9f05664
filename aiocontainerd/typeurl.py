"""Typed values whose type the daemon need not know: a record `Any`, and facts about type URLs.

containerd's type URLs of protocol buffer messages are bare full names (`containerd.events.TaskExit`). Other stacks
put a prefix ending in a slash before the name; it is accepted when reading (facts/core 11, facts/runtime 4.1).
`wire.anys` wraps and unwraps generated messages.
"""

from __future__ import annotations

import msgspec

SPEC_URL = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
PROCESS_URL = "types.containerd.io/opencontainers/runtime-spec/1/Process"
LINUX_RESOURCES_URL = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
FEATURES_URL = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"


class Any(msgspec.Struct, frozen=True):
    """A value with the URL of its type. The daemon keeps and returns the bytes as they came."""

    type_url: str
    value: bytes


def name_in(type_url: str) -> str:
    """Return the full name of the type, without the prefix that some stacks put before it."""
    return type_url.rpartition("/")[2]
