"""Sealed copies of OCI runtimes."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from aiocontainerd_shim.children import sealed
from aiocontainerd_shim.children.reaper import Reaper

TRUE = "/bin/true"


@pytest.fixture(autouse=True)
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield a directory in PATH. Each test has copies of its own."""
    monkeypatch.setattr(sealed, "_kept", {})
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    yield tmp_path
    for fd in sealed.descriptors():
        os.close(fd)


def test_a_program_is_executed_from_a_sealed_copy(copies: Path) -> None:
    shutil.copy(TRUE, copies / "crun")
    sealed.keep(["crun"])
    (fd,) = sealed.descriptors()
    assert sealed.executable("crun") == sealed.executable(str(copies / "crun")) == f"/proc/self/fd/{fd}"
    assert os.pread(fd, 1 << 20, 0) == Path(TRUE).read_bytes()
    assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) == 15
    with pytest.raises(PermissionError):
        os.pwrite(fd, b"x", 0)


@pytest.mark.anyio
async def test_the_copy_runs_and_is_closed_in_what_runs(copies: Path) -> None:
    shutil.copy(shutil.which("ls") or "", copies / "crun")
    await anyio.to_thread.run_sync(sealed.keep, ["crun"])
    reaper = Reaper()
    reaper.start()
    try:
        done = await reaper.run(["crun", "/proc/self/fd", "-l"], env=os.environ)
    finally:
        reaper.stop()
    assert done.status == 0
    assert b"memfd:crun" not in done.output


def test_a_replaced_program_is_executed_itself(copies: Path) -> None:
    shutil.copy(TRUE, copies / "crun")
    sealed.keep(["crun"])
    shutil.copy("/bin/false", copies / "new")
    (copies / "new").rename(copies / "crun")
    assert sealed.executable("crun") == "crun"
    (copies / "crun").unlink()
    assert sealed.executable("crun") == "crun"


@pytest.mark.parametrize("content", [b"#!/bin/sh\n", b"\x7fELF $ORIGIN/../lib", b"\x7fELF" + bytes(3 << 20)])
def test_what_a_copy_would_not_do_as_well_is_executed_itself(copies: Path, content: bytes) -> None:
    (copies / "crun").write_bytes(content)
    (copies / "crun").chmod(0o755)
    sealed.keep(["crun", "no-such-runtime"])
    assert sealed.executable("crun") == "crun"
    assert sealed.executable("no-such-runtime") == "no-such-runtime"
    assert not sealed.descriptors()
