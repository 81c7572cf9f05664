"""`make run` and `make serve`: our daemon in directories of its own, and a container on it.

`run` starts the daemon in a new private directory, makes a small image of Debian's busybox (or pulls `--image`), runs
`--command` in a container, stops everything and removes the directory. `serve` keeps the daemon in the foreground.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SCRIPTS = Path(sys.executable).parent
LOCAL_IMAGE = "docker.io/library/busybox:local"
DEFAULT_COMMAND = ["echo", "hello from a container under aiocontainerd"]
SERVE_ROOT, SERVE_STATE = "/var/lib/aiocontainerd", "/run/aiocontainerd"
CONTAINER = "hello"
START_S, STOP_S = 20.0, 20.0


@contextmanager
def daemon(directory: Path) -> Iterator[Path]:
    """Run the daemon with everything it owns below `directory`; yield its socket."""
    address, config, log = directory / "a.sock", directory / "config.toml", directory / "daemon.log"
    config.write_text(f'version = 4\n[plugins."io.containerd.shim.v1.manager"]\nsocket_dir = "{directory}/s"\n')
    command = [
        str(SCRIPTS / "aiocontainerd"), "--config", str(config), "--address", str(address),
        "--root", str(directory / "root"), "--state", str(directory / "state"),
    ]  # fmt: skip
    with log.open("wb") as output:
        # A session of its own: Ctrl-C is for the client; the daemon is needed to clean up after it.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, "TMPDIR": str(directory)},
            start_new_session=True,
        )
    try:
        wait_for(address, process, log)
        yield address
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process of ours, by force where it does not end by itself."""
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_for(address: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when the daemon serves. Exits with its log where it does not."""
    until = time.monotonic() + START_S
    while not serves(address):
        if process.poll() is not None or time.monotonic() > until:
            sys.exit(f"the daemon did not start:\n{log.read_text(errors='replace')}")
        time.sleep(0.02)


def serves(address: Path) -> bool:
    """Return whether somebody listens on a socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(address)) == 0


def actr(address: Path, namespace: str, *args: str) -> int:
    """Run our client against the daemon; its exit status."""
    return subprocess.call(client_command(address, namespace, *args))


def client_command(address: Path, namespace: str, *args: str) -> list[str]:
    """Return the command line of our client."""
    return [str(SCRIPTS / "actr"), "--address", str(address), "--namespace", namespace, *args]


def contained(address: Path, namespace: str, *args: str) -> int:
    """Run the client as `actr` does; when this program is told to end meanwhile, no container is left."""
    client = subprocess.Popen(client_command(address, namespace, *args))
    try:
        return client.wait()
    except (KeyboardInterrupt, SystemExit):
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        until = time.monotonic() + STOP_S
        remove = client_command(address, namespace, "tasks", "rm", "--force", CONTAINER)
        while subprocess.run(remove, capture_output=True) and client.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
        stop(client)
        raise


def make_image(directory: Path) -> Path:
    """Return an image of Debian's static busybox as an archive."""
    from aiocontainerd.testing.images import write_busybox

    archive = directory / "busybox.tar"
    write_busybox(archive, LOCAL_IMAGE)
    return archive


def run(image: str, command: list[str], snapshotter: str) -> int:
    """Run one container on a daemon of its own and return the exit status of the container."""
    chosen = ["--snapshotter", snapshotter] if snapshotter else []
    require_root()
    directory = Path(tempfile.mkdtemp(prefix="aiocontainerd-", dir="/tmp"))
    namespace = f"quickstart-{secrets.token_hex(3)}"
    try:
        with daemon(directory) as address:
            if image:
                status = actr(address, namespace, "images", "pull", *chosen, image)
            else:
                status = actr(address, namespace, "images", "import", *chosen, str(make_image(directory)))
            if status == 0:
                status = contained(
                    address, namespace, "run", "--rm", *chosen, image or LOCAL_IMAGE, CONTAINER, *command
                )
    finally:
        clean(directory)
    if status == 0:
        print_next()
    return status


def clean(directory: Path) -> None:
    """Remove the directory, once the daemon's helper, which ends by itself, has ended."""
    until = time.monotonic() + STOP_S
    while found := helpers(directory):
        if time.monotonic() > until:
            print(f"processes {found} do not end; they are left running", file=sys.stderr)
            break
        time.sleep(0.01)
    shutil.rmtree(directory)


def helpers(directory: Path) -> list[int]:
    """Processes of ours whose command line names the directory."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
        except OSError:
            continue
        if f"{directory}/".encode() in line and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found


def print_next() -> None:
    print(
        f"""
to try next:
  make serve                                              a daemon that stays, in the foreground; then, elsewhere:
  .venv/bin/actr -a {SERVE_STATE}/a.sock plugins ls  what it is made of
  ctr -a {SERVE_STATE}/a.sock images pull IMAGE      containerd's own client on it (Debian's package containerd)
  .venv/bin/pip install --no-build-isolation ./contrib/snapshotter-reflink
  make run SNAPSHOTTER=reflink                            a plugin from its own package, installed and used"""
    )


def serve() -> int:
    """Run the daemon in the foreground, with directories that stay."""
    require_root()
    Path(SERVE_STATE).mkdir(mode=0o711, parents=True, exist_ok=True)
    address = f"{SERVE_STATE}/a.sock"
    print(f"serving on {address}; stop with Ctrl-C (containers run on)", flush=True)
    program = str(SCRIPTS / "aiocontainerd")
    os.execv(program, [program, "--address", address, "--root", SERVE_ROOT, "--state", SERVE_STATE])


def require_root() -> None:
    if os.geteuid() != 0:
        sys.exit("mounts, namespaces and cgroups need root: run this as root")


def main() -> int:
    parser = argparse.ArgumentParser(description="Try the daemon.")
    commands = parser.add_subparsers(dest="what", required=True)
    once = commands.add_parser("run", help="run one container on a daemon of its own")
    once.add_argument("--image", default="", help="an image to pull; without it one is made of busybox")
    once.add_argument("--command", default="", help="the command line to run in it")
    once.add_argument("--snapshotter", default="", help="the snapshotter of its root, such as that of an example")
    commands.add_parser("serve", help="keep a daemon in the foreground")
    chosen = parser.parse_args()
    if chosen.what == "serve":
        return serve()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        given = shlex.split(chosen.command)
    except ValueError as error:
        once.error(f"the command {chosen.command}: {error}")
    try:
        return run(chosen.image, given or ([] if chosen.image else DEFAULT_COMMAND), chosen.snapshotter)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
