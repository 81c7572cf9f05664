"""The quick start's own steps; `integration/` runs real daemons."""

from __future__ import annotations

import configparser
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

CONTRIB = Path(__file__).resolve().parents[1] / "contrib"


@pytest.fixture
def quickstart() -> ModuleType:
    spec = importlib.util.spec_from_file_location("quickstart", CONTRIB / "quickstart" / "quickstart.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sleeper(*names: str, ignore_term: bool = False) -> subprocess.Popen[bytes]:
    setup = "import signal, sys, time\n"
    if ignore_term:
        setup += "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{setup}print(flush=True); time.sleep(60)", *names], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    return process


def test_helpers_are_the_processes_that_name_the_directory(quickstart: ModuleType, tmp_path: Path) -> None:
    process = sleeper(f"{tmp_path}/x.sock")
    try:
        assert quickstart.helpers(tmp_path) == [process.pid]
        assert quickstart.helpers(tmp_path / "other") == []
    finally:
        process.kill()
        process.wait()


def test_a_daemon_that_does_not_end_is_killed(quickstart: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quickstart, "STOP_S", 0.1)
    process = sleeper(ignore_term=True)
    quickstart.stop(process)
    assert process.returncode == -9


def test_a_daemon_that_does_not_start_shows_its_log(quickstart: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "log").write_text("containerd: no\n")
    process = subprocess.Popen(["false"])
    with pytest.raises(SystemExit, match="the daemon did not start:\ncontainerd: no"):
        quickstart.wait_for(tmp_path / "c.sock", process, tmp_path / "log")
    process.wait()


def test_cleaning_leaves_nothing_of_the_directory(quickstart: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "d" / "root").mkdir(parents=True)
    quickstart.clean(tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_cleaning_waits_for_the_helper_of_the_daemon(
    quickstart: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "d").mkdir()
    found = [[1], [1], []]
    monkeypatch.setattr(quickstart, "helpers", lambda _: found.pop(0))
    quickstart.clean(tmp_path / "d")
    assert found == []


def test_a_helper_that_does_not_end_is_named(
    quickstart: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quickstart, "STOP_S", 0.05)
    monkeypatch.setattr(quickstart, "helpers", lambda _: [7])
    (tmp_path / "d").mkdir()
    quickstart.clean(tmp_path / "d")
    assert "processes [7] do not end" in capsys.readouterr().err


def test_without_root_it_says_so(quickstart: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(SystemExit, match="run this as root"):
        quickstart.serve()


def test_shell_scripts_parse_and_know_the_commands_of_the_makefile() -> None:
    setup = CONTRIB / "quickstart" / "setup.sh"
    assert subprocess.run(["sh", "-n", str(setup)], check=False).returncode == 0
    makefile = (CONTRIB.parent / "Makefile").read_text()
    assert "setup.sh run" in makefile
    assert "setup.sh test" in makefile


def test_the_unit_lets_containers_run_on_and_the_daemon_hold_descriptors_of_thousands() -> None:
    unit = configparser.ConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign] # names of settings have capitals
    unit.read(CONTRIB / "systemd" / "aiocontainerd.service")
    service = unit["Service"]
    assert (service["Type"], service["KillMode"], service["Delegate"]) == ("notify", "process", "yes")
    assert int(service["LimitNOFILE"].partition(":")[0]) >= 65536
