"""What is ours in a peer that is a whole daemon: it serves others too, and collects what nothing refers to.

Everything we make there carries a label that says whose it is and one that makes it a root. Neither is shown, what
lacks the first is not ours to list or to remove.
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
        """`labels` and ours."""
        return {**labels, OWNER: self.owner, ROOT: timestamps.format_rfc3339(timestamps.now_ns())}

    def only_ours(self, filters: Sequence[str]) -> list[str]:
        """`filters` (any of which may match), each narrowed to what is ours."""
        ours = f"labels.{json.dumps(OWNER)}=={json.dumps(self.owner)}"
        return [f"{text},{ours}" if text else ours for text in filters or ("",)]


def without_marks(labels: Mapping[str, str]) -> dict[str, str]:
    """Return labels without our own marks."""
    return {key: value for key, value in labels.items() if key not in (OWNER, ROOT)}


def load(path: Path) -> Ownership:
    """Return the ownership that a file keeps, which is made where it is missing: whole or not at all."""
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
