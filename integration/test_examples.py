"""The examples of contrib/, installed from their own folders and used by a daemon, as a reader of their pages would."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from aiocontainerd.testing.images import BuiltImage, BuiltLayer, busybox_layer, entry, tar_of, write_archive
from harness import REPOSITORY, SCRIPTS, Debians, Ours, Peer, docker_registry, listens, peer, processes_of, push

pytestmark = [pytest.mark.root, pytest.mark.integration, pytest.mark.timeout(180)]

EXAMPLES = ("credentials-command", "event-webhook", "service-hello", "snapshotter-reflink", "verifier-signature")
NAME = "docker.io/library/example:1"
LIMIT_S = 20.0
STATUSES = ("ok", "skip", "error", "disabled", "absent", "connecting", "failed")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install all examples, each from its folder, into a directory outside of the tests' environment."""
    target = tmp_path_factory.mktemp("installed")
    folders = [str(REPOSITORY / "contrib" / name) for name in EXAMPLES]
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, "--target", str(target), *folders], check=True)
    return target


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an image of two layers, so that one snapshot is made from another."""
    path = tmp_path_factory.mktemp("image") / "image.tar"
    layers = [busybox_layer(), BuiltLayer(tar_of([entry("etc/hello", b"hello from a layer\n")]))]
    write_archive(path, NAME, [BuiltImage(layers=layers)])
    return path


@pytest.fixture(scope="module")
def image(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run a registry with the same image."""
    with docker_registry(tmp_path_factory.mktemp("registry")) as address:
        push(archive, address, "example:1")
        yield f"{address}/example:1"


@contextmanager
def daemon(installed: Path, config: str = "") -> Iterator[Peer]:
    """Our daemon with the examples on its path, and more config; `{directory}` in it is the daemon's own."""

    class WithExamples(Ours):
        def default_config(self) -> str:
            return super().default_config() + config.replace("{directory}", str(self.directory))

        def environment(self) -> dict[str, str]:
            return {**super().environment(), "PYTHONPATH": str(installed)}

    with peer(WithExamples) as started:
        yield started


def actr(daemon: Peer, *args: str) -> str:
    command = [str(SCRIPTS / "actr"), "-a", str(daemon.address), "-n", daemon.namespace, *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, f"{done.stderr}\n{daemon.log()[-4000:]}"
    return done.stdout


def rows(daemon: Peer) -> dict[str, str]:
    """`<kind>.<id>` -> status of every plugin, as `actr plugins ls` tells it."""
    table = (line.split() for line in actr(daemon, "plugins", "ls").splitlines()[1:])
    return {f"{line[0]}.{line[1]}": next(word for word in line[2:] if word in STATUSES) for line in table}


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < end, "it did not become true in time"
        time.sleep(0.02)


# all of them

IN_COPY_OF_ENVIRONMENT = """
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work"
mount -t overlay overlay -o "lowerdir=$2,upperdir=$1/upper,workdir=$1/work" "$2"
shift 2
.venv/bin/pip install --quiet --no-build-isolation "$@"
exec .venv/bin/python contrib/quickstart/quickstart.py run --snapshotter reflink
"""
"""The commands of README.md; what they install is on an overlay that only they see."""


def test_examples_install_into_the_environment_of_make_run(tmp_path: Path) -> None:
    environment = SCRIPTS.parent
    if environment != REPOSITORY / ".venv":
        pytest.skip(f"the tests do not run in the environment that `make run` sets up, but in {environment}")
    folders = [f"./contrib/{name}" for name in EXAMPLES]
    script = ["unshare", "-m", "sh", "-euc", IN_COPY_OF_ENVIRONMENT, "sh", str(tmp_path), str(environment), *folders]
    offline = {
        **os.environ,
        "PIP_NO_INDEX": "1",
        "PIP_ROOT_USER_ACTION": "ignore",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    done = subprocess.run(script, cwd=REPOSITORY, env=offline, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    assert "hello from a container under aiocontainerd\n" in done.stdout


@pytest.mark.parametrize(
    ("suite", "target", "config"),
    [
        ("snapshotter", "aiocontainerd_snapshotter_reflink.plugin:ReflinkSnapshotter", ()),
        ("event_sink", "aiocontainerd_event_webhook.plugin", ("target={tmp}/events.jsonl",)),
        ("verifier", "aiocontainerd_verifier_signature.plugin", ("keys_dir={tmp}", "signatures_dir={tmp}")),
    ],
)
def test_examples_pass_the_suites_of_their_kinds(
    installed: Path, tmp_path: Path, suite: str, target: str, config: tuple[str, ...]
) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--pyargs",
        f"aiocontainerd.testing.{suite}",
    ]
    options = ["--target", target, *(f"--target-config={key}" for key in config)]
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run([*command, *options], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


# snapshotter-reflink


def use_reflink(daemon: Peer, image: str, snapshotter: str = "reflink") -> None:
    """Pull, run and remove on the snapshotter; nothing of it is left."""
    daemon.ctr("images", "pull", "--plain-http", "--snapshotter", snapshotter, image)
    command = ["sh", "-c", "cat /etc/hello; echo changed > /etc/hello; cat /etc/hello"]
    for _ in range(2):
        done = daemon.ctr("run", "--rm", "--snapshotter", snapshotter, image, "demo", *command)
        assert done.stdout == b"hello from a layer\nchanged\n"
    listed = daemon.ctr("snapshots", "--snapshotter", snapshotter, "ls").stdout.decode().splitlines()[1:]
    assert [line.split()[-1] for line in listed] == ["Committed", "Committed"]
    daemon.ctr("images", "rm", "--sync", image)
    assert len(daemon.ctr("snapshots", "--snapshotter", snapshotter, "ls").stdout.decode().splitlines()) == 1


def test_containers_run_on_reflink_in_the_daemon(installed: Path, image: str, archive: Path) -> None:
    with daemon(installed) as ours:
        assert rows(ours)["io.containerd.snapshotter.v1.reflink"] == "ok"
        use_reflink(ours, image)
        assert list((ours.root / "io.containerd.snapshotter.v1.reflink/snapshots").iterdir()) == []
        ours.ctr("images", "import", "--snapshotter", "reflink", str(archive))
        assert ours.ctr("run", "--rm", "--snapshotter", "reflink", NAME, "demo", "echo", "hi").stdout == b"hi\n"


def test_containers_run_on_reflink_in_a_process_of_its_own(installed: Path, image: str) -> None:
    isolation = '[plugin_isolation]\n"io.containerd.snapshotter.v1.reflink" = "process"\n'
    with daemon(installed, isolation) as ours:
        until(lambda: rows(ours)["io.containerd.snapshotter.v1.reflink"] == "ok")
        lines = [line for pid, line in processes_of(ours.directory, ours.namespace) if pid != ours.pid]
        assert any("reflink" in line for line in lines), lines
        use_reflink(ours, image)


def test_snapshots_stay_where_a_plugin_is_moved(installed: Path, archive: Path) -> None:
    """One key moves it; records and files are the same before and after."""
    with daemon(installed) as ours:
        ours.ctr("images", "import", "--snapshotter", "reflink", str(archive))
        before = ours.ctr("snapshots", "--snapshotter", "reflink", "ls").stdout
        ours.stop()
        with ours.config_path.open("a") as config:
            config.write('[plugin_isolation]\n"io.containerd.snapshotter.v1.reflink" = "process"\n')
        ours.start()
        assert ours.ctr("snapshots", "--snapshotter", "reflink", "ls").stdout == before
        assert ours.ctr("run", "--rm", "--snapshotter", "reflink", NAME, "demo", "echo", "hi").stdout == b"hi\n"


@contextmanager
def served(installed: Path, target: str, directory: Path) -> Iterator[Path]:
    """Serve a plugin behind a socket, as its page says; yield the socket."""
    socket = directory / "plugin.sock"
    command = [
        str(SCRIPTS / "aiocontainerd-plugin"), "serve", target, "--address", str(socket),
        "--root", str(directory / "root"), "--state", str(directory / "state"),
    ]  # fmt: skip
    server = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(installed)}, cwd=directory)
    try:
        until(lambda: listens(socket) or server.poll() is not None)
        yield socket
    finally:
        server.terminate()
        assert server.wait(LIMIT_S) == 0


def test_containers_of_stock_containerd_run_on_reflink(installed: Path, image: str) -> None:
    directory = Path(tempfile.mkdtemp(prefix="ex-", dir="/tmp"))
    try:
        with served(installed, "aiocontainerd_snapshotter_reflink.plugin", directory) as socket:
            config = f'[proxy_plugins.reflink]\ntype = "snapshot"\naddress = "{socket}"\n'
            with peer(
                Debians, config=f'version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n{config}'
            ) as stock:
                use_reflink(stock, image)
    finally:
        shutil.rmtree(directory)


# event-webhook

WEBHOOK = '[plugins."io.containerd.event-sink.v1.webhook"]\n'


def test_events_of_a_run_are_lines_in_their_order(installed: Path, archive: Path) -> None:
    config = WEBHOOK + 'target = "{directory}/events.jsonl"\nfilters = ["topic~=^/(tasks|containers)/"]\n'
    with daemon(installed, config) as ours:
        ours.ctr("images", "import", "--snapshotter", "native", str(archive))
        ours.ctr("run", "--rm", "--snapshotter", "native", NAME, "demo", "sh", "-c", "exit 7", check=False)
        path = ours.directory / "events.jsonl"
        until(lambda: path.exists() and "/containers/delete" in path.read_text())
        events = [json.loads(line) for line in path.read_text().splitlines()]
    assert [event["topic"] for event in events] == [
        "/containers/create", "/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete", "/containers/delete",
    ]  # fmt: skip
    assert {event["namespace"] for event in events} == {ours.namespace}
    assert events[3]["event"]["exit_status"] == 7
    assert events[0]["event"]["image"] == NAME


@contextmanager
def receiver(statuses: list[int]) -> Iterator[tuple[str, list[bytes]]]:
    """Run an HTTP server that answers with one status after the other, then 204.

    Yield its URL and the bodies it took.
    """
    taken: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status = statuses.pop(0) if statuses else 204
            if status == 204:
                taken.append(body)
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing is printed."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", taken
        finally:
            server.shutdown()
            thread.join()


def test_events_reach_a_url_in_their_order_though_it_was_busy(installed: Path, archive: Path) -> None:
    with receiver([503, 503]) as (url, taken):
        config = WEBHOOK + f'target = "{url}"\nbackoff = "10ms"\nfilters = ["topic~=^/tasks/"]\n'
        with daemon(installed, config) as ours:
            ours.ctr("images", "import", "--snapshotter", "native", str(archive))
            ours.ctr("run", "--rm", "--snapshotter", "native", NAME, "demo", "true")
            until(lambda: len(taken) == 4)
    topics = [json.loads(body)["topic"] for body in taken]
    assert topics == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]


def test_url_that_cannot_be_reached_costs_nobody_anything(installed: Path, archive: Path) -> None:
    config = WEBHOOK + 'target = "http://127.0.0.1:9/"\nattempts = 2\nbackoff = "10ms"\n'
    with daemon(installed, config) as ours:
        ours.ctr("images", "import", "--snapshotter", "native", str(archive))
        assert ours.ctr("run", "--rm", "--snapshotter", "native", NAME, "demo", "echo", "hi").stdout == b"hi\n"
        until(lambda: "io.containerd.event-sink.v1.webhook did not deliver" in ours.log())
        assert rows(ours)["io.containerd.event-sink.v1.webhook"] == "ok"


# service-hello

HELLO_CLIENT = """
import sys
import grpc
import hello_pb2, hello_pb2_grpc

address, namespace = sys.argv[1:]
with grpc.insecure_channel(f"unix://{address}") as channel:
    stub = hello_pb2_grpc.HelloStub(channel)
    metadata = [("containerd-namespace", namespace)]
    request = hello_pb2.SayHelloRequest(name="world")
    answer = stub.SayHello(request, metadata=metadata, timeout=10)
    print(answer.message, answer.namespace)
    watched = stub.WatchHello(hello_pb2.WatchHelloRequest(name="you", count=2), metadata=metadata, timeout=10)
    print([answer.message for answer in watched])
    try:
        stub.SayHello(hello_pb2.SayHelloRequest(), metadata=metadata, timeout=10)
    except grpc.RpcError as error:
        print(error.code().name, error.details())
"""


def test_grpc_client_of_another_stack_is_greeted(installed: Path, tmp_path: Path) -> None:
    proto = REPOSITORY / "contrib/service-hello/proto/example/hello/v1"
    protoc = ["-m", "grpc_tools.protoc", f"-I{proto}", f"--python_out={tmp_path}", f"--grpc_python_out={tmp_path}"]
    subprocess.run([sys.executable, *protoc, str(proto / "hello.proto")], check=True, capture_output=True)
    (tmp_path / "client.py").write_text(HELLO_CLIENT)
    with daemon(installed, '[plugins."io.containerd.grpc.v1.hello"]\ngreeting = "Good morning"\n') as ours:
        assert rows(ours)["io.containerd.grpc.v1.hello"] == "ok"
        client = [sys.executable, str(tmp_path / "client.py"), str(ours.address), ours.namespace]
        done = subprocess.run(client, capture_output=True, text=True, timeout=LIMIT_S)
        ours.ctr("images", "ls")
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        f"Good morning, world! {ours.namespace}",
        "['Good morning, you!', 'Good morning, you!']",
        "INVALID_ARGUMENT name must not be empty: invalid argument",
    ]


# verifier-signature and credentials-command: until a pull asks them, a plugin of the test does

ASKER = """
import json

import anyio
from aiocontainerd.plugin import Descriptor, kinds, register

@register(kinds.INTERNAL, "asker", requires=[kinds.IMAGE_VERIFIER, kinds.CREDENTIALS])
async def asker(context):
    verifier = context.get(kinds.IMAGE_VERIFIER, "signature")
    provider = context.get(kinds.CREDENTIALS, "command")
    verdicts = [await verifier.verify("a", Descriptor("x/y", "sha256:" + c * 64, 1), None) for c in "01"]
    found = await provider.credentials("registry.example.com", "registry.example.com/a:1")
    answers = [verdict.ok for verdict in verdicts], found.username, found.secret, repr(found)
    await anyio.Path(context.state / "answers").write_text(json.dumps(answers))
"""
JUDGES = """
[python_plugins.asker]
module = "asker"
[plugins."io.containerd.image-verifier.v1.signature"]
keys_dir = "{trust}"
signatures_dir = "{trust}"
[plugins."io.containerd.registry-credentials.v1.command".hosts]
"registry.example.com" = ["{trust}/helper"]
"""


def sign(directory: Path, digest: str) -> None:
    """Make a key pair with openssl, and sign a digest with it."""
    (directory / "digest").write_text(digest)
    for command in (
        "openssl genpkey -algorithm ed25519 -out private",
        "openssl pkey -in private -pubout -out release.pem",
        f"openssl pkeyutl -sign -rawin -inkey private -in digest -out {digest.partition(':')[2]}.sig",
    ):
        subprocess.run(command.split(), cwd=directory, check=True, capture_output=True)


def test_verifier_and_credentials_are_loaded_and_answer(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "asker.py").write_text(ASKER)
    (tmp_path / "helper").write_text('#!/bin/sh\necho \'{"Username":"me","Secret":"hunter2"}\'\n')
    (tmp_path / "helper").chmod(0o755)
    sign(tmp_path, f"sha256:{'0' * 64}")
    with daemon(Path(f"{installed}:{tmp_path}"), JUDGES.replace("{trust}", str(tmp_path))) as ours:
        states = rows(ours)
        assert states["io.containerd.image-verifier.v1.signature"] == "ok"
        assert states["io.containerd.registry-credentials.v1.command"] == "ok"
        assert states["io.containerd.internal.v1.asker"] == "ok", ours.log()
        answers = json.loads((ours.state / "io.containerd.internal.v1.asker/answers").read_text())
        assert "hunter2" not in ours.log()
    shown = "Credentials(username='me', secret=<redacted>, expires_at_ns=None)"
    assert answers == [[True, False], "me", "hunter2", shown]


def test_examples_without_config_are_skipped_with_a_reason(installed: Path) -> None:
    with daemon(installed) as ours:
        states = rows(ours)
        detailed = actr(ours, "plugins", "ls", "--detailed")
    skipped = {
        "io.containerd.event-sink.v1.webhook": "no target is configured",
        "io.containerd.image-verifier.v1.signature": "keys_dir and signatures_dir are not configured",
        "io.containerd.registry-credentials.v1.command": "no command is configured for any host",
    }
    for uri, reason in skipped.items():
        assert states[uri] == "skip"
        assert reason in detailed
