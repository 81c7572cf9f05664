"""sd_notify over real sockets."""

from __future__ import annotations

import os
import secrets
import socket
from contextlib import suppress
from pathlib import Path

import pytest

from aiocontainerd.sys import systemd


def listening(address: str) -> socket.socket:
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.settimeout(5)
    manager.bind(address)
    return manager


def test_states_arrive_at_the_socket_one_datagram_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "n"))
    with listening(str(tmp_path / "n")) as manager:
        assert systemd.notify(systemd.READY)
        assert systemd.notify(systemd.STOPPING)
        assert [manager.recv(64), manager.recv(64)] == [b"READY=1", b"STOPPING=1"]


def test_an_abstract_address_begins_with_an_at_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"aiocontainerd-{os.getpid()}-{secrets.token_hex(4)}"
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    with listening(f"\0{name}") as manager:
        assert systemd.notify(systemd.READY)
        assert manager.recv(64) == b"READY=1"


def test_a_service_manager_that_takes_no_messages_is_given_up_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = str(tmp_path / "n")
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    with listening(address), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.setblocking(False)
        other.connect(address)
        with suppress(BlockingIOError):
            while other.send(b"x"):
                pass
        with pytest.raises(TimeoutError, match=f"took no message within 20ms.*{address}"):
            systemd.notify(systemd.READY, 0.02)


@pytest.mark.parametrize("value", [None, ""])
def test_without_a_service_manager_nothing_is_told(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    if value is None:
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    else:
        monkeypatch.setenv("NOTIFY_SOCKET", value)
    assert not systemd.notify(systemd.READY)


def test_a_socket_that_is_gone_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    with pytest.raises(OSError, match=str(tmp_path / "gone")):
        systemd.notify(systemd.READY)
