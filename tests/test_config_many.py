"""A file with thousands of mistakes is read in one pass, and only the first names are compared with the known ones."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aiocontainerd.config import ConfigError, decode, load
from aiocontainerd.host import discovery

MANY = 1000
FILES = {
    "keys": "".join(f"k{n} = 1\n" for n in range(MANY)),
    "timeouts": "[timeouts]\n" + "".join(f'"a.b{n}" = "5s"\n' for n in range(MANY)),
    "tables": "".join(f'[plugins."a.v1.b{n}"]\n' for n in range(MANY)),
    "disabled": f"disabled_plugins = {[f'a.v1.b{n}' for n in range(MANY)]}\n",
    "plugin": '[plugins."io.containerd.gc.v1.scheduler"]\n' + "".join(f"k{n} = 1\n" for n in range(MANY)),
}


def counted(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[None]:
    """Return a list that grows with each call of a function."""
    calls: list[None] = []
    real: Callable[..., Any] = getattr(owner, name)

    def counting(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, counting)
    return calls


@pytest.mark.parametrize("name", FILES)
def test_many_mistakes_are_all_told_without_a_search_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "c.toml").write_text(f"version = 3\n{FILES[name]}")
    searches = counted(monkeypatch, difflib, "get_close_matches")
    decodings = counted(monkeypatch, decode, "_failure")
    try:
        found, _ = discovery.problems(load(tmp_path / "c.toml"))
    except ConfigError as error:
        found = str(error).splitlines()
    assert len(found) == MANY
    assert 0 < len(searches) <= 3 * decode.HINTS
    assert len(decodings) < MANY


def test_tables_in_another_case_keep_their_lines(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('[Proxy_Plugins.A]\nType = "snapshot"\n[plugins.scheduler]\nPause_Threshold = 1\n')
    config = load(tmp_path / "c.toml")
    discovery.checked_registrations(config)
    assert str(config.origin("proxy_plugins", "A", "type")) == f"{tmp_path}/c.toml:2"
    assert str(config.origin("plugins", "io.containerd.gc.v1.scheduler")) == f"{tmp_path}/c.toml:3"
