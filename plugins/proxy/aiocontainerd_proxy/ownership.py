"""Mark what is ours in a peer that is a whole daemon, which serves others and deletes what nothing refers to.

All that we make there gets two labels: one says whose it is, one makes it a root for garbage collection. We show
neither, and never list or remove what does not have the first.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from aiocontainerd import timestamps

OWNER = "aiocontainerd.io/owner"
ROOT = "containerd.io/gc.root"


class Ownership:
    """The labels of one daemon and plugin."""

    def __init__(self, owner: str) -> None:
        self.owner = owner

    def __repr__(self) -> str:
        return f"<Ownership {self.owner}>"

    def marked(self, labels: Mapping[str, str]) -> dict[str, str]:
        """Return `labels` and ours."""
        return {**labels, OWNER: self.owner, ROOT: timestamps.format_rfc3339(timestamps.now_ns())}

    def only_ours(self, filters: Sequence[str]) -> list[str]:
        """Return `filters`, of which any may match, each narrowed to what is ours."""
        ours = f"labels.{json.dumps(OWNER)}=={json.dumps(self.owner)}"
        return [f"{text},{ours}" if text else ours for text in filters or ("",)]


def without_marks(labels: Mapping[str, str]) -> dict[str, str]:
    """Return labels without ours."""
    return {key: value for key, value in labels.items() if key not in (OWNER, ROOT)}


def load(path: Path) -> Ownership:
    """Return the ownership that a file keeps. Make the file, whole or not at all, if it is missing."""
    try:
        owner = path.read_text().strip()
    except FileNotFoundError:
        owner = ""
    if not owner:
        owner = secrets.token_hex(16)
        fresh = path.with_name(f".{path.name}.new")
        fresh.write_text(owner)
        fresh.replace(path)
    return Ownership(owner)
