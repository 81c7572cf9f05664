"""Every hook is documented, on the generated page, and tested by its name."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pluggy
import pytest

from aiocontainerd import hookspecs, reference
from aiocontainerd.plugin import Registration, hookimpl, kinds

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
