"""Fixtures and rules of every test here: the asyncio backend, root, blocking calls in the event loop."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from aiocontainerd.testing import blocking
from aiocontainerd.testing.blocking import May
from aiocontainerd.testing.disks import MemoryDisk, memory_disk

HERE = Path(__file__).parent
OUR_PACKAGES = [
    "aiocontainerd",
    *sorted(path.name for folder in ("plugins", "contrib") for path in HERE.glob(f"{folder}/*/aiocontainerd_*")),
]

SHIM_TESTS = HERE / "plugins" / "shim" / "tests"
SHIM_MAY_BLOCK = (
    May(
        "aiocontainerd_shim/task/records.py",
        (
            "read_config", "read_options", "read_process", "read_processes", "read_shim", "remove_process",
            "replace_config", "replace_file", "start_time", "write_process",
        ),
        "small records of its own in its bundle, which is in the daemon's directory of state; and procfs",
    ),
    May("aiocontainerd_shim/oci/runtime.py", ("_read_from", "_size", "read_pid"), "what the OCI runtime wrote"),
    May("aiocontainerd_shim/task/process.py", ("_forget_file",), "a file of its own in its bundle"),
    May("aiocontainerd_shim/task/exits.py", ("has_private_pid_namespace",), "the bundle's config.json"),
    May("aiocontainerd_shim/children/reaper.py", ("_memory_file", "_content"), "files without a disk, and /dev/null"),
    May("aiocontainerd_shim/children/sealed.py", ("executable",), "whether the OCI runtime is still the file it was"),
    May("aiocontainerd_shim/program/bootstrap.py", ("oom_score_adj_for_child_of",), "procfs"),
    May("aiocontainerd_shim/cgroups/oom.py", ("_open_version_1", "_on_readable"), "cgroupfs: the kernel answers"),
    May("aiocontainerd/sys/cgroup.py", ("write_text",), "cgroupfs: the kernel answers"),
    May("aiocontainerd/sys/mountinfo.py", ("mounts_under",), "the name of the bundle it serves; procfs"),
    May("aiocontainerd_shim/io/console.py", ("_make_socket_dir", "close"), "a directory of its own for one socket"),
    May("aiocontainerd_shim/io/fifos.py", ("is_fifo", "open_path", "probe_writer"), "its container's streams"),
    May(
        "aiocontainerd_shim/io/stdio.py",
        ("_chown", "_fill_with_null", "_make_parents", "open_log_file"),
        "its container's streams",
    ),
    May("aiocontainerd_shim/io/relay.py", ("_take_back", "_shorten"), "the words of an OCI runtime that failed"),
    May("aiocontainerd_shim/io/flow.py", ("_write",), "its container's output, into a file"),
)  # fmt: skip
"""What a shim may do in its loop. It is a process of its own, whose only business is the container that would wait for
these calls too; and a thread costs each shim memory, and fork servers their safety."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def no_blocking_calls(request: pytest.FixtureRequest) -> Iterator[None]:
    """A blocking call of our code in an event loop fails the test."""
    of_shim = SHIM_TESTS in request.path.parents
    with blocking.refused(OUR_PACKAGES, (*blocking.MAY_BLOCK, *SHIM_MAY_BLOCK) if of_shim else blocking.MAY_BLOCK):
        yield


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[MemoryDisk]:
    """A file system of its own that can be made read-only. Needs root."""
    with memory_disk(tmp_path / "disk") as made:
        yield made


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape what is no UTF-8 in captured output and logs: a report goes from worker to controller."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason="needs root: mounts, namespaces or cgroups"))
