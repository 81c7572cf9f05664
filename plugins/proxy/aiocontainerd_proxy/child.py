"""Prepare the process of an isolated plugin (command line, config file, directories), and log its output."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import AsyncIterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import tomli_w

from aiocontainerd import durations
from aiocontainerd.config.encode import encode
from aiocontainerd.config.log_levels import LEVELS

if TYPE_CHECKING:
    from aiocontainerd.config.records import Isolation
    from aiocontainerd.plugin import InitContext

PROGRAM_MODULE = "aiocontainerd.cli.plugin.main"
LONGEST_LINE_BYTES = 16 << 10
LAST_WORDS_AGE_S = 5.0
"""How long before its end a process may have said why it ends."""
_FIELDS_OF_RECORDS = frozenset({"time", "level", "msg"})


class Child(msgspec.Struct, frozen=True, kw_only=True):
    """All that is needed to start the process. Ids of None are the daemon's own."""

    uri: str
    module: str
    root: Path
    state: Path
    content: str = ""
    debug: bool = False
    uid: int | None = None
    gid: int | None = None

    @property
    def socket(self) -> Path:
        """Return the path of its socket."""
        return self.state / self.uri / "plugin.sock"

    @property
    def config(self) -> Path:
        """Return the path of its config file."""
        return self.state / self.uri / "plugin.toml"

    @property
    def stacks(self) -> Path:
        """Return the path of the file that its stacks are written to, when it is asked or crashes."""
        return self.state / self.uri / "stacks"

    def command(self, ready_fd: int) -> list[str]:
        """Return the command line. It has the daemon's interpreter, so that it finds the same packages."""
        command = [
            sys.executable, "-m", PROGRAM_MODULE, "serve", self.module, "--id", self.uri,
            "--address", str(self.socket), "--config", str(self.config),
            "--root", str(self.root), "--state", str(self.state),
            "--log-level", "debug" if self.debug else "info", "--log-format", "json",
            "--ready-fd", str(ready_fd), "--parent", str(os.getpid()), "--stacks", str(self.stacks),
        ]  # fmt: skip
        if self.content:
            command += ["--content", self.content]
        for flag, value in (("--setuid", self.uid), ("--setgid", self.gid)):
            if value is not None:
                command += [flag, str(value)]
        return command

    def environment(self) -> dict[str, str]:
        """Return the daemon's environment without what is for the daemon alone."""
        return {name: value for name, value in os.environ.items() if name not in ("NOTIFY_SOCKET", "WATCHDOG_USEC")}


def child_of(context: InitContext[Any], isolation: Isolation) -> Child:
    """Return the process of a plugin."""
    daemon = context.daemon
    return Child(
        uri=context.uri,
        module=isolation.module,
        root=daemon.root,
        state=daemon.state,
        content=daemon.grpc_address,
        debug=daemon.debug,
        uid=isolation.uid,
        gid=isolation.gid,
    )


def prepare(child: Child, config: msgspec.Struct, timeouts: Mapping[str, float]) -> None:
    """Make directories and config file, and give them to the user of the process. Raise ConfigError."""
    own = child.root / child.uri, child.state / child.uri
    for directory in own:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    table = encode(config, child.uri, reveal=True)
    text = tomli_w.dumps(
        {
            "version": 4,
            "timeouts": {key: durations.render(limit_s) for key, limit_s in timeouts.items()},
            "plugins": {child.uri: {key: value for key, value in table.items() if value is not None}},
        }
    )
    descriptor = os.open(child.config, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w") as file:
        file.write(text)
    if child.uid is not None or child.gid is not None:
        _give_away(child, own)


def _give_away(child: Child, directories: tuple[Path, ...]) -> None:
    """Make another user the owner of the plugin's directories, and let it pass through the daemon's own to them.

    Files in them keep their owners, which are part of the snapshots. What is right stays untouched: a root may be on a
    read-only file system.
    """
    for path in (*directories, child.config):
        have = path.stat()
        uid = have.st_uid if child.uid is None else child.uid
        gid = have.st_gid if child.gid is None else child.gid
        if (uid, gid) != (have.st_uid, have.st_gid):
            os.chown(path, uid, gid)
    for passed in (child.root, child.state):
        mode = passed.stat().st_mode
        if mode | 0o011 != mode:
            passed.chmod(mode | 0o011)


class LastWords:
    """What a process said last that may tell why it ended: an error record, or a line of Python's on stderr."""

    def __init__(self) -> None:
        self._text = ""
        self._heard_s = 0.0

    @property
    def text(self) -> str:
        """The words of the last seconds, "" if it said nothing then."""
        return self._text if time.monotonic() - self._heard_s < LAST_WORDS_AGE_S else ""

    def hear(self, level: int, text: str, *, plain: bool) -> None:
        """Note a line."""
        if level >= logging.ERROR or plain:
            self._text, self._heard_s = text, time.monotonic()


async def relay(
    output: AsyncIterable[bytes], log: logging.Logger, words: LastWords | None = None, **tags: object
) -> None:
    """Log each line of a process, and note it in `words`. Lines that are log records keep their level and fields."""
    words = LastWords() if words is None else words
    rest = b""
    async for part in output:
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            _log_line(line, log, words, tags)
        if len(rest) > LONGEST_LINE_BYTES:
            _log_line(rest, log, words, tags)
            rest = b""
    if rest:
        _log_line(rest, log, words, tags)


def _log_line(line: bytes, log: logging.Logger, words: LastWords, tags: Mapping[str, object]) -> None:
    text = line.decode(errors="replace").rstrip()
    if not text:
        return
    level, said, fields = _record_of(text)
    words.hear(level, said, plain=said == text and tags.get("stream") == "stderr")
    log.log(level, "%s", said, extra={"fields": {**tags, **fields}})


def _record_of(text: str) -> tuple[int, str, dict[str, object]]:
    """Return level, message and fields of a line."""
    try:
        record = json.loads(text)
    except ValueError:
        return logging.INFO, text, {}
    if not isinstance(record, dict) or not record.keys() >= _FIELDS_OF_RECORDS:
        return logging.INFO, text, {}
    fields = {key: value for key, value in record.items() if key not in _FIELDS_OF_RECORDS}
    return LEVELS.get(str(record["level"]), logging.INFO), str(record["msg"]), fields
