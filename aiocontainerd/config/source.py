"""Read one TOML file: its tree, and the line of each key."""

from __future__ import annotations

import errno
import json
import re
from pathlib import Path
from typing import Any

import msgspec

from aiocontainerd.config import toml_errors, toml_text
from aiocontainerd.config.records import ConfigError

Tree = dict[str, Any]
KeyPath = toml_text.KeyPath

_BARE = re.compile(r"[A-Za-z0-9_-]+\Z")


def dotted(key: KeyPath) -> str:
    """Return a key as TOML writes it."""
    return ".".join(part if _BARE.match(part) else json.dumps(part) for part in key)


class Origin(msgspec.Struct, frozen=True):
    """Where a value came from: a file and line, a flag, or a default."""

    file: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


Origins = dict[KeyPath, Origin]


class Source(msgspec.Struct, frozen=True):
    """A parsed file."""

    path: Path
    tree: Tree
    lines: dict[KeyPath, int]

    def origin(self, key: KeyPath) -> Origin:
        """Return file and line of a key, or of the nearest table above it that the file has."""
        while key and key not in self.lines:
            key = key[:-1]
        return Origin(str(self.path), self.lines.get(key, 0))


def read(path: Path, importer: Origin | None = None) -> Source:
    """Read and parse a file. Raises ConfigError in containerd's words, which names file, line and mistake.

    A file that cannot be read is told with the place that names it, its `importer`.
    """
    place = f"{importer}: " if importer else ""
    try:
        text = toml_text.characters(path.read_bytes())
        return Source(path, toml_errors.parse(text), toml_text.key_lines(text))
    except OSError as error:
        raise ConfigError(f"{place}failed to load TOML from {path}: {_reason(error, path)}") from error
    except toml_text.BadTomlText as error:
        raise ConfigError(f"failed to load TOML from {path}:{error.line}: {error}") from error


def _reason(error: OSError, path: Path) -> str:
    if error.errno == errno.ENOENT and path.is_symlink():
        return f"it is a link to {path.readlink()}, which does not exist"
    if error.errno == errno.EISDIR:
        return f"{error.strerror}; {path}/*.toml in imports stands for the files in it"
    return error.strerror or str(error)
