"""Filters: grammar, operators, quoting and error texts (facts/core 2)."""

from __future__ import annotations

import pytest

from aiocontainerd import filters
from aiocontainerd.errors import InvalidArgument, ResourceExhausted, to_status
from aiocontainerd.filters import Operator, Selector, compile_filters

IMAGE = {
    ("name",): "docker.io/library/alpine:latest",
    ("target", "digest"): "sha256:abc",
    ("empty",): "",
}
LABELS = {"a.b": "1", "io.cri-containerd.kind": "container", "path": "/var/lib"}


def image(path: tuple[str, ...]) -> str | None:
    if path[0] == "labels":
        return filters.field(LABELS, path[1:])
    return IMAGE.get(path)


@pytest.mark.parametrize(
    ("texts", "chosen"),
    [
        ([], True),
        ([""], True),
        (["name==nothing", ""], True),
        (["name"], True),
        (["absent"], False),
        (["empty"], True),
        (["name==docker.io/library/alpine:latest"], True),
        (["name==alpine"], False),
        (["absent=="], None),
        (['absent==""'], False),
        (['empty==""'], True),
        (["name!=alpine"], True),
        (["absent!=x"], True),
        (["name~=alpine"], True),
        (["name~=^alpine"], False),
        (["name~=/library\\/.*:latest$/"], True),
        (["name~=|library/.*:latest$|"], True),
        (['name~="library/\\\\w+:"'], True),
        (["name~=library/\\w+:"], True),
        (["absent~=^$"], True),
        (["absent~=x"], False),
        (["name~=("], False),
        (["name,target.digest==sha256:abc"], True),
        (["name,target.digest==sha256:xyz"], False),
        (["name==nothing", "target.digest"], True),
        (["labels.a.b==1"], True),
        (['labels."a.b"==1'], True),
        (['"labels"."a"."b"==1'], True),
        (['labels."io.cri-containerd.kind"==container'], True),
        (['labels.path=="/var/lib"'], True),
        (["labels.path!=x/y.z"], True),
        (["  name  ==  docker.io/library/alpine:latest"], True),
        (["name, target.digest"], True),
    ],
)
def test_matching(texts: list[str], chosen: bool | None) -> None:
    if chosen is None:
        with pytest.raises(InvalidArgument):
            compile_filters(texts)
    else:
        assert compile_filters(texts).matches(image) is chosen


@pytest.mark.parametrize(
    ("text", "selectors"),
    [
        ("a", [Selector(("a",))]),
        ("a.b_1.C", [Selector(("a", "b_1", "C"))]),
        ("a==b.c/d:e\\f", [Selector(("a",), Operator.EQUAL, "b.c/d:e\\f")]),
        ("a==b,c!=d,e~=f", [
            Selector(("a",), Operator.EQUAL, "b"),
            Selector(("c",), Operator.NOT_EQUAL, "d"),
            Selector(("e",), Operator.MATCHES, "f"),
        ]),
        ("a==é", [Selector(("a",), Operator.EQUAL, "é")]),
        (r'a=="x\ty\"z\\"', [Selector(("a",), Operator.EQUAL, 'x\ty"z\\')]),
        (r'a=="\x41\101\u00e9\U0001F600"', [Selector(("a",), Operator.EQUAL, "AAé😀")]),
        (r'a=="\xc3\xa9"', [Selector(("a",), Operator.EQUAL, "é")]),
        (r"a~=/x\/y/", [Selector(("a",), Operator.MATCHES, "x/y")]),
        (r"a~=|x\|y|", [Selector(("a",), Operator.MATCHES, "x|y")]),
        ("a=='b'", [Selector(("a",), Operator.EQUAL, "'b'")]),
    ],
)  # fmt: skip
def test_parsing(text: str, selectors: list[Selector]) -> None:
    assert compile_filters([text]).alternatives == (tuple(selectors),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("labels.a==/x/", "[labels.a== >|/|< x/]: invalid quote encountered"),
        ("topic==/tasks/exit", "[topic== >|/|< tasks/exit]: invalid quote encountered"),
        ("|a|", "[ >|||< a|]: invalid quote encountered"),
        ("==b", "[ >|=|< =b]: expected field or quoted"),
        (",a", "[ >|,|< a]: expected field or quoted"),
        ("a.", "[a.]: expected field or quoted"),
        ("a,", "[a,]: expected field or quoted"),
        ("a..b", "[a. >|.|< b]: expected field or quoted"),
        ("a b", '[a  >|b|< ]: expected an operator ("=="|"!="|"~=")'),
        ("a-b==c", '[a >|-|< b==c]: expected an operator ("=="|"!="|"~=")'),
        ("a=b", '[a >|=|< b]: unsupported operator "="'),
        ("a=~b", '[a >|=|< ~b]: unsupported operator "=~"'),
        ("a===b", '[a >|=|< ==b]: unsupported operator "==="'),
        ("a==", "[a==]: expected value or quoted"),
        ("a==,b", "[a== >|,|< b]: expected value or quoted"),
        ("a==.b", "[a== >|.|< b]: expected value or quoted"),
        ("a==b c", "[a==b >| |< c]: unexpected input:  "),
        ('a=="b"c', '[a=="b" >|c|< ]: unexpected input: c'),
        ('a=="b', '[a== >|"|< b]: quoted literal not terminated'),
        ('a=="b\n"', '[a== >|"|< b\n"]: quoted literal not terminated'),
        ('a=="\\d"', '[a== >|"|< \\d"]: illegal escape sequence'),
        ('a~="\\d"', '[a~= >|"|< \\d"]: illegal escape sequence'),
        ('a=="\\xg1"', '[a== >|"|< \\xg1"]: illegal numeric escape sequence'),
        ('a=="\\777"', '[a== >|"|< \\777"]: unquoting failed: quote syntax error'),
        ('a=="\\UFFFFFFFF"', '[a== >|"|< \\UFFFFFFFF"]: unquoting failed: quote syntax error'),
        ("a==\0", "[a== >|\0|< ]: unexpected null"),
        ("\ufffd", "[ >|\ufffd|< ]: rune error"),
    ],
)
def test_an_error_shows_the_place_and_says_what_was_expected(text: str, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        compile_filters(["a==b", text])
    assert to_status(caught.value) == (3, f"filters: parse error: {message}: invalid argument")


def test_a_filter_knows_when_it_leaves_nothing_out() -> None:
    assert compile_filters([]).matches_all
    assert compile_filters(["a", ""]).matches_all
    assert not compile_filters(["a"]).matches_all


@pytest.mark.parametrize("texts", [["a" * (32 << 10)], ["a"] * (16 << 10) + ["b"]])
def test_filters_of_a_request_may_not_be_longer_than_so(texts: list[str]) -> None:
    with pytest.raises(ResourceExhausted, match="characters are more than 32768"):
        compile_filters(texts)


@pytest.mark.parametrize("piece", ["a", "a.", "a,", 'a=="b",', 'a=="\\"",', "a==b,", "a~=|b|,"])
def test_filters_as_long_as_they_may_be_are_parsed(piece: str) -> None:
    text = (piece * filters.MAX_CHARACTERS)[: filters.MAX_CHARACTERS // len(piece) * len(piece) - len(piece)]
    compile_filters([text.rstrip(",.")])
