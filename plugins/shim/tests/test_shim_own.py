"""Containers measured from outside their shims."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from aiocontainerd_shim.cgroups import own

from aiocontainerd.errors import NotFound
from aiocontainerd.sys.mountinfo import MountInfo


def _bundle(directory: Path, cgroups_path: str) -> Path:
    (directory / "config.json").write_text(json.dumps({"linux": {"cgroupsPath": cgroups_path}}))
    return directory


@pytest.mark.parametrize(
    ("cgroups_path", "name"),
    [("/ns/a", "a"), ("kubepods.slice:cri:a", "cri-a.scope"), ("kubepods.slice::a", "a.scope"), ("", "")],
)
def test_the_cgroup_is_named_by_the_spec(tmp_path: Path, cgroups_path: str, name: str) -> None:
    assert own._name(_bundle(tmp_path, cgroups_path)) == name


def test_a_bundle_without_a_readable_spec_names_none(tmp_path: Path) -> None:
    assert own._name(tmp_path) == ""
    (tmp_path / "config.json").write_text("")
    assert own._name(tmp_path) == ""


@pytest.mark.parametrize(
    ("directory", "name", "found"),
    [
        ("/sys/fs/cgroup/memory/ns/a", "a", "/sys/fs/cgroup/memory/ns/a"),
        ("/sys/fs/cgroup/memory/ns/a/init.scope", "a", "/sys/fs/cgroup/memory/ns/a"),
        ("/sys/fs/cgroup/a/ns/a/b", "a", "/sys/fs/cgroup/a/ns/a"),
        ("/sys/fs/cgroup/memory/elsewhere", "a", "/sys/fs/cgroup/memory/elsewhere"),
        ("/sys/fs/cgroup/memory/elsewhere", "", "/sys/fs/cgroup/memory/elsewhere"),
        ("", "a", ""),
    ],
)
def test_an_init_below_its_containers_cgroup_counts_as_in_it(directory: str, name: str, found: str) -> None:
    assert own._own(directory, name) == found


def test_a_process_that_is_gone_has_no_metrics(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="cgroup does not exist"):
        own.measure(tmp_path, 2**22 + 1)


def test_threads_that_ask_at_once_read_the_mounts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[bool] = []

    def mounts() -> list[MountInfo]:
        held.append(own._reading.locked())
        return []

    monkeypatch.setattr(own, "mounts", mounts)
    own._read_mounts.cache_clear()
    try:
        assert own._mounts() == own._mounts() == []
    finally:
        own._read_mounts.cache_clear()
    assert held == [True]
