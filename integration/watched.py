"""The daemon under test: the program `aiocontainerd`, in which a blocking call in the event loop is an error.

Each one is a line of the daemon's log besides (`PREFIX`), since errors of one call are handled where they arise. The
harness fails a test whose daemon has logged one. Every call in the loop counts, whoever makes it: what runs there was
called by the daemon's own start.
"""

from __future__ import annotations

import json
import os
import sys

from aiocontainerd.testing.blocking import MAY_BLOCK, May, Violation, told

PREFIX = "blocking call in the event loop: "
MAY_BLOCK_ENV = "WATCHED_MAY_BLOCK"
"""JSON of the functions that may block besides the daemon's own, by file."""


def tell(violation: Violation) -> None:
    """Print one line on standard error: the call, and its callers, innermost first."""
    callers = " < ".join(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in reversed(violation.stack))
    sys.stderr.write(f"{PREFIX}{violation.call}: {callers}\n")
    sys.stderr.flush()


def main() -> None:
    """Run the daemon with the command line it would get."""
    given = json.loads(os.environ.pop(MAY_BLOCK_ENV, "{}"))
    besides = [May(file, tuple(functions), "a test's plugin") for file, functions in given.items()]
    with told(["aiocontainerd"], tell, (*MAY_BLOCK, *besides)):
        from aiocontainerd.cli.daemon import main as daemon

        daemon(prog_name="aiocontainerd")


if __name__ == "__main__":
    main()
