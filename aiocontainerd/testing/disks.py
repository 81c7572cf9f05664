"""A file system of its own for a test, which can be made read-only. Needs root."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class MemoryDisk:
    """A file system in memory at `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __repr__(self) -> str:
        return f"<MemoryDisk {self.directory}>"

    def remount(self, mode: str) -> None:
        """Make the file system read-only, `ro`, or writable, `rw`. No file may be open for writing."""
        subprocess.run(["mount", "-o", f"remount,{mode}", str(self.directory)], check=True)

    def names(self) -> list[str]:
        """Return the paths of everything there, from its top."""
        return sorted(str(path.relative_to(self.directory)) for path in self.directory.rglob("*"))


@contextmanager
def memory_disk(directory: Path) -> Iterator[MemoryDisk]:
    """Mount a file system in memory at a new directory, until the block ends."""
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m,mode=700", "tmpfs", str(directory)], check=True)
    try:
        yield MemoryDisk(directory)
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)
