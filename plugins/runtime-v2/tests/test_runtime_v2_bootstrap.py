"""What shims are told and what they answer (facts/runtime 3.2)."""

from __future__ import annotations

import pytest
from aiocontainerd_runtime_v2.bootstrap import Endpoint, from_api_address, options_of, parameters, parse, to_json

from aiocontainerd import api
from aiocontainerd.errors import InvalidArgument, Unimplemented
from aiocontainerd.typeurl import Any
from aiocontainerd.wire import codec

ADDRESS = "unix:///run/containerd/s/" + 61 * "a"


def test_a_message_as_a_shim_was_seen_to_print_it() -> None:
    assert len(ADDRESS) == 86
    printed = b"\x08\x03\x12\x56" + ADDRESS.encode() + b"\x1a\x05ttrpc"
    assert parse(printed) == Endpoint(3, ADDRESS, "ttrpc")


@pytest.mark.parametrize(
    ("printed", "endpoint"),
    [
        (b' {"version":3,"address":"unix:///s","protocol":"grpc"}\n', Endpoint(3, "unix:///s", "grpc")),
        (b'{"version":2,"address":"unix:///s","protocol":"ttrpc","more":1}', Endpoint(2, "unix:///s")),
        (b"unix:///run/s/x\n", Endpoint(2, "unix:///run/s/x")),
        (b"  @abstract  ", Endpoint(2, "@abstract")),
    ],
)
def test_json_and_bare_addresses(printed: bytes, endpoint: Endpoint) -> None:
    assert parse(printed) == endpoint


@pytest.mark.parametrize("printed", [b"", b" \n", b"panic: oh no", b"\xff\xfe", b"a\x00b"])
def test_anything_else_is_no_address(printed: bytes) -> None:
    with pytest.raises(InvalidArgument, match="what the shim printed is no address"):
        parse(printed)


def test_a_version_of_the_future_is_refused() -> None:
    with pytest.raises(Unimplemented, match=r"^unsupported shim version \(4\)$"):
        parse(codec.encode(api.bootstrap.BootstrapResult(version=4, address=ADDRESS, protocol="ttrpc")))


def test_an_endpoint_comes_back_from_its_file() -> None:
    endpoint = Endpoint(3, ADDRESS)
    assert parse(to_json(endpoint)) == endpoint
    assert to_json(endpoint) == b'{"version":3,"address":"' + ADDRESS.encode() + b'","protocol":"ttrpc"}'


def test_parameters_carry_the_options_as_an_extension() -> None:
    options = Any("containerd.runc.v1.Options", b"\x32\x04crun")
    data = parameters(
        instance_id="i", namespace="n", grpc_address="/g", ttrpc_address="/t", binary="/d", debug=True, options=options
    )
    message = codec.decode(api.bootstrap.BootstrapParams, data)
    assert (message.instance_id, message.namespace, message.containerd_binary) == ("i", "n", "/d")
    assert message.log_level == api.bootstrap.LogLevel.DEBUG
    assert message.socket_dir is None
    assert codec.decode(api.protobuf.Any, options_of(data)).value == options.value


def test_without_options_older_shims_read_nothing() -> None:
    data = parameters(
        instance_id="i", namespace="n", grpc_address="/g", ttrpc_address="/t", binary="/d", socket_dir="/s"
    )
    assert options_of(data) == b""
    assert codec.decode(api.bootstrap.BootstrapParams, data).socket_dir == "/s"


def test_the_address_of_a_sandbox_names_its_protocol() -> None:
    assert from_api_address("grpc+unix:///s", 3) == Endpoint(3, "unix:///s", "grpc")
    assert from_api_address("unix:///s", 2) == Endpoint(2, "unix:///s", "ttrpc")
