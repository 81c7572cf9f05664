"""The work that a fork server does ahead: a failure there costs every shim time and memory, and nothing else tells."""

from __future__ import annotations

import subprocess
import sys


def test_a_whole_life_of_a_shim_is_run_ahead() -> None:
    code = (
        "from aiocontainerd.sys import prctl; from aiocontainerd_shim.fork import warm_up\n"
        "prctl.set_child_subreaper(); warm_up.run()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stderr) == (0, "")
