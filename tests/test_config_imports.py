"""Imports: which files a pattern names, what a file that cannot be read is told, and whose value counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiocontainerd.config import Config, ConfigError, load

V3 = "version = 3\n"


def loaded(directory: Path, imports: str, **files: str) -> Config:
    """Load a file with these imports, beside other files. `conf_d__a` is `conf.d/a.toml`."""
    for name, text in files.items():
        path = directory / f"{name.replace('__', '/').replace('conf_d', 'conf.d')}.toml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    (directory / "c.toml").write_text(f"{V3}imports = {imports}\n")
    return load(directory / "c.toml")


def told(directory: Path, imports: str, **files: str) -> str:
    with pytest.raises(ConfigError) as failed:
        loaded(directory, imports, **files)
    return str(failed.value).replace(f"{directory}/", "")


def test_a_star_stands_for_hidden_files_too(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / ".a.toml").write_text(f'{V3}temp = "/t"\n')
    assert loaded(tmp_path, '["conf.d/*.toml"]').settings.temp == "/t"


def test_a_name_without_a_star_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "a[1]?.toml").write_text(f'{V3}temp = "/t"\n')
    assert loaded(tmp_path, '["a[1]?.toml"]').settings.temp == "/t"
    assert "No such file" in told(tmp_path, '["b[1].toml"]')


def test_a_file_that_cannot_be_read_names_the_line_of_its_import(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "loop.toml").symlink_to("loop.toml")
    (tmp_path / "away.toml").symlink_to("nothing")
    start = "c.toml:2: failed to load TOML from "
    assert told(tmp_path, '["none.toml"]') == f"{start}none.toml: No such file or directory"
    assert (
        told(tmp_path, '["conf.d"]')
        == f"{start}conf.d: Is a directory; conf.d/*.toml in imports stands for the files in it"
    )
    assert told(tmp_path, '["loop.*"]') == f"{start}loop.toml: Too many levels of symbolic links"
    assert told(tmp_path, '["away.*"]') == f"{start}away.toml: it is a link to nothing, which does not exist"


def test_a_mistake_in_an_import_names_its_own_line(tmp_path: Path) -> None:
    assert told(tmp_path, '["a.toml"]', a="version = \n").startswith("failed to load TOML from a.toml:1: Invalid value")


def test_files_that_import_each_other_are_read_once(tmp_path: Path) -> None:
    config = loaded(tmp_path, '["a.toml"]', a=f'{V3}imports = ["b.toml"]\n', b=f'{V3}imports = ["a.toml", "c.toml"]\n')
    assert config.settings.imports == ("a.toml", "b.toml", "c.toml")


def test_an_empty_value_of_an_import_leaves_value_and_origin(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(f'{V3}[debug]\nlevel = ""\nformat = "json"\n')
    (tmp_path / "c.toml").write_text(f'{V3}imports = ["a.toml"]\n[debug]\nlevel = "warn"\n')
    config = load(tmp_path / "c.toml")
    assert (config.settings.debug.level, config.settings.debug.format) == ("warn", "json")
    assert str(config.origin("debug", "level")) == f"{tmp_path}/c.toml:4"
    assert str(config.origin("debug", "format")) == f"{tmp_path}/a.toml:4"


def test_only_an_absent_default_file_means_the_defaults(tmp_path: Path) -> None:
    assert load(tmp_path / "none.toml", explicit=False).warnings == []
    (tmp_path / "loop.toml").symlink_to("loop.toml")
    with pytest.raises(ConfigError, match="Too many levels of symbolic links"):
        load(tmp_path / "loop.toml", explicit=False)
