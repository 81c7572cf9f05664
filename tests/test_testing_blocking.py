"""Blocking calls in the event loop are found, wherever their errors end up."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import anyio
import pytest
from blockbuster import BlockingError

from aiocontainerd.client import stdio
from aiocontainerd.testing import blocking
from aiocontainerd.testing.blocking import May, Violation

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    """Both loops: shims have the one, the daemon has the other."""
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture
def no_blocking_calls() -> None:
    """Switch the check off: these tests look for blocking calls themselves."""


def write_in_ours(path: Path) -> None:
    """Make a blocking call of our code. The name of this file would not count, so `_write_all` makes it."""
    with path.open("wb") as file:
        stdio._write_all(file.fileno(), b"x")


async def test_a_call_in_the_loop_raises_and_is_told(tmp_path: Path) -> None:
    told: list[Violation] = []
    with (
        blocking.told(["aiocontainerd"], told.append),
        pytest.raises(BlockingError, match=r"^Blocking call to os\.write$"),
    ):
        write_in_ours(tmp_path / "a")
    assert [found.call for found in told] == ["os.write"]
    assert "stdio.py" in str(told[0])


async def test_one_that_was_caught_fails_all_the_same(tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError, match=r"(?s)blocking calls in the event loop:\nos\.write\n.*stdio\.py"),
        blocking.refused(["aiocontainerd"]),
        suppress(BlockingError),
    ):
        write_in_ours(tmp_path / "a")


async def test_only_the_loop_may_not_wait(tmp_path: Path) -> None:
    with blocking.refused(["aiocontainerd"]):
        await anyio.to_thread.run_sync(write_in_ours, tmp_path / "a")


@pytest.mark.parametrize("function", ["_write_all", "_read"])
async def test_an_exception_is_for_one_function(tmp_path: Path, function: str) -> None:
    may = [May("aiocontainerd/client/stdio.py", (function,), "a test")]
    told: list[Violation] = []
    with blocking.told(["aiocontainerd"], told.append, may), suppress(BlockingError):
        write_in_ours(tmp_path / "a")
    assert len(told) == (function == "_read")


async def test_what_a_function_of_os_can_do_is_known_meanwhile(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    before = set(os.supports_follow_symlinks)
    with blocking.refused(["aiocontainerd"]):
        await anyio.to_thread.run_sync(
            lambda: shutil.copystat(tmp_path / "link", tmp_path / "link", follow_symlinks=False)
        )
    assert os.supports_follow_symlinks == before


async def test_nothing_stays_of_it() -> None:
    real = (os.stat, os.open, open, threading.Lock)
    with blocking.refused(["aiocontainerd"]):
        assert os.stat is not real[0]
    assert (os.stat, os.open, open, threading.Lock) == real


def test_every_exception_names_a_file_and_functions_that_are_there() -> None:
    here = Path(__file__).resolve().parents[1]
    for may in blocking.MAY_BLOCK:
        if may.file.startswith("aiocontainerd"):
            (source,) = [path for path in (here / may.file, *here.glob(f"plugins/*/{may.file}")) if path.exists()]
            text = source.read_text()
            assert [name for name in may.functions if f"def {name}(" not in text] == [], may.file


def test_a_process_ends_well_after_it() -> None:
    script = "from aiocontainerd.testing.blocking import refused\nwith refused(['aiocontainerd']): pass\nprint('end')"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")
