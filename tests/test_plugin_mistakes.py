"""The texts of `docs/plugins/mistakes.md` are what its code gets."""

from __future__ import annotations

import asyncio
import logging
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from anyio import to_thread

from aiocontainerd import kinds
from aiocontainerd.config import Config, ConfigError, load
from aiocontainerd.config.records import PluginPolicy
from aiocontainerd.errors import ContainerdError
from aiocontainerd.events import EventBus
from aiocontainerd.guard.watchdog import Watchdog
from aiocontainerd.host import conformance, discovery, slow_loads
from aiocontainerd.host.daemon_info import DaemonInfo
from aiocontainerd.host.registry import Registry
from aiocontainerd.plugin import Descriptor, State, typeurl

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "plugins" / "mistakes.md").read_text()
SINK, VERIFIER = f"{kinds.EVENT_SINK}.acme", f"{kinds.IMAGE_VERIFIER}.acme"
TOLD_IN_ROWS = (
    "missing method", "wrong parameters", "misspelled name", "misspelled kind", "unknown kind in requires",
    "absent kind", "forgotten requires", "nameless method of a service",
)  # fmt: skip
FORGOTTEN_S, LIMIT_S = 0.05, 20.0
DECLARED = 'version = 4\n[python_plugins.acme]\nmodule = "acme.plugin"\n'
pytestmark = pytest.mark.anyio


@pytest.fixture
def no_blocking_calls() -> None:
    """Some of the mistakes are blocking calls."""


class Mistake(msgspec.Struct):
    """A section of the page: its code, its TOML, and the text that its author gets."""

    title: str
    code: str = ""
    toml: str = ""
    text: str = ""


def mistakes() -> Iterator[Mistake]:
    for section in PAGE.split("\n## ")[1:]:
        title, _, body = section.partition("\n")
        blocks = dict(re.findall(r"```(python|toml|text)\n(.*?)\n```", body, re.DOTALL))
        yield Mistake(title, blocks.get("python", ""), blocks.get("toml", ""), blocks.get("text", ""))


MISTAKES = {mistake.title: mistake for mistake in mistakes()}


class Told:
    """What is told of the plugin `acme`: rows of the table, log messages, and the error of what the test did."""

    def __init__(self, registry: Registry, directory: Path, caplog: pytest.LogCaptureFixture) -> None:
        self.registry = registry
        self.bus = EventBus()
        self.error = ""
        self._directory = directory
        self._caplog = caplog

    @property
    def rows(self) -> list[str]:
        return [self._short(p.reason) for p in self.registry.plugins if p.state in (State.FAILED, State.SKIPPED)]

    @property
    def logs(self) -> list[str]:
        return [self._short(message) for message in self._caplog.messages]

    async def call(self, function: Callable[[], Awaitable[object]]) -> None:
        try:
            await function()
        except ContainerdError as error:
            self.error = self._short(error.message)

    def _short(self, text: str) -> str:
        text = text.replace(f"{self._directory}/", "")
        text = re.sub(r"\(\S+ so far\)", "(... so far)", text)
        text = re.sub(r"for \S+ so far", "for ... so far", text)
        text = re.sub(r"given up after \S+", "given up after ...", text)
        return re.sub(r"runs 3\.\d+\.\d+", "runs 3.x.y", text)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield a directory on the interpreter's path for a package `acme`, which is forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "acme").mkdir()
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "acme"]:
        del sys.modules[name]


@pytest.fixture
def author(package: Path, caplog: pytest.LogCaptureFixture) -> Callable[[str], Any]:
    """Makes a mistake: a daemon with its plugin, while the block runs."""

    @asynccontextmanager
    async def making(title: str) -> AsyncIterator[Told]:
        mistake = MISTAKES[title]
        (package / "acme" / "plugin.py").write_text(mistake.code)
        declared = f"version = 4\n{mistake.toml}" if "python_plugins" in mistake.toml else DECLARED
        limit_s = FORGOTTEN_S if title == "forgotten deadline" else LIMIT_S
        async with told(package, declared, caplog, PluginPolicy(allow=("nothing-installed",)), limit_s) as found:
            yield found

    return making


@asynccontextmanager
async def told(
    directory: Path, toml: str, caplog: pytest.LogCaptureFixture, policy: PluginPolicy, limit_s: float = LIMIT_S
) -> AsyncIterator[Told]:
    config, registry = await to_thread.run_sync(discovered, directory, toml, policy)
    found = Told(registry, directory, caplog)
    daemon = DaemonInfo(
        root=directory / "root", state=directory / "state", temp=directory, grpc_address=str(directory / "c.sock"),
        ttrpc_address="", bus=found.bus, plugins=lambda: registry.plugins,
        timeout_s=lambda key: limit_s if re.search(r"\.plugin\.(quick|work|long)\b", key) else LIMIT_S,
    )  # fmt: skip
    registry.disable([f"{kinds.SERVER}.ttrpc"])
    async with registry.run(daemon, config.plugin_config, check=conformance.check):
        yield found


def discovered(directory: Path, toml: str, policy: PluginPolicy) -> tuple[Config, Registry]:
    config, registry = configured(directory, toml), Registry()
    discovery.discover(registry, config.settings.python_plugins, policy)
    return config, registry


def configured(directory: Path, toml: str) -> Config:
    (directory / "config.toml").write_text(toml)
    return load(directory / "config.toml")


def test_every_mistake_of_the_page_has_a_row_and_a_test() -> None:
    rows = re.findall(r"^\| \[([^\]]+)\]\(#([^)]+)\) \|", PAGE, re.MULTILINE)
    assert [title for title, _ in rows] == list(MISTAKES)
    assert [anchor for _, anchor in rows] == [title.replace(" ", "-").replace("'", "").lower() for title in MISTAKES]
    tests = {name for name in globals() if name.startswith("test_")}
    for title, mistake in MISTAKES.items():
        assert mistake.text, title
        assert title in TOLD_IN_ROWS or f"test_{title.replace(' ', '_').replace(chr(39), '').lower()}" in tests, title


async def test_not_async(author: Any) -> None:
    async with author("not async") as told:
        assert MISTAKES["not async"].text in told.rows


async def test_wrong_return_type(author: Any) -> None:
    async with author("wrong return type") as told:
        snapshotter = told.registry[f"{kinds.SNAPSHOTTER}.acme"].instance
        await told.call(lambda: snapshotter.prepare("a"))
        assert told.error == MISTAKES["wrong return type"].text


@pytest.mark.parametrize("title", TOLD_IN_ROWS)
async def test_told_in_its_row(author: Any, title: str) -> None:
    async with author(title) as told:
        assert MISTAKES[title].text in told.rows


async def test_missing_dependency(author: Any) -> None:
    async with author("missing dependency") as told:
        assert MISTAKES["missing dependency"].text in told.rows


async def test_blocking_call(author: Any) -> None:
    async with author("blocking call") as told:
        watchdog = Watchdog(0.1, told.registry.owners, lambda _block: None)
        await watchdog.start()
        told.bus.publish("/a", typeurl.Any("acme", b""), namespace="default")
        with anyio.fail_after(LIMIT_S):
            while MISTAKES["blocking call"].text not in told.logs:  # noqa: ASYNC110 - a thread tells it
                await anyio.sleep(0.01)
        await watchdog.stop()


async def test_raising_in_init(author: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACME_KEY", raising=False)
    async with author("raising in init") as told:
        assert MISTAKES["raising in init"].text in told.rows


async def test_duplicate_id(author: Any) -> None:
    async with author("duplicate id") as told:
        assert MISTAKES["duplicate id"].text in told.rows
        assert told.registry[SINK].state == State.LOADED


def test_config_typo(package: Path) -> None:
    mistake = MISTAKES["config typo"]
    (package / "acme" / "plugin.py").write_text(mistake.code)
    _, registry = discovered(package, DECLARED, PluginPolicy(allow=("nothing-installed",)))
    config = configured(package, mistake.toml)
    with pytest.raises(ConfigError) as error:
        config.check_plugins(plugin.registration for plugin in registry.plugins)
    assert str(error.value).replace(f"{package}/", "") == mistake.text


async def test_name_clash(author: Any) -> None:
    async with author("name clash") as told:
        assert MISTAKES["name clash"].text in told.rows


async def test_circular_need(author: Any) -> None:
    async with author("circular need") as told:
        assert told.rows.count(MISTAKES["circular need"].text) == 2
        assert told.registry[f"{kinds.SERVER}.grpc"].state == State.LOADED


async def test_bad_entry_point(author: Any) -> None:
    async with author("bad entry point") as told:
        assert MISTAKES["bad entry point"].text in told.rows


async def test_wrong_python(package: Path, caplog: pytest.LogCaptureFixture) -> None:
    info = package / "acme-0.1.0.dist-info"
    info.mkdir()
    wanted = re.findall(r'requires-python = "(.*)"', MISTAKES["wrong Python"].toml)
    info.joinpath("METADATA").write_text(
        f"Metadata-Version: 2.1\nName: acme\nVersion: 0.1.0\nRequires-Python: {wanted[0]}\n"
    )
    info.joinpath("entry_points.txt").write_text("[aiocontainerd.plugins]\nacme = acme.plugin\n")
    async with told(package, "version = 4\n", caplog, PluginPolicy(allow=("acme",))) as found:
        assert MISTAKES["wrong Python"].text in found.rows
    assert "acme.plugin" not in sys.modules


async def test_forgotten_deadline(author: Any) -> None:
    async with author("forgotten deadline") as told:
        verifier = told.registry[VERIFIER].instance
        await told.call(lambda: verifier.verify("a", Descriptor("", "", 0), None))
        assert told.error == MISTAKES["forgotten deadline"].text


async def test_leaking_task(author: Any) -> None:
    async with author("leaking task") as told:
        pass
    assert MISTAKES["leaking task"].text in told.logs
    for task in asyncio.all_tasks():
        if task.get_name() == "refresh":
            task.cancel()


async def test_mutating_a_frozen_record(author: Any) -> None:
    async with author("mutating a frozen record") as told:
        assert MISTAKES["mutating a frozen record"].text in told.rows


async def test_leaking_a_librarys_task(author: Any) -> None:
    async with author("leaking a library's task") as told:
        pass
    assert MISTAKES["leaking a library's task"].text in told.logs


async def test_mutating_a_record_in_a_call(author: Any) -> None:
    text = MISTAKES["mutating a record in a call"].text
    async with author("mutating a record in a call") as told:
        told.bus.publish("/a", typeurl.Any("acme", b""), namespace="default")
        with anyio.fail_after(LIMIT_S):
            while text not in told.logs:  # noqa: ASYNC110 - the pump logs it, which sets no event
                await anyio.sleep(0.01)
        error = text.partition(": ")[2]
        assert told.registry[SINK].health.last_error == f"deliver: {error}"


def installed(directory: Path, name: str, version: str) -> None:
    """Write what a package installer writes of a package with the module `acme.plugin`."""
    info = directory / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    info.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    info.joinpath("entry_points.txt").write_text("[aiocontainerd.plugins]\nacme = acme.plugin\n")


async def test_two_packages_with_one_module(package: Path, caplog: pytest.LogCaptureFixture) -> None:
    mistake = MISTAKES["two packages with one module"]
    (package / "acme" / "plugin.py").write_text(mistake.code)
    installed(package, "acme", "1.0")
    installed(package, "acme-fork", "1.0")
    async with told(package, "version = 4\n", caplog, PluginPolicy(allow=("acme", "acme-fork"))) as found:
        assert mistake.text in found.rows
        assert found.registry[SINK].state == State.LOADED


async def test_a_table_of_the_config_and_a_package_name_one_module(
    package: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (package / "acme" / "plugin.py").write_text(MISTAKES["two packages with one module"].code)
    installed(package, "acme", "1.0")
    async with told(package, DECLARED, caplog, PluginPolicy(allow=("acme",))) as found:
        assert (
            "acme and python_plugins.acme name the same module acme.plugin, of which there is one, acme/plugin.py: "
            "remove the table python_plugins.acme"
        ) in found.rows


async def test_waiting_in_a_hook(author: Any, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait in the hook until the log tells of it, so that a busy machine loses nothing."""
    mistake, released = MISTAKES["waiting in a hook"], package / "released"

    class Releases(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "keeps the daemon from starting" in record.getMessage():
                released.touch()

    monkeypatch.setattr(slow_loads, "TOLD_AFTER_S", 0.05)
    handler = Releases()
    slow_loads.log.addHandler(handler)
    MISTAKES["released"] = msgspec.structs.replace(mistake, code=mistake.code.replace("/run/acme/ready", str(released)))
    try:
        async with author("released") as told:
            assert mistake.text in told.logs
    finally:
        del MISTAKES["released"]
        slow_loads.log.removeHandler(handler)


async def test_found_by_luck_is_told(package: Path, caplog: pytest.LogCaptureFixture) -> None:
    code = (
        "from aiocontainerd.plugin import kinds, register\n\n\n"
        "@register(kinds.IMAGE_VERIFIER, 'acme')\nclass Acme:\n"
        "    def __init__(self, context):\n        context.get_single(kinds.EVENT)\n\n"
        "    async def verify(self, name, target, content): ...\n"
    )
    (package / "acme" / "plugin.py").write_text(code)
    async with told(package, DECLARED, caplog, PluginPolicy(allow=("nothing-installed",))) as found:
        assert found.registry[VERIFIER].state == State.LOADED
        luck = f"plugin {VERIFIER} uses {kinds.EVENT} in its init and does not name it in requires"
        assert f"{luck}: the order of starting is luck" in found.logs


async def test_misspelled_group(package: Path, caplog: pytest.LogCaptureFixture) -> None:
    installed(package, "acme", "1.0")
    points = package / "acme-1.0.dist-info" / "entry_points.txt"
    points.write_text("[aiocontainerd.plugin]\nacme = acme.plugin\n")
    async with told(package, "version = 4\n", caplog, PluginPolicy(allow=("acme",))) as found:
        assert MISTAKES["misspelled group"].text in found.logs


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (
            '@register(kinds.EVENT_SINK, "acme", requires=kinds.METADATA)\nclass Acme: ...\n',
            f"plugin {SINK} has requires='{kinds.METADATA}'; write a list of kinds, ['{kinds.METADATA}']",
        ),
        (
            '@register("acme", kinds.EVENT_SINK)\nclass Acme: ...\n',
            f"a plugin has the kind 'acme' and the id '{kinds.EVENT_SINK}': kind, then id",
        ),
        (
            '@register(kinds.EVENT_SINK, "acme")\nclass Acme:\n    filters = ()\n    async def delivr(self, e): ...\n',
            "Acme has no method deliver; it has delivr (contract: aiocontainerd/interfaces/event_sink.py)",
        ),
        (
            '@register(kinds.EVENT_SINK, "acme")\nclass Acme:\n    filters = "topic~=x"\n'
            "    async def deliver(self, e): ...\n",
            "gets no events: filters is a text; write ('topic~=x',)",
        ),
        (
            '@register(kinds.EVENT_SINK, "acme")\nasync def init(): ...\n',
            "acme.plugin.init takes (); write `async def init(context)`",
        ),
        (
            '@register(kinds.EVENT_SINK, "acme")\nclass Acme:\n    async def start(self, context, more): ...\n',
            "acme.plugin.Acme.start takes (self, context, more); write `async def start(self, context)`",
        ),
    ],
)
async def test_more_mistakes_told_in_their_rows(
    package: Path, caplog: pytest.LogCaptureFixture, code: str, text: str
) -> None:
    (package / "acme" / "plugin.py").write_text(f"from aiocontainerd.plugin import kinds, register\n\n\n{code}")
    async with told(package, DECLARED, caplog, PluginPolicy(allow=("nothing-installed",))) as found:
        assert text in found.rows, found.rows
