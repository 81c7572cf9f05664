"""References (facts/core 14)."""

from __future__ import annotations

import pytest

from aiocontainerd.errors import InvalidArgument
from aiocontainerd.oci import reference

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "host", "path", "following", "wanted"),
    [
        ("docker.io/library/busybox:latest", "docker.io", "library/busybox", "latest", "latest"),
        ("localhost:5000/a/b/c:1.0", "localhost:5000", "a/b/c", "1.0", "1.0"),
        (f"r.io/a@{DIGEST}", "r.io", "a", f"@{DIGEST}", DIGEST),
        (f"r.io/a:1@{DIGEST}", "r.io", "a", f"1@{DIGEST}", DIGEST),
        ("[::1]:5000/a:1", "[::1]:5000", "a", "1", "1"),
    ],
)
def test_a_reference_is_host_path_and_object(text: str, host: str, path: str, following: str, wanted: str) -> None:
    parsed = reference.parse(text)
    assert (parsed.host, parsed.path, parsed.object, parsed.wanted) == (host, path, following, wanted)
    assert str(parsed) == text


@pytest.mark.parametrize(
    "text",
    [
        "", "https://docker.io/a:1", "docker.io/A:1", "docker.io/a b:1", "docker.io/a:", "docker.io/:1", "h/a:\n1",
        "docker.io/a/../b:1", f"docker.io/a:{'x' * 200}", "user@h/a:1", "h/a@sha256:abc", "h/a:1\n",
    ],
)  # fmt: skip
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        reference.parse(text)


def test_a_name_without_host_says_that_one_is_missing() -> None:
    with pytest.raises(InvalidArgument, match="hostname required"):
        reference.parse("busybox")


def test_a_pull_needs_a_tag_or_a_digest() -> None:
    with pytest.raises(InvalidArgument, match="object required"):
        reference.parse("docker.io/library/busybox").require_object()


def test_the_hostname_of_labels_has_no_port() -> None:
    assert reference.parse("localhost:5000/a:1").hostname == "localhost"
    assert reference.parse("[::1]:5000/a:1").hostname == "[::1]"


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("foo:1", "docker.io/library/foo:1"),
        ("foo", "docker.io/library/foo:latest"),
        ("user/foo:1", "docker.io/user/foo:1"),
        ("r.io/foo", "r.io/foo:latest"),
        ("localhost/foo:2", "localhost/foo:2"),
        ("localhost:5000/foo", "localhost:5000/foo:latest"),
    ],
)
def test_familiar_names_of_docker_archives_are_lengthened(name: str, full: str) -> None:
    assert reference.normalize(name) == full
