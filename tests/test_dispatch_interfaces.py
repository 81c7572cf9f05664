"""Every awaited method of every interface has a deadline class, and the operations page tells the classes."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest

from aiocontainerd import dispatch_interfaces
from aiocontainerd.config.records import TIMEOUTS
from aiocontainerd.dispatch_interfaces import BY_KIND, LONG, NAMED, QUICK, WORK, Interface

INTERFACES = {interface.protocol: interface for interface in (*BY_KIND.values(), *NAMED.values())}
UNGUARDED = {"metadata:MetadataStore": {"collect"}}
"""A collection calls every backend, each under its own deadline."""
PAGE = Path(__file__).resolve().parents[1] / "docs" / "plugins" / "operations.md"


def protocol(interface: Interface) -> Any:
    module, _, name = interface.protocol.partition(":")
    return getattr(importlib.import_module(f"aiocontainerd.interfaces.{module}"), name)


def methods(interface: Interface) -> dict[str, Any]:
    """The functions of a Protocol, inherited ones of other Protocols included."""
    return {
        name: function
        for base in reversed(protocol(interface).__mro__)
        if base.__module__.startswith("aiocontainerd.")
        for name, function in vars(base).items()
        if inspect.isfunction(function) and not name.startswith(("__init__", "__subclasshook__"))
    }


@pytest.mark.parametrize("name", sorted(INTERFACES))
def test_every_awaited_method_has_a_class_and_nothing_else_has(name: str) -> None:
    interface = INTERFACES[name]
    awaited = {name for name, function in methods(interface).items() if inspect.iscoroutinefunction(function)}
    assert set(interface.calls()) == awaited - UNGUARDED.get(name, set())


@pytest.mark.parametrize("name", sorted(INTERFACES))
def test_every_stream_is_one_of_the_interface(name: str) -> None:
    interface = INTERFACES[name]
    given = {
        name for name, f in methods(interface).items() if str(f.__annotations__.get("return")).startswith("AsyncIter")
    }
    assert set(interface.streams) == given


def test_what_an_interface_gives_is_an_interface() -> None:
    for interface in INTERFACES.values():
        for role in (*interface.returns.values(), *interface.parts.values()):
            assert role in NAMED
        assert set(interface.returns) <= set(interface.calls())
        assert set(interface.parts) <= set(dir(protocol(interface)))


@pytest.mark.parametrize("key", [QUICK, WORK, LONG])
def test_every_class_has_a_default_that_the_operations_page_tells(key: str) -> None:
    assert f"| `{key}` | {TIMEOUTS[key]} |" in PAGE.read_text()
    assert key.startswith(dispatch_interfaces.PREFIX)
