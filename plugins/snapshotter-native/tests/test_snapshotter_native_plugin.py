"""Config and registration of the native snapshotter."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from aiocontainerd_snapshotter_native.plugin import Config

from aiocontainerd import kinds
from aiocontainerd.events import EventBus
from aiocontainerd.host.daemon_info import DaemonInfo
from aiocontainerd.host.loading import registrations_of
from aiocontainerd.host.registry import Registry
from aiocontainerd.host.state import State


@pytest.mark.anyio
async def test_plugin_starts_and_stops(tmp_path: Path) -> None:
    registry = Registry()
    (registration,) = registrations_of("aiocontainerd_snapshotter_native.plugin")
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
    (registration,) = registrations_of("aiocontainerd_snapshotter_native.plugin")
    assert registration.uri == f"{kinds.SNAPSHOTTER}.native"


def test_config_round_trip_and_unknown_keys() -> None:
    config = Config(root_path="/x")
    assert msgspec.convert(msgspec.to_builtins(config), Config) == config
    with pytest.raises(msgspec.ValidationError, match="rootpath"):
        msgspec.convert({"rootpath": "/x"}, Config)
