"""Run the test suite on two cores; run what failed again, alone; tell what passed only then.

usage: runner.py [PYTEST ARGUMENT]...

Arguments go to the first run. A test that failed there is run once more, by itself in a process of its own. If it fails
again the run fails. If it passes it is named as FLAKY at the end, with its first error, and the run passes. An error of
collection, a worker that crashed and an error inside pytest fail the run at once.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

FIRST_RUN = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder", "--max-worker-restart", "0")
"""Tests of one file share daemons, so a file stays on one worker. A crash ends the run: pytest-xdist 3.8 may wait for
ever after it has replaced a worker."""
SECOND_RUN = ("-q", "-n", "0", "--no-header")
TOO_MANY = 25
"""More failures than this are not bad luck, and are not run again."""
ERROR_LINES = 20


class Record:
    """A pytest plugin that notes the outcome of every test, and what no second run may excuse."""

    def __init__(self) -> None:
        self.root = Path.cwd()
        self.outcomes: dict[str, str] = {}
        self.failures: dict[str, pytest.TestReport] = {}
        """The first failed report of each test."""
        self.fatal: list[str] = []

    def pytest_configure(self, config: pytest.Config) -> None:
        self.root = config.rootpath

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.outcomes[report.nodeid] = "failed"
            self.failures.setdefault(report.nodeid, report)
        elif report.skipped or report.when == "call":
            self.outcomes.setdefault(report.nodeid, report.outcome)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.fatal.append(f"cannot collect {report.nodeid}")

    def pytest_internalerror(self, excrepr: object) -> None:
        self.fatal.append(f"error inside pytest: {str(excrepr).strip().splitlines()[-1]}")

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, error: object) -> None:
        """Note a worker that ended before its work did."""
        if error:
            self.fatal.append(f"a worker crashed: {error}")

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, crashitem: str) -> None:
        self.fatal.append(f"a worker crashed in {crashitem}")


def error_of(report: pytest.TestReport) -> str:
    """Return where a test failed and with what message, in a few lines."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = f"{crash.path}:{crash.lineno}: {crash.message}" if crash else report.longreprtext
    lines = text.splitlines()
    return "\n".join(f"    {line}" for line in (lines if len(lines) <= ERROR_LINES else [*lines[:ERROR_LINES], "..."]))


def target_of(report: pytest.TestReport) -> str:
    """Return what to run again: the test, or its file where the error may be one that all its tests have caused."""
    return report.nodeid.partition("::")[0] if report.when == "teardown" else report.nodeid


def passes_alone(target: str, root: Path) -> bool:
    """Run a test by itself. Return whether it passed."""
    print(f"\nonce more, alone: {target}", flush=True)
    return subprocess.run([sys.executable, "-m", "pytest", *SECOND_RUN, target], cwd=root).returncode == 0


def run_again(record: Record) -> dict[str, bool]:
    """Run once more what failed, one after the other. Return what passed, by the name of the test."""
    targets = dict.fromkeys(target_of(report) for report in record.failures.values())
    passed = {target: passes_alone(target, record.root) for target in targets}
    return {name: passed[target_of(report)] for name, report in record.failures.items()}


def judge(status: int, record: Record) -> list[str]:
    """Return why the first run has failed beyond repair; nothing when a second run may repair it."""
    reasons = list(record.fatal)
    if not reasons and status != bool(record.failures):
        reasons.append(f"pytest ended with status {status}, and {len(record.failures)} tests have failed")
    if len(record.failures) > TOO_MANY:
        reasons.append(f"{len(record.failures)} tests have failed: too many to run again")
    return reasons


def main(arguments: list[str]) -> int:
    """Run the suite and print the verdict. Return the exit status."""
    record = Record()
    status = int(pytest.main([*FIRST_RUN, *arguments], plugins=[record]))
    reasons = judge(status, record)
    again = {} if reasons else run_again(record)
    record.outcomes |= {name: "passed" for name, passed in again.items() if passed}
    print()
    for name, passed in again.items():
        print(f"{'FLAKY' if passed else 'FAILED'} {name}\n{error_of(record.failures[name])}")
    for reason in reasons:
        print(f"FATAL {reason}")
    counts = Counter(record.outcomes.values())
    failed = counts["failed"] or len(reasons)
    print(f"{counts['passed']} passed, {failed} failed, {counts['skipped']} skipped", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
