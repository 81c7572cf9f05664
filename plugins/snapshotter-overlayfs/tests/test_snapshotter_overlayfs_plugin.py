"""Config, probe and registration of the overlayfs snapshotter."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import msgspec
import pytest
from aiocontainerd_snapshotter_overlayfs import plugin
from aiocontainerd_snapshotter_overlayfs.plugin import Config
from aiocontainerd_snapshotter_overlayfs.probe import Support, assumed, has_d_type, probe

from aiocontainerd import kinds
from aiocontainerd.events import EventBus
from aiocontainerd.host.daemon_info import DaemonInfo
from aiocontainerd.host.registry import Registry
from aiocontainerd.host.state import State
from aiocontainerd.sys.mount import FakeMounter, MountStep, mounts_under


class _Refusing(FakeMounter):
    """A kernel that mounts no overlay with an option of `refused`; "" stands for every overlay."""

    def __init__(self, refused: str) -> None:
        super().__init__()
        self.refused = refused

    def mount(self, step: MountStep) -> None:
        if self.refused in step.data or (self.refused == "idmap" and step.options.id_mapped):
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), step.target)
        super().mount(step)


def test_kernel_without_overlay_is_told_with_its_reason(tmp_path: Path) -> None:
    support = probe(str(tmp_path), mounter=_Refusing(""))
    assert support.missing == f"failed to mount overlay below {tmp_path}: No such device"
    assert os.listdir(tmp_path) == []


def test_kernel_without_id_mapping_is_noticed(tmp_path: Path) -> None:
    assert probe(str(tmp_path), mounter=FakeMounter()).id_mapped
    assert not probe(str(tmp_path), mounter=_Refusing("idmap")).id_mapped


def test_probe_unmounts_what_it_mounted(tmp_path: Path) -> None:
    fake = FakeMounter()
    assert probe(str(tmp_path), mounter=fake).missing == ""
    assert fake.mounted == []
    assert os.listdir(tmp_path) == []


def test_a_root_that_takes_no_changes_is_not_tried_and_not_ruled_out(tmp_path: Path) -> None:
    assert assumed(str(tmp_path), mounter=_Refusing("")).missing == ""
    assert not assumed(str(tmp_path), mounter=_Refusing("idmap")).id_mapped
    assert assumed(str(tmp_path), mounter=FakeMounter()) == probe(str(tmp_path), mounter=FakeMounter())
    assert os.listdir(tmp_path) == []


@pytest.mark.root
def test_probe_of_this_kernel_leaves_nothing(tmp_path: Path) -> None:
    probe(str(tmp_path))
    assert os.listdir(tmp_path) == []
    assert mounts_under(str(tmp_path)) == []


def test_file_types_are_seen_in_a_directory(tmp_path: Path) -> None:
    assert has_d_type(str(tmp_path))


@pytest.mark.parametrize(
    ("config", "support", "expected"),
    [
        (Config(), Support(id_mapped=True), ["remap-ids", "only-remap-ids", "rebase"]),
        (Config(slow_chown=True), Support(id_mapped=True), ["remap-ids", "rebase"]),
        (Config(slow_chown=True), Support(user_namespace=True), []),
    ],
)
def test_capabilities(config: Config, support: Support, expected: list[str]) -> None:
    assert plugin.capabilities(config, support) == expected


@pytest.mark.parametrize(
    ("configured", "support", "expected"),
    [
        ((), Support(), ()),
        ((), Support(index=True), ("index=off",)),
        (("volatile",), Support(index=True, userxattr=True), ("volatile", "userxattr", "index=off")),
        (("index=on",), Support(index=True), ("index=on",)),
    ],
)
def test_options_of_every_overlay(configured: tuple[str, ...], support: Support, expected: tuple[str, ...]) -> None:
    assert plugin.settings(Config(mount_options=configured), support).overlay_options == expected


@pytest.mark.root
@pytest.mark.anyio
async def test_plugin_starts_and_stops(tmp_path: Path) -> None:
    registry = Registry()
    (registration,) = plugin.register_plugins()
    added = registry.add(registration)
    daemon = DaemonInfo(
        root=tmp_path / "root",
        state=tmp_path / "state",
        temp=tmp_path / "temp",
        grpc_address="",
        ttrpc_address="",
        bus=EventBus(),
        plugins=list,
        timeout_s=lambda _name: 30.0,
    )
    for _ in range(2):
        async with registry.run(daemon, lambda _registration: Config()):
            assert (added.state, added.reason) == (State.LOADED, "")
            assert added.exports["root"] == str(tmp_path / "root" / added.uri)
            await added.instance.stat("a") if _ else await added.instance.prepare("a")
        added.state = State.REGISTERED


def test_registration() -> None:
    (registration,) = plugin.register_plugins()
    assert registration.uri == f"{kinds.SNAPSHOTTER}.overlayfs"


def test_config_round_trip() -> None:
    config = Config(root_path="/x", upperdir_label=True, sync_remove=True, slow_chown=True, mount_options=("a", "b"))
    assert msgspec.convert(msgspec.to_builtins(config), Config) == config
