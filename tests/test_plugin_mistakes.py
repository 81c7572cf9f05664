"""The texts of `docs/plugins/mistakes.md` are what its code gets."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import subprocess
import sys
import warnings
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
from aiocontainerd.errors import ContainerdError, Unknown, to_status
from aiocontainerd.events import EventBus
from aiocontainerd.guard.watchdog import Watchdog
from aiocontainerd.host import conformance, discovery, leftovers, process_state, slow_loads
from aiocontainerd.host.daemon_info import DaemonInfo
from aiocontainerd.host.registry import Registry
from aiocontainerd.plugin import Descriptor, State, typeurl

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "plugins" / "mistakes.md").read_text()
SINK, VERIFIER = f"{kinds.EVENT_SINK}.acme", f"{kinds.IMAGE_VERIFIER}.acme"
TOLD_IN_ROWS = (
    "missing method", "wrong parameters", "wrong method of the base class", "wrong default",
    "start without that of the base class",
    "misspelled name", "misspelled kind", "unknown kind in requires",
    "absent kind", "forgotten requires", "nameless method of a service",
)  # fmt: skip
FORGOTTEN_S, LIMIT_S = 0.05, 20.0
DECLARED = 'version = 4\n[python_plugins.acme]\nmodule = "acme.plugin"\n'
NOBODY = PluginPolicy(allow=("nothing-installed",))
HEAD = "from aiocontainerd.plugin import *\nfrom aiocontainerd.plugin import kinds, register\n"
SINK_BODY = "    filters = ()\n\n    async def deliver(self, envelope): ...\n"
ACME = f'@register(kinds.EVENT_SINK, "acme")\nclass Acme:\n{SINK_BODY}'
CONTRACT = "(contract: aiocontainerd/interfaces/event_sink.py)"
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


@pytest.mark.usefixtures("put_back")
async def test_changing_the_process(author: Any) -> None:
    async with author("changing the process") as told:
        assert MISTAKES["changing the process"].text in told.logs


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
            "Acme.filters is a text; write ('topic~=x',) (contract: aiocontainerd/interfaces/event_sink.py)",
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


def with_config(fields: str, given: str = "Config") -> str:
    """Return a sink whose config record has these fields."""
    body = f"class Config(PluginConfig, frozen=True):\n    {fields}\n"
    return f'{body}@register(kinds.EVENT_SINK, "acme", config={given})\nclass Acme:\n{SINK_BODY}'


def sink(*lines: str) -> str:
    """Return a sink with more in its class."""
    return ACME + "".join(f"    {line}\n" for line in lines)


def hook(*lines: str, head: str = "def register_plugins():") -> str:
    """Return a module with a hook."""
    return f"@hookimpl\n{head}\n" + "".join(f"    {line}\n" for line in lines)


def by_hook(**given: str) -> str:
    """Return a module whose hook gives a registration with these arguments."""
    known = {"kind": "kinds.EVENT_SINK", "id": "'acme'", "init": "init"} | given
    arguments = ", ".join(f"{name}={value}" for name, value in known.items())
    return f"class Acme:\n{SINK_BODY}async def init(context): return Acme()\n" + hook(
        f"return [Registration({arguments})]"
    )


CONFIG = f"the config of plugin {SINK} is acme.plugin.Config, whose "
ROWS = {
    # errors of imports
    "class E(Exception):\n    def __str__(self): raise ValueError\nraise E": (
        "E: (its text cannot be told: __str__ raised ValueError) (acme/plugin.py:5 in <module>)"
    ),
    r"raise ValueError('a\udcff\x1b[31m\nb')": r"ValueError: a\udcff\x1b[31m b (acme/plugin.py:3 in <module>)",
    "raise ValueError('x' * 5000)": f"ValueError: {'x' * 1000}... (5000 characters) (acme/plugin.py:3 in <module>)",
    "def f(:": "SyntaxError: invalid syntax; the daemon runs Python 3.x (acme/plugin.py:3)",
    "raise KeyboardInterrupt": "KeyboardInterrupt (acme/plugin.py:3 in <module>)",
    "raise GeneratorExit": "GeneratorExit (acme/plugin.py:3 in <module>)",
    "class E(BaseException): ...\nraise E('x')": "E: x (acme/plugin.py:4 in <module>)",
    "import asyncio\nraise asyncio.CancelledError": (
        "CancelledError: the plugin itself raised it; nobody cancelled it (acme/plugin.py:4 in <module>)"
    ),
    "raise ExceptionGroup('x', [ValueError('a'), KeyError('b')])": (
        "2 errors at once: ValueError: a; KeyError: 'b' (acme/plugin.py:3 in <module>)"
    ),
    "import asyncio\nasync def f(): ...\nc = f()\ntry: asyncio.create_task(c)\nfinally: c.close()": (
        "RuntimeError: no running event loop; the daemon's loop does not run yet: do this in `start`, or in `init` "
        "(acme/plugin.py:6 in <module>)"
    ),
    # @register
    f'@register(kinds.EVENT_SINK, "acme", require=[])\nclass Acme:\n{SINK_BODY}': (
        "TypeError: register() got an unexpected keyword argument 'require'; did you mean requires? "
        "(acme/plugin.py:3 in <module>)"
    ),
    f'@register(kinds.EVENT_SINK, "acme", requires=None)\nclass Acme:\n{SINK_BODY}': (
        f"plugin {SINK} has requires=None; write a list of kinds"
    ),
    f'@register(kinds.EVENT_SINK, 5)\nclass Acme:\n{SINK_BODY}': "a plugin has the id 5; write a text, such as 'acme'",
    f'@register(kinds.EVENT_SINK, "a/b")\nclass Acme:\n{SINK_BODY}': (
        "a plugin has the id 'a/b', which is also a directory and a key of the config; "
        "write letters, digits, and any of . _ - +"
    ),
    f'class Acme:\n{SINK_BODY}register(kinds.EVENT_SINK, "acme")(Acme())': (
        "plugin acme is an object of Acme; write @register above its class"
    ),
    f'@register(kinds.EVENT_SINK, "acme", requires=["{SINK}"])\nclass Acme:\n{SINK_BODY}': (
        f"requires {SINK}: requires names kinds, and {SINK} is one plugin; write {kinds.EVENT_SINK}"
    ),
    f'@register(kinds.EVENT_SINK, "acme", requires=["acme"])\nclass Acme:\n{SINK_BODY}': (
        f"requires acme: requires names kinds, and acme is one plugin; write {kinds.EVENT_SINK}"
    ),
    f'@register(kinds.EVENT_SINK, "acme", timeouts=Timeout("a.t", "5s", "x"))\nclass Acme:\n{SINK_BODY}': (
        f"plugin {SINK} has timeouts=Timeout(key='a.t', default='5s', doc='x'); write a list of Timeout"
    ),
    f'@register(kinds.EVENT_SINK, "acme", timeouts=[Timeout("a.t", 5, "x")])\nclass Acme:\n{SINK_BODY}': (
        f"plugin {SINK} declares timeout a.t with the default 5; write it with its unit, such as '5s'"
    ),
    # hooks
    hook("return None"): (
        "register_plugins of acme.plugin returned nothing; return a list of Registration (acme/plugin.py:3)"
    ),
    hook("return 'acme'"): (
        "register_plugins of acme.plugin returned str, not a list of Registration (acme/plugin.py:3)"
    ),
    hook("return [{}]"): (
        "register_plugins of acme.plugin returned a list with dict; write Registration(kind=..., id=..., init=...) "
        "(acme/plugin.py:3)"
    ),
    hook("yield", head="async def register_plugins():"): (
        "register_plugins of acme.plugin is async; write `def register_plugins()` (acme/plugin.py:3)"
    ),
    hook("return []", head="def register_plugins(config):"): (
        "register_plugins of acme.plugin takes (config); write `def register_plugins()` (acme/plugin.py:3)"
    ),
    hook("return []", head="def register_plugin():"): (
        "register_plugin of acme.plugin is no hook; did you mean register_plugins? (acme/plugin.py:3)"
    ),
    by_hook(init="Acme"): (
        f"init of {SINK} is the class Acme; write @register above the class, or give an `async def init(context)` "
        "that returns an instance"
    ),
    by_hook(init="init(None)"): f"init of {SINK} is called already; write init=init, without (...)",
    by_hook(init="5"): f"init of {SINK} is int; write `async def init(context)`",
    by_hook(id="None"): "a plugin has the id None; write a text, such as 'acme'",
    by_hook(requires="None"): f"plugin {SINK} has requires=None; write a list of kinds",
    by_hook(timeouts="('a.t',)"): f"plugin {SINK} has 'a.t' in timeouts; write Timeout(key, default, sentence)",
    by_hook().replace("init(context): return", "init(): return"): (
        f"init of {SINK} takes (); write `async def init(context)` (acme/plugin.py:7)"
    ),
    by_hook().replace("return Acme()", "return Acme"): (
        "init returned the class Acme; write Acme(), not a EventSink (aiocontainerd/interfaces/event_sink.py)"
    ),
    # config
    with_config("port: int = '80'"): (
        f"{CONFIG}field port is of type int, and its default is '80': Expected `int`, got `str`"
    ),
    with_config("port: int = None"): (
        f"{CONFIG}field port is of type int, and its default is None: Expected `int`, got `null`; write int | None"
    ),
    with_config("port = 80"): f"{CONFIG}key port has no type; write port: int = 80",
    with_config("pause: Duration = '5 s'"): (
        f'{CONFIG}field pause is of type Duration, and its default is the text \'5 s\'; write Duration("5s")'
    ),
    with_config("token: Secret = 'a'"): (
        f"{CONFIG}field token is of type Secret, and its default is the text 'a'; write Secret('a')"
    ),
    with_config("variable: EnvEntry = 'a'"): (
        f"{CONFIG}field variable has the default 'a', which its own check refuses: "
        '"a" is no variable; write it as NAME=value'
    ),
    with_config("port: int = 80", given="Config()"): (
        f"the config of plugin {SINK} is a record; write its class, config=Config"
    ),
    with_config("port: int = 80").replace("(PluginConfig, frozen=True)", ""): (
        f"the config of plugin {SINK} is acme.plugin.Config; write class Config(PluginConfig, frozen=True)"
    ),
    # classes
    sink("async def __init__(self): ..."): (
        "acme.plugin.Acme.__init__ is async; write `def __init__`, and what waits in `async def start`"
    ),
    ACME.replace("filters = ()", "filters = None"): f"Acme.filters is None; write a tuple of texts {CONTRACT}",
    ACME.replace("filters = ()", "filters = property(lambda self: self.filter)"): (
        "Acme.filters cannot be read: AttributeError: 'Acme' object has no attribute 'filter'; did you mean filters? "
        f"(acme/plugin.py:5 in <lambda>) {CONTRACT}"
    ),
    sink("def __init__(self, context): context.tasks.start_soon(self.poll)", "def poll(self): ..."): (
        "Acme.poll, which context.tasks.start_soon is given, is not async; write `async def poll`"
    ),
    sink("def __init__(self, context): context.tasks.start_soon(self.poll())", "async def poll(self): ..."): (
        "context.tasks.start_soon is given what poll(...) returned; write context.tasks.start_soon(poll), "
        "without calling it"
    ),
    sink("def __init__(self, context): context.on_stop(self.end)", "def end(self): ..."): (
        "Acme.end, which context.on_stop is given, is not async; write `async def end`"
    ),
    sink("async def start(self): raise BaseException('odd')"): "BaseException: odd (acme/plugin.py:8 in start)",
    sink("async def start(self):", "    import asyncio", "    raise asyncio.CancelledError"): (
        "CancelledError: the plugin itself raised it; nobody cancelled it (acme/plugin.py:10 in start)"
    ),
    sink("async def start(self): raise StopIteration"): (
        "RuntimeError: coroutine raised StopIteration (acme/plugin.py:8 in start)"
    ),
    sink("async def start(self): raise SkipPlugin"): "no reason given: skip plugin",
    sink(
        "async def start(self):", "    import anyio", "    async with anyio.create_task_group() as group:",
        "        group.start_soon(self.poll)", "async def poll(self): 1 / 0",
    ): "ZeroDivisionError: division by zero (acme/plugin.py:12 in poll)",
}  # fmt: skip


def short(text: str) -> str:
    return re.sub(r"runs Python 3\.\d+", "runs Python 3.x", text)


@pytest.mark.parametrize("code", ROWS)
async def test_the_row_says_what_to_write(package: Path, caplog: pytest.LogCaptureFixture, code: str) -> None:
    (package / "acme" / "plugin.py").write_text(f"{HEAD}{code}\n")
    async with told(package, DECLARED, caplog, NOBODY) as found:
        assert ROWS[code] in [short(row) for row in found.rows]
        assert found.registry[f"{kinds.SERVER}.grpc"].state == State.LOADED


SNAPSHOTTER = """
@register(kinds.SNAPSHOTTER, "acme")
class Acme(SnapshotterBase):
    def __init__(self, root): super().__init__(root)
    async def make(self, layer, parents): ...
    async def mounts_of(self, layer, parents): return []
    async def usage_of(self, layer): ...
    async def stored(self): return []
    async def discard(self, layer_id): ...
"""


@pytest.mark.parametrize(
    ("right", "wrong", "text"),
    [
        ("async def make", "def make", "Acme.make is not async; write `async def make` (base class: SnapshotterBase)"),
        (
            "make(self, layer, parents)",
            "make(self, layer)",
            "Acme.make takes (layer), and is called with (layer, parents): too many positional arguments "
            "(base class: SnapshotterBase)",
        ),
        (
            "super().__init__(root)",
            "...",
            "AttributeError: 'Acme' object has no attribute 'root'; "
            "does __init__ call super().__init__(...) of SnapshotterBase?",
        ),
        (
            "async def make",
            "async def start(self): ...\n    async def make",
            "Acme.start leaves out that of SnapshotterBase; write `await super().start()` in it (acme/plugin.py:7)",
        ),
        (
            "async def make",
            "async def start(self): await super().start()\n    async def discard",
            "Acme lacks make, which SnapshotterBase asks for",
        ),
        (
            '@register(kinds.SNAPSHOTTER, "acme")\n',
            '@register(kinds.SNAPSHOTTER, "acme")\nasync def init(context): return Acme(context.root)\n',
            "Acme is not started; write `await it.start()` in init, where `it` is the Acme",
        ),
    ],
)
async def test_a_method_of_the_base_class_is_checked(
    package: Path, caplog: pytest.LogCaptureFixture, right: str, wrong: str, text: str
) -> None:
    (package / "acme" / "plugin.py").write_text(HEAD + SNAPSHOTTER.replace(right, wrong))
    async with told(package, DECLARED, caplog, NOBODY) as found:
        assert text in found.rows


async def test_a_sink_whose_filters_fail_leaves_the_others_their_events(
    package: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`filters` is right when it is checked, and raises when it is used."""
    code = """
import itertools
count = itertools.count()

@register(kinds.EVENT_SINK, "acme")
class Acme:
    @property
    def filters(self):
        if next(count): raise ValueError("no filters")
        return ()
    async def deliver(self, envelope): ...

@register(kinds.EVENT_SINK, "beta")
class Beta:
    filters = ()
    async def deliver(self, envelope): print("got", envelope.topic)
"""
    (package / "acme" / "plugin.py").write_text(HEAD + code)
    async with told(package, DECLARED, caplog, NOBODY) as found:
        assert "gets no events: ValueError: no filters (acme/plugin.py:11 in filters)" in found.rows
        assert found.registry[f"{kinds.INTERNAL}.event-sinks"].state == State.LOADED


@pytest.mark.parametrize("raised", ["1 / 0", "raise BaseException('odd')", "raise GeneratorExit"])
async def test_a_task_that_fails_is_one_line_and_ends_nothing_else(
    package: Path, caplog: pytest.LogCaptureFixture, raised: str
) -> None:
    code = sink("def __init__(self, context): context.tasks.start_soon(self.poll)", f"async def poll(self): {raised}")
    (package / "acme" / "plugin.py").write_text(HEAD + code)
    async with told(package, DECLARED, caplog, NOBODY) as found:
        await logged(found, f"task {SINK}:poll of plugin {SINK} failed: ")
        line = next(one for one in found.logs if one.startswith("task "))
        assert re.fullmatch(r".*\(acme/plugin.py:9 in poll\)", line)
        assert found.registry[SINK].state == State.LOADED


async def logged(found: Told, beginning: str) -> None:
    with anyio.fail_after(LIMIT_S):
        while not any(line.startswith(beginning) for line in found.logs):  # noqa: ASYNC110 - a log sets no event
            await anyio.sleep(0.01)


async def test_a_stop_that_fails_is_one_line(package: Path, caplog: pytest.LogCaptureFixture) -> None:
    (package / "acme" / "plugin.py").write_text(HEAD + sink("async def aclose(self): raise BaseException('odd')"))
    async with told(package, DECLARED, caplog, NOBODY) as found:
        pass
    assert f"plugin {SINK} failed to stop: BaseException: odd (acme/plugin.py:8 in aclose)" in found.logs


@pytest.fixture
def put_back() -> Iterator[None]:
    """Put back what these tests let plugins change, whatever fails."""
    directory, umask, handler = os.getcwd(), os.umask(0o022), signal.getsignal(signal.SIGHUP)
    root, streams, shown = logging.getLogger(), (sys.stdout, sys.stderr), logging.root.manager.disable
    handlers = list(root.handlers)
    yield
    os.chdir(directory)
    os.umask(umask)
    signal.signal(signal.SIGHUP, handler)
    root.handlers, (sys.stdout, sys.stderr) = handlers, streams
    logging.disable(shown)


@pytest.mark.parametrize("at", ["", "async def start(self):\n        "], ids=["import", "start"])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("import os; os.chdir('/proc')", "the working directory (to /proc)"),
        ("import os; os.umask(0o077)", "the umask (to 077)"),
        ("import logging; logging.disable(logging.CRITICAL)", "the root logger"),
        ("import logging; logging.getLogger('aiocontainerd.host').disabled = True", "the root logger"),
        ("import sys; sys.stderr = None", "sys.stdout or sys.stderr"),
    ],
)
@pytest.mark.usefixtures("put_back")
async def test_what_plugins_share_is_put_back_and_told(
    package: Path, caplog: pytest.LogCaptureFixture, at: str, change: str, named: str
) -> None:
    before = os.getcwd()
    logging.getLogger("aiocontainerd.host")
    code = sink(at + change) if at else f"{change}\n{ACME}"
    (package / "acme" / "plugin.py").write_text(HEAD + code)
    who = f"plugin {SINK}" if at else "plugin module acme.plugin of python_plugins.acme"
    async with told(package, DECLARED, caplog, NOBODY) as found:
        line = f"{who} changed {named} of the daemon's process, which it shares with all plugins: undone"
        assert line in found.logs
        assert (os.getcwd(), sys.stderr is None, logging.root.manager.disable) == (before, False, 0)


@pytest.mark.usefixtures("put_back")
def test_a_handler_of_signals_is_put_back(caplog: pytest.LogCaptureFixture) -> None:
    before = signal.getsignal(signal.SIGHUP)
    with process_state.Kept() as kept:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        kept.undo("plugin acme")
    assert signal.getsignal(signal.SIGHUP) == before
    assert "plugin acme changed the handler of SIGHUP" in caplog.text


CLOSES = """
import os, sys
from aiocontainerd.host.process_state import Kept
with Kept() as kept:
    os.close(2)
    taken = os.open("/dev/null", os.O_RDONLY)
    kept.undo("plugin acme")
print("still here", file=sys.stderr)
"""


def test_a_closed_standard_stream_is_opened_again_before_a_file_takes_its_place() -> None:
    ended = subprocess.run([sys.executable, "-c", CLOSES], capture_output=True, text=True, check=True)
    assert "plugin acme changed standard error" in ended.stderr
    assert ended.stderr.endswith("still here\n")


def test_ctrl_c_is_no_failure_of_a_plugin() -> None:
    with process_state.interruptible() as interrupted:
        assert not interrupted()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert interrupted()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


THREAD = "import threading\nthreading.Thread(target=threading.Event().wait, name='acme-poll').start()\n"


@pytest.mark.parametrize("command", [["config", "check"], []], ids=["command", "daemon that cannot start"])
def test_a_thread_of_a_module_keeps_no_program_from_ending(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "acme_threads.py").write_text(f"{HEAD}{THREAD}{ACME}")
    config = tmp_path / "config.toml"
    config.write_text(
        f'version = 4\nroot = "{tmp_path}/root"\nstate = "{tmp_path}/state"\nrequired_plugins = ["a.b.c"]\n'
        '[python_plugins.acme]\nmodule = "acme_threads"\n'
    )
    ended = subprocess.run(
        [sys.executable, "-c", "from aiocontainerd.cli import programs; programs.daemon()", "-c", config, *command],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 1
    assert "ending without threads that a plugin's module started: acme-poll" in ended.stderr


async def test_a_thread_that_an_import_started_is_its_plugins(
    package: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import threading\nend = threading.Event()\nthreading.Thread(target=end.wait, name='acme-poll').start()\n"
    (package / "acme" / "plugin.py").write_text(f"{HEAD}{code}{ACME}")
    monkeypatch.setattr(leftovers, "LEFT_THREADS_S", 0.01)
    _, registry = await to_thread.run_sync(discovered, package, DECLARED, NOBODY)
    owned: Any = sys.modules["acme.plugin"]
    try:
        healths = {plugin.uri: plugin.health for plugin in registry.plugins}
        left = await leftovers.left_threads(registry.owners(), healths, registry.threads)
        assert left == ["thread acme-poll"]
    finally:
        owned.end.set()


def test_warnings_stay_warnings(caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings():
        warnings.resetwarnings()
        with process_state.Kept() as kept:
            warnings.simplefilter("error")
            kept.undo("plugin acme")
        assert warnings.filters == []
    assert "plugin acme changed the filters of warnings (to errors)" in caplog.text


@pytest.mark.parametrize(
    ("method", "returned", "text"),
    [
        ("mounts_of", 'Mount("bind", 5)', "Mount with a wrong value: Expected `str`, got `int` - at `$.source`"),
        (
            "mounts_of", 'Mount("bind", "/a", options="rw")',
            "Mount with a wrong value: Expected `array`, got `str` - at `$.options`",
        ),
        ("usage_of", 'Usage("12", 1)', "Usage with a wrong value: Expected `int`, got `str` - at `$.size`"),
        (
            "usage_of", "Usage(1 << 70, 1)",
            "Usage(size=1180591620717411303424, inodes=1), which has more than 63 bits",
        ),
    ],
)  # fmt: skip
async def test_a_record_with_a_value_of_another_type_is_told_by_its_method(
    package: Path, caplog: pytest.LogCaptureFixture, method: str, returned: str, text: str
) -> None:
    code = SNAPSHOTTER.replace("make(self, layer, parents): ...", "make(self, layer, parents): self.layers.mkdir()")
    code = code.replace("self.layers.mkdir()", "__import__('os').makedirs(self.path(layer.id))")
    code = code.replace("parents): return []", "parents): return [Mount('bind', '/')]")
    for line in code.splitlines():
        if method in line:
            answer = f"[{returned}]" if method == "mounts_of" else returned
            code = code.replace(line, f"{line.partition('):')[0]}): return {answer}")
    (package / "acme" / "plugin.py").write_text(HEAD + code)
    async with told(package, DECLARED, caplog, NOBODY) as found:
        snapshotter = found.registry[f"{kinds.SNAPSHOTTER}.acme"].instance
        if method == "usage_of":
            await snapshotter.prepare("a")
        await found.call(lambda: snapshotter.usage("a") if method == "usage_of" else snapshotter.prepare("a"))
        assert found.error == f"Acme.{method} returned {text}"


async def test_a_client_is_told_the_plugin_and_the_line_of_an_error_that_is_no_answer(
    package: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code = (
        '@register(kinds.IMAGE_VERIFIER, "acme")\nclass Acme:\n'
        "    async def verify(self, name, target, content): {}[name]\n"
    )
    (package / "acme" / "plugin.py").write_text(HEAD + code)
    async with told(package, DECLARED, caplog, NOBODY) as found:
        with pytest.raises(KeyError) as error:
            await found.registry[VERIFIER].instance.verify("a", Descriptor("", "", 0), None)
        text = f"plugin {VERIFIER}: verify: KeyError: 'a' (acme/plugin.py:5 in verify)"
        assert to_status(error.value) == (Unknown.code, text)


async def test_a_call_that_a_plugin_cancels_itself_names_the_line(
    package: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code = (
        '@register(kinds.IMAGE_VERIFIER, "acme")\nclass Acme:\n    async def verify(self, name, target, content):\n'
        "        import asyncio\n        raise asyncio.CancelledError\n"
    )
    (package / "acme" / "plugin.py").write_text(HEAD + code)
    async with told(package, DECLARED, caplog, NOBODY) as found:
        await found.call(lambda: found.registry[VERIFIER].instance.verify("a", Descriptor("", "", 0), None))
        assert found.error == (
            f"plugin {VERIFIER}: verify was cancelled by the plugin itself (acme/plugin.py:7 in verify)"
        )
