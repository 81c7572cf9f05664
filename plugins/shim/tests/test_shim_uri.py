"""URIs of output streams are read, and refused, as Go does it."""

from __future__ import annotations

import pytest
from aiocontainerd_shim.io.uri import Uri, parse

from aiocontainerd.errors import Unknown


@pytest.mark.parametrize(
    ("text", "uri"),
    {
        "": Uri(),
        "/run/a-stdout": Uri("", "/run/a-stdout"),
        "relative/path": Uri("", "relative/path"),
        "fifo:///a": Uri("fifo", "/a"),
        "FILE:///a%20b": Uri("file", "/a b"),
        "file://host:80/path": Uri("file", "/path"),
        "file://user@[::1]:80/path": Uri("file", "/path"),
        "file:relative": Uri("file", ""),
        "binary:///bin/log?id=1&x=y#end": Uri("binary", "/bin/log", "id=1&x=y"),
        "binary://": Uri("binary", ""),
        "///three/slashes": Uri("", "///three/slashes"),
        "9a/b": Uri("", "9a/b"),
    }.items(),
)
def test_a_uri_has_the_parts_that_go_sees(text: str, uri: Uri) -> None:
    assert parse(text) == uri


@pytest.mark.parametrize(
    ("text", "why"),
    {
        "/tmp/a\0b": r'parse "/tmp/a\x00b": net/url: invalid control character in URL',
        "://": 'parse "://": missing protocol scheme',
        "%zz": 'parse "%zz": invalid URL escape "%zz"',
        "file:///a%2": 'parse "file:///a%2": invalid URL escape "%2"',
        "1:2": 'parse "1:2": first path segment in URL cannot contain colon',
        "a b://x": 'parse "a b://x": first path segment in URL cannot contain colon',
        "file://a b/c": 'parse "file://a b/c": invalid character " " in host name',
        "file://a:b/c": 'parse "file://a:b/c": invalid port ":b" after host',
        "file:///a#%": 'parse "file:///a#%": invalid URL escape "%"',
    }.items(),
)
def test_what_go_refuses_is_refused_in_its_words(text: str, why: str) -> None:
    with pytest.raises(Unknown) as refused:
        parse(text)
    assert refused.value.message == why
