"""The pytest plugin that ships with the daemon (entry point `pytest11`): options and fixtures of the contract suites."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "root: needs root (mounts, namespaces, cgroups)")
