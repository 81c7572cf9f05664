"""The program `aiocontainerd`: its config commands, `publish`, and what its errors look like."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import anyio
import pytest
from click.testing import CliRunner, Result

import aiocontainerd
from aiocontainerd import api, context, errors
from aiocontainerd.cli.daemon import DaemonFlags, main
from aiocontainerd.config import load
from aiocontainerd.daemon import lock
from aiocontainerd.daemon import run as daemon_run
from aiocontainerd.rpc.grpc import GrpcFrontEnd
from aiocontainerd.rpc.sockets import bind_unix
from aiocontainerd.wire import codec

GRPC = "io.containerd.server.v1.grpc"
TTRPC = "io.containerd.server.v1.ttrpc"
GC = "io.containerd.gc.v1.scheduler"


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers = handlers
    root.setLevel(level)


def run(*args: str | Path, stdin: bytes = b"") -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args], input=stdin)


def printed(*args: str | Path) -> dict[str, Any]:
    done = run(*args)
    assert done.exit_code == 0, done.output
    return tomllib.loads(done.stdout)


def file(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_the_version_is_a_line() -> None:
    assert run("--version").stdout == run("-v").stdout == f"aiocontainerd {aiocontainerd.__version__}\n"


def test_the_default_config_loads_again_to_itself(tmp_path: Path) -> None:
    text = run("config", "default").stdout
    own = file(tmp_path / "c.toml", text.replace("/etc/containerd/conf.d/*.toml", str(tmp_path / "none*.toml")))
    assert load(own).settings.root == "/var/lib/containerd"
    again = run("--config", own, "config", "dump").stdout
    assert again.replace(f'    "{tmp_path}/none*.toml",\n', "") == text


def test_a_dump_shows_the_file_its_imports_and_the_default_pattern(tmp_path: Path) -> None:
    file(tmp_path / "more.toml", f'version = 3\n[plugins."{GC}"]\npause_threshold = 0.5\n')
    main_file = file(tmp_path / "c.toml", 'version = 3\nroot = "/r"\nimports = ["more.toml"]\n')
    tree = printed("--config", main_file, "config", "dump")
    assert (tree["version"], tree["root"]) == (4, "/r")
    assert tree["imports"] == ["/etc/containerd/conf.d/*.toml", "more.toml"]
    assert tree["plugins"][GC]["pause_threshold"] == 0.5
    assert tree["plugins"][GC]["mutation_threshold"] == 100


@pytest.mark.parametrize(
    "text",
    [
        '[grpc]\naddress = "/g.sock"\n[plugins.scheduler]\npause_threshold = 0.5\n',
        f'version = 2\n[grpc]\naddress = "/g.sock"\n[plugins."{GC}"]\npause_threshold = 0.5\n',
    ],
    ids=["version 1", "version 2"],
)
def test_older_files_migrate_to_version_4(tmp_path: Path, text: str) -> None:
    tree = printed("--config", file(tmp_path / "c.toml", text), "config", "migrate")
    assert tree["version"] == 4
    assert "grpc" not in tree
    assert tree["plugins"][GRPC]["address"] == "/g.sock"
    assert tree["plugins"][TTRPC]["address"] == "/g.sock.ttrpc"
    assert tree["plugins"][GC]["pause_threshold"] == 0.5


@pytest.mark.parametrize("command", ["dump", "migrate"])
def test_a_missing_file_prints_the_defaults_even_where_it_is_named(tmp_path: Path, command: str) -> None:
    done = run("--config", tmp_path / "none.toml", "config", command)
    assert done.exit_code == 0
    assert done.stdout == run("config", "default").stdout


def test_flags_are_in_the_dump(tmp_path: Path) -> None:
    flags = ("--root", "/r", "--state", "/s", "--address", "/a.sock", "--log-level", "debug")
    tree = printed("--config", tmp_path / "none", *flags, "config", "dump")
    assert (tree["root"], tree["state"], tree["debug"]["level"]) == ("/r", "/s", "debug")
    assert tree["plugins"][GRPC]["address"] == "/a.sock"


@pytest.mark.parametrize("command", ["dump", "migrate"])
def test_a_bad_file_is_one_line_and_status_1(tmp_path: Path, command: str) -> None:
    bad = file(tmp_path / "c.toml", "version = 4\nroot = 1\n")
    done = run("--config", bad, "config", command)
    assert done.exit_code == 1
    assert done.stderr == f"Error: containerd: {bad}:2: root: expected `str`, got `int`; write it in quotes\n"


@pytest.mark.parametrize("command", ["dump", "migrate"])
def test_what_has_no_effect_is_told_beside_the_config(tmp_path: Path, command: str) -> None:
    path = file(tmp_path / "c.toml", "version = 4\nsubreaper = true\n")
    done = run("--config", path, "config", command)
    assert (done.exit_code, done.stderr) == (0, f"{path}:2: subreaper has no effect; containerd dropped it, too\n")
    assert tomllib.loads(done.stdout)["version"] == 4


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("version = 4\n", []),
        ("version = 3\nroto = 1\n[debug]\nlevle = 2\n", ["2: unknown key roto; ", "4: unknown key debug.levle; "]),
        ("version = 4\noom_score = true\n", ["2: oom_score: expected `int`, got `bool`"]),
    ],
)
def test_config_check_names_every_mistake_and_has_status_1_for_one(tmp_path: Path, text: str, found: list[str]) -> None:
    path = file(tmp_path / "c.toml", text)
    done = run("--config", path, "config", "check")
    lines = done.stdout.splitlines()
    assert (done.exit_code, len(lines)) == (1 if found else 0, len(found))
    assert all(line.startswith(f"{path}:{wanted}") for line, wanted in zip(lines, found, strict=True))


def test_config_check_has_status_1_for_a_module_that_cannot_be_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = file(tmp_path / "c.toml", 'version = 4\n[python_plugins.acme]\nmodule = "acme_nowhere.plugin"\n')
    done = run("--config", path, "config", "check")
    assert (done.exit_code, done.stdout) == (1, "")
    assert [message for message in caplog.messages if "acme_nowhere" in message] == [
        "plugin module acme_nowhere.plugin of acme cannot be loaded: "
        "there is no module acme_nowhere.plugin (no acme_nowhere is installed)"
    ]


@pytest.mark.parametrize(
    ("config", "address", "ttrpc"),
    [
        ("version = 4\n", "/a.sock", "/a.sock.ttrpc"),
        ("version = 4\n", "", ""),
        (f'version = 4\n[plugins."{TTRPC}"]\naddress = "/t.sock"\n', "/a.sock", "/t.sock"),
        ('version = 2\n[ttrpc]\naddress = "/t.sock"\n', "/a.sock", "/t.sock"),
        ('version = 2\n[grpc]\naddress = "/g.sock"\n[ttrpc]\naddress = "/t.sock"\n', "/a.sock", "/t.sock"),
        ('version = 2\n[grpc]\naddress = "/g.sock"\n', "/a.sock", "/a.sock.ttrpc"),
        ('version = 2\n[grpc]\naddress = "/g.sock"\n[ttrpc]\naddress = ""\n', "/a.sock", "/a.sock.ttrpc"),
        ('version = 2\n[grpc]\naddress = "/g.sock"\n[ttrpc]\naddress = ""\n', "", "/g.sock.ttrpc"),
        ('version = 2\n[ttrpc]\naddress = ""\n', "", ""),
    ],
)
def test_ttrpc_follows_the_address_flag_where_it_is_not_configured(
    tmp_path: Path, config: str, address: str, ttrpc: str
) -> None:
    flags = DaemonFlags(str(file(tmp_path / "c.toml", config)), address, "", "", "", False)
    assert flags.load().plugin_tables.get(TTRPC, {}).get("address", "") == ttrpc


@pytest.mark.parametrize("flags", [["-root", "/r", "-log-level=debug"], ["--root=/r", "-l", "debug"]])
def test_long_flags_may_have_one_dash_as_in_go(tmp_path: Path, flags: list[str]) -> None:
    done = run("-config", file(tmp_path / "c.toml", "version = 4\n"), *flags, "config", "dump")
    assert done.exit_code == 0, done.stderr
    assert {'root = "/r"', 'level = "debug"'} <= set(done.stdout.splitlines())


def test_an_empty_config_flag_does_not_mean_the_default_file() -> None:
    done = run("--config", "", "config", "dump")
    assert (done.exit_code, "--config is empty; it needs the path of a file" in done.stderr) == (2, True)


def starting(tmp_path: Path, *args: str | Path, config: str = "version = 4\n") -> Result:
    """Return a daemon that must not start, in directories of its own."""
    path = file(tmp_path / "c.toml", config)
    return run("--config", path, "--root", tmp_path / "r", "--state", tmp_path / "s", *args)


@pytest.mark.parametrize(
    ("args", "config", "text"),
    [
        (["--config", "/nothing/c.toml"], "", "failed to load TOML from /nothing/c.toml: No such file or directory"),
        (["--log-level", "loud"], "", 'unknown log level "loud"; use one of trace, '),
        (["--state", "{dir}/r"], "", "root and state must be different directories"),
        (["--root", "/proc/version/r"], "", "root directory /proc/version/r cannot be used: Not a directory; choose"),
        ([], 'version = 4\ntemp = "/proc/version/t"', "Not a directory; choose another: temp = in the config"),
        ([], "version = 9", "expected containerd config version equal to or less than `4`, got `9`"),
        ([], "version = 4\n[plugin_policy]\nalow = []", '{dir}/c.toml:3: unknown key plugin_policy.alow; did you mean'),
        ([], 'version = 4\ndisabled_plugins = ["cri"]', 'invalid disabled plugin URI "cri" expect io.containerd.x.vx'),
        ([], 'version = 4\n[debug]\nformat = "xml"', '{dir}/c.toml:3: debug.format: unknown log format "xml"; use'),
        ([], f'version = 4\n[plugins."{GC}"]\npause_threshold = "1"', "pause_threshold: expected `float`, got `str`"),
    ],
    ids=[
        "no config file", "log level", "root is state", "root is unusable", "temp is unusable", "newer version",
        "unknown key", "disabled plugin", "log format", "plugin key",
    ],
)  # fmt: skip
def test_what_an_operator_can_mend_is_one_line_and_status_1(
    tmp_path: Path, args: list[str], config: str, text: str
) -> None:
    done = starting(tmp_path, *(arg.format(dir=tmp_path) for arg in args), config=config or "version = 4\n")
    assert done.exit_code == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("containerd: ")
    assert text.replace("{dir}", str(tmp_path)) in last
    assert "Traceback" not in done.stderr


def test_a_root_that_is_in_use_is_told_with_its_holder(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    with lock.hold(tmp_path / "r"):
        done = starting(tmp_path)
    assert done.exit_code == 1
    assert f"containerd: root {tmp_path / 'r'} is in use by another daemon (pid " in done.stderr


def test_an_unknown_flag_or_command_is_a_usage_error() -> None:
    assert run("--nothing").exit_code == 2
    assert run("nothing").exit_code == 2


class Events:
    service_name: ClassVar[str] = "containerd.services.events.v1.Events"

    def __init__(self) -> None:
        self.published: list[tuple[str, str, api.protobuf.Any | None]] = []

    async def publish(self, request: api.events.PublishRequest) -> api.protobuf.Empty:
        if request.topic == "/refused":
            raise errors.InvalidArgument("topic /refused")
        self.published.append((context.namespace(), request.topic, request.event))
        return api.protobuf.Empty()


async def publish(address: Path, topic: str, stdin: bytes) -> subprocess.CompletedProcess[bytes]:
    command = [
        sys.executable, "-m", "aiocontainerd.cli.daemon", "--address", str(address),
        "publish", "--topic", topic, "--namespace", "ns",
    ]  # fmt: skip
    return await anyio.run_process(command, input=stdin, check=False)


@pytest.mark.anyio
async def test_publish_sends_the_event_of_its_input(tmp_path: Path) -> None:
    events, bound = Events(), bind_unix(str(tmp_path / "c.sock"), -1, -1)
    front = GrpcFrontEnd([events])
    await front.start(bound.sock)
    event = api.protobuf.Any(type_url="containerd.events.TaskOOM", value=b"\x0a\x01c")
    try:
        with anyio.fail_after(30):
            done = await publish(tmp_path / "c.sock", "/tasks/oom", codec.encode(event))
            refused = await publish(tmp_path / "c.sock", "/refused", codec.encode(event))
            rubbish = await publish(tmp_path / "c.sock", "/tasks/oom", b"\xff\xff")
    finally:
        await front.stop(1)
        bound.remove()
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert events.published == [("ns", "/tasks/oom", event)]
    assert refused.returncode == 1
    assert refused.stderr == b"Error: cannot publish /refused: topic /refused: invalid argument\n"
    assert rubbish.returncode == 1
    assert rubbish.stderr.startswith(b"Error: cannot publish /tasks/oom: decode google.protobuf.Any: ")


def test_publish_without_a_daemon_names_topic_and_status_1(tmp_path: Path) -> None:
    done = run("--address", tmp_path / "none.sock", "publish", "--topic", "/t", "--namespace", "ns")
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: cannot publish /t: ")


@pytest.mark.parametrize("again", [True, False])
def test_a_daemon_that_ends_to_be_started_anew_is_executed_with_its_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    executed: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(daemon_run, "run", lambda _config, **_given: again)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-X", "dev", "/bin/aiocontainerd", "--root", "/r"])
    monkeypatch.setattr(os, "execv", lambda path, words: executed.append((path, words)))
    status = run("--config", file(tmp_path / "c.toml", "")).exit_code
    words = [sys.executable, "-X", "dev", "/bin/aiocontainerd", "--root", "/r"]
    assert (status, executed) == (0, [(sys.executable, words)] if again else [])
