"""What is left of a namespace goes with the daemon, as far as it is ours and empty."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from aiocontainerd_runtime_v2.bundle import Layout
from aiocontainerd_runtime_v2.traces import Traces

from aiocontainerd import api, typeurl
from aiocontainerd.sys import cgroup
from aiocontainerd.wire.anys import marshal

NAMESPACE = f"traces{os.getpid()}"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    found = Layout(tmp_path / "state", tmp_path / "root")
    found.prepare()
    return found


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Directories in place of the hierarchies."""
    for name in ("memory", "pids"):
        (tmp_path / name / NAMESPACE).mkdir(parents=True)
    monkeypatch.setattr(cgroup, "hierarchies", lambda: [str(tmp_path / name) for name in ("memory", "pids", "other")])
    return tmp_path


def spec(path: str) -> bytes:
    return msgspec.json.encode({"linux": {"cgroupsPath": path}})


def options(root: Path) -> typeurl.Any:
    return marshal(api.runc.Options(root=str(root)))


def left(groups: Path) -> list[str]:
    return sorted(path.parent.name for path in groups.glob(f"*/{NAMESPACE}") if path.parent.name in ("memory", "pids"))


def test_empty_directories_of_a_namespace_go_in_every_hierarchy(layout: Layout, groups: Path) -> None:
    state = groups / "runc" / NAMESPACE
    state.mkdir(parents=True)
    traces = Traces(layout)
    traces.note(NAMESPACE, spec(f"/{NAMESPACE}/c"), options(state.parent))
    traces.remove()
    assert left(groups) == []
    assert not state.exists()
    assert state.parent.exists()


def test_the_next_daemon_knows_what_a_killed_one_had(layout: Layout, groups: Path) -> None:
    Traces(layout).note(NAMESPACE, spec(f"/{NAMESPACE}/c"), None)
    Traces(layout).note(NAMESPACE, spec("/elsewhere/c"), None)
    Traces(layout).remove()
    assert left(groups) == []


@pytest.mark.parametrize(
    "path",
    ["/kubepods/pod1/c", f"/{NAMESPACE}/deeper/c", f"/{NAMESPACE}", "system.slice:cri:c", ""],
    ids=["of another", "deeper", "of the namespace itself", "of systemd", "none"],
)
def test_a_cgroup_that_was_not_made_for_our_containers_stays(layout: Layout, groups: Path, path: str) -> None:
    traces = Traces(layout)
    traces.note(NAMESPACE, spec(path), None)
    traces.remove()
    assert left(groups) == ["memory", "pids"]


def test_what_is_not_empty_stays_and_is_looked_at_again(layout: Layout, groups: Path) -> None:
    foreign = groups / "pids" / NAMESPACE / "foreign"
    foreign.mkdir()
    traces = Traces(layout)
    traces.note(NAMESPACE, spec(f"/{NAMESPACE}/c"), None)
    traces.remove()
    assert left(groups) == ["pids"]
    foreign.rmdir()
    Traces(layout).remove()
    assert left(groups) == []


def test_a_namespace_with_a_bundle_keeps_everything(layout: Layout, groups: Path) -> None:
    traces = Traces(layout)
    traces.note(NAMESPACE, spec(f"/{NAMESPACE}/c"), None)
    bundle = layout.create(NAMESPACE, "c", b"{}")
    traces.remove()
    assert left(groups) == ["memory", "pids"]
    layout.remove(bundle)
    traces.remove()
    assert left(groups) == []


def test_the_first_container_of_a_namespace_writes_and_the_others_do_not(layout: Layout, groups: Path) -> None:
    traces = Traces(layout)
    traces.note(NAMESPACE, spec(f"/{NAMESPACE}/c"), None)
    file = layout.state / ".traces" / NAMESPACE
    written = file.stat().st_ino
    traces.note(NAMESPACE, spec(f"/{NAMESPACE}/d"), None)
    traces.note(NAMESPACE, b"no spec", None)
    assert file.stat().st_ino == written
    assert layout.present() == []


def test_a_work_directory_that_a_read_only_root_keeps_holds_up_nothing(layout: Layout, groups: Path) -> None:
    state = groups / "runc" / NAMESPACE
    state.mkdir(parents=True)
    Traces(layout).note(NAMESPACE, spec(f"/{NAMESPACE}/a"), options(groups / "runc"))
    work = layout.bundle(NAMESPACE, "a").work
    work.mkdir(parents=True)
    Traces(layout).remove()
    assert state.exists()
    Traces(layout).remove({work})
    assert not state.exists()
    assert left(groups) == []
