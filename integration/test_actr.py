"""`actr` against Debian's containerd and ours: the same commands, the same answers, nothing left behind."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pty
import re
import select
import shlex
import signal
import socket
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from aiocontainerd.testing import images
from harness import SCRIPTS, Debians, Ours, Peer, docker_registry, peer, push
from outside import wait_for

pytestmark = [pytest.mark.integration, pytest.mark.root, pytest.mark.timeout(180)]

NAME = "docker.io/library/t:1"
LAYER = images.busybox_layer()
LIMIT_S = 60


class Actr:
    """`actr` for one daemon."""

    def __init__(self, daemon: Peer) -> None:
        self.daemon = daemon

    def command(self, *args: str) -> list[str]:
        return [str(SCRIPTS / "actr"), "-a", str(self.daemon.address), "-n", self.daemon.namespace, *args]

    def __call__(self, *args: str, stdin: bytes = b"") -> tuple[int, str, str]:
        done = subprocess.run(self.command(*args), input=stdin, capture_output=True, timeout=LIMIT_S)
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    def masked(self, *args: str, stdin: bytes = b"") -> tuple[int, str, str]:
        """Return the answer of a command without the parts that differ from daemon to daemon."""
        status, out, err = self(*args, stdin=stdin)
        return status, self._mask(out), self._mask(err)

    def _mask(self, text: str) -> str:
        text = text.replace(self.daemon.namespace, "<ns>").replace(str(self.daemon.directory), "<dir>")
        # Go leaves zeros at the end of a fraction out, so that columns differ in width.
        text = re.sub(r"\d{4}-\d\d-\d\dT[0-9:.]+Z *", "<time> ", text)
        text = re.sub(r"\bCREATED +", "CREATED ", text)
        return re.sub(r"(?m)^(c\d|)( *)\d{2,7} +", r"\1 <pid> ", text)

    def left(self) -> list[str]:
        """Containers, tasks, leases, ingests and snapshots that are not layers."""
        listed = [
            self.daemon.ctr(kind, "ls", "-q").stdout.decode().split() for kind in ("containers", "tasks", "leases")
        ]
        ingests = self.daemon.ctr("content", "active").stdout.decode().splitlines()[1:]
        snapshots = [line for line in self("snapshots", "ls")[1].splitlines()[1:] if not line.startswith("sha256:")]
        return [
            entry for entries in [*listed, [line for line in ingests if line.strip()], snapshots] for entry in entries
        ]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "image.tar"
    second = images.BuiltLayer(images.tar_of([images.entry("etc/hello", b"hello\n")]))
    host = images.BuiltImage(layers=[LAYER, second])
    foreign = images.BuiltImage(layers=[LAYER], architecture="arm64")
    images.write_archive(path, NAME, [host, foreign])
    return path


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[Actr, Actr]]:
    with ExitStack() as stack:
        yield Actr(stack.enter_context(peer(Debians))), Actr(stack.enter_context(peer(Ours)))


@pytest.fixture(scope="module")
def imported(both: tuple[Actr, Actr], archive: Path) -> tuple[Actr, Actr]:
    for actr in both:
        status, _, err = actr("images", "import", str(archive))
        assert status == 0, err
    return both


def equal(both: tuple[Actr, Actr], *args: str, stdin: bytes = b"") -> tuple[int, str, str]:
    debians, ours = (actr.masked(*args, stdin=stdin) for actr in both)
    assert ours == debians
    return ours


def collect(both: tuple[Actr, Actr], name: str) -> None:
    """Wait for a garbage collection, so that both daemons have the same left."""
    equal(both, "images", "tag", name, "collect:1")
    equal(both, "images", "rm", "--sync", "collect:1")


def test_records_of_an_import_are_the_same(imported: tuple[Actr, Actr]) -> None:
    collect(imported, NAME)
    for command in (("images", "ls"), ("content", "ls"), ("snapshots", "ls"), ("namespaces", "ls", "-q")):
        status, out, _ = equal(imported, *command)
        assert status == 0
        assert out
    assert [actr.left() for actr in imported] == [[], []]


def test_the_version_is_told_quickly(both: tuple[Actr, Actr]) -> None:
    for actr in both:
        status, out, _ = actr("version")
        assert status == 0
        assert "Server:" in out


def test_plugins_tell_their_state(both: tuple[Actr, Actr]) -> None:
    for actr in both:
        assert re.search(r"io.containerd.content.v1 +content +- +ok", actr("plugins", "ls")[1])
        assert "Type:          io.containerd.content.v1" in actr("plugins", "ls", "-d", "id==content")[1]


def test_namespaces_are_created_labelled_and_removed(both: tuple[Actr, Actr]) -> None:
    equal(both, "namespaces", "create", "other", "a=b")
    equal(both, "namespaces", "create", "other")
    equal(both, "namespaces", "label", "other", "c=d", "a=")
    for actr in both:
        assert re.search(r"(?m)^other +c=d$", actr("namespaces", "ls")[1])
    equal(both, "namespaces", "rm", "other")
    assert equal(both, "namespaces", "rm", "other")[0] == 1


def test_images_are_tagged_and_removed(imported: tuple[Actr, Actr]) -> None:
    assert equal(imported, "images", "tag", NAME, "x:1")[0] == 0
    assert "already exists" in equal(imported, "images", "tag", NAME, "x:1")[2]
    assert equal(imported, "images", "tag", "--force", NAME, "x:1")[0] == 0
    assert equal(imported, "images", "rm", "x:1")[0] == 0
    assert "not found" in equal(imported, "images", "rm", "x:1")[2]


@pytest.mark.parametrize(
    ("args", "status", "out"),
    [
        (("c1", "cat", "/etc/hello"), 0, "hello\n"),
        (("c1", "sh", "-c", "cat; exit 7"), 7, "input\n"),
        (("--env", "A=b", "c1", "sh", "-c", "echo $A"), 0, "b\n"),
        (("--cwd", "/tmp", "c1", "pwd"), 0, "/tmp\n"),
        (("--hostname", "hh", "c1", "hostname"), 0, "hh\n"),
        (("--user", "nobody", "c1", "id"), 0, "uid=65534(nobody) gid=65534(nogroup) groups=65534(nogroup)\n"),
        (("--user", "12:34", "c1", "id"), 0, "uid=12 gid=34 groups=34\n"),
        (("--read-only", "c1", "touch", "/x"), 1, ""),
        (
            ("--mount", "type=bind,src=/etc,dst=/mnt,options=rbind:ro", "c1", "ls", "-d", "/mnt/passwd"),
            0,
            "/mnt/passwd\n",
        ),
        (("--memory-limit", "64m", "--net-host", "c1", "true"), 0, ""),
    ],
)
def test_run_gives_the_status_and_the_output_and_leaves_nothing(
    imported: tuple[Actr, Actr], args: tuple[str, ...], status: int, out: str
) -> None:
    found = equal(imported, "run", "--rm", *args[: args.index("c1")], NAME, *args[args.index("c1") :], stdin=b"input\n")
    assert found[:2] == (status, out)
    assert [actr.left() for actr in imported] == [[], []]


@pytest.mark.parametrize(
    "args",
    [("--user", "ghost", NAME, "c1", "true"), (NAME, "c1", "/nonexistent"), ("docker.io/library/no:1", "c1", "true"),
     ("--user", "2147483648", NAME, "c1", "true"), ("--mount", "dst", NAME, "c1", "true")],
)  # fmt: skip
def test_a_run_that_fails_says_so_on_one_line_and_leaves_nothing(
    imported: tuple[Actr, Actr], args: tuple[str, ...]
) -> None:
    for actr in imported:
        status, _, err = actr("run", "--rm", *args)
        assert status == 1
        assert re.fullmatch(r"actr: [^\n]+\n", err)
        assert actr.left() == []


@pytest.mark.parametrize("command", [("run", "--rm", "-t", NAME, "c1", "sh"), ("tasks", "exec", "-t", "c5", "sh")])
def test_a_terminal_is_refused_where_there_is_none(imported: tuple[Actr, Actr], command: tuple[str, ...]) -> None:
    with kept(imported, "c5"):
        status, out, err = equal(imported, *command)
        assert (status, out) == (1, "")
        assert "standard input is not a terminal" in err
        for actr in imported:
            assert len(actr("tasks", "ps", "c5")[1].splitlines()) == 2, "the header and sleep"
            assert "c1" not in actr.left()


@contextmanager
def kept(both: tuple[Actr, Actr], container_id: str) -> Iterator[None]:
    """Keep a container that sleeps running during the block."""
    for actr in both:
        assert actr("run", "-d", NAME, container_id, "sleep", "1000")[0] == 0
    try:
        yield
    finally:
        for actr in both:
            actr("containers", "rm", "-f", container_id)
    assert [actr.left() for actr in both] == [[], []]


def test_the_id_of_a_running_exec_is_left_to_it(imported: tuple[Actr, Actr]) -> None:
    exec_args = ("tasks", "exec", "--exec-id", "e1", "c5")
    with kept(imported, "c5"):
        equal(imported, *exec_args[:2], "-d", *exec_args[2:], "sleep", "1000")
        for detach in ([], ["-d"]):
            status, _, err = equal(imported, *exec_args[:2], *detach, *exec_args[2:], "true")
            assert status == 1
            assert "already exists" in err
        for actr in imported:
            assert len(actr("tasks", "ps", "c5")[1].splitlines()) == 3, "the header and both processes"


def test_a_detached_process_may_have_a_terminal(imported: tuple[Actr, Actr]) -> None:
    for actr in imported:
        try:
            assert actr("run", "-d", "-t", NAME, "c6", "sleep", "1000")[0] == 0
            assert actr("tasks", "exec", "-d", "-t", "c6", "sleep", "1000")[0] == 0
            assert len(actr("tasks", "ps", "c6")[1].splitlines()) == 3
        finally:
            actr("containers", "rm", "-f", "c6")
        assert actr.left() == []


@pytest.mark.parametrize("command", [("run", "--rm", NAME, "c1", "yes"), ("tasks", "exec", "c5", "yes")])
def test_a_reader_that_goes_ends_the_process(imported: tuple[Actr, Actr], command: tuple[str, ...]) -> None:
    with kept(imported, "c5"):
        for actr in imported:
            status, err = _read_first(actr, *command)
            assert (status, err) == (141, "")
            assert len(actr("tasks", "ps", "c5")[1].splitlines()) == 2, "the header and sleep"


@pytest.mark.parametrize("command", [("images", "ls"), ("plugins", "ls", "-d"), ("--help",), ("images", "--help")])
def test_a_reader_that_goes_ends_any_command_quietly(both: tuple[Actr, Actr], command: tuple[str, ...]) -> None:
    for actr in both:
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run(actr.command(*command), stdout=writing, stderr=subprocess.PIPE, timeout=LIMIT_S)
        os.close(writing)
        assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("command", [("images", "ls"), ("run", "--rm", NAME, "c1", "echo", "hi"), ("--help",)])
def test_an_output_that_is_full_or_closed_ends_any_command_on_one_line(
    imported: tuple[Actr, Actr], command: tuple[str, ...]
) -> None:
    for actr in imported:
        line = shlex.join(actr.command(*command))
        full = subprocess.run(["sh", "-c", f"{line} >/dev/full"], capture_output=True, timeout=LIMIT_S)
        assert full.returncode == 1
        assert re.fullmatch(rb"[^\n]*No space left on device\n", full.stderr)
        closed = subprocess.run(["sh", "-c", f"{line} >&- <&-"], capture_output=True, timeout=LIMIT_S)
        assert (closed.returncode, closed.stderr) == (0, b"")
        assert actr.left() == []


def _read_first(actr: Actr, *args: str) -> tuple[int, str]:
    """Run a command, read its first line, close the pipe; return its status and complaints."""
    command = actr.command(*args)
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        assert program.stdout.readline() == b"y\n"
        program.stdout.close()
        return program.wait(LIMIT_S), program.stderr.read().decode()


def test_sigterm_ends_a_command_that_waits_for_its_reader(both: tuple[Actr, Actr]) -> None:
    for actr in both:
        with subprocess.Popen(actr.command("events"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as program:
            assert program.stdout is not None
            capacity = fcntl.fcntl(program.stdout, fcntl.F_SETPIPE_SZ, 4096)
            number = 0
            while _unread(program.stdout.fileno()) < capacity - 512:  # until it has no room for another line
                actr.daemon.ctr("namespaces", "create", f"n{number}", check=False)
                actr.daemon.ctr("namespaces", "rm", f"n{number}", check=False)
                number += 1
            program.send_signal(signal.SIGTERM)
            assert program.wait(LIMIT_S) == 143


def _unread(pipe: int) -> int:
    return int(struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, b"\0" * 4))[0])


def test_sigterm_ends_an_import_that_waits_for_its_input(both: tuple[Actr, Actr]) -> None:
    for actr in both:
        command = actr.command("images", "import", "-")
        with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as program:
            wait_for(lambda actr=actr: [entry for entry in actr.left() if entry], "the lease of the import")
            program.send_signal(signal.SIGTERM)
            assert program.wait(LIMIT_S) == 143
        assert actr.left() == []


def test_sigterm_ends_a_pull_that_waits_for_its_registry(both: tuple[Actr, Actr]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        name = f"127.0.0.1:{silent.getsockname()[1]}/a/b:1"
        for actr in both:
            command = actr.command("images", "pull", "--plain-http", name)
            with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as program:
                assert program.stderr is not None
                silent.accept()[0].close()  # the first attempt; the lease is there
                program.send_signal(signal.SIGTERM)
                assert program.wait(LIMIT_S) == 143
                assert program.stderr.read() == b"actr: interrupted; what was begun has been undone\n"
            assert actr.left() == []


def test_the_config_explained_is_that_of_the_daemon(both: tuple[Actr, Actr]) -> None:
    debians, ours = both
    assert ours("config", "explain", "root")[1] == f'root = "{ours.daemon.root}"  # --root\n'
    assert "has no key ghost" in ours("config", "explain", "ghost")[2]
    assert "does not tell its config; --config explains a file" in debians("config", "explain", "root")[2]


def test_large_input_comes_back_whole(imported: tuple[Actr, Actr]) -> None:
    data = os.urandom(3 << 20)
    for actr in imported:
        done = subprocess.run(
            actr.command("run", "--rm", NAME, "c1", "cat"), input=data, capture_output=True, timeout=LIMIT_S
        )
        assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest(), done.stderr


def test_a_detached_container_is_managed_by_the_other_commands(imported: tuple[Actr, Actr]) -> None:
    assert equal(imported, "run", "-d", NAME, "c2", "sleep", "100")[0] == 0
    assert "RUNNING" in equal(imported, "tasks", "ls")[1]
    equal(imported, "containers", "ls")
    equal(imported, "tasks", "ps", "c2")
    assert equal(imported, "tasks", "exec", "c2", "sh", "-c", "echo in; exit 3")[:2] == (3, "in\n")
    assert equal(imported, "tasks", "exec", "--user", "nobody", "--cwd", "/tmp", "c2", "sh", "-c", "id -u; pwd")[1]
    equal(imported, "tasks", "pause", "c2")
    assert "PAUSED" in equal(imported, "tasks", "ls")[1]
    equal(imported, "tasks", "resume", "c2")
    assert "must be stopped" in equal(imported, "containers", "rm", "c2")[2]
    specs = [json.loads(actr("containers", "info", "--spec", "c2")[1]) for actr in imported]
    for spec in specs:
        spec["linux"].pop("cgroupsPath")
    assert specs[0] == specs[1]
    equal(imported, "tasks", "kill", "-s", "KILL", "c2")
    for actr in imported:
        wait_for(lambda actr=actr: re.search(r"(?m)^c2 .*STOPPED", actr("tasks", "ls")[1]), "the end of c2")
    assert equal(imported, "tasks", "rm", "c2")[0] == 137
    assert equal(imported, "containers", "rm", "c2")[0] == 0
    assert [actr.left() for actr in imported] == [[], []]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_go_to_the_process(imported: tuple[Actr, Actr], number: signal.Signals) -> None:
    script = "trap 'exit 9' INT TERM; echo up; while :; do sleep 0.1; done"
    for actr in imported:
        with _running(actr, "run", "--rm", NAME, "c3", "sh", "-c", script) as program:
            program.send_signal(number)
            assert program.wait(LIMIT_S) == 9
        assert actr.left() == []


def test_a_process_that_ignores_signals_is_killed_at_the_third(imported: tuple[Actr, Actr]) -> None:
    script = "trap 'echo again' TERM; echo up; while :; do sleep 0.1; done"
    for actr in imported:
        with _running(actr, "run", "--rm", NAME, "c3", "sh", "-c", script) as program:
            assert program.stdout is not None
            for _ in range(2):
                program.send_signal(signal.SIGTERM)
                assert program.stdout.readline() == b"again\n"
            program.send_signal(signal.SIGTERM)
            assert program.wait(LIMIT_S) == 137
        assert actr.left() == []


@contextmanager
def _running(actr: Actr, *args: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(actr.command(*args), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        try:
            assert program.stdout.readline() == b"up\n"
            yield program
        finally:
            if program.poll() is None:
                program.kill()


def test_a_terminal_has_the_size_of_ours(imported: tuple[Actr, Actr]) -> None:
    for actr in imported:
        ours, theirs = pty.openpty()
        subprocess.run(["stty", "rows", "33", "cols", "77"], stdin=theirs, check=True)
        script = 'tty; until [ "$(stty size)" = "33 77" ]; do sleep 0.1; done; stty size; read x; echo got $x'
        command = actr.command("run", "--rm", "-t", NAME, "c4", "sh", "-c", script)
        with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True) as program:
            os.close(theirs)
            seen = _read_until(ours, b"33 77")
            os.write(ours, b"word\n")
            seen += _read_until(ours, b"got word")
            assert program.wait(LIMIT_S) == 0
        os.close(ours)
        assert b"/dev/pts/0" in seen
        assert actr.left() == []


def _read_until(descriptor: int, wanted: bytes) -> bytes:
    seen, until = b"", time.monotonic() + LIMIT_S
    while wanted not in seen and time.monotonic() < until:
        if select.select([descriptor], [], [], 1)[0]:
            try:
                seen += os.read(descriptor, 4096)
            except OSError:
                break
    assert wanted in seen, seen
    return seen


def test_events_are_shown_as_they_come(both: tuple[Actr, Actr]) -> None:
    for actr in both:
        with subprocess.Popen(actr.command("events", 'topic=="/namespaces/create"'), stdout=subprocess.PIPE) as program:
            assert program.stdout is not None
            while not select.select([program.stdout], [], [], 0.1)[0]:  # it has yet to subscribe
                actr("namespaces", "create", "seen")
                actr("namespaces", "rm", "seen")
            line = program.stdout.readline().decode()
            program.send_signal(signal.SIGINT)
            assert program.wait(LIMIT_S) == 130
        assert "/namespaces/create" in line
        assert '"name":"seen"' in line


def test_events_with_options_of_a_runtime_and_foreign_ones_are_shown(imported: tuple[Actr, Actr]) -> None:
    for actr in imported:
        filters = ('topic=="/containers/create"', 'topic=="/acme/happened"')
        with subprocess.Popen(actr.command("events", *filters), stdout=subprocess.PIPE) as program:
            assert program.stdout is not None
            while not select.select([program.stdout], [], [], 0.1)[0]:  # it has yet to subscribe
                _publish(actr, "/acme/happened", b"\x0a\x09acme.Type\x12\x01\xff")
            assert b'/acme/happened {"type_url":"acme.Type","value":"/w=="}' in program.stdout.readline()
            actr("run", "--rm", "--runc-binary", "runc", NAME, "c7", "true")
            line = b""
            while b"/containers/create" not in line:
                line = program.stdout.readline()
            assert b'"options":{"type_url":"containerd.runc.v1.Options","value":' in line
            program.send_signal(signal.SIGINT)
            assert program.wait(LIMIT_S) == 130


def _publish(actr: Actr, topic: str, event: bytes) -> None:
    """Publish an event, a serialised `google.protobuf.Any`, as shims do."""
    command = [str(SCRIPTS / "aiocontainerd"), "-a", str(actr.daemon.address), "publish"]
    subprocess.run([*command, "--topic", topic, "--namespace", "n"], input=event, check=True, timeout=LIMIT_S)


def test_a_pull_brings_labels_snapshots_and_name(both: tuple[Actr, Actr], archive: Path, tmp_path: Path) -> None:
    with docker_registry(tmp_path) as registry:
        push(archive, registry, "some/thing:1")
        name = f"{registry}/some/thing:1"
        debians, ours = (actr("images", "pull", name) for actr in both)
        assert (ours[0], sorted(ours[1].splitlines())) == (0, sorted(debians[1].splitlines())), ours[2]
        collect(both, name)
        assert "containerd.io/distribution.source.127.0.0.1=some/thing" in equal(both, "content", "ls")[1]
        assert equal(both, "run", "--rm", name, "c1", "cat", "/etc/hello")[1] == "hello\n"
        assert "not found" in equal(both, "images", "pull", f"{registry}/some/thing:2")[2]
        for actr in both:
            assert "it has linux/amd64, linux/arm64" in actr("images", "pull", "--platform", "s390x", name)[2]
        assert "object required" in equal(both, "images", "pull", f"{registry}/some/thing")[2]
        assert equal(both, "images", "rm", name)[0] == 0
    assert [actr.left() for actr in both] == [[], []]


@pytest.mark.parametrize(
    ("fault", "message"),
    [("damaged", "the registry sent something else"), ("truncated", "breaks off after"), ("longer", "is larger than"),
     ("diff_id", "wrong diff id")],
)  # fmt: skip
def test_a_pull_of_wrong_bytes_names_them_and_leaves_nothing(both: tuple[Actr, Actr], fault: str, message: str) -> None:
    with _faulty_registry(fault) as host:
        for actr in both:
            status, _, err = actr("images", "pull", "--plain-http", f"{host}/some/thing:1")
            assert status == 1
            assert message in err
            assert actr.left() == []
            assert f"{host}/some/thing:1" not in actr("images", "ls", "-q")[1]


@contextmanager
def _faulty_registry(fault: str) -> Iterator[str]:
    """Run a registry of one image whose second layer does not fit its digest or the image config."""
    layer = images.BuiltLayer(images.tar_of([images.entry(f"f-{fault}", os.urandom(2000))]))
    image = images.BuiltImage(layers=[LAYER, layer])
    manifest, blobs = image.blobs()
    if fault == "diff_id":
        lie = json.loads(image.config().data)
        lie["rootfs"]["diff_ids"][1] = "sha256:" + "a" * 64
        config = images.Blob(json.dumps(lie).encode())
        body = json.loads(manifest.data)
        body["config"] = config.descriptor(images.CONFIG_TYPE)
        manifest = images.Blob(json.dumps(body).encode())
        blobs = [*blobs, config, manifest]
    served = {blob.digest: blob.data for blob in blobs}
    good = served[layer.blob().digest]
    changed = {"damaged": good[:-9] + bytes([good[-9] ^ 1]) + good[-8:], "truncated": good[:50], "longer": good + b"x"}
    served[layer.blob().digest] = changed.get(fault, good)
    with _serving(served, manifest) as host:
        yield host


@contextmanager
def _serving(blobs: dict[str, bytes], manifest: images.Blob) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            document = "/manifests/" in self.path
            data = manifest.data if document else blobs.get(self.path.rpartition("/")[2], b"")
            self.send_response(200)
            self.send_header("Content-Type", images.MANIFEST_TYPE if document else "application/octet-stream")
            self.send_header("Docker-Content-Digest", manifest.digest)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        do_HEAD = do_GET

        def log_message(self, *_args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_daemon_that_is_not_there_is_named_with_what_to_do(tmp_path: Path) -> None:
    done = subprocess.run([str(SCRIPTS / "actr"), "-a", f"{tmp_path}/no.sock", "version"], capture_output=True)
    assert done.returncode == 1
    assert done.stderr.decode() == (
        f"actr: cannot reach a daemon at {tmp_path}/no.sock: No such file or directory; "
        "is it running? name its socket with -a\n"
    )


def test_docker_archives_are_imported(both: tuple[Actr, Actr], tmp_path: Path) -> None:
    path = tmp_path / "docker.tar"
    config = images.BuiltImage(layers=[LAYER]).config()
    saved = [{"Config": "cfg.json", "RepoTags": ["saved:1"], "Layers": ["one/layer.tar"]}]
    entries = [
        images.entry("real/layer.tar", LAYER.tar),
        images.entry("one/layer.tar", kind=b"2", link="../real/layer.tar"),
        images.entry("cfg.json", config.data),
        images.entry("manifest.json", json.dumps(saved).encode()),
    ]
    path.write_bytes(images.tar_of(entries))
    for args in (str(path), "-"):
        status, out, err = equal(both, "images", "import", args, stdin=path.read_bytes())
        assert status == 0, err
        assert "docker.io/library/saved:1" in out
    assert equal(both, "run", "--rm", "docker.io/library/saved:1", "c1", "echo", "hi")[1] == "hi\n"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([images.entry("x", b"y")], "unrecognized image format"),
        ([images.entry("../x", b"y")], "leaves the archive"),
        ([images.entry(f"blobs/sha256/{'a' * 64}", b"y")], "the archive is damaged"),
        (
            [images.entry("oci-layout", b'{"imageLayoutVersion":"2"}'), images.entry("index.json", b"{}")],
            "not supported",
        ),
        ([images.entry("manifest.json", b'[{"Config":"nope"}]')], "which is not in it"),
    ],
)
def test_other_archives_are_refused_and_leave_nothing(
    both: tuple[Actr, Actr], tmp_path: Path, entries: list[tuple[object, bytes]], message: str
) -> None:
    path = tmp_path / "bad.tar"
    path.write_bytes(images.tar_of(entries))  # type: ignore[arg-type]
    assert message in equal(both, "images", "import", str(path))[2]
    assert [actr.left() for actr in both] == [[], []]
