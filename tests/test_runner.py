"""The test run: a second chance for a test that failed, none for a suite that broke."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(300)  # up to nine starts of Python each

RUNNER = Path(__file__).with_name("runner.py")
PASSING = "def test_passes(): pass\n"
SKIPPED = "import pytest\n@pytest.mark.skip\ndef test_skipped(): pass\n"
FAILING = "def test_fails(): assert 1 == 2, 'always'\n"
FLAKY = """
from pathlib import Path

def test_flaky():
    been = Path(__file__).with_name("been")
    if not been.exists():
        been.touch()
        raise AssertionError("only once")
"""
CRASHING = """
import os

def test_crashes():
    os._exit(3)
"""
LEAVING = """
import pytest
left = []

@pytest.fixture(scope="module")
def daemon():
    yield
    assert left == []

def test_leaves(daemon): left.append("process 1")

def test_is_last(daemon): pass
"""


def run(directory: Path, **files: str) -> tuple[int, list[str]]:
    """Run a suite of these files; its exit status and the lines after the runs."""
    (directory / "pytest.ini").write_text("[pytest]\naddopts = -p no:cacheprovider -p xdist.plugin\n")
    for name, text in files.items():
        (directory / f"test_{name}.py").write_text(text)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    done = subprocess.run(
        [sys.executable, str(RUNNER), "-q", "-n", "1"], cwd=directory, env=environment, capture_output=True, text=True
    )
    lines = done.stdout.splitlines()
    start = max(index for index, line in enumerate(lines) if not line)
    return done.returncode, lines[start + 1 :]


def test_a_test_that_passes_the_second_time_is_named_and_fails_nothing(tmp_path: Path) -> None:
    status, lines = run(tmp_path, passing=PASSING, flaky=FLAKY, skipped=SKIPPED)
    assert lines[0] == "FLAKY test_flaky.py::test_flaky"
    assert lines[1].endswith("test_flaky.py:8: AssertionError: only once")
    assert lines[2:] == ["2 passed, 0 failed, 1 skipped"]
    assert status == 0


def test_a_test_that_fails_twice_fails_the_run(tmp_path: Path) -> None:
    status, lines = run(tmp_path, failing=FAILING, flaky=FLAKY, passing=PASSING)
    assert [line for line in lines if line[0] != " "] == [
        "FAILED test_failing.py::test_fails",
        "FLAKY test_flaky.py::test_flaky",
        "2 passed, 1 failed, 0 skipped",
    ]
    assert status == 1


def test_a_crash_fails_the_run_and_nothing_is_run_again(tmp_path: Path) -> None:
    status, lines = run(tmp_path, a_failing=FAILING, crashing=CRASHING, passing=PASSING)
    assert "FATAL a worker crashed in test_crashing.py::test_crashes" in lines
    assert [line for line in lines if not line.startswith("FATAL")] == ["0 passed, 2 failed, 0 skipped"]
    assert status == 1


def test_a_file_that_cannot_be_collected_fails_the_run(tmp_path: Path) -> None:
    status, lines = run(tmp_path, broken="import nothing_of_this_name\n", passing=PASSING)
    assert lines[0] == "FATAL cannot collect test_broken.py"
    assert lines[-1].endswith(" 1 failed, 0 skipped")
    assert status == 1


def test_a_suite_without_tests_fails_the_run(tmp_path: Path) -> None:
    assert run(tmp_path) == (
        1, ["FATAL pytest ended with status 5, and 0 tests have failed", "0 passed, 1 failed, 0 skipped"],
    )  # fmt: skip


def test_an_error_found_at_the_end_of_a_file_is_not_forgiven_to_its_last_test(tmp_path: Path) -> None:
    status, lines = run(tmp_path, leaving=LEAVING)
    assert lines[0] == "FAILED test_leaving.py::test_is_last"
    assert lines[-1] == "1 passed, 1 failed, 0 skipped"
    assert status == 1
