"""The OCI runtime's command line: argument lists of every verb, and what its failures say (facts/runtime 6.1, 6.2).

The argument lists are pure functions of their inputs; `OciRuntime` runs them. A failed command raises `OciError` with
the last error of the runtime's JSON log. A command is killed with the task that awaits it. It outlives a killed shim,
since a parent death signal cannot be combined with posix_spawn; the delete action cleans up after it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from aiocontainerd import gojson
from aiocontainerd.errors import os_text
from aiocontainerd.gotext import quoted
from aiocontainerd_shim.children.reaper import Reaper

_NOT_FOUND = (errno.ENOENT, errno.EACCES, errno.ENAMETOOLONG, errno.EINVAL, errno.ENOTDIR)
"""What a name that no directory of PATH has may give."""
DEFAULT_ROOT = "/run/containerd/runc"
NO_IO = b""


class OciError(Exception):
    """An OCI runtime command failed, or could not be run. `str()` is its own explanation, `output` what it printed.

    `ending` says how the command ended, in the words of containerd; "" where that is not known.
    """

    def __init__(self, text: str, output: str, ending: str = "") -> None:
        super().__init__(text)
        self.output = output
        self.ending = ending

    @property
    def raw(self) -> str:
        """How the command ended and what it printed, for verbs where containerd does not look into the log."""
        return f"{self.ending}: {self.output}" if self.ending and self.output else self.ending or str(self)

    def add_output(self, output: bytes) -> None:
        """Add what the command wrote into streams that it was given."""
        self.output = self.output or output.decode(errors="replace").strip()
        if self.output and self.ending and str(self).endswith(self.ending):
            self.args = (f"{self}: {self.output}",)

    def says_missing(self, root: str) -> bool:
        """Return whether a runtime with its state in `root` does not know the container, in runc's or crun's words."""
        text = f"{self} {self.output}"
        return "does not exist" in text or (f"{root}/" in text and "No such file or directory" in text)


class NoPid(OciError):
    """An OCI runtime command went well, and did not tell the pid of what it made."""


class CreateFlags(msgspec.Struct, frozen=True, kw_only=True):
    """Options of `create` and `restore`, from the runc options."""

    no_pivot: bool = False
    no_new_keyring: bool = False
    console_socket: str = ""

    @property
    def argv(self) -> list[str]:
        """The flags that `create` and `restore` share."""
        console = ["--console-socket", self.console_socket] if self.console_socket else []
        return [*console, *(["--no-pivot"] if self.no_pivot else [])]


class CheckpointFlags(msgspec.Struct, frozen=True, kw_only=True):
    """Options of `checkpoint`."""

    image_path: str
    work_path: str
    parent_path: str = ""
    open_tcp: bool = False
    external_unix_sockets: bool = False
    terminal: bool = False
    file_locks: bool = False
    empty_namespaces: tuple[str, ...] = ()
    exit: bool = False

    @property
    def argv(self) -> list[str]:
        """The flags in runc's order."""
        argv = ["--image-path", self.image_path, "--work-path", self.work_path]
        argv += ["--parent-path", self.parent_path] if self.parent_path else []
        argv += ["--tcp-established"] if self.open_tcp else []
        argv += ["--ext-unix-sk"] if self.external_unix_sockets else []
        argv += ["--shell-job"] if self.terminal else []
        argv += ["--file-locks"] if self.file_locks else []
        for namespace in self.empty_namespaces:
            argv += ["--empty-ns", namespace]
        return argv if self.exit else [*argv, "--leave-running"]


class OciRuntime:
    """One OCI runtime, its state directory and log, for the containers of one bundle."""

    def __init__(
        self, binary: str, root: str, reaper: Reaper, *, env: Mapping[str, str], log: Path, systemd_cgroup: bool = False
    ) -> None:
        self.binary = binary
        self.root = root
        self._reaper = reaper
        self._log = log
        self._systemd_cgroup = systemd_cgroup
        self._env = child_environment(env)

    def __repr__(self) -> str:
        return f"<OciRuntime {self.binary} --root {self.root}>"

    @property
    def is_crun(self) -> bool:
        """Whether the program calls itself crun, which lacks some of runc's flags."""
        return Path(self.binary).name.startswith("crun")

    def argv(self, verb: str, *args: str) -> list[str]:
        """Return the full command line of a verb."""
        systemd = ["--systemd-cgroup"] if self._systemd_cgroup else []
        log = ["--log", str(self._log), "--log-format", "json"]
        return [self.binary, "--root", self.root, *log, *systemd, verb, *args]

    async def create(
        self, container: str, bundle: Path, pid_file: Path, flags: CreateFlags, stdio: tuple[int, int, int] | None
    ) -> int:
        """Create a container; return the pid of its init."""
        keyring = ["--no-new-keyring"] if flags.no_new_keyring else []
        args = ["--bundle", str(bundle), "--pid-file", str(pid_file), *flags.argv, *keyring, container]
        await self._run("create", *args, stdio=stdio)
        return read_pid(pid_file)

    async def restore(
        self,
        container: str,
        bundle: Path,
        pid_file: Path,
        flags: CreateFlags,
        checkpoint: CheckpointFlags,
        stdio: tuple[int, int, int] | None,
        env: Mapping[str, str] | None = None,
    ) -> int:
        """Restore a container from a checkpoint; return the pid of its init. `env` is added to the command's."""
        parent = ["--parent-path", checkpoint.parent_path] if checkpoint.parent_path else []
        paths = ["--image-path", checkpoint.image_path, "--work-path", checkpoint.work_path, *parent]
        orphan = [] if self.is_crun else ["-no-subreaper"]
        args = [*paths, "--detach", "--pid-file", str(pid_file), *flags.argv, *orphan, "--bundle", str(bundle)]
        await self._run("restore", *args, container, stdio=stdio, env=env)
        return read_pid(pid_file)

    async def start(self, container: str) -> None:
        """Start a created container."""
        await self._run("start", container)

    async def exec(
        self,
        container: str,
        process_file: Path,
        pid_file: Path,
        console_socket: str,
        stdio: tuple[int, int, int] | None,
    ) -> int:
        """Start another process in a container; return its pid."""
        console = ["--console-socket", console_socket] if console_socket else []
        args = ["--process", str(process_file), *console, "--detach", "--pid-file", str(pid_file), container]
        await self._run("exec", *args, stdio=stdio)
        return read_pid(pid_file)

    async def kill(self, container: str, signum: int, *, everyone: bool = False) -> None:
        """Signal the init, or every process of the container."""
        await self._run("kill", *(["--all"] if everyone else []), container, str(signum))

    async def delete(self, container: str, *, force: bool = False) -> None:
        """Remove what the runtime keeps of a container. A missing container is no error."""
        try:
            await self._run("delete", *(["--force"] if force else []), container)
        except OciError as failure:
            if not failure.says_missing(self.root):
                raise

    async def pause(self, container: str) -> None:
        """Freeze a container."""
        await self._run("pause", container)

    async def resume(self, container: str) -> None:
        """Thaw a container."""
        await self._run("resume", container)

    async def pids(self, container: str) -> list[int]:
        """Return every process of a container, as pids of the shim's pid namespace."""
        output = await self._run("ps", "--format", "json", container)
        return msgspec.json.decode(output or b"[]", type=list[int] | None) or []

    async def update(self, container: str, resources: bytes) -> None:
        """Apply resources, the JSON of a LinuxResources."""
        await self._run("update", "--resources=-", container, stdin=resources)

    async def checkpoint(self, container: str, flags: CheckpointFlags, env: Mapping[str, str] | None = None) -> None:
        """Write a checkpoint of a container with CRIU. `env` is added to the command's."""
        await self._run("checkpoint", *flags.argv, container, env=env)

    async def _run(
        self,
        verb: str,
        *args: str,
        stdin: bytes = NO_IO,
        stdio: tuple[int, int, int] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> bytes:
        logged_bytes = _size(self._log)
        full = {**self._env, **env} if env else self._env
        try:
            if "\0" in self.binary:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            done = await self._reaper.run(self.argv(verb, *args), env=full, stdin=stdin, stdio=stdio)
        except OSError as refusal:
            raise explained(not_run(self.binary, refusal), b"", self._log, logged_bytes) from refusal
        if done.status:
            raise explained(ending(self.binary, done.status), done.output, self._log, logged_bytes)
        return done.output


def child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without the service manager's socket, which a container must not talk to."""
    return {name: value for name, value in environ.items() if name != "NOTIFY_SOCKET"}


def ending(binary: str, status: int) -> str:
    """Return how a failed command ended, in containerd's words."""
    return f"{binary} did not terminate successfully: exit status {status}"


def not_run(binary: str, refusal: OSError) -> str:
    """Return why a command could not be started, in Go's words."""
    if "/" not in binary and refusal.errno in _NOT_FOUND:
        return f"exec: {quoted(binary)}: executable file not found in $PATH"
    return f"fork/exec {binary}: {os_text(OSError(refusal.errno, refusal.strerror))}"


def explained(how: str, output: bytes, log: Path, offset: int = 0) -> OciError:
    """Return the error of a command that ended as `how` says.

    The explanation is the last error in the log behind `offset`, else what the command printed.
    """
    text = output.decode(errors="replace")
    logged = _read_from(log, offset)
    said = OciError("", text.strip(), how).raw
    if logged is None:
        return OciError(
            f"unable to retrieve OCI runtime error (open {log}: no such file or directory): {said}", text, how
        )
    if not_json := _not_json(logged):
        return OciError(f"unable to retrieve OCI runtime error ({not_json}): {said}", text, how)
    return OciError(last_error(logged) or said, text, how)


class _LogLine(msgspec.Struct):
    level: str = ""
    msg: str = ""


def last_error(log: bytes) -> str:
    """Return the message of the last error in a runtime's JSON log, or an empty string."""
    found = ""
    for line in log.splitlines():
        try:
            entry = msgspec.json.decode(line, type=_LogLine)
        except msgspec.DecodeError:
            continue
        if entry.level == "error":
            found = entry.msg.strip()
    return found


def _not_json(log: bytes) -> str:
    """Return what is wrong with a log whose first line is no JSON; an empty string for any other."""
    first = log.partition(b"\n")[0]
    try:
        msgspec.json.decode(first or b"{}")
    except (msgspec.MsgspecError, ValueError):
        return gojson.syntax_error(first)
    return ""


def read_pid(pid_file: Path) -> int:
    """Return the pid that a runtime wrote. Raises OciError if the file has none."""
    try:
        return int(pid_file.read_text())
    except (OSError, ValueError) as bad:
        reason = os_text(bad, "open") if isinstance(bad, OSError) else f"{pid_file}: {bad}"
        raise NoPid(f"failed to retrieve OCI runtime container pid: {reason}", "") from bad


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _read_from(path: Path, offset: int) -> bytes | None:
    try:
        with path.open("rb") as log:
            log.seek(offset)
            return log.read()
    except FileNotFoundError:
        return None


def runtime_root(configured: str, namespace: str) -> str:
    """Return the state directory of the OCI runtime for a namespace."""
    return str(Path(configured or DEFAULT_ROOT) / namespace)
