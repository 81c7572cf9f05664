"""Import a module in a process of its own first, so that an import which ends its process does not end the daemon.

The daemon needs the registration of an isolated plugin, with its config record: it imports the module, too. It does so
only after a trial process has, and has come through.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import IO

from aiocontainerd import durations
from aiocontainerd.config.timeouts import PLUGIN_INIT
from aiocontainerd.guard import stacks
from aiocontainerd.host.registration import PluginError

PROGRAM_MODULE = "aiocontainerd.cli.plugin.main"
ASKS_FOR_STACKS = signal.SIGUSR2
_STACKS_S = 2.0
_POLL_S = 0.02


def require_importable(module: str, limit_s: float) -> None:
    """Raise PluginError if importing `module` ends a process, or does not end within `limit_s` seconds (0: no limit).

    An exception is left to whoever imports the module next.
    """
    if module.partition(":")[0] in sys.modules:
        return
    with _file("stacks") as written, _file("output") as output:
        process = subprocess.Popen(
            _command(module, written.fileno()),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(written.fileno(),),
            start_new_session=True,
        )
        try:
            status = process.wait(limit_s or None)
        except subprocess.TimeoutExpired:
            where = _at(_stacks_of(process, written))
            limit = f"{durations.render(limit_s)} ({PLUGIN_INIT.key})"
            raise PluginError(f"its import did not end within {limit}{where}; the daemon does not import it") from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if status:
            where = _at(_text(written)) or _words(_text(output))
            raise PluginError(f"its import {_ending(status)}{where}; the daemon does not import it")


def _command(module: str, stacks_fd: int) -> list[str]:
    return [
        sys.executable, "-m", PROGRAM_MODULE, "load", module.partition(":")[0],
        "--stacks", f"/proc/self/fd/{stacks_fd}", "--parent", str(os.getpid()),
    ]  # fmt: skip


def _file(name: str) -> IO[bytes]:
    return io.FileIO(os.memfd_create(name), "r+")


def _stacks_of(process: subprocess.Popen[bytes], written: IO[bytes]) -> str:
    """Have a process write its stacks, and return them; "" if it writes none in time."""
    process.send_signal(ASKS_FOR_STACKS)
    end_s = time.monotonic() + _STACKS_S
    seen, now = "", _text(written)
    while (not now or now != seen) and time.monotonic() < end_s:
        time.sleep(_POLL_S)
        seen, now = now, _text(written)
    return now


def _text(file: IO[bytes]) -> str:
    return os.pread(file.fileno(), 1 << 20, 0).decode(errors="replace")


def _at(written: str) -> str:
    place = stacks.place(written)
    return f" at {place}" if place else ""


def _words(output: str) -> str:
    """Return the last line that a process printed, in brackets."""
    lines = output.strip().splitlines()
    return f" ({lines[-1].strip()[:200]})" if lines else ""


def _ending(status: int) -> str:
    if status > 0:
        return f"ends its process with status {status}"
    named = {one.value: one.name for one in signal.Signals}
    return f"ends its process by {named.get(-status, f'signal {-status}')}"
