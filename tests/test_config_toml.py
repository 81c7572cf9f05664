"""Files that are not quite TOML: some are taken as containerd takes them, the rest are told line and remedy."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from aiocontainerd.config import Config, ConfigError, load
from aiocontainerd.config.toml_text import flattened, key_lines

SCHEDULER = "io.containerd.gc.v1.scheduler"


def loaded(directory: Path, data: bytes | str) -> Config:
    (directory / "c.toml").write_bytes(data if isinstance(data, bytes) else data.encode())
    return load(directory / "c.toml")


def told(directory: Path, data: bytes | str) -> str:
    with pytest.raises(ConfigError) as failed:
        loaded(directory, data)
    return str(failed.value).replace(f"{directory}/", "")


@pytest.mark.parametrize(
    "data",
    [
        b'\xef\xbb\xbfversion = 3\nroot = "/r"\n',
        b'version = 3\r\nroot = "/r"\r\n',
        b'version\t=\t3\n\troot\t=\t"/r"\n',
        b"version = 3\n# \xe2\x80\xa8 \xc2\x85\nroot = '/r'",
    ],
)
def test_marks_and_line_ends_of_any_editor_are_taken(tmp_path: Path, data: bytes) -> None:
    assert loaded(tmp_path, data).settings.root == "/r"


def test_a_line_is_counted_by_line_breaks_alone(tmp_path: Path) -> None:
    config = loaded(tmp_path, "version = 3\n# a\u2028b\x85c\nroot = '/r'\n")
    assert str(config.origin("root")) == f"{tmp_path}/c.toml:3"


INLINE = f"""version = 3
[plugins]
"{SCHEDULER}" = {{
  pause_threshold = 0.05, # half
  deletion_threshold = 1,
}}
"""


def test_an_inline_table_may_have_line_breaks_and_a_last_comma(tmp_path: Path) -> None:
    config = loaded(tmp_path, INLINE)
    assert config.plugin_tables == {SCHEDULER: {"pause_threshold": 0.05, "deletion_threshold": 1}}
    assert str(config.origin("plugins", SCHEDULER, "deletion_threshold")) == f"{tmp_path}/c.toml:5"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{b = "x,\\"}", c = [1, 2,], }', {"b": 'x,"}', "c": [1, 2]}),
        ("[\n{b = '''\n,}''',\n},\n]", [{"b": ",}"}]),
        ("{\n}", {}),
        ("{b = {c = 1,\n}, # }\n}", {"b": {"c": 1}}),
    ],
)
def test_flattening_changes_no_value(text: str, value: object) -> None:
    assert tomllib.loads(flattened(f"a = {text}\n")) == {"a": value}


def test_key_lines_see_through_texts_of_many_lines_in_lists() -> None:
    text = 'a = [\n  """x\n[t]\nb = 1""", # ]\n]\nc = 2\n'
    assert key_lines(text) == {("a",): 1, ("c",): 6}


TOLD = {
    'root = "/a\n': "2: Illegal character '\\n' at column 11; the line begins with: root =; {open}",
    'root = """/a\nx\n': "2: Unterminated string; the line begins with: root =; {open}",
    'imports = ["/a"\n': "2: Unclosed array; the line begins with: imports =; {open}",
    'imports = ["/a"\n[debug]\nlevel = "info"\n': "2: Unclosed array; the line begins with: imports =; {open}",
    "root = “/a”\n": "2: Invalid value at column 8; the line begins with: root =; write plain quotes",
    "root: /a\n": (
        "2: Expected '=' after a key in a key/value pair at column 5; the line begins with: root: /a; "
        'write "=" instead of ":"'
    ),
    "root = /a\n": "2: Invalid value at column 8; the line begins with: root =; write a text in quotes",
    "[a]\nb = True\n": "3: Invalid value at column 5; the line begins with: b =; write true or false",
    "[a]\nb = yes\n": "3: Invalid value at column 5; the line begins with: b =; write true or false",
    "oom_score = 010\n": (
        "2: Expected newline or end of document after a statement at column 14; the line begins with: oom_score =; "
        "a number does not begin with 0"
    ),
    'root = "/a"\nroot = "/b"\n': "3: root is already there, at line 2; the line begins with: root =",
    '[debug]\nlevel = "info"\n[debug]\n': "4: [debug] is already there, at line 2; the line begins with: [debug]",
    "oom_score = 99999999999999999999\n": "2: oom_score: the number does not fit into 64 bits",
    f'[plugins."{SCHEDULER}"]\nx = [1, -9223372036854775809]\n': (
        f"3: plugins.{SCHEDULER}.x.1: the number does not fit into 64 bits"
    ),
    f"x = {'[' * 3000}{']' * 3000}\n": "2: the values are nested too deeply",
    f"x = {'[' * 120}{']' * 120}\n": "2: the values are nested too deeply",
    f"[{'.'.join('a' * 500)}]\nb = 1\n": "2: the values are nested too deeply",
}
"""What follows `version = 3` -> what follows the name of the file."""


@pytest.mark.parametrize("text", TOLD, ids=lambda text: text[:20])
def test_what_is_no_toml_is_told_with_its_line_and_a_remedy(tmp_path: Path, text: str) -> None:
    said = TOLD[text].replace("{open}", "a quote or bracket is missing at its end")
    assert told(tmp_path, f"version = 3\n{text}") == f"failed to load TOML from c.toml:{said}"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'version = 3\nroot = "/caf\xe9"\n', "2: byte 0xe9 is not UTF-8; save the file as UTF-8"),
        ("version = 3\n".encode("utf-16"), "1: the file is UTF-16; save it as UTF-8"),
    ],
)
def test_what_is_not_utf_8_says_so(tmp_path: Path, data: bytes, said: str) -> None:
    assert told(tmp_path, data) == f"failed to load TOML from c.toml:{said}"
