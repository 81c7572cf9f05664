"""Test snapshotters and content stores against kills between any two steps, full disks and hanging disks.

    pytest --pyargs aiocontainerd.testing.faults --target acme.plugin:Reflink

A step is a call that changes a file, a directory or a database (`aiocontainerd/testing/steps.py`). Whatever happens,
an operation has been done or it has not; one that was answered has been done; what is there afterwards can be used
and removed, and removing it leaves nothing.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import anyio
import pytest

from aiocontainerd import kinds
from aiocontainerd.errors import AlreadyExists, ContainerdError, NotFound
from aiocontainerd.interfaces.content import ContentStore
from aiocontainerd.interfaces.snapshotter import Kind, Snapshotter
from aiocontainerd.sys.mount import Mount, mount_all, unmount_all
from aiocontainerd.testing import scenarios
from aiocontainerd.testing.contract import Targeted
from aiocontainerd.testing.fault_child import FaultChild, Request
from aiocontainerd.testing.plugin_bench import has_kind
from aiocontainerd.testing.scenarios import BLOB, BY_KIND, HALF, State, content_state, digest_of, ingest, read_files
from aiocontainerd.testing.target import Bench, Target, TargetError

DISK_BYTES = 4 << 20
CALL_S = 10.0
"""Limit for a call on a full disk to fail or succeed."""


@pytest.fixture(scope="class")
def child(request: pytest.FixtureRequest, suite_target: Target) -> Iterator[FaultChild]:
    """Start the process in which the target is killed and hangs."""
    _check_possible(suite_target, request.cls.kind)
    with FaultChild(suite_target) as started:
        yield started


class FaultSuite(Targeted):
    """The part of the suite that is the same for both kinds."""

    async def test_killed_between_any_two_steps_it_is_done_or_not(
        self, bench: Bench, child: FaultChild, operation: str, tmp_path: Path
    ) -> None:
        whole = child.run(Request(kind=self.kind, root=str(tmp_path / "whole"), operation=operation))
        async with bench.open(self.kind, tmp_path / "whole", {}) as plugin:
            await self.remove_all(plugin)
        clean = _names_below(tmp_path / "whole")
        for at in range(1, whole.steps + 2):
            root = tmp_path / str(at)
            killed = child.run(Request(kind=self.kind, root=str(root), operation=operation, fault="kill", at=at))
            assert killed.killed
            context = f"{operation} killed before step {at} of {whole.steps}"
            async with bench.open(self.kind, root, {}) as plugin:
                found = await BY_KIND[self.kind].state(plugin)
                self.check_state(found, whole.before, whole.after, answered=killed.answered, context=context)
                await self.check_usable(plugin, tmp_path, context)
                await self.remove_all(plugin)
            assert _names_below(root) <= clean, f"{context}: files are left when everything is removed"
        if not whole.steps:
            pytest.skip(f"{operation} makes no step that Python sees; killed after its answer only")

    async def test_while_a_step_hangs_other_keys_do_not_wait(
        self, child: FaultChild, operation: str, tmp_path: Path
    ) -> None:
        at = 1
        while True:
            request = Request(kind=self.kind, root=str(tmp_path / str(at)), operation=operation, fault="hang", at=at)
            outcome = child.run(request)
            assert not outcome.waited, f"{outcome.waited} waited while {operation} hung in {outcome.hung_in}"
            if not outcome.hung_in:
                break
            at += 1
        if at == 1:
            pytest.skip(f"{operation} makes no step in a thread besides SQL")

    # What the kinds differ in.

    def check_state(self, found: State, before: State, after: State, *, answered: bool, context: str) -> None:
        """Fail if the state is not one that the contract allows."""
        allowed = [after] if answered else [before, after]
        assert found in allowed, context

    async def check_usable(self, plugin: Any, directory: Path, context: str) -> None:
        """Fail if what is there cannot be used."""
        raise NotImplementedError

    async def remove_all(self, plugin: Any) -> None:
        """Remove everything through the plugin."""
        raise NotImplementedError


class SmallDisk:
    """A tmpfs that can be filled to the last byte."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def free_bytes(self) -> int:
        found = os.statvfs(self.path)
        return found.f_bfree * found.f_frsize

    def fill(self) -> None:
        """Fill the disk to the last byte."""
        with suppress(OSError), open(self.path / "filler", "wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))

    def empty(self) -> None:
        """Remove what fills the disk."""
        (self.path / "filler").unlink()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """Mount a file system of a few megabytes."""
    path = tmp_path / "disk"
    path.mkdir()
    mounts = [Mount("tmpfs", "tmpfs", options=(f"size={DISK_BYTES}",))]
    mount_all(mounts, str(path))
    try:
        yield SmallDisk(path)
    finally:
        unmount_all(mounts, str(path))


@pytest.mark.anyio
class TestSnapshotterFaults(FaultSuite):
    """A snapshotter that `--target` names."""

    kind = kinds.SNAPSHOTTER
    operations: ClassVar = scenarios.SNAPSHOTTER.operations

    @pytest.fixture(params=sorted(scenarios.SNAPSHOTTER.operations))
    def operation(self, request: pytest.FixtureRequest) -> str:
        name: str = request.param
        return name

    async def check_usable(self, plugin: Snapshotter, directory: Path, context: str) -> None:
        await plugin.cleanup()
        kinds_found = {info.name: info.kind async for info in plugin.walk()}
        for key, kind in kinds_found.items():
            if kind != Kind.COMMITTED:
                await _check_tree(plugin, key, directory, context)
        await plugin.prepare("next", "two")
        await plugin.commit("after", "next")

    async def remove_all(self, plugin: Snapshotter) -> None:
        while left := [info async for info in plugin.walk()]:
            parents = {info.parent for info in left}
            for info in left:
                if info.name not in parents:
                    await plugin.remove(info.name)
        await plugin.cleanup()

    @pytest.mark.root
    async def test_full_disk_fails_calls_and_harms_nothing(
        self, suite_target: Target, bench: Bench, small_disk: SmallDisk, operation: str, tmp_path: Path
    ) -> None:
        _check_possible(suite_target, self.kind)
        scenario = scenarios.SNAPSHOTTER
        async with bench.open(self.kind, small_disk.path / "root", {}) as plugin:
            await scenario.setup(plugin, tmp_path / "mounts")
            before = await scenario.state(plugin)
            small_disk.fill()
            failure = await _failure(scenario.operations[operation](plugin))
            if failure is not None:
                assert await scenario.state(plugin) == before
            small_disk.empty()
            if failure is not None:
                await scenario.operations[operation](plugin)
            after = await scenario.state(plugin)
            assert after != before
        async with bench.open(self.kind, small_disk.path / "root", {}) as plugin:
            assert await scenario.state(plugin) == after
            await self.check_usable(plugin, tmp_path, "after a full disk")


@pytest.mark.anyio
class TestContentFaults(FaultSuite):
    """A content store that `--target` names."""

    kind = kinds.CONTENT

    @pytest.fixture(params=sorted(scenarios.CONTENT.operations))
    def operation(self, request: pytest.FixtureRequest) -> str:
        name: str = request.param
        return name

    @pytest.fixture
    async def full_store(
        self, suite_target: Target, bench: Bench, small_disk: SmallDisk
    ) -> AsyncIterator[ContentStore]:
        _check_possible(suite_target, self.kind)
        async with bench.open(self.kind, small_disk.path / "root", {}) as plugin:
            await scenarios.CONTENT.setup(plugin, small_disk.path)
            yield plugin

    def check_state(self, found: State, before: State, after: State, *, answered: bool, context: str) -> None:
        """Check the state: an ingest may be half begun, half ended or done; a blob is there or is not."""
        assert found["blobs"] in ([after["blobs"]] if answered else [before["blobs"], after["blobs"]]), context
        both = {*before["ingests"], *after["ingests"]}
        assert set(found["ingests"]) <= both, context
        assert set(found["ingests"]) >= ({*before["ingests"]} & {*after["ingests"]}), context
        if answered:
            assert found == after, context

    async def check_usable(self, plugin: ContentStore, directory: Path, context: str) -> None:  # noqa: ARG002 - as the base has it
        for digest in [info.digest async for info in plugin.walk()]:
            async with await plugin.reader(digest) as reader:
                assert digest_of(await reader.read(reader.size, 0)) == digest, context
        for ref, data in (("half", HALF), ("new", scenarios.FRESH)):
            await _check_ingest(plugin, ref, data, context)
        assert digest_of(HALF) in (await content_state(plugin))["blobs"], context

    async def remove_all(self, plugin: ContentStore) -> None:
        state = await content_state(plugin)
        for ref in state["ingests"]:
            await plugin.abort(ref)
        for digest in state["blobs"]:
            await plugin.delete(digest)

    @pytest.mark.root
    async def test_write_to_a_full_disk_fails_and_can_go_on(
        self, full_store: ContentStore, small_disk: SmallDisk
    ) -> None:
        data = os.urandom(1 << 20)
        async with await full_store.writer("large") as writer:
            await writer.write(data[:4096])
            small_disk.fill()
            failure = await _failure(writer.write(data[4096:]))
        assert failure is not None, "a write to a full disk did not fail"
        small_disk.empty()
        await ingest(full_store, "large", data)
        async with await full_store.reader(digest_of(data)) as reader:
            assert await reader.read(reader.size, 0) == data

    @pytest.mark.root
    async def test_what_was_there_can_be_used_while_the_disk_is_full(
        self, full_store: ContentStore, small_disk: SmallDisk
    ) -> None:
        small_disk.fill()
        async with await full_store.reader(digest_of(BLOB)) as reader:
            assert await reader.read(reader.size, 0) == BLOB
        await _failure(ingest(full_store, "another", HALF))
        await full_store.abort("unwanted")
        await full_store.delete(digest_of(BLOB))
        small_disk.empty()
        await _check_ingest(full_store, "half", HALF, "after a full disk")

    @pytest.mark.root
    async def test_aborted_ingest_gives_its_room_back(self, full_store: ContentStore, small_disk: SmallDisk) -> None:
        before = small_disk.free_bytes
        async with await full_store.writer("large") as writer:
            await _failure(writer.write(bytes(2 * DISK_BYTES)))
        await full_store.abort("large")
        assert small_disk.free_bytes >= before - 16384
        await ingest(full_store, "small", HALF + BLOB)


async def _check_tree(snapshotter: Snapshotter, key: str, directory: Path, context: str) -> None:
    """Check that a snapshot shows its parents' files."""
    if os.geteuid() != 0:
        return
    parent = (await snapshotter.stat(key)).parent
    expected = {f"link-{name}": name for name in ("one", "two")[: ("", "one", "two").index(parent)]}
    assert await read_files(await snapshotter.mounts(key), directory / "mounts") == expected, f"{context}: {key}"


def _names_below(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


async def _failure(call: Any) -> Exception | None:
    """Return the error of a call on a full disk, if any. Fail the test for an error that no caller could understand."""
    with anyio.fail_after(CALL_S):
        try:
            await call
        except (ContainerdError, OSError) as error:
            return error
    return None


async def _check_ingest(store: ContentStore, ref: str, data: bytes, context: str) -> None:
    """Check that an ingest has the beginning of its data, and can be finished."""
    try:
        status = await store.status(ref)
        assert status.offset <= len(data), context
        async with await store.writer(ref) as writer:
            assert writer.digest() == digest_of(data[: writer.offset]), context
    except NotFound:
        pass
    try:
        await ingest(store, ref, data)
    except AlreadyExists:
        return


def _check_possible(target: Target, kind: str) -> None:
    """Skip where a fault cannot be made, or there is nothing to make it in."""
    if target.remote:
        pytest.skip("a daemon behind a socket cannot be killed between its steps, or be put on a small disk")
    try:
        if not has_kind(target.path, kind, target.name):
            pytest.skip(f"{target.text} has no plugin of kind {kind}")
    except TargetError as error:
        pytest.exit(str(error), 4)
