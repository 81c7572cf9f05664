"""What is wrong with JSON, in Go's words."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiocontainerd import gojson
from aiocontainerd.gotext import quoted

VALUE = "looking for beginning of value"
SHAPE: dict[str, gojson.Shape] = {
    "": "specs.Thing",
    "name": "string",
    "on": "bool",
    "ids": ["uint32"],
    "inner": {"": "specs.Inner", "count": "int64"},
}


@pytest.mark.parametrize(
    ("data", "text"),
    {
        b"": "unexpected end of JSON input",
        b" ": "unexpected end of JSON input",
        b"[1,": "unexpected end of JSON input",
        b'{"a"': "unexpected end of JSON input",
        b"nonsense": "invalid character 'o' in literal null (expecting 'u')",
        b"x": f"invalid character 'x' {VALUE}",
        b"\xff": rf"invalid character '\xff' {VALUE}",
        b"'": rf"invalid character '\'' {VALUE}",
        b"{} x": "invalid character 'x' after top-level value",
        b"[1 2]": "invalid character '2' after array element",
        b'{"a" 1}': "invalid character '1' after object key",
        b'{"a":1 "b"}': "invalid character '\"' after object key:value pair",
        b"{1}": "invalid character '1' looking for beginning of object key string",
        b'{"a":1,}': "invalid character '}' looking for beginning of object key string",
        b"[1,]": f"invalid character ']' {VALUE}",
        b'"\n"': r"invalid character '\n' in string literal",
        b'"\\x"': "invalid character 'x' in string escape code",
        b'"\\u00g0"': "invalid character 'g' in \\u hexadecimal character escape",
        b"-x": "invalid character 'x' in numeric literal",
        b"1.x": "invalid character 'x' after decimal point in numeric literal",
        b"1ex": "invalid character 'x' in exponent of numeric literal",
        b"01": "invalid character '1' after top-level value",
        b"[" * 20_000: "exceeded max depth",
    }.items(),
)
def test_the_first_byte_that_no_json_has_is_named(data: bytes, text: str) -> None:
    assert gojson.syntax_error(data) == text


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
                    | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))  # fmt: skip
def test_json_is_accepted(value: object) -> None:
    assert gojson.syntax_error(json.dumps(value).encode()) == ""
    assert gojson.syntax_error(json.dumps(value, indent=1, ensure_ascii=False).encode()) == ""


@given(st.text(alphabet='{}[]:,"\\u0019.eE-+tfn axrl'))
def test_what_is_refused_is_what_others_refuse(text: str) -> None:
    try:
        msgspec.json.decode(text.encode())
    except msgspec.DecodeError:
        assert gojson.syntax_error(text.encode())
    else:
        assert gojson.syntax_error(text.encode()) == ""


@pytest.mark.parametrize(
    ("data", "text"),
    {
        b"null": "",
        b'{"other":1,"NAME":"x","on":null}': "",
        b"[]": "json: cannot unmarshal array into Go value of type specs.Thing",
        b"1": "json: cannot unmarshal number into Go value of type specs.Thing",
        b'{"name":1}': "json: cannot unmarshal number into Go struct field Thing.name of type string",
        b'{"on":"x"}': "json: cannot unmarshal string into Go struct field Thing.on of type bool",
        b'{"ids":"x"}': "json: cannot unmarshal string into Go struct field Thing.ids of type []uint32",
        b'{"ids":[1,"x"]}': "json: cannot unmarshal string into Thing.ids.1 of type uint32",
        b'{"inner":{"count":1.5}}': "json: cannot unmarshal number 1.5 into Go struct field Thing.inner.count of type "
        "int64",
        b'{"inner":true}': "json: cannot unmarshal bool into Go struct field Thing.inner of type specs.Inner",
    }.items(),
)  # fmt: skip
def test_the_first_value_that_does_not_fit_is_named(data: bytes, text: str) -> None:
    assert gojson.type_error(data, SHAPE) == text


def test_bytes_that_are_no_text_are_read_as_go_reads_them() -> None:
    assert gojson.decode(b'{"a":"\xff"}', dict[str, str]) == {"a": "\ufffd"}
    with pytest.raises(msgspec.DecodeError, match="exceeded max depth"):
        gojson.decode(b"[" * 5000 + b"]" * 5000, object)


def test_a_quoted_text_is_on_one_line() -> None:
    assert quoted('a "b" \\ é\n\0\x7f\u200b\udcff') == r'"a \"b\" \\ é\n\x00\x7f\u200b\xff"'
    assert quoted("plain text") == '"plain text"'
