"""What of the host and the caller goes into specs (facts/runtime 7.2)."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from aiocontainerd.oci import host


def test_capabilities_are_the_effective_ones(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("CapPrm:\t000001ffffffffff\nCapEff:\t0000020000200001\nCapBnd:\t000001ffffffffff\n")
    assert host.capabilities(str(status)) == ("CAP_CHOWN", "CAP_SYS_ADMIN")


@pytest.mark.root
def test_a_caller_without_a_capability_does_not_pass_it_on() -> None:
    script = "from aiocontainerd.oci import host; print(*host.capabilities())"
    drop = ["setpriv", "--bounding-set", "-sys_ptrace", "--inh-caps", "-sys_ptrace"]
    shown = subprocess.run([*drop, sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "CAP_CHOWN" in shown.split()
    assert "CAP_SYS_PTRACE" not in shown.split()


@pytest.mark.root
def test_devices_are_nodes_and_nothing_else(tmp_path: Path) -> None:
    for name in ("null", "console", "sub/zero", "pts/0"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        os.mknod(path, 0o20640, os.makedev(1, 3))
        path.chmod(0o640)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("null")
    (tmp_path / "file").write_text("")
    with socket.socket(socket.AF_UNIX) as log:
        log.bind(str(tmp_path / "log"))
        found = list(host.devices(str(tmp_path)))
    node = {"type": "c", "major": 1, "minor": 3, "fileMode": 0o640, "uid": 0, "gid": 0}
    assert found == [{"path": str(tmp_path / name), **node} for name in ("null", "sub/zero")]
