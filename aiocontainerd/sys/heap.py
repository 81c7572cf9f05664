"""The heap of the C library."""

from __future__ import annotations

import ctypes

_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)


def trim() -> None:
    """Give free memory back to the kernel, where the C library can (malloc_trim(3)). It takes some milliseconds."""
    if _trim is not None:
        _trim(0)
