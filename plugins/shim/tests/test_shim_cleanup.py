"""The delete action goes to its end, whatever fails on the way."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from aiocontainerd_shim.program import cleanup
from aiocontainerd_shim.program.bootstrap import Identity
from aiocontainerd_shim.task import records


def test_a_root_is_unmounted_although_the_runtime_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bundle, root = tmp_path / "c", tmp_path / "runc"
    bundle.mkdir()
    (root / "c").mkdir(parents=True)
    shim = records.ShimRecord(
        namespace="ns", id="c", shim_pid=1, binary="/nonexistent/runc", root=str(root), systemd_cgroup=False
    )
    records.write_shim(bundle, shim)
    unmounted: list[str] = []

    def busy(path: str) -> None:
        unmounted.append(path)
        raise OSError(16, "Device or resource busy", path)

    monkeypatch.setattr(cleanup, "unmount_recursive", busy)
    with caplog.at_level(logging.WARNING):
        answer = cleanup.clean_up(Identity(namespace="ns", id="c", bundle=bundle, env={}))
    assert (answer.exit_status, unmounted) == (137, [f"{bundle}/rootfs"])
    assert "fork/exec /nonexistent/runc: no such file or directory" in caplog.text
    assert f"its root stays mounted: unmount {bundle}/rootfs: device or resource busy" in caplog.text
