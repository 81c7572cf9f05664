"""Credentials that a command prints: `[plugins."io.containerd.registry-credentials.v1.command"]`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase

import msgspec

from aiocontainerd.plugin import (
    Credentials,
    Duration,
    InitContext,
    PluginConfig,
    PluginError,
    SkipPlugin,
    kinds,
    register,
)
from aiocontainerd_credentials_command.helper import ask

NANOSECONDS = 1_000_000_000


class Config(PluginConfig, frozen=True):
    """`hosts` maps registries, shell patterns such as `*.example.com`, to command lines; `get` is appended.

    A command has `timeout`. What it prints is kept until it expires, or for `cache` where it says no time.
    """

    hosts: dict[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    timeout: Duration = Duration("10s")
    cache: Duration = Duration("5m")


class Kept(msgspec.Struct, frozen=True):
    """An answer, and when it is to be asked for again."""

    credentials: Credentials
    until_ns: int


@register(kinds.CREDENTIALS, "command", config=Config)
class CommandCredentials:
    """Runs the command of a host. Several calls for a host may run it at once: nobody waits for another's."""

    def __init__(self, config: Config, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._hosts = config.hosts
        self._timeout_s = config.timeout.seconds
        self._cache_ns = int(config.cache.seconds * NANOSECONDS)
        self._now_ns = now_ns
        self._kept: dict[str, Kept] = {}

    def __repr__(self) -> str:
        return f"<CommandCredentials {sorted(self._hosts)} kept={sorted(self._kept)}>"

    async def start(self, context: InitContext[Config]) -> None:
        """Raise SkipPlugin where no host has a command, PluginError for a command without a program."""
        if not self._hosts:
            raise SkipPlugin("no command is configured for any host")
        for host, command in self._hosts.items():
            if not command or not command[0]:
                raise PluginError(f"hosts: {host!r} has an empty command")
        context.exports["hosts"] = ",".join(sorted(self._hosts))

    async def credentials(self, host: str, reference: str) -> Credentials | None:  # noqa: ARG002 - the Protocol's
        """Return credentials; None if no command is for the host, or the command has none. Raise what `ask` does."""
        command = command_of(self._hosts, host)
        if command is None:
            return None
        kept = self._kept.get(host)
        if kept is not None and self._now_ns() < kept.until_ns:
            return kept.credentials
        self._kept.pop(host, None)
        answer = await ask(command, host, self._timeout_s)
        if answer is not None:
            self._keep(host, answer)
        return answer

    def _keep(self, host: str, answer: Credentials) -> None:
        until_ns = answer.expires_at_ns
        self._kept[host] = Kept(answer, self._now_ns() + self._cache_ns if until_ns is None else until_ns)


def command_of(hosts: Mapping[str, Sequence[str]], host: str) -> Sequence[str] | None:
    """Return the command of a host: its own, or that of the longest pattern it matches."""
    matching = [pattern for pattern in hosts if pattern == host or fnmatchcase(host, pattern)]
    return hosts[max(matching, key=lambda pattern: (pattern == host, len(pattern)))] if matching else None
