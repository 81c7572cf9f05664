"""Every hook is documented, on the generated page, and tested by its name."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pluggy
import pytest

from aiocontainerd.config.records import Isolation, ProxyPlugin, PythonPlugin, StreamProgram
from aiocontainerd.host import hookspecs, reference
from aiocontainerd.host.placement import Placement
from aiocontainerd.plugin import PluginError, Registration, hookimpl, kinds

HOOKS = [function.__name__ for function in reference.hook_functions()]
TESTS = [node.name for node in ast.parse(Path(__file__).read_text()).body if isinstance(node, ast.FunctionDef)]


def test_there_are_hooks() -> None:
    assert "register_plugins" in HOOKS


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_says_what_it_is_and_whether_it_is_awaited(hook: str) -> None:
    words = inspect.getdoc(getattr(hookspecs, hook)) or ""
    assert "Sync" in words or "Async" in words, f"document {hook} in hookspecs.py"


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_has_a_test_by_its_name(hook: str) -> None:
    assert any(name.startswith(f"test_{hook}_") for name in TESTS), f"write test_{hook}_... here"


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_is_on_the_generated_page(hook: str) -> None:
    assert f"## {hook}\n" in reference.hooks_page()


def test_register_plugins_returns_the_registrations_of_a_package() -> None:
    async def init(_context: object) -> object:
        return object()

    class Package:
        @hookimpl
        def register_plugins(self) -> list[Registration]:
            return [Registration(kind=kinds.SNAPSHOTTER, id="acme", init=init)]

    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(Package())
    manager.check_pending()
    (registrations,) = manager.hook.register_plugins()
    assert [one.uri for one in registrations] == ["io.containerd.snapshotter.v1.acme"]


class Companion:
    """A package with the hooks of plugins beside the daemon."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    @hookimpl
    def register_proxy_plugin(self, name: str, settings: ProxyPlugin) -> Registration | None:
        return Registration(kind=self.kind, id=name, init=_init) if settings.type == self.kind else None

    @hookimpl
    def isolate_plugin(self, registration: Registration, isolation: Isolation) -> Registration | None:
        return registration if registration.kind == self.kind else None


async def _init(_context: object) -> object:
    return object()


def test_register_proxy_plugin_is_asked_of_each_package_until_one_knows_the_type(
    caplog: pytest.LogCaptureFixture,
) -> None:
    placement = Placement({"x": ProxyPlugin(type="b"), "y": ProxyPlugin(type="c")})
    for kind in ("a", "b"):
        placement.learn(Companion(kind))
    made = [placement.proxy(name) for name in placement.proxies]
    assert [one.uri if one else None for one in made] == ["b.x", None]
    assert caplog.messages == [
        'proxy plugin y is ignored: nothing here can use the type "c"; there are snapshot, content and diff'
    ]


class Runner:
    """A package that runs stream processors whose path is a script."""

    @hookimpl
    def register_stream_processor(self, name: str, settings: StreamProgram) -> Registration | None:
        script = settings.path.endswith(".sh")
        return Registration(kind=kinds.STREAM_PROCESSOR, id=name, init=_init) if script else None


def test_register_stream_processor_is_asked_of_each_package_until_one_runs_the_program(
    caplog: pytest.LogCaptureFixture,
) -> None:
    placement = Placement(programs={"a.b": StreamProgram(path="x.sh"), "c": StreamProgram(path="x")})
    placement.learn(Runner())
    made = [placement.program(name) for name in placement.programs]
    assert [one.uri if one else None for one in made] == ["io.containerd.stream-processor.v1.a.b", None]
    assert caplog.messages == ["nothing here can run the stream processor c"]


def test_isolate_plugin_gives_the_registration_that_stands_for_another() -> None:
    placement = Placement(modes={"k.a": "process", "other.b": "process", "k.c": "none"})
    placement.learn(Companion("k"))
    declared = PythonPlugin(module="m", isolation="process", uid=7)
    one, three, four = (Registration(kind="k", id=name, init=_init) for name in "acd")
    two = Registration(kind="other", id="b", init=_init)
    assert placement.placed(one, "m", None) is one
    with pytest.raises(PluginError, match=r'^other\.b cannot have isolation = "process"'):
        placement.placed(two, "m", None)
    assert placement.placed(three, "m", None) is three
    assert placement.isolation_of(four.uri, "m", declared) == Isolation(module="m", uid=7)
    assert placement.isolation_of(four.uri, "m", None) is None
    with pytest.raises(PluginError, match=r'^k\.c can have a uid or gid of its own only with isolation = "process"$'):
        placement.placed(three, "m", declared)
