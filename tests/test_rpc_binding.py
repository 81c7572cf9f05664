"""Service objects to methods by path, and messages by name."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import ClassVar

import pytest

from aiocontainerd import api
from aiocontainerd.api.names import python_name
from aiocontainerd.api.services import SERVICES
from aiocontainerd.errors import InvalidArgument
from aiocontainerd.plugin import Method
from aiocontainerd.rpc import binding
from aiocontainerd.wire import codec

E = api.protobuf.Empty


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("Get", "get"),
        ("CloseIO", "close_io"),
        ("ListPids", "list_pids"),
        ("ResizePty", "resize_pty"),
        ("PluginInfo", "plugin_info"),
        ("DeleteProcess", "delete_process"),
        ("ListStream", "list_stream"),
        ("ImageFsInfo", "image_fs_info"),
        ("Import", "import_"),
    ],
)
def test_a_method_is_named_in_snake_case(method: str, name: str) -> None:
    assert python_name(method) == name


def test_every_method_of_the_api_has_a_name_of_its_own() -> None:
    for methods in SERVICES.values():
        names = {python_name(method) for method in methods}
        assert len(names) == len(methods)
        assert all(name.isidentifier() for name in names)


class Tasks:
    service_name: ClassVar[str] = "containerd.services.tasks.v1.Tasks"

    async def close_io(self, request: api.tasks.CloseIoRequest) -> api.protobuf.Empty:
        return api.protobuf.Empty()


def test_a_service_binds_every_method_and_marks_those_it_lacks() -> None:
    bound = binding.bind(Tasks())
    close = bound["/containerd.services.tasks.v1.Tasks/CloseIO"]
    assert close.call is not None
    assert (close.request_class, close.response_class) == (api.tasks.CloseIoRequest, api.protobuf.Empty)
    assert not close.streaming
    assert bound["/containerd.services.tasks.v1.Tasks/Get"].call is None
    assert len(bound) == len(SERVICES["containerd.services.tasks.v1.Tasks"])


def test_streaming_follows_the_definition() -> None:
    write = binding.signature("containerd.services.content.v1.Content", "Write")
    read = binding.signature("containerd.services.content.v1.Content", "Read")
    assert (write.client_streaming, write.server_streaming) == (True, True)
    assert (read.client_streaming, read.server_streaming) == (False, True)


def test_an_unknown_service_or_method_is_refused() -> None:
    class Wrong:
        service_name: ClassVar[str] = "a.B"

    with pytest.raises(ValueError, match=r"Wrong\.service_name is 'a\.B', which is no service of the API"):
        binding.bind(Wrong())
    with pytest.raises(ValueError, match="the API has no method"):
        binding.signature("containerd.services.tasks.v1.Tasks", "Nothing")


def test_every_message_of_the_api_resolves() -> None:
    for methods in SERVICES.values():
        for request, response, *_ in methods.values():
            assert codec.decode(codec.resolve(request), b"") == codec.resolve(request)()
            assert codec.decode(codec.resolve(response), b"") == codec.resolve(response)()


def test_binding_imports_no_message_module() -> None:
    program = (
        "import sys\n"
        "from aiocontainerd.rpc import binding\n"
        "from aiocontainerd.rpc.grpc import GrpcFrontEnd\n"
        "class Tasks:\n"
        "    service_name = 'containerd.services.tasks.v1.Tasks'\n"
        "binding.bind(Tasks())\n"
        "print([m for m in sys.modules if m.startswith('aiocontainerd.api.gen.')])\n"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "[]\n"


def test_bytes_that_are_no_message_are_refused_by_its_name() -> None:
    with pytest.raises(InvalidArgument, match=r"containerd\.services\.images\.v1\.Image\b"):
        codec.decode(api.images.Image, b"\x0a\x02\xff\xff")


class Wrong:
    """A service with methods of another form than `methods` says."""

    service_name: ClassVar[str] = "acme.v1.Wrong"

    async def awaited(self, request: object) -> object: ...

    async def yields(self, request: object) -> AsyncIterator[object]:
        yield request

    def plain(self, request: object) -> object: ...

    async def two(self, request: object, context: object) -> object: ...

    number = 5


@pytest.mark.parametrize(
    ("method", "definition", "reason"),
    [
        ("Awaited", Method(E, E, server_streams=True), "Wrong.awaited is awaited, not iterated: yield its messages"),
        ("Yields", Method(E, E), "Wrong.yields yields; return one message, or define it with server_streams=True"),
        ("Plain", Method(E, E), "Wrong.plain is not async; write `async def plain`"),
        (
            "Two", Method(E, E),
            "Wrong.two takes (request, context), and is called with (request): missing a required argument: 'context'",
        ),
        ("Number", Method(E, E), "Wrong.number is int, not a method"),
        ("Plain", Method(str, E), "`methods` has Method(request=<class 'str'>"),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_a_method_of_another_form_is_told_when_it_is_bound(
    monkeypatch: pytest.MonkeyPatch, method: str, definition: Method, reason: str
) -> None:
    monkeypatch.setattr(Wrong, "methods", {method: definition}, raising=False)
    with pytest.raises(ValueError, match=f"^{re.escape(reason)}"):
        binding.bind(Wrong())


def test_methods_that_are_no_table_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Wrong, "methods", ["Plain"], raising=False)
    with pytest.raises(ValueError, match=r"^Wrong.methods is list; write \{name: Method\(\.\.\.\)\}$"):
        binding.bind(Wrong())
