"""Look at processes while they end."""

from __future__ import annotations

import shutil
from pathlib import Path


def ended(pid: int) -> bool:
    """Return whether a process is gone, or a zombie. The parent of an orphan is an init, which may reap it late.

    It may go at any instant, also between two looks of the caller: ask again instead of reading its files.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def removed(directory: Path) -> bool:
    """Remove a directory; False where a process that ends still wrote into it meanwhile: ask again."""
    shutil.rmtree(directory, ignore_errors=True)
    return not directory.exists()
