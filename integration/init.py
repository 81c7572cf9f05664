"""What a test needs of `systemctl`: it starts and stops the daemons of unit files, and links and unlinks units.

usage: init.py COMMAND [--now] UNIT, as `systemctl`. State is kept below the directory `INIT_STATE`.
"""

from __future__ import annotations

import configparser
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

UNITS = (Path("/etc/systemd/system"), Path("/lib/systemd/system"))
STATE = Path(os.environ.get("INIT_STATE", "/run/init"))
LIMIT_S = 60.0


def unit_of(name: str) -> Path:
    """Return the file of a unit, as systemd finds it by one of its names."""
    for directory in UNITS:
        path = directory / f"{name.removesuffix('.service')}.service"
        if path.exists():
            return path.resolve()
    raise SystemExit(f"Unit {name}.service not found.")


def settings(unit: Path) -> configparser.ConfigParser:
    """Return the keys of a unit. A key that is given twice has its last value."""
    parsed = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    parsed.optionxform = str  # type: ignore[assignment, method-assign] # keys keep their case
    parsed.read(unit)
    return parsed


def start(name: str) -> None:
    """Start a unit's daemon and wait until it says that it is ready."""
    unit = unit_of(name)
    STATE.mkdir(exist_ok=True)
    pid = STATE / unit.name
    if pid.exists():
        return
    notify = STATE / f"{unit.name}.notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, (STATE / f"{unit.name}.log").open("ab") as log:
        notify.unlink(missing_ok=True)
        ready.bind(str(notify))
        ready.settimeout(LIMIT_S)
        command = shlex.split(settings(unit)["Service"]["ExecStart"])
        environment = {**os.environ, "NOTIFY_SOCKET": str(notify)}
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )
        pid.write_text(str(process.pid))
        while b"READY=1" not in ready.recv(4096).splitlines():
            pass


def stop(name: str) -> None:
    """End a unit's daemon, and only that process (KillMode=process)."""
    pid = STATE / unit_of(name).name
    if not pid.exists():
        return
    number = int(pid.read_text())
    os.kill(number, signal.SIGTERM)
    until = time.monotonic() + LIMIT_S
    while Path(f"/proc/{number}/exe").is_symlink() and _runs(number):
        if time.monotonic() > until:
            raise SystemExit(f"{name} does not end")
        time.sleep(0.02)
    pid.unlink()


def _runs(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def main(argv: list[str]) -> None:
    """Do what `systemctl` does for one unit."""
    command, *rest = argv
    now, names = "--now" in rest, [name for name in rest if not name.startswith("-")]
    if command in ("enable", "disable"):
        if command == "disable" and now:
            stop(names[0])
        subprocess.run(["/usr/bin/systemctl", "--root=/", command, *names], check=True)
        if command == "enable" and now:
            start(names[0])
    elif command in ("start", "stop", "restart"):
        if command != "start":
            stop(names[0])
        if command != "stop":
            start(names[0])


if __name__ == "__main__":
    main(sys.argv[1:])
