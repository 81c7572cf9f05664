"""Starting a shim: dialects, groups, sockets and the command line (facts/runtime 3)."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from aiocontainerd_shim.program import bootstrap, cli
from aiocontainerd_shim.program.bootstrap import Identity

from aiocontainerd import api
from aiocontainerd.errors import InvalidArgument
from aiocontainerd.wire.anys import any_to_wire, marshal


@pytest.fixture
def identity(tmp_path: Path) -> Identity:
    return Identity(namespace="ns", id="c1", bundle=tmp_path, grpc_address="/run/c.sock")


def options() -> api.protobuf.Any | None:
    return any_to_wire(marshal(api.runc.Options(shim_cgroup="/g")))


def test_a_new_daemon_gets_a_bootstrap_result(identity: Identity) -> None:
    extension = api.bootstrap.Extension(value=options())
    params = api.bootstrap.BootstrapParams(
        instance_id="c1", namespace="ns", socket_dir="/tmp/s", extensions=[extension]
    )
    planned = bootstrap.plan(bytes(params), identity)
    name = hashlib.sha256(b"/run/c.sock/ns/c1").hexdigest()
    assert planned.path == f"/tmp/s/{name}"
    assert (planned.shim_cgroup, planned.legacy) == ("/g", False)
    result = api.bootstrap.BootstrapResult.parse(planned.result())
    assert (result.version, result.address, result.protocol) == (3, f"unix:///tmp/s/{name}", "ttrpc")


@pytest.mark.parametrize("stdin", [b"", b"\xff\xff"])
def test_an_older_daemon_gets_the_bare_address(stdin: bytes, identity: Identity) -> None:
    planned = bootstrap.plan(stdin, identity)
    assert planned.result().startswith(b"unix://")


def test_an_older_daemon_sends_the_options_alone(identity: Identity) -> None:
    params = bootstrap.read_params(bytes(options() or b""), identity)
    assert params.legacy
    assert params.options.shim_cgroup == "/g"


def test_the_group_comes_from_the_annotations_of_the_spec(identity: Identity) -> None:
    assert bootstrap.group_of(identity) == "c1"
    (identity.bundle / "config.json").write_text('{"annotations":{"io.kubernetes.cri.sandbox-id":"pod"}}')
    assert bootstrap.group_of(identity) == "pod"


def test_a_socket_that_answers_is_shared_and_a_stale_one_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "s" / "x")
    first = bootstrap.listen(path)
    assert first is not None
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert bootstrap.listen(path) is None
    first.close()
    second = bootstrap.listen(path)
    assert second is not None
    second.close()


def test_a_path_too_long_for_a_socket_is_refused(identity: Identity) -> None:
    with pytest.raises(InvalidArgument, match="too long"):
        bootstrap.socket_path("/" + "x" * 100, identity, "g")


def test_flags_are_gos() -> None:
    argv = ["-namespace", "ns", "--address=/a", "-publish-binary", "p", "-id", "c", "-debug", "start"]
    flags = cli.parse_flags(argv)
    assert (flags.namespace, flags.address, flags.id, flags.debug, flags.action) == ("ns", "/a", "c", True, "start")
    with pytest.raises(cli.UsageError, match="flag provided but not defined: -nonsense"):
        cli.parse_flags(["-nonsense"])


def test_the_namespace_is_required() -> None:
    with pytest.raises(InvalidArgument, match="shim namespace cannot be empty"):
        cli.run(["-id", "c", "start"])
