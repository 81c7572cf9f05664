"""What SIGUSR1 writes."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import anyio
import pytest

from aiocontainerd.daemon import dump
from aiocontainerd.plugin import Plugin, Registration, kinds


async def _init(_context: object) -> object:
    return object()


class Broken:
    def __repr__(self) -> str:
        raise RuntimeError("no words")


class Busy:
    def __repr__(self) -> str:
        return "<Busy 3 calls>"


def plugin(plugin_id: str, instance: object = None) -> Plugin:
    made = Plugin(Registration(kind=kinds.SNAPSHOTTER, id=plugin_id, init=_init))
    if instance is not None:
        made.loaded(instance)
    return made


@pytest.mark.anyio
async def test_a_dump_shows_plugins_tasks_and_threads_with_their_stacks() -> None:
    release = threading.Event()

    async def waits_here() -> None:
        await anyio.sleep_forever()

    thread = threading.Thread(target=release.wait, name="a-worker")
    thread.start()
    failed = plugin("bad")
    failed.failed(OSError("no disk"))
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(waits_here, name="the waiting task")
            await anyio.wait_all_tasks_blocked()
            text = dump.render([plugin("busy", Busy()), failed])
            group.cancel_scope.cancel()
    finally:
        release.set()
        thread.join()
    assert "<Plugin io.containerd.snapshotter.v1.busy ok> <Busy 3 calls>\n" in text
    assert "<Plugin io.containerd.snapshotter.v1.bad error: OSError: no disk> \n" in text
    assert "--- the waiting task\n" in text
    assert "in waits_here" in text
    assert "--- a-worker\n" in text
    assert text.index("=== plugins") < text.index("=== tasks") < text.index("=== threads")


@pytest.mark.anyio
async def test_a_broken_repr_costs_one_line() -> None:
    text = dump.render([plugin("a", Broken()), plugin("b", Busy())])
    assert "<Broken, whose repr raises RuntimeError: no words>" in text
    assert "<Busy 3 calls>" in text


def test_a_dump_is_a_private_file_that_the_next_one_replaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dump.write("a longer first one")
    path = dump.write("second")
    assert path == tmp_path / f"containerd.{os.getpid()}.stacks.log"
    assert path.read_text() == "second"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_link_in_place_of_the_dump_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "precious").write_text("keep")
    (tmp_path / f"containerd.{os.getpid()}.stacks.log").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match=r"stacks\.log"):
        dump.write("text")
    assert (tmp_path / "precious").read_text() == "keep"
