"""The same `ctr` script against two daemons, and what each printed with ids, times and versions masked."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from harness import START_S, Peer

TTY_S = 30.0
_HEARD = '"name":"heard-at-'
_LATE_S = 0.5
"""What a shim may yet publish when the client that waited for it has ended."""

_MASKS: tuple[tuple[str, str], ...] = (
    (r"\x1b\[[0-9;?]*[A-Za-z]", ""),
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?(?:Z| ?[+-]\d\d:?\d\d(?: UTC)?)?", "<time>"),
    (r"t[0-9a-f]{8}\b", "<namespace>"),
    (r"/tmp/aio-\w+", "<directory>"),
    (r"\bdone: [\d.]+(?:ms|s|µs)", "done: <elapsed>"),
    (r"elapsed: [\d.]+ ?s +total: +[\d.]+ [A-Za-z]*B? \([^)]*\)", "elapsed: <elapsed>"),
    (r"(?:Less than a second|\d+ seconds?|About a minute)", "<age>"),
    (r"\b\d{1,9}-[A-Za-z0-9_-]{4}\b", "<generated>"),
    (r"(?m)^(\w+ +)\d+( +(?:RUNNING|STOPPED|PAUSED|CREATED))", r"\1<pid>\2"),
    (r"(?m)^\d+( +-)$", r"<pid>\1"),
    (r"(Version|Revision|UUID|Go version):.*", r"\1: <masked>"),
    (r"WARNING: (?:version|revision) mismatch\n?", ""),
    # ctr asks for progress until it cancels its own question, and says so when the answer came too late.
    (r'time=\S+ level=error msg="(?:failed to get content info|active check failed)" error="context canceled"\n?', ""),
    (r"[ \t]+", " "),
)


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One `ctr` call. `{image}`, `{registry}` and `{directory}` in arguments are filled in."""

    args: tuple[str, ...]
    stdin: bytes | None = None
    tty: bool = False
    typed: tuple[bytes, bytes] = (b"", b"")
    """What is typed at a terminal, behind the words that are waited for: input is echoed by whoever has it by then."""
    unordered: bool = False
    only: Callable[[str], str] | None = None
    runtime_speaks: bool = False
    """The OCI runtime fails and prints to the container's standard error, which is the client's own with us."""
    before: Callable[[Peer], None] | None = None


class Outcome(msgspec.Struct, frozen=True):
    """What a step gave: exit status, standard output, standard error, both masked."""

    status: int
    stdout: str
    stderr: str


def mask(text: str) -> str:
    """`text` without what differs between two runs of the same daemon."""
    for pattern, replacement in _MASKS:
        text = re.sub(pattern, replacement, text)
    return "\n".join(line.rstrip() for line in text.splitlines()).strip()


def sort_label_lists(text: str) -> str:
    """Order the comma lists of labels, which Go prints in any order."""
    return re.sub(r"\S+=\S+(?:,\S+=\S+)+", lambda found: ",".join(sorted(found[0].split(","))), text)


def run(peer: Peer, step: Step, values: dict[str, str]) -> Outcome:
    """Run one step against a daemon."""
    args = [arg.format_map(_Keep(values)) for arg in step.args]
    if step.before is not None:
        step.before(peer)
    if step.tty or any(step.typed):
        err = ""
        status, out = run_in_terminal(peer.ctr_command(*args), step.typed)
    else:
        done = peer.ctr(*args, stdin=step.stdin, check=False)
        status, out, err = done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    if step.only is not None:
        out = step.only(out)
    shown = sort_label_lists(mask(out))
    if step.unordered:
        shown = "\n".join(sorted(shown.splitlines()))
    return Outcome(status, shown, mask(err))


class _Keep(dict[str, str]):
    """Fills in known names and leaves other braces alone."""

    def __missing__(self, key: str) -> str:
        return "{" + key + "}"


def run_in_terminal(
    command: Sequence[str], typed: tuple[bytes, bytes] = (b"", b""), *, rows: int = 30, columns: int = 100
) -> tuple[int, str]:
    """Run a command under a pseudo terminal of a given size; its status and what it printed."""
    import fcntl
    import struct
    import termios

    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = subprocess.Popen(
        list(command), stdin=child, stdout=child, stderr=child, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(child)
    printed = _drain(parent, process, typed)
    os.close(parent)
    return process.wait(), printed.decode(errors="replace").replace("\r\n", "\n")


def _drain(parent: int, process: subprocess.Popen[bytes], typed: tuple[bytes, bytes]) -> bytes:
    printed, until = b"", time.monotonic() + TTY_S
    asked, answer = typed
    while time.monotonic() < until:
        if answer and asked in printed:
            os.write(parent, answer)
            answer = b""
        ready, _, _ = select.select([parent], [], [], 0.05)
        if ready:
            try:
                chunk = os.read(parent, 4096)
            except OSError:
                return printed
            if not chunk:
                return printed
            printed += chunk
        elif process.poll() is not None:
            return printed
    process.send_signal(signal.SIGKILL)
    return printed


def without_created_lines(text: str) -> str:
    """Return a container's JSON with the fields that differ between versions of containerd left to the spec alone."""
    record = json.loads(text)
    for key in ("CreatedAt", "UpdatedAt"):
        record[key] = "<time>"
    return json.dumps(record, indent=1, sort_keys=True)


def count_lines(text: str) -> str:
    """Return the number of lines, for listings whose sizes depend on the file system."""
    return f"{len(text.splitlines())} lines"


def wait_stopped(name: str) -> Callable[[Peer], None]:
    """Return a `before` that waits until a task has stopped."""

    def wait(peer: Peer) -> None:
        until = time.monotonic() + TTY_S
        while time.monotonic() < until:
            listed = peer.ctr("tasks", "ls", check=False).stdout.decode()
            if re.search(rf"(?m)^{name}\s+\d+\s+STOPPED", listed):
                return
            time.sleep(0.05)

    return wait


class Events:
    """`ctr events` beside the script: every topic, in order, as (namespace, topic, ids)."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.path = Path(peer.directory) / "events.log"
        self._file = self.path.open("wb")
        self._process = subprocess.Popen(
            ["stdbuf", "-oL", *peer.ctr_command("events")], stdout=self._file, stderr=subprocess.STDOUT
        )
        self._hear("heard-at-first")

    def _hear(self, name: str) -> None:
        """Return once `ctr` has printed a new event, of a namespace that the script does not use."""
        until = time.monotonic() + START_S
        while f'/namespaces/delete {{"name":"{name}"}}' not in self.path.read_text(errors="replace"):
            assert time.monotonic() < until, f"ctr events prints nothing: {self.path.read_text(errors='replace')}"
            self.peer.ctr("namespaces", "create", name)
            self.peer.ctr("namespaces", "rm", name)
            time.sleep(0.05)

    def close(self) -> list[str]:
        """Stop listening; the events as lines of namespace, topic and payload, masked."""
        time.sleep(_LATE_S)
        self._hear("heard-at-last")
        self._process.terminate()
        self._process.wait()
        self._file.close()
        lines = self.path.read_text(errors="replace").splitlines()
        return [event for event in (self._event(line) for line in lines) if event]

    def _event(self, line: str) -> str:
        found = re.match(r"\S+ \S+ \S+ \S+ (\S+) (/\S+) (.*)", line)
        if not found:
            return ""
        namespace, topic, payload = found.groups()
        if self.peer.namespace not in namespace or _HEARD in payload:
            return ""
        return f"{topic} {_masked_payload(payload)}"


def _masked_payload(payload: str) -> str:
    try:
        record = json.loads(payload)
    except ValueError:
        return mask(payload)
    for key in ("pid", "exited_at", "bundle", "rootfs", "labels", "io", "runtime"):
        if key in record:
            record[key] = f"<{key}>"
    if isinstance(record.get("key"), str) and record["key"].startswith("extract-"):
        record["key"] = "extract-<generated> " + record["key"].rpartition(" ")[2]
    return mask(json.dumps(record, sort_keys=True))
