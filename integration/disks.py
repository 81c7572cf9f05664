"""A small file system of its own for a test: it can be filled, made read-only and damaged."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

SIZE_MIB = 48
BUSY_S = 60.0


class Disk:
    """A small file system at a directory."""

    def __init__(self, directory: Path, kind: str) -> None:
        self.directory = directory
        self.kind = kind
        self.broken = False
        self.image = directory.with_name("disk.img")

    def mount(self) -> None:
        self.directory.mkdir()
        if self.kind == "tmpfs":
            command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m", "tmpfs", str(self.directory)]
        else:
            with self.image.open("wb") as file:
                file.truncate(SIZE_MIB << 20)
            subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(self.image)], check=True)
            command = ["mount", "-o", "loop", str(self.image), str(self.directory)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip(f"{self.kind} cannot be mounted here: {' '.join(command)}")

    def break_down(self) -> None:
        """Let the kernel find damage, so that it makes the disk read-only under its users. It stays so."""
        subprocess.run(["mount", "-o", "remount,errors=remount-ro", str(self.directory)], check=True)
        source = subprocess.run(
            ["findmnt", "-no", "SOURCE", str(self.directory)], check=True, capture_output=True, text=True
        ).stdout.strip()
        trigger = Path("/sys/fs/ext4") / Path(source).name / "trigger_fs_error"
        if not os.access(trigger, os.W_OK):
            pytest.skip("this kernel cannot be told to find damage in ext4")
        self.broken = True
        trigger.write_text("1")

    def remount(self, mode: str, pid: int = 0) -> None:
        """Make the disk read-only, `ro`, or writable, `rw`, here and in the mount namespace of a process.

        Wait for the ends of processes that were killed and had files open.
        """
        command = ["mount", "-o", f"remount,{mode}", str(self.directory)]
        until = time.monotonic() + BUSY_S
        while (done := subprocess.run(command, capture_output=True)).returncode:
            assert time.monotonic() < until, done.stderr
            time.sleep(0.05)
        if pid:
            subprocess.run(["nsenter", "-t", str(pid), "-m", *command], check=True)

    def unmount(self) -> None:
        subprocess.run(["umount", "-l", str(self.directory)], check=True)

    def fill(self) -> None:
        """Fill the disk to the last byte, block by block at the end."""
        with open(self.directory / "filler", "ab", buffering=0) as filler:
            for size in (1 << 20, 4096, 1):
                with suppress(OSError):
                    while filler.write(bytes(size)):
                        pass

    def empty(self) -> None:
        (self.directory / "filler").unlink()
