"""What the log says of the plugins after the start."""

from __future__ import annotations

import pytest

from aiocontainerd.daemon.outcomes import log_outcomes
from aiocontainerd.host.discovery import DECLARED_KIND
from aiocontainerd.host.registration import PluginError
from aiocontainerd.host.registry import Registry
from aiocontainerd.plugin import Registration, SkipPlugin, kinds


def test_the_table_shows_what_is_not_loaded_and_a_summary(caplog: pytest.LogCaptureFixture) -> None:
    async def init(_context: object) -> object:
        return object()

    registry = Registry()
    for plugin_id in ("good", "skipped", "failed", "needs"):
        registry.add(Registration(kind=kinds.SNAPSHOTTER, id=plugin_id, init=init))
    registry["io.containerd.snapshotter.v1.good"].loaded(object())
    registry["io.containerd.snapshotter.v1.skipped"].failed(SkipPlugin("no overlayfs"))
    registry["io.containerd.snapshotter.v1.failed"].failed(PluginError("no disk"))
    needs = registry["io.containerd.snapshotter.v1.needs"]
    needs.failed(PluginError("requires failed"))
    needs.caused_by = "io.containerd.snapshotter.v1.failed"
    with caplog.at_level("INFO"):
        log_outcomes(registry)
    rows = [(r.levelname, getattr(r, "fields", r.getMessage())) for r in caplog.records]
    assert rows == [
        ("INFO", {
            "plugin": "io.containerd.snapshotter.v1.skipped", "state": "skip", "ms": 0.0,
            "reason": "no overlayfs: skip plugin",
        }),
        ("ERROR", {
            "plugin": "io.containerd.snapshotter.v1.failed", "state": "error", "ms": 0.0, "reason": "no disk",
        }),
        ("ERROR", {
            "plugin": "io.containerd.snapshotter.v1.needs", "state": "error", "ms": 0.0, "reason": "requires failed",
            "caused_by": "io.containerd.snapshotter.v1.failed",
        }),
        ("INFO", "plugins: 1 ok, 1 skip, 2 error"),
    ]  # fmt: skip


def test_a_module_that_discovery_has_told_is_not_told_again(caplog: pytest.LogCaptureFixture) -> None:
    registry = Registry()
    registry.add_failed(DECLARED_KIND, "acme", "no module acme")
    with caplog.at_level("DEBUG"):
        log_outcomes(registry)
    assert caplog.messages == ["plugins: 1 error"]
