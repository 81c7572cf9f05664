"""Platforms (facts/core 14)."""

from __future__ import annotations

import pytest

from aiocontainerd.errors import InvalidArgument
from aiocontainerd.oci import platform
from aiocontainerd.oci.platform import Platform


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("linux/amd64", Platform("linux", "amd64")),
        ("linux/x86_64", Platform("linux", "amd64")),
        ("linux/amd64/v1", Platform("linux", "amd64")),
        ("linux/aarch64", Platform("linux", "arm64")),
        ("linux/arm64/v8", Platform("linux", "arm64")),
        ("linux/arm", Platform("linux", "arm", "v7")),
        ("linux/armhf", Platform("linux", "arm", "v7")),
        ("linux/armel", Platform("linux", "arm", "v6")),
        ("linux/i386", Platform("linux", "386")),
        ("macos/arm64", Platform("darwin", "arm64")),
        ("s390x", Platform("linux", "s390x")),
        ("windows(10.0.1+win32k)/amd64", Platform("windows", "amd64", "", "10.0.1", ("win32k",))),
    ],
)
def test_specifiers_are_normalised(text: str, wanted: Platform) -> None:
    assert platform.parse(text) == wanted


@pytest.mark.parametrize("text", ["", "a/b/c/d", "linux//", "linux/am d64", "what", "linux/amd64\n"])
def test_what_is_no_platform_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        platform.parse(text)


def order(text: str) -> list[str]:
    return [str(candidate) for candidate in platform.candidates(platform.parse(text))]


def test_amd64_falls_back_to_lower_variants_and_then_to_386() -> None:
    assert order("linux/amd64/v3") == ["linux/amd64/v3", "linux/amd64/v2", "linux/amd64", "linux/386"]


def test_arm_falls_back_to_v5() -> None:
    assert order("linux/arm/v7") == ["linux/arm/v7", "linux/arm/v6", "linux/arm/v5"]


def test_arm64_falls_back_to_arm() -> None:
    found = order("linux/arm64")
    assert found == ["linux/arm64", "linux/arm/v8", "linux/arm/v7", "linux/arm/v6", "linux/arm/v5"]


def test_strict_takes_only_the_same_platform() -> None:
    rank = platform.ranking([Platform("linux", "amd64")], strict=True)
    assert rank(Platform("linux", "386")) is None
    assert rank(Platform("linux", "x86_64")) == 0


def test_an_image_with_unknown_os_features_does_not_suit() -> None:
    rank = platform.ranking([Platform("linux", "amd64")])
    assert rank(Platform("linux", "amd64", os_features=("erofs",))) is None


def test_nothing_wanted_takes_anything() -> None:
    assert platform.ranking([])(Platform("plan9", "mips")) == 0
