"""The runtime spec (facts/runtime 7.1, 7.2)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aiocontainerd import typeurl
from aiocontainerd.errors import InvalidArgument
from aiocontainerd.oci import spec
from aiocontainerd.oci.host import HostFacts
from aiocontainerd.oci.image import ContainerConfig
from aiocontainerd.oci.spec import MountWish, Wishes
from aiocontainerd.oci.user import User

IMAGE = ContainerConfig(cmd=("sh",), env=("PATH=/bin", "A=1"), working_dir="/w")


HOST = HostFacts(name="vm", capabilities=("CAP_CHOWN", "CAP_SYS_ADMIN"), devices=({"path": "/dev/x", "type": "c"},))


def made(image: ContainerConfig = IMAGE, **wishes: Any) -> spec.Spec:
    return spec.make("ns", "c1", image, User(1, 2, (2, 3)), Wishes(**wishes), HOST)


def test_the_default_is_containerds() -> None:
    plain = made()
    process, linux = plain["process"], plain["linux"]
    assert process["args"] == ["sh"]
    assert process["cwd"] == "/w"
    assert process["env"] == ["PATH=/bin", "A=1"]
    assert process["user"] == {"uid": 1, "gid": 2, "additionalGids": [2, 3]}
    assert process["noNewPrivileges"] is True
    assert len(process["capabilities"]["bounding"]) == 14
    assert linux["cgroupsPath"] == "/ns/c1"
    assert [namespace["type"] for namespace in linux["namespaces"]] == ["pid", "ipc", "uts", "mount", "network"]
    assert linux["resources"]["devices"][0] == {"allow": False, "access": "rwm"}
    assert linux["resources"]["cpu"] == {"shares": 1024}
    assert [mount["destination"] for mount in plain["mounts"]] == [
        "/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/run",
    ]  # fmt: skip


def test_arguments_replace_entrypoint_and_command() -> None:
    image = ContainerConfig(entrypoint=("/e",), cmd=("c",))
    assert made(image)["process"]["args"] == ["/e", "c"]
    assert made(image, args=("x", "y"))["process"]["args"] == ["x", "y"]


def test_something_must_be_run() -> None:
    with pytest.raises(InvalidArgument, match="no arguments specified"):
        made(ContainerConfig())


@pytest.mark.parametrize(
    ("env", "given", "wanted"),
    [
        ((), (), ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]),
        (("Q=1",), (), ["Q=1"]),
        (("A=1", "BARE", "A=2", "", "E=", "=odd"), (), ["A=1", "BARE", "A=2", "E=", "=odd"]),
        (("A=1", "BARE", "A=2"), ("A=3", "B=4", "B=5", "BARE"), ["A=1", "BARE", "A=3", "B=4", "B=5"]),
    ],
)
def test_the_environment_is_merged_as_ctr_merges_it(
    env: tuple[str, ...], given: tuple[str, ...], wanted: list[str]
) -> None:
    assert made(ContainerConfig(cmd=("a",), env=env), env=given)["process"]["env"] == wanted


def test_a_terminal_has_a_type() -> None:
    assert made(tty=True, env=("TERM=dumb",))["process"]["env"] == ["PATH=/bin", "A=1", "TERM=dumb", "TERM=xterm"]


def test_a_bare_key_unsets_what_is_there() -> None:
    assert spec.merge_env(["A=1", "B=2"], ["A", "C"]) == ["B=2"]


def test_the_hosts_network_comes_with_its_files_and_name() -> None:
    plain = made(net_host=True, mounts=[MountWish("/m", "/a")])
    assert {"type": "network"} not in plain["linux"]["namespaces"]
    assert [mount["destination"] for mount in plain["mounts"][-3:]] == ["/m", "/etc/hosts", "/etc/resolv.conf"]
    assert "HOSTNAME=vm" in plain["process"]["env"]


def test_privileged_has_the_capabilities_and_devices_of_the_caller() -> None:
    plain = made(privileged=True)
    assert "maskedPaths" not in plain["linux"]
    assert plain["linux"]["resources"]["devices"] == [{"allow": True, "access": "rwm"}]
    assert plain["linux"]["devices"] == list(HOST.devices)
    for kind in ("bounding", "effective", "permitted"):
        assert plain["process"]["capabilities"][kind] == list(HOST.capabilities)
    assert plain["process"]["noNewPrivileges"] is True
    assert "ro" not in next(m for m in plain["mounts"] if m["destination"] == "/sys")["options"]


def test_a_mount_takes_the_place_of_a_default_one() -> None:
    mounts = [(mount["destination"], mount["type"]) for mount in made(mounts=[MountWish("/run", "/a")])["mounts"]]
    assert mounts[-2:] == [("/sys", "sysfs"), ("/run", "bind")]


def test_limits_labels_and_annotations_are_taken() -> None:
    plain = made(
        memory_bytes=5, cpus=1.5, labels={"a": "b"}, annotations={"c": "d", "a": "z"}, hostname="h", read_only=True
    )
    assert plain["linux"]["resources"]["memory"] == {"limit": 5}
    assert plain["linux"]["resources"]["cpu"] == {"shares": 1024, "quota": 150_000, "period": 100_000}
    assert plain["annotations"] == {"a": "b", "c": "d"}
    assert plain["hostname"] == "h"
    assert plain["root"]["readonly"] is True


def test_an_exec_is_the_containers_process_with_other_arguments() -> None:
    value = spec.exec_process(made(), ["ls"], tty=True, cwd="/x", user=User(9, 9))
    process = json.loads(value.value)
    assert value.type_url == typeurl.PROCESS_URL
    assert (process["args"], process["cwd"], process["terminal"]) == (["ls"], "/x", True)
    assert process["user"] == {"uid": 9, "gid": 9}
    assert "TERM=xterm" in process["env"]


def test_a_spec_survives_its_record() -> None:
    assert spec.from_any(spec.to_any(made())) == made()
    with pytest.raises(InvalidArgument):
        spec.from_any(None)


def test_mounts_are_given_as_ctr_takes_them() -> None:
    wish = spec.parse_mount("type=bind,src=/a,dst=/b,options=rbind:ro")
    assert wish == MountWish("/b", "/a", "bind", ("rbind", "ro"))
    assert spec.parse_mount('"src=/a,b",dst=/c') == MountWish("/c", "/a,b", "")


@pytest.mark.parametrize("text", ["", "src=/a", "dst=/b,what=1", "dst"])
def test_malformed_mounts_name_the_part(text: str) -> None:
    with pytest.raises(InvalidArgument, match="mount"):
        spec.parse_mount(text)
