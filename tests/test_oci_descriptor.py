"""Digests: which are refused, in which words."""

from __future__ import annotations

import pytest

from aiocontainerd.errors import InvalidArgument
from aiocontainerd.oci.descriptor import split_digest

HEX = "0123456789abcdef" * 4


def test_a_digest_is_an_algorithm_and_hex_digits() -> None:
    assert split_digest(f"sha256:{HEX}") == ("sha256", HEX)
    assert split_digest(f"sha512:{HEX * 2}") == ("sha512", HEX * 2)


@pytest.mark.parametrize(
    ("digest", "reason"),
    [
        ("", "format"),
        ("sha256", "format"),
        (f":{HEX}", "format"),
        ("sha256:", "format"),
        (f"sha256:{HEX}\n", "length"),
        (f"sha256:{HEX}:{HEX}", "length"),
        (f"sha256:{HEX.upper()}", "format"),
        (f"SHA256:{HEX}", "format"),
        (f"sha+256.:{HEX}", "format"),
        ("a.b+c:abc", "algorithm"),
        ("sha256:abc", "length"),
        ("a" * (15 << 20), "format"),
        ("a-" * (7 << 20), "format"),
        ("sha256:" + "a" * (15 << 20), "length"),
    ],
    ids=lambda value: value[:20],
)
def test_any_other_is_refused_in_the_words_of_go(digest: str, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        split_digest(digest)
