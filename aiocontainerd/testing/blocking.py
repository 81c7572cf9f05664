"""The rule that code of a plugin makes no blocking call in the event loop, checked by blockbuster while a test runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec

MAY_BLOCK = ("aiocontainerd.testing", "aiocontainerd.sys.cgroup")
"""Suites read the trees they check; files of cgroups are answered by the kernel."""

QUICK_CALLS = (
    "os.access", "os.getcwd", "os.link", "os.listdir", "os.mkdir", "os.path.abspath", "os.path.islink",
    "os.path.ismount", "os.path.sameopenfile", "os.path.samestat", "os.readlink", "os.remove", "os.rename",
    "os.replace", "os.rmdir", "os.scandir", "os.stat", "os.statvfs", "os.symlink", "os.unlink",
)  # fmt: skip
"""Calls about names in a plugin's own small directories: quicker than a hop to a thread, so allowed in the loop."""


def is_checked() -> bool:
    """Whether blockbuster is installed."""
    return find_spec("blockbuster") is not None


@contextmanager
def refused(modules: Sequence[str], may_block: Sequence[str] = MAY_BLOCK) -> Iterator[None]:
    """A block in which a blocking call of these modules in an event loop raises blockbuster's BlockingError."""
    if not (modules and is_checked()):
        yield
        return
    from blockbuster import BlockBuster

    detector = BlockBuster(scanned_modules=list(modules), excluded_modules=list(may_block))
    for name in QUICK_CALLS:
        del detector.functions[name]
    for function in detector.functions.values():
        function.can_block_in("<frozen importlib._bootstrap>", "_find_and_load")  # a late import blocks once
    detector.activate()
    try:
        yield
    finally:
        detector.deactivate()
