"""Ask docker-credential helpers: `<command> get`, the registry on stdin, credentials as JSON on stdout.

A helper that knows nothing of the registry says so in these words and fails. A user name `<token>` marks the secret as
an identity token. `ExpiresAt`, an RFC 3339 time, is an addition of ours that other callers ignore. Nothing of what a
helper prints to stdout gets into an error's text where it may hold a secret.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from aiocontainerd.plugin import Credentials, errors, programs, timestamps

NOT_FOUND = "credentials not found in native keychain"
TOKEN_USER = "<token>"
DOCKER_HUB = "https://index.docker.io/v1/"
_HUB_HOSTS = ("docker.io", "index.docker.io", "registry-1.docker.io")
_LONGEST_REASON = 200


class Answer(msgspec.Struct, frozen=True, rename="pascal"):
    """What a helper prints; the registry it repeats is of no use."""

    username: str = ""
    secret: str = ""
    expires_at: str = ""

    def __repr__(self) -> str:
        return f"Answer({self.username!r})"


async def ask(command: Sequence[str], host: str, timeout_s: float) -> Credentials | None:
    """Run a helper for a registry; None where it has no credentials for it.

    Raise DeadlineExceeded after `timeout_s`, Unknown where it fails, cannot be run, or prints something else.
    """
    name = DOCKER_HUB if host in _HUB_HOSTS else host
    output = await programs.run([*command, "get"], stdin=name.encode() + b"\n", timeout_s=timeout_s)
    if output.status == 0:
        return _credentials(output.stdout, f"{command[0]} get for {host}")
    if NOT_FOUND in output.text():
        return None
    raise errors.Unknown(f"{command[0]} get for {host}: {output.ending}{_reason(output)}")


def _credentials(printed: bytes, called: str) -> Credentials | None:
    try:
        answer = msgspec.json.decode(printed, type=Answer)
        expires_at_ns = timestamps.parse_rfc3339(answer.expires_at) if answer.expires_at else None
    except (msgspec.DecodeError, ValueError):
        raise errors.Unknown(f"{called} printed no credentials: JSON with Username and Secret is needed") from None
    if not answer.secret:
        return None
    return Credentials("" if answer.username == TOKEN_USER else answer.username, answer.secret, expires_at_ns)


def _reason(output: programs.Output) -> str:
    """Return what the command printed, unless it is part of an answer."""
    text = output.text()
    return "" if not text or "{" in text else f": {text[:_LONGEST_REASON]}"
