"""What a config asks for, and what becomes of each plugin and key that differs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aiocontainerd.config import Config
from aiocontainerd.config.records import Debug, ProxyPlugin, Settings
from aiocontainerd.config.values import DurationText
from aiocontainerd.daemon.wanted import (
    ADDED,
    REMOVED,
    REPLACED,
    RESTART,
    Wanted,
    changed_settings,
    plan_for,
    plan_of,
    steps,
)
from aiocontainerd.host import discovery
from aiocontainerd.host.placement import Placement
from aiocontainerd.host.registry import Registry
from aiocontainerd.plugin import InitContext, Registration, kinds

URI = f"{kinds.SNAPSHOTTER}.acme"
WORK = "io.containerd.timeout.plugin.work"


async def init(_context: InitContext[Any]) -> object:
    return object()


def wanted(outside: object = None, table: object = None) -> Wanted:
    registration = Registration(kind=kinds.SNAPSHOTTER, id="acme", init=init)
    return Wanted(registration=registration, distribution="acme", outside=outside, table=table)


@pytest.mark.parametrize(
    ("before", "after", "outcome"),
    [
        (None, wanted("socket"), ADDED),
        (wanted("socket"), None, REMOVED),
        (wanted("socket"), wanted("other"), REPLACED),
        (wanted("socket", {"a": 1}), wanted("socket", {"a": 2}), REPLACED),
        (wanted("socket"), wanted("socket"), None),
        (None, wanted(), RESTART),
        (wanted(), None, RESTART),
        (wanted(table={"a": 1}), wanted(table={"a": 2}), RESTART),
        (wanted(), wanted("socket"), RESTART),
        (wanted("socket"), wanted(), RESTART),
        (wanted(), wanted(), None),
    ],
)
def test_only_plugins_outside_the_daemon_are_followed(
    before: Wanted | None, after: Wanted | None, outcome: str | None
) -> None:
    plans = ({URI: one} if one is not None else {} for one in (before, after))
    assert steps(*plans) == ([] if outcome is None else [(URI, outcome)])


def test_removals_come_first() -> None:
    before, after = {"b": wanted("socket")}, {"a": wanted("socket")}
    assert steps(before, after) == [("b", REMOVED), ("a", ADDED)]


def test_keys_that_only_a_start_reads_are_named() -> None:
    changed = Settings(
        debug=Debug(level="debug"),
        timeouts={"a": DurationText("1s")},
        proxy_plugins={"a": ProxyPlugin(type="snapshot")},
    )
    assert changed_settings(Settings(), changed) == ["debug"]


def test_a_plugin_in_a_process_is_started_anew_where_its_own_deadlines_change() -> None:
    uri = f"{kinds.SNAPSHOTTER}.native"
    isolated = {"plugin_isolation": {uri: "process"}}
    plans = [
        plan_for(Config({**isolated, "timeouts": timeouts}, {}))
        for timeouts in ({}, {f"{WORK}.{kinds.SNAPSHOTTER}.other": "1s"}, {f"{WORK}.{uri}": "1s"})
    ]
    assert steps(plans[0], plans[1]) == []
    assert steps(plans[0], plans[2]) == [(uri, REPLACED)]


def test_a_plugins_place_and_table_are_part_of_what_is_wanted() -> None:
    tree = {
        "proxy_plugins": {"acme": {"type": "snapshot", "address": "/run/acme.sock"}},
        "plugins": {f"{kinds.SNAPSHOTTER}.native": {"root_path": "/srv"}},
        "disabled_plugins": [f"{kinds.SNAPSHOTTER}.overlayfs"],
    }
    found = plan_for(Config(tree, {}))
    assert isinstance(found[URI].outside, ProxyPlugin)
    native = found[f"{kinds.SNAPSHOTTER}.native"]
    assert (native.outside, native.table) == (None, {"root_path": "/srv"})
    assert f"{kinds.SNAPSHOTTER}.overlayfs" not in found
    assert msgspec.structs.asdict(native)["distribution"] == "aiocontainerd-snapshotter-native"


def test_a_proxy_that_clashes_with_a_plugin_leaves_it_where_it_is() -> None:
    native = f"{kinds.SNAPSHOTTER}.native"
    found = plan_for(Config({"proxy_plugins": {"native": {"type": "snapshot", "address": "/run/n.sock"}}}, {}))
    assert (found[native].outside, found[native].failure) == (None, "")
    assert f"plugin {native} is registered twice" in found["python_plugins.native"].failure
    assert steps(plan_for(Config({}, {})), found) == []


def test_what_the_daemon_started_by_is_what_it_found_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config({}, {})
    monkeypatch.syspath_prepend(tmp_path)
    registry, placement = Registry(), Placement(programs=config.stream_processors)
    discovery.discover(registry, {}, config.settings.plugin_policy, placement)
    started = plan_of(registry, placement, config)
    info = tmp_path / "acme_late-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-late\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[aiocontainerd.plugins]\nacme = acme_late\n")
    (tmp_path / "acme_late.py").write_text(
        "from aiocontainerd.plugin import kinds, register\n\n\n@register(kinds.SNAPSHOTTER, 'acme')\nclass Acme: ...\n"
    )
    after = plan_for(Config({"plugin_isolation": {URI: "process"}}, {}))
    sys.modules.pop("acme_late")
    assert steps(started, after) == [(URI, ADDED)]
