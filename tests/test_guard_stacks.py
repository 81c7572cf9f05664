"""The line that a process hung or crashed at, from what `faulthandler` wrote."""

from __future__ import annotations

import pytest

from aiocontainerd.guard import stacks

OWN = '  File "/srv/acme/plugin.py", line 31 in make'


@pytest.mark.parametrize("text", ["", "\n", "Fatal Python error: Aborted\n\n"])
def test_a_process_that_wrote_no_stack_has_no_place(text: str) -> None:
    assert stacks.place(text) == ""


def test_the_thread_that_got_the_signal_comes_first() -> None:
    text = f"Thread 0x1 (most recent call first):\n{OWN.replace('31', '7')}\n\nCurrent thread 0x2:\n{OWN}\n"
    assert stacks.place(text) == "/srv/acme/plugin.py:31 in make"
