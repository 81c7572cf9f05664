"""The program `actr`, as far as it needs no daemon."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import aiocontainerd
from aiocontainerd.cli.actr.main import actr
from aiocontainerd.cli.actr.session import Session


@pytest.mark.parametrize("flag", ["--version", "-v"])
def test_the_version_is_printed_without_a_daemon(flag: str) -> None:
    result = CliRunner().invoke(actr, ["--address", "/no/daemon.sock", flag])
    assert (result.exit_code, result.output) == (0, f"actr {aiocontainerd.__version__}\n")


PLAIN = {"PATH": os.environ["PATH"], "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
"""An environment in which Python takes the locale at its word, which is ASCII."""


@pytest.mark.parametrize("environment", [PLAIN, {"LC_ALL": "POSIX", "PYTHONIOENCODING": "ascii"}], ids=["C", "ascii"])
def test_texts_are_utf_8_in_every_locale(tmp_path: Path, environment: dict[str, str]) -> None:
    socket = tmp_path / "dæmon☃"
    command = [sys.executable, "-m", "aiocontainerd.cli.actr.main", "-a", str(socket), "version"]
    done = subprocess.run(command, env=environment, capture_output=True)
    assert done.returncode == 1
    assert f"cannot reach a daemon at {socket}" in done.stderr.decode()


@pytest.mark.parametrize("environment", [PLAIN, {"PYTHONIOENCODING": "latin-1"}], ids=["C", "latin-1"])
def test_what_is_printed_is_utf_8(environment: dict[str, str]) -> None:
    code = "from aiocontainerd.cli.ending import open_streams; open_streams(); print(chr(0x2603), chr(0xDCFF))"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    assert done.stdout == b"\xe2\x98\x83 \\udcff\n"


def test_an_argument_that_is_not_utf_8_is_named() -> None:
    session = Session(address="/absent", namespace="default", timeout_s=1.0, debug=False)
    with pytest.raises(UnicodeEncodeError) as caught:
        "a\udcff".encode()
    assert session._text_of(caught.value, "", diagnoses=False) == r"'a\udcff' is not UTF-8"
