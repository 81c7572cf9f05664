"""Talking to registries: what is pure about it (facts/core 14, facts/security 2.3)."""

from __future__ import annotations

import pytest

from aiocontainerd.distribution import auth, hosts
from aiocontainerd.distribution.hosts import RegistryCredentials, RegistryOptions


@pytest.mark.parametrize(
    ("host", "urls"),
    [
        ("docker.io", ["https://registry-1.docker.io/v2"]),
        ("r.io:5000", ["https://r.io:5000/v2"]),
        ("localhost", ["https://localhost/v2"] * 2),
        ("localhost:443", ["https://localhost:443/v2"] * 2),
        ("localhost:80", ["http://localhost:80/v2"]),
        ("127.0.0.1:5000", ["https://127.0.0.1:5000/v2"] * 2 + ["http://127.0.0.1:5000/v2"]),
        ("[::1]:5000", ["https://[::1]:5000/v2"] * 2 + ["http://[::1]:5000/v2"]),
        ("localhost.example.org:5000", ["https://localhost.example.org:5000/v2"]),
    ],
)
def test_plain_http_is_tried_of_itself_only_on_loopback(host: str, urls: list[str]) -> None:
    assert [base.url for base in hosts.bases(host, RegistryOptions())] == urls


def test_certificates_are_checked_first_unless_told_otherwise() -> None:
    assert hosts.bases("r.io", RegistryOptions())[0].verify
    assert [base.verify for base in hosts.bases("localhost", RegistryOptions())] == [True, False]
    assert [base.verify for base in hosts.bases("localhost", RegistryOptions(skip_verify=True))] == [False]
    assert not hosts.bases("r.io", RegistryOptions(skip_verify=True))[0].verify


def test_plain_http_is_taken_when_told() -> None:
    assert [base.url for base in hosts.bases("r.io", RegistryOptions(plain_http=True))] == ["http://r.io/v2"]


@pytest.mark.parametrize(
    ("realm", "registry", "allowed"),
    [
        ("https://auth.r.io/token", "https://r.io/v2", True),
        ("http://auth.r.io/token", "https://r.io/v2", False),
        ("http://auth.r.io/token", "http://r.io/v2", True),
        ("https://127.0.0.1/token", "https://r.io/v2", False),
        ("https://169.254.169.254/token", "https://r.io/v2", False),
        ("http://127.0.0.1:5/token", "http://localhost:5000/v2", True),
        ("file:///etc/passwd", "https://r.io/v2", False),
    ],
)
def test_credentials_go_only_to_token_servers_that_may_have_them(realm: str, registry: str, allowed: bool) -> None:
    assert (hosts.realm_problem(realm, registry) == "") is allowed


@pytest.mark.parametrize(
    ("before", "after", "followed"),
    [
        ("https://a/x", "https://b/y", True),
        ("https://a/x", "http://a/y", False),
        ("http://a/x", "http://b/y", True),
        ("http://a/x", "file:///etc/passwd", False),
    ],
)
def test_a_redirect_never_leaves_https(before: str, after: str, followed: bool) -> None:
    assert hosts.may_redirect(before, after) is followed


def test_ports_belong_to_the_origin() -> None:
    assert hosts.same_origin("https://a/x", "https://a:443/y")
    assert not hosts.same_origin("https://a/x", "https://a:444/x")
    assert not hosts.same_origin("http://a/x", "https://a/x")


def test_secrets_are_in_no_repr_and_no_message() -> None:
    options = RegistryOptions(credentials=RegistryCredentials("me", "hunter2"), headers={"X-Key": "hunter2"})
    assert "hunter2" not in repr(options)
    assert "hunter2" not in hosts.redacted("https://me:hunter2@r.io/a?token=hunter2&x=hunter2")


def test_bearer_comes_before_basic() -> None:
    header = 'Basic realm="x", Bearer realm="https://a/t",service="s",scope="repository:a/b:pull,push",error="e\\"x"'
    bearer, basic = auth.parse_challenges([header])
    assert (bearer.scheme, basic.scheme) == ("bearer", "basic")
    assert bearer.parameters == {
        "realm": "https://a/t", "service": "s", "scope": "repository:a/b:pull,push", "error": 'e"x',
    }  # fmt: skip


@pytest.mark.parametrize("header", ["", "Bearer", ",,,", 'Bearer realm="unterminated', "Digest a=b", "=" * 10_000])
def test_malformed_challenges_are_left_out(header: str) -> None:
    assert all(not challenge.parameters for challenge in auth.parse_challenges([header]))


@pytest.mark.parametrize(
    ("header", "challenges"),
    [
        ('Negotiate, Basic realm="x"', [("basic", {"realm": "x"})]),
        ('Negotiate abc==, Basic realm="x"', [("basic", {"realm": "x"})]),
        ('Basic, Bearer realm="x"', [("bearer", {"realm": "x"}), ("basic", {})]),
        (', ,Bearer realm="x",,service=s', [("bearer", {"realm": "x", "service": "s"})]),
        ('Bearer realm="x" junk', [("bearer", {"realm": "x"})]),
        ('Bearer realm="x"junk, service=s', [("bearer", {"realm": "x"})]),
        ("bearer\tREALM = x , =y", [("bearer", {"realm": "x"})]),
    ],
)
def test_what_stands_before_and_after_a_challenge_does_not_hide_it(
    header: str, challenges: list[tuple[str, dict[str, str]]]
) -> None:
    found = auth.parse_challenges([header])
    assert [(challenge.scheme, challenge.parameters) for challenge in found] == challenges


def test_scopes_are_sorted_and_unique() -> None:
    challenge = auth.Challenge("bearer", {"scope": "repository:z:pull repository:a/b:pull"})
    assert auth.scopes_of(challenge, "a/b") == ("repository:a/b:pull", "repository:z:pull")
