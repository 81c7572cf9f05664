"""Check with blockbuster that code makes no blocking call in an event loop.

It holds in tests of plugins, and in a daemon that `integration/watched.py` runs. A call counts as blocking where it may
wait for a disk, a network or another process: also one about a name, such as `os.stat`, since nobody knows what is
mounted there. What may be called in the loop all the same is in tables of single functions, each with its reason.
"""

from __future__ import annotations

import fcntl
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from blockbuster import BlockBuster, BlockBusterFunction

_FRAMES = 12
_CAPABILITIES = (os.supports_dir_fd, os.supports_effective_ids, os.supports_fd, os.supports_follow_symlinks)
SUITES = "aiocontainerd.testing"
"""Calls of the suites themselves, which read the trees they check."""
MORE_CALLS = (
    "builtins.open", "io.open", "os.chmod", "os.chown", "os.copy_file_range", "os.fchmod", "os.fchown",
    "os.fdatasync", "os.fsync", "os.ftruncate", "os.getxattr", "os.lchown", "os.listxattr", "os.lstat",
    "os.mkfifo", "os.mknod", "os.open", "os.pread", "os.preadv", "os.pwrite", "os.pwritev", "os.removexattr",
    "os.setxattr", "os.sync", "os.truncate", "os.utime",
)  # fmt: skip
"""Calls that wait for a file system and that blockbuster does not know."""

LEFT_ALONE = ("io.BufferedWriter.write",)
"""Calls that are not checked: the interpreter ends its standard streams with this one, and crashes if it was patched.
Opening the file is checked."""


class May(msgspec.Struct, frozen=True):
    """Functions of a file, whose path ends with `file`, in which a loop may wait. `why` is for the reader."""

    file: str
    functions: tuple[str, ...]
    why: str


MAY_BLOCK = (
    May(
        "<frozen importlib._bootstrap>", ("_find_and_load", "_lock_unlock_module"),
        "what few calls need is imported by the first one, once; the rest before there is a loop",
    ),
    May("linecache.py", ("checkcache", "updatecache"), "a traceback for the log quotes the source"),
    May("logging/__init__.py", ("emit", "flush"), "a log record is out before what it tells of goes on"),
    May("/subprocess.py", ("__init__", "_get_devnull", "_get_handles"), "/dev/null and new pipes: no disk is asked"),
    May("anyio/_backends/_asyncio.py", ("open_process",), "the same"),
    May("aiocontainerd/config/load.py", ("_check_settings",), "before there is a loop, or in a thread"),
    May("aiocontainerd/host/init_context.py", ("_made",), "a plugin's own two directories, at its start"),
    May(
        "aiocontainerd/rpc/sockets.py", ("__init__", "remove", "bind_unix"),
        "the daemon's own sockets, before it serves and when it has stopped",
    ),
    May(
        "aiocontainerd/host/process_state.py", ("_umask", "_file", "_directory", "__init__", "close"),
        "procfs and the daemon's own descriptors: the kernel answers from memory",
    ),
    May("aiocontainerd/host/introspection.py", ("_pid_namespace",), "procfs: the kernel answers from memory"),
    May("aiocontainerd/sys/mountinfo.py", ("read",), "procfs: the kernel answers from memory"),
    May("aiocontainerd/sys/cgroup.py", ("exists", "read_text", "_memberships"), "cgroupfs and procfs, read only"),
    May("aiocontainerd/sys/programs.py", ("_memory_file", "_content"), "files without a disk: what programs say"),
    May("aiocontainerd/testing/fakes.py", ("fileno",), "a file without a disk"),
    May("aiocontainerd_differ/targets.py", ("in_user_namespace",), "procfs: the kernel answers from memory"),
    May("aiocontainerd_content_local/reader.py", ("_read_cached",), "asks for what is in memory, and for no more"),
    May(
        "aiocontainerd_content_local/reader.py", ("_opened",),
        "a name in the store's own directory, which is on a disk of this host; quicker than a thread",
    ),
    May("aiocontainerd_content_local/layout.py", ("blob_info",), "as to open a blob"),
    May("aiocontainerd_content_local/store.py", ("_has_blob",), "as to open a blob"),
    May(
        "aiocontainerd_content_local/writer.py", ("_append",),
        "in the loop at most 64 KiB, into the page cache of that disk; quicker than a thread",
    ),
    May("aiocontainerd_runtime_v2/shim_log.py", ("_open",), "a fifo the daemon has just made, without waiting"),
    May("aiocontainerd_shim/fork/launcher.py", ("program_path",), "beside the interpreter, once, at the start"),
    May("aiocontainerd_services/tasks.py", ("_has_checkpoint",), "a name in the daemon's own directory of state"),
)  # fmt: skip
"""What the daemon may do in its loop, and what the machinery below every program does."""


class Violation(msgspec.Struct, frozen=True):
    """A blocking call in a loop: the function called, and the end of the stack, innermost call last."""

    call: str
    stack: traceback.StackSummary

    def __str__(self) -> str:
        return f"{self.call}\n{''.join(self.stack.format())}"


def is_checked() -> bool:
    """Return whether blockbuster is installed."""
    return find_spec("blockbuster") is not None


@contextmanager
def refused(modules: Sequence[str], may_block: Sequence[May] = MAY_BLOCK) -> Iterator[None]:
    """Make a blocking call of these modules in an event loop raise blockbuster's BlockingError within the block.

    One that was caught on its way fails the block at its end, with an AssertionError that tells where it was made.
    """
    found: list[Violation] = []
    with told(modules, found.append, may_block):
        yield
    if found:
        raise AssertionError("blocking calls in the event loop:\n" + "\n".join(map(str, found)))


@contextmanager
def told(
    modules: Sequence[str], tell: Callable[[Violation], object], may_block: Sequence[May] = MAY_BLOCK
) -> Iterator[None]:
    """Report a blocking call of these modules in an event loop within the block, and make it raise BlockingError."""
    if not (modules and is_checked()):
        yield
        return
    from blockbuster import BlockBuster

    detector = BlockBuster(scanned_modules=list(modules), excluded_modules=[SUITES])
    for name, function in _more(modules).items():
        detector.functions[name] = function
    for name in LEFT_ALONE:
        del detector.functions[name]
    for function in detector.functions.values():
        for may in may_block:
            function.can_block_in(may.file, may.functions)
    with _telling(tell), _active(detector):
        yield


@contextmanager
def _active(detector: BlockBuster) -> Iterator[None]:
    """Put the detector's functions in the place of the real ones, also where `os` lists what a function can do."""
    detector.activate()
    added = [
        (listing, getattr(os, function.func_name))
        for function in detector.functions.values()
        for listing in _CAPABILITIES
        if function.module is os and function.original_func in listing
    ]
    for listing, wrapper in added:
        listing.add(wrapper)
    try:
        yield
    finally:
        for listing, wrapper in added:
            listing.discard(wrapper)
        detector.deactivate()


def _more(modules: Sequence[str]) -> dict[str, BlockBusterFunction]:
    from blockbuster import BlockBusterFunction

    def known(name: str, **may: Any) -> BlockBusterFunction:
        return BlockBusterFunction(None, name, scanned_modules=list(modules), excluded_modules=[SUITES], **may)

    calls = {name: known(name) for name in MORE_CALLS}
    return {**calls, "fcntl.flock": known("fcntl.flock", can_block_predicate=_does_not_wait)}


def _does_not_wait(_descriptor: object, how: int) -> bool:
    return bool(how & (fcntl.LOCK_NB | fcntl.LOCK_UN))


@contextmanager
def _telling(tell: Callable[[Violation], object]) -> Iterator[None]:
    """Have every BlockingError told when it is made: who raises one may well catch it."""
    from blockbuster import BlockingError, blockbuster

    names = vars(blockbuster)
    before = names[BlockingError.__name__]

    class ToldError(BlockingError):
        def __init__(self, call: str) -> None:
            super().__init__(call)
            tell(Violation(call, traceback.extract_stack(sys._getframe(2), _FRAMES)))

    names[BlockingError.__name__] = ToldError
    try:
        yield
    finally:
        names[BlockingError.__name__] = before
