"""Generated documents: written, compared, told when stale."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiocontainerd import reference
from aiocontainerd.config import load


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(reference, "REPOSITORY", tmp_path)
    (tmp_path / "docs").mkdir()
    return tmp_path


def test_the_committed_documents_are_not_stale() -> None:
    assert reference.main(["--check"]) == 0


def test_stale_and_missing_documents_are_named(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reference.main(["--check"]) == 1
    assert capsys.readouterr().err == (
        "stale: config.example.toml: run `make docs`\nstale: docs/hooks.md: run `make docs`\n"
    )
    assert reference.main([]) == 0
    assert reference.main(["--check"]) == 0
    (repository / "docs" / "hooks.md").write_text("old")
    assert reference.main(["--check"]) == 1


def test_the_example_config_loads_and_does_not_depend_on_its_writer(repository: Path) -> None:
    reference.main([])
    load(repository / "config.example.toml")
    text = (repository / "config.example.toml").read_text()
    assert "# uid: the daemon's own\n" in text
    assert "uid = " not in text


def test_every_timeout_and_first_party_table_is_in_the_example() -> None:
    text = reference.documents()[reference.REPOSITORY / "config.example.toml"]
    assert '"io.containerd.timeout.plugin.init" = "30s"' in text
    assert '[plugins."io.containerd.snapshotter.v1.overlayfs"]' in text
