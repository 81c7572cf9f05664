"""What `actr` prints of names that a hostile registry or archive chose, and on narrow terminals."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
import termios

import pytest

from aiocontainerd.cli.actr.progress import progress

HOSTILE = "layer-[/x][red]\x1b[2J\r\n\u202eend"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_progress_shows_any_name_without_obeying_it(
    stream: type[io.StringIO], capsys: pytest.CaptureFixture[str]
) -> None:
    with stream() as opened:
        with progress(opened) as tell:
            tell(HOSTILE, "done", 1, 2)
        shown = capsys.readouterr().out + opened.getvalue()
    assert "layer-[/x][red]?[2J???end" in shown
    assert not {"\x1b", "\r", "\u202e"} & set(shown)


def printed(code: str, columns: int) -> str:
    """Return what a program prints on a terminal of so many columns."""
    main, terminal = pty.openpty()
    try:
        termios.tcsetwinsize(terminal, (24, columns))
        environment = {"PATH": os.environ["PATH"], "TERM": "dumb"}
        subprocess.run([sys.executable, "-c", code], stdout=terminal, env=environment, check=True)
        return os.read(main, 1 << 16).decode()
    finally:
        os.close(main)
        os.close(terminal)


@pytest.mark.parametrize("columns", [1, 10, 80, 300])
def test_a_table_is_whole_on_a_terminal_of_any_width(columns: int) -> None:
    code = f"from aiocontainerd.cli.actr import output; output.table(['NAME', 'SIZE'], [[{HOSTILE!r}, 'end of it']])"
    shown = printed(code, columns)
    assert "layer-[/x][red]?[2J???end" in shown
    assert "end of it" in shown
