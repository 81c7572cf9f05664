"""One line of what went wrong: text, hint, place."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from aiocontainerd.config import ConfigError
from aiocontainerd.errors import NotFound
from aiocontainerd.guard.diagnosis import describe
from aiocontainerd.plugin import PluginError

NOTHING: dict[str, str] = {}


def raised(function: Callable[[], object]) -> Exception:
    try:
        function()
    except Exception as error:  # noqa: BLE001 - whatever it is
        return error
    raise AssertionError


@pytest.mark.parametrize("error", [NotFound("no acme"), PluginError("no acme"), ConfigError("no\n  acme")])
def test_errors_of_the_daemon_are_written_to_be_read(error: Exception) -> None:
    assert describe(error) == "no acme"
    assert describe(NotFound()) == "NotFound"


def test_others_have_their_type_and_the_line_that_raised_them() -> None:
    line = describe(raised(lambda: NOTHING["x"]))
    assert line.startswith("KeyError: 'x' (tests/test_guard_diagnosis.py:")
    assert line.endswith(" in <lambda>)")


def test_an_error_out_of_the_library_has_the_line_that_called_it() -> None:
    assert " in <lambda>)" in describe(raised(lambda: json.loads("{")))


def test_the_package_that_is_asked_for_comes_before_libraries() -> None:
    def fails() -> None:
        pytest.fail("no", pytrace=False)

    with pytest.raises(pytest.fail.Exception) as error:
        fails()
    assert describe(error.value, __name__).endswith(" in fails)")
    assert "outcomes.py" in describe(error.value, "nobody")


def test_an_error_that_was_never_raised_has_no_place() -> None:
    assert describe(ValueError("a\nb")) == "ValueError: a b"
    assert describe(ValueError()) == "ValueError"


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (ModuleNotFoundError("No module named 'x'"), "install it, and name it in the dependencies"),
        (SyntaxError("invalid syntax"), "the daemon runs Python 3."),
        (AttributeError("immutable type: 'Config'"), "make a changed copy with msgspec.structs.replace"),
        (TypeError("object int can't be used in 'await' expression"), "what is awaited is not async"),
    ],
)
def test_what_authors_run_into_has_a_hint(error: Exception, hint: str) -> None:
    assert hint in describe(error)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("from aiocontainerd.plugin import Envelop", "; did you mean Envelope?"),
        ("from aiocontainerd.plugin import Zebra", "ImportError: cannot import name 'Zebra'"),
        ("import json; json.dmups", "AttributeError: module 'json' has no attribute 'dmups'; did you mean dumps?"),
        ("{}.itmes()", "AttributeError: 'dict' object has no attribute 'itmes'; did you mean items?"),
        ("None.zebra", "AttributeError: 'NoneType' object has no attribute 'zebra'"),
    ],
)
def test_a_misspelled_name_is_told_with_the_nearest(code: str, text: str) -> None:
    line = describe(raised(lambda: exec(code)))
    assert text in line
    assert ("did you mean" in line) == ("did you mean" in text)
