"""A shim removes the file of its own socket, and no other."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from aiocontainerd_shim.program.bootstrap import listen
from aiocontainerd_shim.program.own_socket import OwnSocket


@pytest.fixture
def path() -> Iterator[Path]:
    with TemporaryDirectory(prefix="shim-") as directory:  # short enough for a socket
        yield Path(directory) / "s"


def listening(path: Path) -> socket.socket:
    listener = listen(str(path))
    assert listener is not None
    return listener


def test_the_file_goes_once(path: Path) -> None:
    with listening(path) as listener:
        own = OwnSocket(listener)
        own.remove()
        assert not path.exists()
        own.remove()


def test_the_file_of_the_next_shim_stays(path: Path) -> None:
    with listening(path) as listener:
        own = OwnSocket(listener)
        own.remove()
        with listening(path):
            own.remove()
            assert path.exists()


def test_a_file_number_that_is_used_again_is_not_taken_for_its_own(path: Path) -> None:
    with listening(path) as listener:
        own = OwnSocket(listener)
        own.remove()
    with listening(path):  # on many file systems with the number of the first
        own.remove()
        assert path.exists()
