"""Refuse a snapshotter's root that is containerd's, before anything is written there."""

from __future__ import annotations

from pathlib import Path

from aiocontainerd.index import database
from aiocontainerd.index.database import ForeignDatabaseError

__all__ = ["ForeignDatabaseError", "refuse"]
RECORDS = "metadata.db"
WHAT = "snapshot metadata"


def refuse(root: Path) -> None:
    """Raise ForeignDatabaseError for records that containerd wrote, DamagedDatabaseError for what is no database."""
    database.refuse_foreign(root / RECORDS, WHAT)
