"""Stream processors that are programs of `[stream_processors]`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from aiocontainerd_differ.differ import WalkingDiffer
from aiocontainerd_differ.plugin import register_stream_processor
from aiocontainerd_differ.processing import steps_from
from aiocontainerd_differ.program import ProgramProcessor, processor

from aiocontainerd import api, typeurl
from aiocontainerd.config.records import StreamProgram as Settings
from aiocontainerd.errors import DataLoss, Unknown
from aiocontainerd.host.life import PluginTasks
from aiocontainerd.interfaces.differ import ApplyOptions
from aiocontainerd.oci.descriptor import Descriptor
from aiocontainerd.plugin import PluginError, kinds
from aiocontainerd.testing.differ import bind, entry, tar_of
from aiocontainerd.testing.fakes import FakeContentStore, digest_of
from aiocontainerd.wire import codec

pytestmark = pytest.mark.anyio

TAR = "application/vnd.oci.image.layer.v1.tar"
UPPER = f"{TAR}+upper"
MANY = 3 << 20


def shell(tasks: PluginTasks, script: str, **more: Any) -> ProgramProcessor:
    """Return a processor that runs a script of the shell."""
    return processor("p", Settings(accepts=(UPPER,), returns=TAR, path="sh", args=("-c", script), **more), tasks)


@asynccontextmanager
async def plugin() -> AsyncIterator[PluginTasks]:
    """Tasks of a plugin, none of which is left; what the block raises comes out as it is."""
    raised: Exception | None = None
    async with anyio.create_task_group() as group:
        tasks = PluginTasks("p", group)
        try:
            yield tasks
        except Exception as error:  # noqa: BLE001 - raised again outside of the group
            raised = error
        assert tasks.running == set()
    if raised is not None:
        raise raised


async def pieces(data: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


async def output(script: str, data: bytes = b"", payload: typeurl.Any | None = None, **more: Any) -> bytes:
    """Return a script's output for the data, and check that nothing of the script is left."""
    before = set(os.listdir("/proc/self/fd"))
    async with plugin() as tasks:
        one = shell(tasks, script, **more)
        try:
            made = b"".join([part async for part in one.process(UPPER, pieces(data), payload)])
        finally:
            assert one.statistics() == {"running": 0}
            assert set(os.listdir("/proc/self/fd")) == before
    return made


async def test_standard_input_is_the_layer_and_standard_output_the_result() -> None:
    assert await output("tr a b", b"a" * MANY) == b"b" * MANY


async def test_the_media_type_and_the_variables_of_the_table_are_in_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DAEMONS", "d")
    told = await output(
        'echo "$STREAM_PROCESSOR_MEDIATYPE $OWN $DAEMONS"', env=("OWN=o=p", "STREAM_PROCESSOR_MEDIATYPE=")
    )
    assert told == f"{UPPER} o=p d\n".encode()


async def test_the_payload_is_on_descriptor_three() -> None:
    payload = typeurl.Any("acme.Key", b"\0secret")
    sent = codec.decode(api.protobuf.Any, await output("cat <&3", b"x", payload))
    assert (sent.type_url, sent.value) == ("acme.Key", b"\0secret")
    assert await output("test -e /proc/$$/fd/3 || echo none") == b"none\n"


async def test_exit_status_and_standard_error_are_the_error() -> None:
    with pytest.raises(Unknown, match=r"^stream processor p: exit status 3: no key for you$"):
        await output("cat >/dev/null; echo no key for you >&2; exit 3", b"x" * MANY)
    with pytest.raises(Unknown, match=r"^stream processor p: exit status 4$"):
        await output("exit 4", b"x" * MANY)
    with pytest.raises(Unknown, match=r"^stream processor p: signal: SIGTERM$"):
        await output("kill -TERM $$")


async def test_what_a_failed_program_left_running_is_killed() -> None:
    marker = f"100{time.time_ns()}"
    with pytest.raises(Unknown, match=r"^stream processor p: exit status 1: why$"):
        await output(f"echo why >&2; sleep {marker} >/dev/null & exit 1")
    assert await anyio.to_thread.run_sync(settled, marker) == []


async def test_of_a_long_complaint_the_end_is_kept() -> None:
    with pytest.raises(Unknown) as error:
        await output("yes complaint | head -c 300000 >&2; echo last >&2; exit 1", b"x" * MANY)
    assert error.value.message.endswith("complaint\nlast")
    assert len(error.value.message) < 5000


async def test_a_program_that_is_not_there_is_said() -> None:
    async with plugin() as tasks:
        absent = processor("p", Settings(accepts=("a",), returns=TAR, path="no-such-decoder"), tasks)
        with pytest.raises(
            Unknown, match=r"^stream processor p: cannot run no-such-decoder: No such file or directory$"
        ):
            await anext(absent.process("a", pieces(b""), None).__aiter__())
        assert absent.statistics() == {"running": 0}


async def test_a_program_need_not_read_to_the_end_and_the_stream_is() -> None:
    read = []

    async def counted() -> AsyncIterator[bytes]:
        async for part in pieces(b"x" * MANY):
            read.append(len(part))
            yield part

    async with plugin() as tasks:
        assert [part async for part in shell(tasks, "head -c 1").process(UPPER, counted(), None)] == [b"x"]
    assert sum(read) == MANY


async def test_what_the_stream_raises_is_raised() -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x"
        raise DataLoss("blob ended")

    async with plugin() as tasks:
        with pytest.raises(DataLoss, match="blob ended"):
            _ = [part async for part in shell(tasks, "cat").process(UPPER, broken(), None)]


def running(marker: str) -> list[str]:
    """Processes whose command line has the marker."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and marker.encode() in (process / "cmdline").read_bytes():
                found.append(process.name)
        except OSError:
            continue
    return found


def settled(marker: str) -> list[str]:
    """Return those that are left once killed ones had time to go."""
    until = time.monotonic() + 5
    while running(marker) and time.monotonic() < until:
        time.sleep(0.01)
    return running(marker)


@pytest.mark.parametrize("way", ["cancelled", "closed", "deadline"])
async def test_a_program_that_is_given_up_is_killed_with_its_children_and_reaped(way: str) -> None:
    marker = f"100{time.time_ns()}"
    before = set(os.listdir("/proc/self/fd"))
    async with plugin() as tasks:
        one = shell(tasks, f"echo begun; sleep {marker} & sleep {marker}")
        async with aclosing(one.process(UPPER, pieces(b"x" * MANY), None)) as made:
            assert await anext(made) == b"begun\n"
            with anyio.move_on_after(0.05 if way == "deadline" else None) as scope:
                if way == "cancelled":
                    scope.cancel()
                if way != "closed":
                    await anext(made)
            assert scope.cancelled_caught == (way != "closed")
        assert one.statistics() == {"running": 0}
    assert await anyio.to_thread.run_sync(settled, marker) == []
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.root
async def test_a_layer_goes_through_one_program_after_the_other(tmp_path: Path) -> None:
    import gzip

    tar = tar_of([entry("hello", b"hello" * 100_000)])
    blob = gzip.compress(tar).translate(bytes(byte ^ 1 for byte in range(256)))
    flip = "import sys; d = sys.stdin.buffer.read(); sys.stdout.buffer.write(bytes(b ^ 1 for b in d))"
    content = FakeContentStore()
    async with plugin() as tasks:
        tables = {
            "flip": Settings(accepts=("acme/a",), returns="acme/b", path=sys.executable, args=("-c", flip)),
            "unzip": Settings(accepts=("acme/b",), returns=TAR, path="gzip", args=("-dc",)),
        }
        processors = {name: processor(name, table, tasks) for name, table in tables.items()}
        differ = WalkingDiffer(content, str(tmp_path / "temp"), processors=processors)
        (tmp_path / "tree").mkdir()
        layer = Descriptor("acme/a", content.put(blob), len(blob))
        result = await differ.apply(layer, bind(tmp_path / "tree"), ApplyOptions())
        assert result == Descriptor(TAR, digest_of(tar), len(tar))
        broken = Descriptor("acme/b", content.put(b"no gzip"), 7)
        with pytest.raises(Unknown, match=r"stream processor unzip: exit status 1: gzip: stdin: not in gzip format"):
            await differ.apply(broken, bind(tmp_path / "tree"), ApplyOptions())
    assert (tmp_path / "tree" / "hello").read_bytes() == b"hello" * 100_000


async def test_a_plain_tar_ends_the_way_through_processors() -> None:
    async with plugin() as tasks:
        checks = processor("checks", Settings(accepts=(TAR, "a"), returns=TAR, path="cat"), tasks)
    for media_type in (TAR, "a"):
        steps, end = steps_from(media_type, {"checks": checks})
        assert ([step.processor_id for step in steps], end) == (["checks"], TAR)


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"path": ""}, r'^stream_processors."p".path is missing$'),
        ({"accepts": ()}, r'^stream_processors."p".accepts is missing$'),
        ({"returns": ""}, r'^stream_processors."p".returns is missing$'),
        ({"env": ("A",)}, r'^stream_processors."p".env has "A", which is not NAME=value$'),
    ],
)
async def test_a_table_that_cannot_be_used_is_said(more: dict[str, Any], text: str) -> None:
    async with plugin() as tasks:
        with pytest.raises(PluginError, match=text):
            processor("p", Settings(**{"accepts": ("a",), "returns": TAR, "path": "sh", **more}), tasks)


async def test_a_table_is_a_plugin_of_its_own() -> None:
    made = register_stream_processor("io.acme.v1", Settings(accepts=("a",), returns=TAR, path="sh"))
    assert made.uri == f"{kinds.STREAM_PROCESSOR}.io.acme.v1"
