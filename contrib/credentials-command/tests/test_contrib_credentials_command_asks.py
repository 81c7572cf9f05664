"""Credentials from commands: the helper protocol, choosing a command, keeping answers, showing no secret."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiocontainerd_credentials_command.plugin import CommandCredentials, Config, command_of

from aiocontainerd.config.values import decode_hook
from aiocontainerd.errors import DeadlineExceeded, Unknown
from aiocontainerd.plugin import Credentials, timestamps

pytestmark = pytest.mark.anyio

HOST = "registry.example.com"
SECRET = "hunter2"


class Helper:
    """A helper that prints an answer and counts how often, and for what, it was run."""

    def __init__(self, directory: Path, script: str = "") -> None:
        self.path, self.asked_path = directory / "docker-credential-test", directory / "asked"
        self.asked_path.write_text("")
        self.answers(script)

    def answers(self, script: str) -> None:
        self.path.write_text(f'#!/bin/sh\necho "$* $(cat)" >> {self.asked_path}\n{script}\n')
        self.path.chmod(0o755)

    def prints(self, **answer: str) -> None:
        self.answers(f"echo '{json.dumps(answer)}'")

    @property
    def asked(self) -> list[str]:
        return self.asked_path.read_text().splitlines()

    def provider(self, *, now_ns: Any = time.time_ns, **config: Any) -> CommandCredentials:
        return CommandCredentials(
            msgspec.convert(
                {"hosts": {HOST: (str(self.path), "-x"), "*": (str(self.path),)}, **config},
                Config,
                dec_hook=decode_hook,
            ),
            now_ns,
        )


@pytest.fixture
def helper(tmp_path: Path) -> Helper:
    helper = Helper(tmp_path)
    helper.prints(ServerURL=HOST, Username="me", Secret=SECRET)
    return helper


async def test_command_is_asked_for_the_host(helper: Helper) -> None:
    assert await helper.provider().credentials(HOST, f"{HOST}/a:1") == Credentials("me", SECRET)
    assert helper.asked == [f"-x get {HOST}"]


async def test_docker_hub_has_the_name_helpers_know(helper: Helper) -> None:
    await helper.provider().credentials("registry-1.docker.io", "docker.io/library/a:1")
    assert helper.asked == ["get https://index.docker.io/v1/"]


async def test_token_has_no_user(helper: Helper) -> None:
    helper.prints(Username="<token>", Secret=SECRET)
    assert await helper.provider().credentials(HOST, "") == Credentials("", SECRET)


async def test_unknown_host_has_no_credentials(helper: Helper) -> None:
    helper.answers("echo credentials not found in native keychain; exit 1")
    assert await helper.provider().credentials(HOST, "") is None
    assert await CommandCredentials(Config()).credentials(HOST, "") is None


async def test_answer_is_kept_until_it_expires(helper: Helper) -> None:
    now_ns = [timestamps.parse_rfc3339("2026-01-01T00:00:00Z")]
    helper.prints(Username="me", Secret=SECRET, ExpiresAt="2026-01-01T00:01:00Z")
    provider = helper.provider(now_ns=lambda: now_ns[0])
    for _ in range(3):
        found = await provider.credentials(HOST, "")
    assert found == Credentials("me", SECRET, now_ns[0] + 60_000_000_000)
    assert len(helper.asked) == 1
    now_ns[0] += 60_000_000_000
    await provider.credentials(HOST, "")
    assert len(helper.asked) == 2


async def test_answer_without_an_expiry_is_kept_for_the_configured_time(helper: Helper) -> None:
    now_ns = [0]
    provider = helper.provider(now_ns=lambda: now_ns[0], cache="1m")
    assert await provider.credentials(HOST, "") == await provider.credentials(HOST, "")
    assert len(helper.asked) == 1
    now_ns[0] = 60_000_000_000
    await provider.credentials(HOST, "")
    assert len(helper.asked) == 2
    now_ns[0] = 0
    careful = helper.provider(cache="0")
    await careful.credentials(HOST, "")
    await careful.credentials(HOST, "")
    assert len(helper.asked) == 4


async def test_hosts_do_not_share_answers(helper: Helper) -> None:
    provider = helper.provider()
    await provider.credentials(HOST, "")
    await provider.credentials("other.example.com", "")
    assert helper.asked == [f"-x get {HOST}", "get other.example.com"]


async def test_command_that_hangs_has_a_deadline(helper: Helper) -> None:
    helper.answers("sleep 100")
    with pytest.raises(DeadlineExceeded, match=r"docker-credential-test get did not end within 0\.1s"):
        await helper.provider(timeout="100ms").credentials(HOST, "")


async def test_failed_command_says_why(helper: Helper) -> None:
    helper.answers("echo the keychain is locked >&2; exit 3")
    with pytest.raises(Unknown, match=f"get for {HOST}: exit status 3: the keychain is locked"):
        await helper.provider().credentials(HOST, "")


async def test_missing_command_is_named(helper: Helper) -> None:
    helper.path.unlink()
    with pytest.raises(Unknown, match="docker-credential-test: no such file"):
        await helper.provider().credentials(HOST, "")


@pytest.mark.parametrize(
    "script",
    [
        f'echo \'{{"Username":"me","Secret":"{SECRET}"}}\'; exit 1',
        f'echo \'{{"Username":1,"Secret":"{SECRET}"}}\'',
        f"echo {SECRET}",
        f'echo \'{{"Secret":"{SECRET}","ExpiresAt":"soon"}}\'',
    ],
)
async def test_wrong_answer_is_an_error_without_the_secret(helper: Helper, script: str) -> None:
    helper.answers(script)
    with pytest.raises(Unknown) as caught:
        await helper.provider().credentials(HOST, "")
    assert SECRET not in f"{caught.value!r} {caught.value.__cause__!r}"


async def test_nothing_shows_a_secret(helper: Helper) -> None:
    provider = helper.provider()
    found = await provider.credentials(HOST, "")
    assert SECRET not in f"{found!r} {provider!r} {provider._kept!r}"


def test_host_itself_comes_before_patterns_and_long_patterns_before_short_ones() -> None:
    hosts = {"*": ("any",), "*.example.com": ("domain",), HOST: ("itself",)}
    assert [command_of(hosts, host) for host in (HOST, "a.example.com", "example.org")] == [
        ("itself",), ("domain",), ("any",),
    ]  # fmt: skip
    assert command_of({HOST: ("itself",)}, "other") is None


def test_config_is_checked() -> None:
    table = {"hosts": {HOST: ["docker-credential-pass"]}, "timeout": "3s"}
    assert msgspec.convert(table, Config, dec_hook=decode_hook).hosts == {HOST: ("docker-credential-pass",)}
    with pytest.raises(msgspec.ValidationError, match="host"):
        msgspec.convert({"host": {}}, Config)
    with pytest.raises(msgspec.ValidationError, match=r"invalid duration .*at `\$\.cache`"):
        msgspec.convert({"cache": "long"}, Config, dec_hook=decode_hook)
