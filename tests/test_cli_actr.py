"""The program `actr`, as far as it needs no daemon."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

import aiocontainerd
from aiocontainerd.cli.actr.main import actr


@pytest.mark.parametrize("flag", ["--version", "-v"])
def test_the_version_is_printed_without_a_daemon(flag: str) -> None:
    result = CliRunner().invoke(actr, ["--address", "/no/daemon.sock", flag])
    assert (result.exit_code, result.output) == (0, f"actr {aiocontainerd.__version__}\n")
