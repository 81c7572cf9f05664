"""Real daemons for tests and benchmarks: ours and Debian's containerd, each alone in directories of its own.

A daemon runs in a private mount namespace in which the empty version 2 hierarchy of a hybrid host is not mounted, so
that crun accepts the host. Everything a daemon may leave behind is found by its namespace and directory names. Ours
removes it all by itself, and a test whose daemon left something, or blocked its event loop, fails; after Debian's
containerd the harness cleans up.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import IO

from watched import MAY_BLOCK_ENV, PREFIX

LAUNCHER = "io.containerd.shim-launcher.v1.aio"
MANAGER = "io.containerd.shim.v1.manager"
RUNTIME = "io.containerd.runtime.v2.task"
REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPTS = Path(sys.executable).parent
IN_MOUNT_NAMESPACE = 'mount --make-rprivate /; while umount /sys/fs/cgroup/unified 2>/dev/null; do :; done; exec "$@"'
WATCHED = str(Path(__file__).with_name("watched.py"))
START_S = 20.0
SETTLE_S = 10.0
"""Longer than a fork server waits for the daemon after one that was killed."""
_NEW_S = 1.0
"""Whoever makes a pipe or a socket opens it well before it is that old."""
COMMAND_S = 60.0
_NOTES = "oci-versions.json"
"""The launcher's notes of OCI runtimes, for the next daemon."""
KILL_AFTER_S = 20.0


class Peer:
    """One daemon process and what belongs to it."""

    program = ""
    """What starts the daemon."""
    interpreter: tuple[str, ...] = ()
    """What executes the program."""

    def __init__(self, directory: Path, *, config: str = "", args: Sequence[str] = ()) -> None:
        self.directory = directory
        self.namespace = f"t{secrets.token_hex(4)}"
        self.shim_cgroup = f"{self.namespace}-shims"
        self.root, self.state = directory / "root", directory / "state"
        self.address = directory / "c.sock"
        self.config_path = directory / "config.toml"
        self.config_path.write_text(config or self.default_config())
        self.args = list(args)
        self.log_path = directory / "daemon.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._mounted: list[str] = []
        self._namespaces = _kept_namespaces()

    def __repr__(self) -> str:
        pid = self.process.pid if self.process else None
        return f"<{type(self).__name__} {self.directory} namespace={self.namespace} pid={pid}>"

    def default_config(self) -> str:
        """Return the config of this daemon where a test gives none."""
        return "version = 2\n"

    def command(self) -> list[str]:
        """Return the daemon's command line."""
        return [
            *self.interpreter, self.program, "--config", str(self.config_path), "--address", str(self.address),
            "--root", str(self.root), "--state", str(self.state), *self.args,
        ]  # fmt: skip

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        assert self.process is not None, "the daemon is not running"
        return self.process.pid

    def start(self, *, wait: bool = True) -> float:
        """Start the daemon; seconds until it served."""
        began = time.perf_counter()
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                ["unshare", "-m", "sh", "-c", IN_MOUNT_NAMESPACE, "daemon", *self.command()],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.directory, env=self.environment(),
            )  # fmt: skip
        if wait:
            self._wait_ready(began)
        return time.perf_counter() - began

    def environment(self) -> dict[str, str]:
        """Return the daemon's environment."""
        path = f"{SCRIPTS}:/usr/sbin:/usr/bin:/sbin:/bin"
        return {**os.environ, "PATH": path, "TMPDIR": str(self.directory)}

    def _wait_ready(self, began: float) -> None:
        while time.perf_counter() - began < START_S:
            assert self.process is not None
            if self.process.poll() is not None:
                raise AssertionError(f"the daemon ended with status {self.process.returncode}:\n{self.log()}")
            if self.address.exists() and self._answers():
                return
            time.sleep(0.005)
        raise AssertionError(f"the daemon did not serve within {START_S} s:\n{self.log()}")

    def _answers(self) -> bool:
        """Return whether this daemon listens.

        A child that a killed daemon was starting holds the old socket a while.
        """
        return listener(self.address) == self.pid

    def log(self) -> str:
        """Return the output of the daemon so far."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def send_signal(self, number: int) -> None:
        """Send a signal to the daemon itself."""
        os.kill(self.pid, number)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stop the daemon and wait for it; its exit status. Containers run on."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            os.kill(self.process.pid, number)
        try:
            status = self.process.wait(KILL_AFTER_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the daemon did not stop within {KILL_AFTER_S} s:\n{self.log()[-4000:]}") from None
        self.process = None
        return status

    def ctr(
        self,
        *args: str,
        stdin: bytes | None = None,
        timeout_s: float = COMMAND_S,
        check: bool = True,
        namespace: str = "",
    ) -> subprocess.CompletedProcess[bytes]:
        """Run Debian's `ctr` against this daemon. `check` fails the test on a non-zero status."""
        command = ["timeout", "-s", "KILL", str(timeout_s), *self.ctr_command(*args, namespace=namespace)]
        source = None if stdin is not None else subprocess.DEVNULL
        done = subprocess.run(command, stdin=source, input=stdin, capture_output=True, cwd=self.directory)
        if check and done.returncode:
            raise AssertionError(
                f"ctr {' '.join(args)}: status {done.returncode}\n{done.stdout.decode(errors='replace')}"
                f"{done.stderr.decode(errors='replace')}\n--- daemon\n{self.log()[-6000:]}"
            )
        return done

    def ctr_command(self, *args: str, namespace: str = "") -> list[str]:
        """Return the command line of `ctr` for this daemon."""
        return ["ctr", "--address", str(self.address), "--namespace", namespace or self.namespace, *args]

    def clean(self) -> None:
        """Remove every container, then stop the daemon."""
        if self.process is not None and self.process.poll() is None:
            self._remove_tasks()
            self._mounted = _settled(self._own_mounts)
            self.stop()

    def _remove_tasks(self) -> None:
        tasks = self.ctr("tasks", "ls", "-q", check=False).stdout.decode().split()
        for task in tasks:
            self.ctr("tasks", "rm", "-f", task, check=False)
        for container in self.ctr("containers", "ls", "-q", check=False).stdout.decode().split():
            self.ctr("containers", "rm", container, check=False)

    def _own_mounts(self) -> list[str]:
        """Return the mounts below the directory in the daemon's mount namespace."""
        try:
            mounts = Path(f"/proc/{self.pid}/mounts").read_text().splitlines()
        except OSError:
            return []
        return [f"mount {line}" for line in mounts if str(self.directory) in line]

    def leftovers(self) -> list[str]:
        """Return what this daemon left on the host: processes, mounts, cgroups, runtime state, sockets, files."""
        found = [f"process {pid}: {line}" for pid, line in processes_of(self.directory, self.namespace)]
        mounts = Path("/proc/self/mounts").read_text().splitlines()
        found += [*self._mounted, *(f"mount {line}" for line in mounts if str(self.directory) in line)]
        found += [f"namespace {line}" for line in _kept_namespaces() - self._namespaces]
        found += [f"cgroup {path}" for path in cgroups_named(self.namespace)]
        found += [f"cgroup {path}" for path in cgroups_named(self.shim_cgroup)]
        runtime_state = Path("/run/containerd/runc") / self.namespace
        found += [f"runtime state {path}" for path in [runtime_state, *runtime_state.glob("*")] if path.exists()]
        patterns = ("s/*", "*.sock*", "pty*", "aiocontainerd-probe*", f"state/{LAUNCHER}/*", f"state/{RUNTIME}/*/*")
        files = (path for pattern in patterns for path in self.directory.glob(pattern))
        return found + [f"file {path}" for path in files if path.name != _NOTES]

    def complaints(self) -> list[str]:
        """Return the lines of the daemon's log that fail its test in any case."""
        return []


class Ours(Peer):
    """The daemon of this repository, from the virtual environment that runs the tests."""

    program = WATCHED
    interpreter: tuple[str, ...] = (sys.executable,)
    may_block: Mapping[str, Sequence[str]] = {}
    """Functions that may block the event loop, by the ends of their files' paths: those of plugins made to do so."""

    def default_config(self) -> str:
        return (
            f'version = 3\n[plugins."{MANAGER}"]\nsocket_dir = "{self.directory}/s"\n'
            f'[plugins."{LAUNCHER}"]\ncgroup = "/{self.shim_cgroup}"\n'
        )

    def environment(self) -> dict[str, str]:
        return {**super().environment(), MAY_BLOCK_ENV: json.dumps(dict(self.may_block))}

    def complaints(self) -> list[str]:
        """Blocking calls in the event loop."""
        return [line for line in self.log().splitlines() if line.startswith(PREFIX)]


class Installed(Ours):
    """Our daemon as it is installed, for benchmarks."""

    program = str(SCRIPTS / "aiocontainerd")
    interpreter = ()


class Debians(Peer):
    """Debian's containerd."""

    program = "/usr/bin/containerd"

    def default_config(self) -> str:
        return (
            'version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.aufs", '
            '"io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", '
            '"io.containerd.snapshotter.v1.devmapper"]\n'
        )

    def clean(self) -> None:
        super().clean()
        for path in cgroups_named(self.namespace):
            with suppress(OSError):
                path.rmdir()
        shutil.rmtree(Path("/run/containerd/runc") / self.namespace, ignore_errors=True)
        for path in [*self.directory.glob("*.sock*"), *self.directory.glob(f"state/{RUNTIME}/*/*")]:
            path.unlink() if not path.is_dir() else None


def processes_of(directory: Path, namespace: str) -> Iterator[tuple[int, str]]:
    """Processes whose command line or working directory names a daemon's directory, or its namespace as a shim does."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            cwd = os.readlink(entry / "cwd")
        except OSError:
            continue
        if line and (f"{directory}/" in f"{line} {cwd}/" or f"-namespace {namespace} " in line):
            yield int(entry.name), line


def _kept_namespaces() -> set[str]:
    """Mounts that keep namespaces without processes."""
    return {line for line in Path("/proc/self/mounts").read_text().splitlines() if line.split()[2] == "nsfs"}


def cgroups_named(name: str) -> list[Path]:
    """Cgroups of a name at the top of every hierarchy."""
    base = Path("/sys/fs/cgroup")
    return [path for path in [base / name, *base.glob(f"*/{name}")] if path.is_dir()]


@contextmanager
def peer(kind: type[Peer], *, config: str = "", args: Sequence[str] = (), start: bool = True) -> Iterator[Peer]:
    """Run a daemon in a directory with a short name. At the end, clean up and check that it left nothing."""
    directory = Path(tempfile.mkdtemp(prefix="aio-", dir="/tmp"))
    daemon = kind(directory, config=config, args=args)
    with swept():
        try:
            if start:
                daemon.start()
            yield daemon
        finally:
            daemon.clean()
            left = _settled(daemon.leftovers)
            complaints = daemon.complaints()
            shutil.rmtree(directory, ignore_errors=not left)
    assert not left, "left behind:\n" + "\n".join(left)
    assert not complaints, "\n".join(complaints)


@contextmanager
def swept() -> Iterator[None]:
    """Removes what Debian's `ctr` and shims leave in places of their own when they fail or are killed within the block.

    That is what is new there, no longer new, and in nobody's use: directories of pipes, sockets nobody listens on.
    """
    before = _elsewhere()
    try:
        yield
    finally:
        for path in _elsewhere() - before:
            with suppress(FileNotFoundError):
                _sweep(path)


def _elsewhere() -> set[Path]:
    return {*Path("/run/containerd/fifo").glob("*"), *Path("/run/containerd/s").glob("*")}


def _sweep(path: Path) -> None:
    time.sleep(max(0.0, path.stat().st_mtime + _NEW_S - time.time()))
    if not path.is_dir():
        if not listens(path):
            path.unlink()
    elif not _is_used(path):
        shutil.rmtree(path)


def _is_used(directory: Path) -> bool:
    """Return whether a process has something open below a directory."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if link.readlink().is_relative_to(directory):
                return True
    return False


def listens(path: Path) -> bool:
    """Return whether somebody accepts connections there; the file of a socket is there before."""
    return listener(path) is not None


def listener(path: Path) -> int | None:
    """Id of the process that listens there, be it gone by now; None where nobody accepts connections."""
    with socket.socket(socket.AF_UNIX) as probe:
        if probe.connect_ex(str(path)) != 0:
            return None
        credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", credentials)[0])


def _settled(found: Callable[[], list[str]], limit_s: float = SETTLE_S) -> list[str]:
    """Return what is left after things that end by themselves had the time to."""
    until = time.monotonic() + limit_s
    while True:
        left = found()
        if not left or time.monotonic() > until:
            return left
        time.sleep(0.02)


@contextmanager
def docker_registry(directory: Path) -> Iterator[str]:
    """Debian's docker-registry on a loopback port; yields `host:port`."""
    with (directory / "registry.log").open("wb") as log:
        server, port = _start_registry(directory, log)
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait()


def _start_registry(directory: Path, log: IO[bytes]) -> tuple[subprocess.Popen[bytes], int]:
    """Return a registry that answers, and its port.

    It is started again where another process took the port meanwhile.
    """
    until = time.monotonic() + START_S
    while True:
        port = _free_port()
        server = subprocess.Popen(
            ["docker-registry", "serve", _registry_config(directory, port)], stdout=log, stderr=log
        )
        while server.poll() is None and time.monotonic() < until:
            if _is_registry(port):
                return server, port
            time.sleep(0.02)
        server.kill()
        server.wait()
        if time.monotonic() > until:
            raise AssertionError(f"docker-registry did not answer:\n{(directory / 'registry.log').read_text()}")


def _registry_config(directory: Path, port: int) -> str:
    path = directory / "registry.yml"
    path.write_text(
        f"version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {directory}/registry\n"
        f"  delete:\n    enabled: true\nhttp:\n  addr: 127.0.0.1:{port}\n"
    )
    return str(path)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_registry(port: int) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=START_S)
    try:
        connection.request("GET", "/v2/")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def push(archive: Path, registry: str, name: str, *, env: Mapping[str, str] | None = None) -> None:
    """Copy every platform of an OCI archive to a registry with skopeo; `name` is `repository:tag`."""
    options = ["--all", "--quiet", "--preserve-digests", "--dest-tls-verify=false"]
    subprocess.run(
        ["skopeo", "copy", *options, f"oci-archive:{archive}", f"docker://{registry}/{name}"],
        check=True,
        capture_output=True,
        env={**os.environ, **(env or {})},
    )
