"""Runtime names and their programs (facts/runtime 2.1)."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from aiocontainerd_runtime_v2.deadlines import Deadlines
from aiocontainerd_runtime_v2.manager import ShimManager, Surroundings
from aiocontainerd_runtime_v2.resolve import Resolver, binary_name, search_path

from aiocontainerd.errors import ContainerdError, Unknown

INVALID = (
    "invalid runtime name {}, correct runtime name should be either format like `io.containerd.runc.v2` "
    "or a full path to the binary"
)


@pytest.mark.parametrize(
    ("runtime", "name"),
    [
        ("io.containerd.runc.v2", "containerd-shim-runc-v2"),
        ("io.containerd.kata.v2", "containerd-shim-kata-v2"),
        ("runsc.v1", "containerd-shim-runsc-v1"),
        ("a.b.c.d.e", "containerd-shim-d-e"),
    ],
)
def test_the_last_two_parts_name_the_program(runtime: str, name: str) -> None:
    assert binary_name(runtime) == name


@pytest.mark.parametrize("runtime", ["runc", ".runc", "bin/shim", "./shim.v2", "io.containerd/runc.v2"])
def test_other_names_are_invalid(runtime: str) -> None:
    with pytest.raises(Unknown, match=f"^{re.escape(INVALID.format(runtime))}$"):
        binary_name(runtime)


def test_an_empty_name_says_so() -> None:
    with pytest.raises(Unknown, match=r"^no runtime name$"):
        Resolver().resolve("")


def test_an_absolute_path_is_used_as_it_is(tmp_path: Path) -> None:
    program = tmp_path / "my shim"
    program.touch()
    assert Resolver().resolve(str(program)) == program
    with pytest.raises(Unknown, match=r"^invalid custom binary path: stat /.*/absent: no such file or directory$"):
        Resolver().resolve(str(tmp_path / "absent"))


def test_the_first_directory_that_has_the_program_wins_and_is_remembered(tmp_path: Path) -> None:
    first, second = _program(tmp_path / "1"), _program(tmp_path / "2")
    resolver = Resolver(lambda: [str(tmp_path / "0"), str(first.parent), str(second.parent)])
    assert resolver.resolve("io.containerd.x.v1") == first
    first.unlink()
    assert resolver.resolve("io.containerd.x.v1") == first


def test_a_file_that_is_no_program_is_passed_over(tmp_path: Path) -> None:
    program = _program(tmp_path)
    program.chmod(0o600)
    text = 'runtime "io.containerd.x.v1" binary not installed "containerd-shim-x-v1": file does not exist'
    with pytest.raises(Unknown, match=f"^{text}$"):
        Resolver(lambda: [str(tmp_path)]).resolve("io.containerd.x.v1")


def test_the_search_goes_from_here_over_path_to_our_own_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/first:/second")
    monkeypatch.setattr("sys.prefix", "/our/prefix")
    assert search_path()[:4] == [os.getcwd(), "/first", "/second", "/our/prefix/bin"]


def _program(directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    program = directory / "containerd-shim-x-v1"
    program.touch(mode=0o755)
    return program


class Launcher:
    """Serves one name; never started."""

    cleans_up = True
    runtimes = ("io.containerd.x.v1",)
    binary = Path("/launched/containerd-shim-x-v1")
    rests = False

    async def stats(self, bundle: Path, pid: int) -> Any:
        raise AssertionError

    async def start(self, command: object, *, timeout_s: float) -> bytes:
        raise AssertionError

    async def delete(self, command: object, *, timeout_s: float) -> bytes:
        raise AssertionError


@pytest.mark.anyio
async def test_a_launcher_wins_for_its_names_and_a_path_executes_the_program(tmp_path: Path) -> None:
    program = _program(tmp_path)
    launcher = Launcher()
    around = Surroundings(grpc_address="", ttrpc_address="", publish_binary="")
    manager = ShimManager(around, Deadlines(), [launcher], Resolver(lambda: [str(tmp_path)]))
    assert await manager.launcher("io.containerd.x.v1") is launcher
    assert (await manager.launcher(str(program))).binary == program
    assert (await manager.launcher("org.other.x.v1")).binary == program
    assert manager.launcher_of(launcher.binary) is launcher
    assert manager.launcher_of(program).binary == program
    with pytest.raises(ContainerdError, match=r"^failed to resolve runtime path: no runtime name$"):
        await manager.launcher("")
