"""Every call that one plugin makes of another has a deadline, a histogram, counters, a gauge and a breaker.

Every kind is gone through, and what its methods give, with a plugin that is made of the interface; a kind that is added
is gone through too, and one whose interface has a method that nobody guards fails here.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import msgspec
import pytest

from aiocontainerd import kinds
from aiocontainerd.config.records import TIMEOUTS
from aiocontainerd.errors import DeadlineExceeded, Unavailable
from aiocontainerd.guard import interface as guard_interface
from aiocontainerd.guard.dispatcher import Dispatcher
from aiocontainerd.guard.health import OPENS_AFTER, MethodRecord, PluginHealth
from aiocontainerd.guard.interface import BY_KIND, LONG, NAMED, NOT_GUARDED, QUICK, TASK, WORK, Interface
from aiocontainerd.interfaces import PROTOCOLS, protocol_of

INTERFACES = {interface.protocol: interface for interface in (*BY_KIND.values(), *NAMED.values())}
KINDS = sorted(value for name, value in vars(kinds).items() if name.isupper() and value != kinds.ALL)
ANY = Interface(work=("ask", "delete_all", "list"), streams={"watch": WORK}, always=("delete_all", "list"))
"""What a plugin of a kind without an interface has, in these tests."""
URI = "io.containerd.any.v1.acme"
LIMIT_S, LONG_S = 0.02, 30.0
"""A deadline that is to be missed, and one that is to be kept however busy the machine is."""
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
    assert set(interface.calls()) == awaited


@pytest.mark.parametrize("name", sorted(INTERFACES))
def test_every_stream_is_one_of_the_interface(name: str) -> None:
    interface = INTERFACES[name]
    given = {
        name for name, f in methods(interface).items() if str(f.__annotations__.get("return")).startswith("AsyncIter")
    }
    assert set(interface.streams) == given


def test_what_an_interface_gives_is_an_interface() -> None:
    for interface in INTERFACES.values():
        given = (interface.returns, interface.each, interface.gives, interface.parts)
        assert {role for roles in given for role in roles.values()} <= set(NAMED)
        assert {*interface.returns, *interface.each, *interface.always} <= set(interface.calls())
        assert {*interface.parts, *interface.gives} <= set(dir(protocol(interface)))


@pytest.mark.parametrize("key", [QUICK, WORK, LONG, TASK])
def test_every_class_has_a_default_that_the_operations_page_tells(key: str) -> None:
    assert f"| `{key}` | {TIMEOUTS[key]} |" in PAGE.read_text()
    assert key.startswith(guard_interface.PREFIX)


def test_every_method_without_a_deadline_has_a_reason_that_the_operations_page_tells() -> None:
    page = " ".join(PAGE.read_text().split())
    for interface in INTERFACES.values():
        for method, reason in interface.unlimited.items():
            assert reason in page, f"{interface.protocol} {method}"


@pytest.mark.parametrize("kind", sorted(NOT_GUARDED))
def test_a_kind_that_is_not_guarded_has_a_reason_and_nothing_that_a_plugin_awaits(kind: str) -> None:
    assert kind not in BY_KIND
    found = protocol_of(kind)
    awaited = {name for name, member in vars(found).items() if inspect.iscoroutinefunction(member)} if found else set()
    assert not awaited or NOT_GUARDED[kind].startswith("no plugin calls it")


def test_every_kind_with_a_protocol_has_an_interface_or_a_reason() -> None:
    assert set(PROTOCOLS) <= {*BY_KIND, *NOT_GUARDED}


class Step(msgspec.Struct, frozen=True):
    """One step from a plugin's instance to a method: the member, and how its value is got at."""

    name: str
    how: str


class Case(msgspec.Struct, frozen=True):
    """A method of a kind: the way to the object that has it, and what the interface says of it."""

    kind: str
    way: tuple[Step, ...]
    role: str
    method: str
    interface: Interface

    def __str__(self) -> str:
        return ".".join([self.kind.removeprefix("io.containerd."), *(step.name for step in self.way), self.method])

    @property
    def label(self) -> str:
        """What the method is called in the records."""
        return f"{self.role}.{self.method}" if self.role else self.method


def cases(kind: str, interface: Interface, way: tuple[Step, ...] = (), role: str = "") -> Iterator[Case]:
    """Every method of an interface, and of all that it gives."""
    for method in (*interface.calls(), *interface.streams):
        yield Case(kind, way, role, method, interface)
    for how in ("returns", "each", "gives", "parts"):
        for name, given in getattr(interface, how).items():
            yield from cases(kind, NAMED[given], (*way, Step(name, how)), given)


CASES = [case for kind in KINDS if kind not in NOT_GUARDED for case in cases(kind, BY_KIND.get(kind, ANY))]


class Conduct:
    """What the plugin of a test does when the method that is tested is called."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.act: Callable[[], Any] = anyio.lowlevel.checkpoint

    async def of(self, label: str) -> None:
        if label == self.label:
            await self.act()


def made_of(interface: Interface, conduct: Conduct, role: str = "") -> Any:
    """An object that has all of an interface."""
    members: dict[str, Any] = {name: _async(name, interface, conduct, role) for name in interface.calls()}
    members |= {name: _iterated(name, conduct, role) for name in interface.streams}
    members |= {name: _giving(NAMED[given], conduct, given) for name, given in interface.gives.items()}
    members |= {name: made_of(NAMED[given], conduct, given) for name, given in interface.parts.items()}
    return type("Made", (), members)()


def _label(name: str, role: str) -> str:
    return f"{role}.{name}" if role else name


def _async(name: str, interface: Interface, conduct: Conduct, role: str) -> Any:
    async def method(self: Any, *_args: Any) -> Any:
        await conduct.of(_label(name, role))
        if name in interface.returns:
            return made_of(NAMED[interface.returns[name]], conduct, interface.returns[name])
        if name in interface.each:
            return [made_of(NAMED[interface.each[name]], conduct, interface.each[name])]
        return self if name == "__aenter__" else None

    return method


def _iterated(name: str, conduct: Conduct, role: str) -> Any:
    async def method(_self: Any, *_args: Any) -> AsyncIterator[int]:
        await conduct.of(_label(name, role))
        yield 1

    return method


def _giving(interface: Interface, conduct: Conduct, role: str) -> Any:
    return lambda _self, *_args: made_of(interface, conduct, role)


class Proof:
    """A guarded plugin, and the one method of it that is called."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.conduct = Conduct(case.label)
        self.health = PluginHealth(URI)
        self.limit_s = LONG_S
        """Of the call that is tested; those on the way to it have their time."""
        self._limit_s = LONG_S
        self._dispatcher = Dispatcher(lambda key: self._limit_s if ".plugin." in key else self._limit_s / 100)
        self._instance = made_of(BY_KIND.get(case.kind, ANY), self.conduct)

    @property
    def record(self) -> MethodRecord:
        return self.health.methods[self.case.label]

    async def call(self) -> None:
        found = self._dispatcher.guard(self.health, self.case.kind, self._instance)
        for step in self.case.way:
            found = getattr(found, step.name)
            if step.how != "parts":
                found = found()
            if step.how in ("returns", "each"):
                found = await found
            if step.how == "each":
                found = found[0]
        self._limit_s = self.limit_s
        self._dispatcher.set_deadlines()
        called = getattr(found, self.case.method)(*((None,) * 3 if self.case.method == "__aexit__" else ()))
        if self.case.method in self.case.interface.streams:
            _ = [item async for item in called]
        else:
            await called


@pytest.fixture
def proof(case: Case, monkeypatch: pytest.MonkeyPatch) -> Proof:
    monkeypatch.setattr(guard_interface, "TASK_MARGIN_S", 0.0)
    return Proof(case)


@pytest.mark.anyio
@pytest.mark.parametrize("case", CASES, ids=str)
async def test_each_call_is_counted_timed_and_gauged(proof: Proof) -> None:
    gauged: list[int] = []

    async def act() -> None:
        gauged.append(proof.record.in_flight)

    proof.conduct.act = act
    await proof.call()
    record = proof.record
    assert (gauged, record.in_flight, record.calls, record.latencies.count, record.errors) == ([1], 0, 1, 1, 0)


@pytest.mark.anyio
@pytest.mark.parametrize("case", CASES, ids=str)
async def test_each_call_has_its_deadline_or_a_reason_to_have_none(proof: Proof) -> None:
    proof.conduct.act = anyio.sleep_forever
    proof.limit_s = LIMIT_S
    await_s = LIMIT_S * 3
    if proof.case.method in proof.case.interface.unlimited:
        with anyio.move_on_after(await_s) as scope:
            await proof.call()
        assert scope.cancelled_caught
        return
    with anyio.fail_after(20), pytest.raises(DeadlineExceeded) as caught:
        await proof.call()
    assert f"plugin {URI}: {proof.case.label} took longer than 20ms (io.containerd.timeout.plugin." in str(caught.value)
    assert (proof.record.expired, proof.record.failures, proof.record.in_flight) == (1, 1, 0)


@pytest.mark.anyio
@pytest.mark.parametrize("case", CASES, ids=str)
async def test_each_method_has_a_breaker_that_refuses_all_but_the_way_out(proof: Proof) -> None:
    async def act() -> None:
        raise OSError("no memory")

    proof.conduct.act = act
    for _ in range(OPENS_AFTER):
        with pytest.raises(OSError, match="no memory"):
            await proof.call()
    assert (proof.record.errors, proof.record.failures) == (OPENS_AFTER, OPENS_AFTER)
    always = proof.case.method in proof.case.interface.always
    with pytest.raises(OSError if always else Unavailable):
        await proof.call()
    assert (proof.record.retry_s == 0) is always
