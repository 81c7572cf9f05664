"""The suites as anyone runs them: ours pass, broken plugins fail where they are broken, mistakes in options are told.

Each run is a process of its own without this repository's conftest.py, as it is for a third party.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from aiocontainerd.testing.deviations import TABLES, Deviation
from aiocontainerd.testing.plugin_bench import registration_of
from aiocontainerd.testing.target import TargetError, replaced, target_of

pytestmark = pytest.mark.timeout(120)

REPOSITORY = Path(__file__).parents[1]
PLUGINS = [REPOSITORY / "tests", *sorted(path.parent for path in REPOSITORY.glob("contrib/*/pyproject.toml"))]
"""Where the plugins are that no package brings."""

FAILED = re.compile(r"^(?:FAILED|ERROR) \S*?::(?:\w+)::(\w+)", re.MULTILINE)
COUNTS = re.compile(r"(\d+) (passed|failed|skipped|error|xfailed)")


class Run(msgspec.Struct, frozen=True):
    """What one run of a suite came to."""

    status: int
    output: str

    @property
    def failed(self) -> set[str]:
        """Names of the tests that failed."""
        return set(FAILED.findall(self.output))

    @property
    def counts(self) -> dict[str, int]:
        """How many passed, failed and so on, by the last line."""
        return {word: int(number) for number, word in COUNTS.findall(self.output.splitlines()[-1])}


def run_suite(directory: Path, suite: str, *args: str) -> Run:
    """Run `pytest --pyargs aiocontainerd.testing.<suite>` in a directory of its own."""
    command = [sys.executable, "-m", "pytest", "-q", "-rfEs", "--tb=short", "--noconftest", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, f"--basetemp={directory / 'tmp'}", "--pyargs", f"aiocontainerd.testing.{suite}", *args],
        capture_output=True, text=True, cwd=directory, timeout=100,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, PLUGINS)), "COLUMNS": "400"},
    )  # fmt: skip
    return Run(done.returncode, done.stdout + done.stderr)


@pytest.mark.root
@pytest.mark.parametrize(
    ("suite", "target", "config", "skipped"),
    [
        ("snapshotter", "aiocontainerd_snapshotter_native.plugin", [], 0),
        ("snapshotter", "aiocontainerd_snapshotter_overlayfs.plugin", [], 0),
        ("snapshotter", "aiocontainerd_snapshotter_reflink.plugin", [], 0),
        ("content", "aiocontainerd_content_local.plugin", [], 0),
        ("differ", "aiocontainerd_differ.plugin", [], 0),
        ("faults", "aiocontainerd_snapshotter_native.plugin", [], 13),
        ("faults", "aiocontainerd_snapshotter_overlayfs.plugin", [], 14),
        ("faults", "aiocontainerd_content_local.plugin", [], 18),
        ("event_sink", "aiocontainerd_event_webhook.plugin", ["target={tmp}/events"], 1),
        ("verifier", "aiocontainerd_verifier_signature.plugin", ["keys_dir={tmp}", "signatures_dir={tmp}"], 4),
        ("verifier", "broken_plugins.broken_verifiers:Careful", [], 2),
        ("snapshotter", "broken_plugins.needing_plugins:NeedingSnapshotter", [], 0),
        ("event_sink", "broken_plugins.needing_plugins:RecordingSink", [], 1),
        ("verifier", "broken_plugins.needing_plugins:AsksAnother", [], 2),
    ],
)
def test_plugin_that_keeps_its_contract_passes(
    tmp_path: Path, suite: str, target: str, config: list[str], skipped: int
) -> None:
    run = run_suite(tmp_path, suite, "--target", target, *(f"--target-config={item}" for item in config))
    assert run.status == 0, run.output
    assert run.counts.get("skipped", 0) == skipped, run.output
    assert run.counts["passed"] > 10


@pytest.mark.root
def test_a_plugin_that_a_target_requires_can_be_a_real_one(tmp_path: Path) -> None:
    target = ("--target", "broken_plugins.needing_plugins:NeedingSnapshotter", "-k", "test_prepared")
    needs = ("--target-needs", "aiocontainerd_content_local.plugin")
    run = run_suite(tmp_path, "snapshotter", *target, *needs)
    assert run.status == 0, run.output
    assert list((tmp_path / "tmp").glob("**/io.containerd.content.v1.content")), "the store's own directory"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "ForgetsRequires",
            "; name io.containerd.content.v1 in requires or wants: a suite has a stand-in for each kind",
        ),
        ("NeedsTheRealOne", "; a suite has a stand-in of this kind: bring the real plugin with --target-needs MODULE"),
    ],
)
def test_a_target_that_does_not_find_what_it_needs_is_told_how_it_does(tmp_path: Path, name: str, text: str) -> None:
    run = run_suite(tmp_path, "event_sink", "--target", f"broken_plugins.needing_plugins:{name}", "-k", "filters")
    assert run.status == 1
    assert text in run.output


def test_plugin_that_has_no_business_here_is_skipped_with_its_reason(tmp_path: Path) -> None:
    run = run_suite(tmp_path, "event_sink", "--target", "aiocontainerd_event_webhook.plugin")
    assert run.status == 0, run.output
    assert run.counts.keys() == {"skipped"}
    assert "no target is configured: skip plugin" in run.output


def test_plugin_that_does_not_load_fails_every_test_in_a_line(tmp_path: Path) -> None:
    args = ("--target", "aiocontainerd_event_webhook.plugin", "--target-config", "tarket=x", "-k", "filters")
    run = run_suite(tmp_path, "event_sink", *args)
    assert run.status == 1
    assert "tarket" in run.output
    assert "did you mean" in run.output
    assert "Traceback" not in run.output


@pytest.mark.root
@pytest.mark.parametrize(
    ("suite", "target", "found_by"),
    [
        ("snapshotter", "broken_snapshotters:ForgetsLabels", {"test_commit_renames_and_replaces_labels"}),
        ("snapshotter", "broken_snapshotters:CommitsViews", {"test_view_is_not_committed"}),
        ("snapshotter", "broken_snapshotters:LosesTree", {"test_snapshots_outlive_the_snapshotter"}),
        ("snapshotter", "broken_snapshotters:BlocksTheLoop", {"test_prepared_snapshot_is_active"}),
        ("content", "broken_stores:AcceptsWrongDigest", {"test_wrong_digest_is_refused_and_the_ingest_kept"}),
        ("content", "broken_stores:StaysLocked", {"test_ref_is_free_and_goes_on_after_a_failed_commit"}),
        ("differ", "broken_differs:FollowsLinks", {"test_no_entry_escapes"}),
        ("event_sink", "broken_sinks:OnlyKnownPayloads", {"test_event_is_taken_in_time_whatever_it_carries"}),
        ("verifier", "broken_verifiers:YesWhenInDoubt", {"test_what_cannot_be_read_is_not_approved"}),
    ],
)
def test_broken_plugin_is_found(tmp_path: Path, suite: str, target: str, found_by: set[str]) -> None:
    run = run_suite(tmp_path, suite, "--target", f"broken_plugins.{target}")
    assert run.status == 1, run.output
    assert found_by <= run.failed
    assert run.counts["passed"] > 0


@pytest.mark.root
@pytest.mark.parametrize(
    ("target", "operation", "found_by", "text"),
    [
        (
            "CommitsInTwoSteps",
            "commit",
            "test_killed_between_any_two_steps_it_is_done_or_not",
            "commit killed before step",
        ),
        ("OneAtATime", "prepare", "test_while_a_step_hangs_other_keys_do_not_wait", "waited while prepare hung in"),
    ],
)
def test_fault_that_a_plugin_does_not_stand_is_found(
    tmp_path: Path, target: str, operation: str, found_by: str, text: str
) -> None:
    args = ("--target", f"broken_plugins.broken_snapshotters:{target}", "-k", f"Snapshotter and {operation}")
    run = run_suite(tmp_path, "faults", *args)
    assert run.status == 1, run.output
    assert run.failed == {found_by}
    assert text in run.output


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ([], "need --target"),
        (["--target", "tcp://1.2.3.4:5"], "only unix:// sockets"),
        (["--target", "acme", "--target-config", "novalue"], "--target-config novalue: write it as KEY=VALUE"),
        (["--target", "acme", "--target-deviations", "nerdd"], "--target-deviations nerdd: known are containerd-1.6"),
    ],
)
def test_option_that_cannot_be_used_ends_the_run_with_its_reason(tmp_path: Path, args: list[str], text: str) -> None:
    run = run_suite(tmp_path, "content", *args)
    assert run.status == 4
    assert text in run.output
    assert not run.failed


def test_module_that_cannot_be_loaded_is_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "acme_paths.py").write_text("""
from pathlib import Path
from aiocontainerd.plugin import PluginConfig, kinds, register

class Config(PluginConfig, frozen=True):
    place: Path = Path()

@register(kinds.EVENT_SINK, "acme", config=Config)
class Acme: ...
""")
    run = run_suite(tmp_path, "event_sink", "--target", "acme_paths", "-k", "filters")
    told = {line.partition(", which")[0] for line in run.output.splitlines() if line.startswith("--target")}
    assert told == {
        "--target acme_paths: the config of plugin io.containerd.event-sink.v1.acme is acme_paths.Config, "
        "whose field place is of type Path"
    }
    assert "Traceback" not in run.output
    assert "blockbuster" not in run.output


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("no_such_package", "no module no_such_package"),
        ("aiocontainerd_differ.plugin", "has no plugin of kind io.containerd.content.v1"),
        ("aiocontainerd_content_local.plugin:Sore", "has no Sore"),
        ("aiocontainerd.config", "registers nothing"),
    ],
)
def test_target_that_cannot_be_used_is_told_in_a_line(path: str, text: str) -> None:
    with pytest.raises(TargetError, match=re.escape(text)):
        registration_of(path, "io.containerd.content.v1")


def test_class_that_registers_nothing_is_a_plugin_as_it_stands() -> None:
    registration = registration_of("aiocontainerd.testing.fakes:FakeContentStore", "io.containerd.content.v1", "mine")
    assert registration.uri == "io.containerd.content.v1.mine"


def test_config_values_are_toml_or_plain_texts(tmp_path: Path) -> None:
    given = ["a=1", "b=yes", 'c="1"', "d.e=[true]", "f={tmp}/x", "g=x=y"]
    config = target_of("acme", config=given).config
    assert config == {"a": 1, "b": "yes", "c": "1", "d": {"e": [True]}, "f": "{tmp}/x", "g": "x=y"}
    assert replaced({"f": ["{tmp}/x", 1]}, tmp_path) == {"f": [f"{tmp_path}/x", 1]}


def test_address_and_name_of_a_socket() -> None:
    target = target_of("unix:///run/containerd/containerd.sock#overlayfs")
    assert (target.remote, target.path, target.name) == (True, "unix:///run/containerd/containerd.sock", "overlayfs")
    assert target.modules() == []


def test_every_deviation_is_of_a_test_that_exists() -> None:
    from aiocontainerd.testing import content, differ, event_sink, snapshotter, verifier

    for deviation in (deviation for table in TABLES.values() for deviation in table):
        suites = [
            getattr(module, deviation.suite, None) for module in (content, differ, event_sink, snapshotter, verifier)
        ]
        assert any(hasattr(suite, deviation.test.partition("[")[0]) for suite in suites), deviation


def test_deviation_is_of_one_target_where_it_names_one() -> None:
    deviation = Deviation("TestX", "test_a", "why", "#native")
    assert deviation.is_of("TestX", "test_a[1]", "unix:///x#native")
    assert not deviation.is_of("TestX", "test_a", "unix:///x#overlayfs")
    assert not deviation.is_of("TestY", "test_a", "unix:///x#native")


def _blocks(language: str) -> dict[str, str]:
    """Return the blocks of a language in the page about testing, by what follows the language."""
    text = (REPOSITORY / "docs/plugins/testing.md").read_text()
    return dict(re.findall(rf"^```{language} ?(\S*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL))


def test_command_line_of_the_documentation_runs(tmp_path: Path) -> None:
    for name, code in _blocks("python").items():
        (tmp_path / name).write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    (command,) = _blocks("sh").values()
    for line, text in (
        (command, _blocks("text")[""].strip()),
        ("pytest -q test_acme_lines.py", "13 passed, 1 skipped"),
    ):
        done = subprocess.run(
            ["sh", "-c", line], capture_output=True, text=True, cwd=tmp_path, timeout=60, env=environment
        )
        assert text in done.stdout, done.stdout


def test_every_option_is_documented() -> None:
    page = (REPOSITORY / "docs/plugins/testing.md").read_text()
    plugin = (REPOSITORY / "aiocontainerd/testing/pytest_plugin.py").read_text()
    options = set(re.findall(r'"(--target[\w-]*)"', plugin))
    assert len(options) == 6
    assert all(f"`{option} " in page for option in options)
