"""The fork server as a program.

What `threading` and `logging` do after a fork renews locks that another thread may have held. The fork server, its
shims and their workers have one thread each, and every shim would pay for that work with 0.5 MiB of copied pages, so
the two libraries are loaded without it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

_NEEDLESS = ("threading", "logging")

Hook = Callable[..., Any]

_register = os.register_at_fork


def register_at_fork(
    *, before: Hook | None = None, after_in_child: Hook | None = None, after_in_parent: Hook | None = None
) -> None:
    """Register as asked, but for the hooks that a process of one thread has no use for."""
    asked = {"before": before, "after_in_child": after_in_child, "after_in_parent": after_in_parent}
    hooks = {name: hook for name, hook in asked.items() if hook is not None and hook.__module__ not in _NEEDLESS}
    if hooks:
        _register(**hooks)


if __name__ == "__main__":
    os.register_at_fork = register_at_fork

    from aiocontainerd_shim.fork import server

    server.main()
