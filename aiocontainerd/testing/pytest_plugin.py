"""Add options and fixtures of the contract suites to pytest (entry point `pytest11`).

It does nothing to tests that are not of the suites: no fixture of other tests is replaced, no rule added.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from aiocontainerd.testing.target import Target

_SUITES = ("content", "contract", "differ", "event_sink", "faults", "metadata", "snapshotter", "verifier")
pytest.register_assert_rewrite(*(f"aiocontainerd.testing.{name}" for name in _SUITES))

_EXPECTED = pytest.StashKey[list[tuple[str, str]]]()
"""Tests that are expected to fail, and why."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup(
        "aiocontainerd", "contract suites of aiocontainerd (--pyargs aiocontainerd.testing.<suite>)"
    )
    group.addoption("--target", default="", metavar="TARGET", help="MODULE[:NAME][#ID] or unix://SOCKET[#SNAPSHOTTER].")
    group.addoption(
        "--target-namespace", default="", metavar="NAME",
        help="Namespace of a daemon to work in; it must be empty. Without it each test has one of its own.",
    )  # fmt: skip
    group.addoption(
        "--target-config", action="append", default=[], metavar="KEY=VALUE",
        help="A key of the plugin's config, VALUE in TOML or a plain text; {tmp} is the test's directory. Repeatable.",
    )  # fmt: skip
    group.addoption(
        "--target-capability", action="append", default=[], metavar="NAME",
        help="Something the target can do though it does not say so: rebase, labels. Repeatable.",
    )  # fmt: skip
    group.addoption(
        "--target-needs", action="append", default=[], metavar="MODULE[:NAME]",
        help="A plugin that the target requires, instead of the stand-in in memory. Repeatable.",
    )  # fmt: skip
    group.addoption(
        "--target-deviations", default="", metavar="TABLE",
        help="Tests that are expected to fail, by a table of aiocontainerd.testing.deviations: containerd-1.6.",
    )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "root: needs root (mounts, namespaces, cgroups)")
    config.stash[_EXPECTED] = []


def pytest_report_header(config: pytest.Config) -> list[str]:
    if not config.getoption("--target"):
        return []
    from aiocontainerd.testing.blocking import is_checked

    lines = [f"target: {config.getoption('--target')}"]
    if not is_checked():
        lines.append("blocking calls in the event loop are not looked for: blockbuster is not installed")
    return lines


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip tests of a suite that need root without it. Expect known deviations to fail."""
    suites = [item for item in items if _is_targeted(item)]
    if not suites:
        return
    for item in suites:
        if os.geteuid() != 0 and item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason="needs root: mounts, namespaces or cgroups"))
        _expect_deviation(config, item)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print every deviation that was expected, with its reason, whatever `-r` says."""
    expected = config.stash[_EXPECTED]
    if not expected:
        return
    terminalreporter.section(f"deviations of {config.getoption('--target-deviations')}")
    for name, reason in expected:
        terminalreporter.write_line(f"{name}: {reason}")


@pytest.fixture(scope="session")
def suite_target(pytestconfig: pytest.Config) -> Target:
    """Return the target of this run."""
    from aiocontainerd.testing.target import TargetError, target_of

    text = pytestconfig.getoption("--target")
    if not text:
        pytest.exit("the suites of aiocontainerd need --target MODULE[:NAME] or --target unix://SOCKET", 4)
    try:
        return target_of(
            text,
            namespace=pytestconfig.getoption("--target-namespace"),
            config=pytestconfig.getoption("--target-config"),
            capabilities=pytestconfig.getoption("--target-capability"),
            deviations=pytestconfig.getoption("--target-deviations"),
            needs=pytestconfig.getoption("--target-needs"),
        )
    except TargetError as error:
        pytest.exit(str(error), 4)


def _is_targeted(item: pytest.Item) -> bool:
    cls = getattr(item, "cls", None)
    if cls is None:
        return False
    from aiocontainerd.testing.contract import Targeted

    return issubclass(cls, Targeted)


def _expect_deviation(config: pytest.Config, item: pytest.Item) -> None:
    table = config.getoption("--target-deviations")
    if not table:
        return
    from aiocontainerd.testing.deviations import TABLES

    if table not in TABLES:
        raise pytest.UsageError(f"--target-deviations {table}: known are {', '.join(sorted(TABLES))}")
    for deviation in TABLES[table]:
        if deviation.is_of(type_name(item), item.name, config.getoption("--target")):
            item.add_marker(pytest.mark.xfail(reason=f"{table}: {deviation.reason}", strict=True))
            config.stash[_EXPECTED].append((item.name, deviation.reason))


def type_name(item: pytest.Item) -> str:
    """Return the class of a test."""
    cls = getattr(item, "cls", None)
    return "" if cls is None else cls.__name__
