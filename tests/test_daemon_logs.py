"""Log records as text and JSON."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aiocontainerd.daemon import logs

NOISY = ("asyncio", "hpack", "h2")


@pytest.fixture
def stderr(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    root = logging.getLogger()
    handlers, levels = root.handlers, {name: logging.getLogger(name).level for name in ("", *NOISY)}
    yield lambda: capsys.readouterr().err
    root.handlers = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def record(message: str, level: int = logging.INFO, fields: dict[str, Any] | None = None) -> logging.LogRecord:
    made = logging.LogRecord("a", level, "f.py", 1, message, (), None)
    made.created = 1_700_000_000.5
    if fields is not None:
        made.fields = fields
    return made


def test_text_quotes_what_is_not_plain() -> None:
    line = logs.TextFormatter().format(record('a "b"\nc', fields={"plugin": "io.x/y", "n": 3, "empty": "", "é": "ü b"}))
    assert line == (r'time=2023-11-14T22:13:20.5Z level=info msg="a \"b\"\nc" plugin=io.x/y n=3 empty="" é="ü b"')


def test_json_is_one_object_a_line_whatever_the_fields_are() -> None:
    line = logs.JsonFormatter().format(record("a\nb", logging.WARNING, {"path": Path("/x"), "n": 1}))
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.5Z", "level": "warning", "msg": "a\nb", "path": "/x", "n": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("number", "name"),
    [(5, "trace"), (10, "debug"), (20, "info"), (30, "warning"), (40, "error"), (50, "fatal")],
)
def test_levels_have_containerds_names(number: int, name: str) -> None:
    assert json.loads(logs.JsonFormatter().format(record("x", number)))["level"] == name


@pytest.mark.parametrize(("level", "passes"), [("", 20), ("debug", 10), ("trace", 5), ("warn", 30), ("panic", 50)])
def test_setup_lets_pass_what_the_level_says(stderr: Callable[[], str], level: str, passes: int) -> None:
    logs.setup(level)
    log = logging.getLogger("aiocontainerd.test")
    log.log(passes - 1, "too quiet")
    log.log(passes, "loud enough")
    said = stderr()
    assert "too quiet" not in said
    assert 'msg="loud enough"' in said


def test_setup_chooses_the_format_and_may_be_called_again(stderr: Callable[[], str]) -> None:
    logs.setup("info", "text")
    logs.setup("info", "json")
    logging.getLogger("aiocontainerd.test").info("once")
    assert [json.loads(line)["msg"] for line in stderr().splitlines()] == ["once"]


def test_libraries_say_no_more_than_warnings(stderr: Callable[[], str]) -> None:
    logs.setup("debug")
    for name in NOISY:
        logging.getLogger(name).info("chatter")
    assert stderr() == ""


def test_a_traceback_is_one_field(stderr: Callable[[], str]) -> None:
    logs.setup()
    try:
        raise ValueError("inner")
    except ValueError:
        logging.getLogger("aiocontainerd.test").exception("outer")
    said = stderr()
    assert said.count("\n") == 1
    assert "ValueError: inner" in said


@pytest.mark.parametrize(("level", "form", "text"), [
    ("loud", "", 'unknown log level "loud"; use one of trace, debug, info, warn, warning, error, fatal, panic'),
    ("info", "xml", 'unknown log format "xml"; use one of text, json'),
])  # fmt: skip
def test_what_is_unknown_is_told_with_the_choices(level: str, form: str, text: str) -> None:
    with pytest.raises(ValueError) as failed:
        logs.setup(level, form)
    assert str(failed.value) == text
