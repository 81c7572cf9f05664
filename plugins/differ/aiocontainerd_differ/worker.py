"""The child process that unpacks one layer: nothing of the daemon is loaded in it, and it can be killed at any time.

The job comes as JSON in the first argument, the result goes to standard output as JSON. The end of standard input is
the end of the daemon, or of its interest.
"""

from __future__ import annotations

import json
import os
import sys
import threading

from aiocontainerd_differ.inflate import BrokenStream
from aiocontainerd_differ.tar_header import InvalidArchive
from aiocontainerd_differ.unpack import Job, unpack

_RECURSION = 5000


def main() -> None:
    """Run the job of `sys.argv`."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    os.umask(0)
    sys.setrecursionlimit(_RECURSION)
    answer = _answer(Job(**json.loads(sys.argv[1])))
    os.write(1, json.dumps(answer).encode())


def _answer(job: Job) -> dict[str, object]:
    try:
        result = unpack(job)
    except (InvalidArchive, BrokenStream) as error:
        return {"error": str(error)}
    except OSError as error:
        return {"error": f"{error.strerror}: {_text(error.filename)}", "errno": error.errno}
    except (RecursionError, MemoryError) as error:
        return {"error": f"the layer is too deep or too large: {type(error).__name__}"}
    return {"digest": result.digest, "size": result.size}


def _text(name: object) -> str:
    return os.fsdecode(name) if isinstance(name, bytes) else str(name)


def _exit_with_parent() -> None:
    while os.read(0, 64):
        pass
    os._exit(1)
