"""Every call that one plugin makes of another has a deadline, a histogram, counters, a gauge and a breaker.

Every kind is gone through, and what its methods return, with a plugin that is made of the contract; a kind that is
added is gone through too, and one whose Protocol has a method without a rule fails here.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import anyio
import anyio.lowlevel
import msgspec
import pytest

from aiocontainerd import kinds
from aiocontainerd.config import timeouts
from aiocontainerd.errors import DeadlineExceeded, Unavailable
from aiocontainerd.guard import deadlines
from aiocontainerd.guard.contract import Given, GuardedInterface, contract_of, of_class, of_protocol
from aiocontainerd.guard.dispatcher import Dispatcher
from aiocontainerd.guard.health import OPENS_AFTER, MethodRecord, PluginHealth
from aiocontainerd.host.discovery import all_registrations
from aiocontainerd.interfaces import PROTOCOLS, SERVICES, WITHOUT_PROTOCOL, protocol_of, rules, services
from aiocontainerd.interfaces.rules import (
    LONG,
    QUICK,
    TASK,
    WORK,
    Rule,
    deadline,
    guarded,
    items,
    rule_of,
    unlimited,
    why_unguarded,
)
from aiocontainerd.interfaces.shim import STEP_TIMEOUTS

KINDS = sorted(value for name, value in vars(kinds).items() if name.isupper() and value != kinds.ALL)
INSTANCES = [(kind, "acme") for kind in KINDS] + [(kinds.SERVICE, plugin_id) for plugin_id in SERVICES]
"""A plugin of every kind, and every service that has a contract of its own."""
LIMIT_S, LONG_S = 0.02, 30.0
"""A deadline that is to be missed, and one that is to be kept however busy the machine is."""
PAGE = Path(__file__).resolve().parents[1] / "docs" / "plugins" / "operations.md"


class Anything:
    """A plugin of a kind without a Protocol; two of its methods have rules of their own."""

    async def ask(self) -> None: ...

    @deadline(QUICK)
    async def look(self) -> None: ...

    @unlimited("it may never end")
    async def wait(self) -> None: ...

    async def watch(self) -> AsyncIterator[int]:
        yield 1

    def colour(self) -> str:
        return "green"


def reached(protocol: type) -> Iterator[type]:
    """Yield a Protocol and those of all that it gives."""
    seen = [protocol]
    for one in seen:
        yield one
        contract = of_protocol(one)
        seen += [given.protocol for given in (*contract.gives.values(), *contract.parts.values())
                 if given.protocol not in seen]  # fmt: skip


PROTOCOL_TYPES = sorted(
    {
        one
        for kind, plugin_id in INSTANCES
        if (found := protocol_of(kind, plugin_id)) is not None
        for one in reached(found)
    }
    | {services.PluginInfoProvider},
    key=lambda protocol: protocol.__name__,
)
GUARDED = [protocol for protocol in PROTOCOL_TYPES if not why_unguarded(protocol)]


def methods(protocol: type) -> dict[str, Any]:
    """Return the functions of a Protocol, inherited ones of other Protocols included."""
    return {
        name: function
        for base in reversed(protocol.__mro__)
        if base.__module__.startswith("aiocontainerd.")
        for name, function in vars(base).items()
        if inspect.isfunction(function) and not name.startswith(("__init__", "__subclasshook__"))
    }


def streams(function: Any) -> bool:
    return str(function.__annotations__.get("return")).startswith("AsyncIter")


def without_a_rule(protocol: type) -> list[str]:
    """Methods whose rule is missing, or is not one for their form."""
    return [
        name
        for name, function in methods(protocol).items()
        if (inspect.iscoroutinefunction(function) or streams(function) or rule_of(function) is not None)
        and not ((rule := rule_of(function)) and rule.each_item == streams(function))
    ]


@pytest.mark.parametrize("protocol", GUARDED, ids=lambda protocol: protocol.__name__)
def test_every_awaited_or_iterated_method_has_a_rule_of_its_form(protocol: type) -> None:
    assert without_a_rule(protocol) == []
    for method in methods(protocol).values():
        rule = rule_of(method)
        assert rule is None or (rule.timeout in (QUICK, WORK, LONG, TASK)) != bool(rule.unlimited)


def test_a_method_without_a_rule_or_with_one_of_another_form_is_found() -> None:
    class Forgetful(Protocol):
        async def bare(self) -> None: ...

        @items(WORK)
        async def awaited(self) -> None: ...

        @deadline(WORK)
        def iterated(self) -> AsyncIterator[int]: ...

        @deadline(WORK)
        async def right(self) -> None: ...

        def plain(self) -> int: ...

    Forgetful.__module__ = "aiocontainerd.interfaces.forgetful"
    assert without_a_rule(Forgetful) == ["bare", "awaited", "iterated"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_protocol_or_a_reason_to_have_none(kind: str) -> None:
    assert (kind in PROTOCOLS) != (kind in WITHOUT_PROTOCOL)


@pytest.mark.parametrize("protocol", GUARDED, ids=lambda protocol: protocol.__name__)
def test_a_protocol_that_is_guarded_has_something_to_guard(protocol: type) -> None:
    contract = of_protocol(protocol)
    assert contract.calls or contract.streams or contract.gives or contract.parts


@pytest.mark.parametrize("kind", [kind for kind, _ in INSTANCES if kind in PROTOCOLS])
def test_a_kind_that_is_not_guarded_has_a_reason_and_nothing_that_a_plugin_awaits(kind: str) -> None:
    protocol = protocol_of(kind)
    assert protocol is not None
    reason = why_unguarded(protocol)
    if reason:
        awaited = [name for name, member in methods(protocol).items() if inspect.iscoroutinefunction(member)]
        assert not awaited or reason.startswith("no plugin calls it")
        assert contract_of(kind, "acme", object) is None


class Leaf(Protocol):
    """Given by `Tree`."""

    @deadline(WORK)
    async def fall(self) -> None: ...


@guarded(name="twig")
class Branch(Protocol):
    """Given by `Tree`, under another name."""

    @deadline(WORK)
    async def close(self) -> None: ...


class Tree(Protocol):
    """Gives in every way there is."""

    @property
    def first(self) -> Leaf: ...

    @property
    def height(self) -> int: ...

    @deadline(WORK)
    async def grow(self) -> Branch: ...

    @deadline(WORK)
    async def find(self) -> Branch | None: ...

    @deadline(WORK)
    async def leaves(self) -> Sequence[Leaf]: ...

    @deadline(WORK)
    async def names(self) -> list[str]: ...

    def leaf(self, name: str) -> Leaf: ...

    def rings(self) -> int: ...


def test_what_a_method_gives_is_read_off_its_annotation() -> None:
    contract = of_protocol(Tree)
    assert contract.gives == {
        "grow": Given(Branch, "twig"),
        "find": Given(Branch, "twig"),
        "leaves": Given(Leaf, "leaf", several=True),
        "leaf": Given(Leaf, "leaf"),
    }
    assert contract.parts == {"first": Given(Leaf, "first")}
    assert set(contract.calls) == {"grow", "find", "leaves", "names"}
    assert (of_protocol(Branch).closes, of_protocol(Leaf).closes) == (True, False)


def test_a_class_without_a_protocol_has_its_own_methods_never_refused_unless_it_says_so() -> None:
    contract = of_class(Anything)
    assert contract.calls == {
        "ask": Rule(timeout=WORK, always=True),
        "look": Rule(timeout=QUICK),
        "wait": Rule(unlimited="it may never end"),
    }
    assert contract.streams == {"watch": Rule(timeout=WORK, always=True, each_item=True)}


@pytest.mark.parametrize(("kind", "plugin_id"), [one for one in INSTANCES if contract_of(*one, object) is not None])
def test_a_plugin_of_any_kind_may_give_information_about_itself(kind: str, plugin_id: str) -> None:
    class Informing:
        async def plugin_info(self, options: object) -> object: ...

    contract = contract_of(kind, plugin_id, Informing)
    assert contract is not None
    assert contract.calls["plugin_info"].always
    assert "plugin_info" not in of_protocol(Leaf).calls


def test_each_service_has_the_contract_of_its_id() -> None:
    assert protocol_of(kinds.SERVICE, "tasks-service") is services.TaskService
    assert protocol_of(kinds.SERVICE, "acme-service") is None
    assert protocol_of(kinds.INTERNAL, "tasks-service") is None


@pytest.mark.parametrize("key", [QUICK, WORK, LONG, TASK])
def test_every_class_has_a_default_that_the_operations_page_tells(key: str) -> None:
    assert f"| `{key}` | {timeouts.declared(())[key].default} |" in PAGE.read_text()
    assert key.startswith(rules.PREFIX)


def test_the_limits_of_a_shims_steps_are_declared_by_a_plugin() -> None:
    declared = {timeout.key for registration in all_registrations() for timeout in registration.timeouts}
    assert set(STEP_TIMEOUTS) <= declared


def test_every_method_without_a_deadline_has_a_reason_that_the_operations_page_tells() -> None:
    page = " ".join(PAGE.read_text().split())
    reasons = {rule.unlimited for protocol in GUARDED for rule in of_protocol(protocol).calls.values()} - {""}
    assert reasons
    for reason in reasons:
        assert reason in page


class Step(msgspec.Struct, frozen=True):
    """One step from a plugin's instance to a method: the member, and how its value is got at."""

    name: str
    how: str


class Case(msgspec.Struct, frozen=True):
    """A method of a kind: the way to the object that has it, and what the interface says of it."""

    kind: str
    plugin_id: str
    contract: GuardedInterface
    way: tuple[Step, ...]
    role: str
    method: str
    rule: Rule

    def __str__(self) -> str:
        start = f"{self.kind.removeprefix('io.containerd.')}.{self.plugin_id}"
        return ".".join([start, *(step.name for step in self.way), self.method])

    @property
    def uri(self) -> str:
        return f"{self.kind}.{self.plugin_id}"

    @property
    def label(self) -> str:
        """What the method is called in the records."""
        return f"{self.role}.{self.method}" if self.role else self.method


def cases(kind: str, plugin_id: str) -> Iterator[Case]:
    """Yield every method of a plugin's contract, and of all that it gives."""
    whole = contract_of(kind, plugin_id, Anything)
    if whole is None:
        return
    waiting: list[tuple[GuardedInterface, tuple[Step, ...], str]] = [(whole, (), "")]
    for contract, way, role in waiting:
        for method, rule in (contract.calls | contract.streams).items():  # type: ignore[operator]  # both are dicts
            yield Case(kind, plugin_id, whole, way, role, method, rule)
        for name, given in contract.parts.items():
            waiting.append((of_protocol(given.protocol), (*way, Step(name, "part")), given.name))
        for name, given in contract.gives.items():
            how = ("each" if given.several else "awaited") if name in contract.calls else "given"
            waiting.append((of_protocol(given.protocol), (*way, Step(name, how)), given.name))


CASES = [case for kind, plugin_id in INSTANCES for case in cases(kind, plugin_id)]


class Conduct:
    """What the plugin of a test does when the method that is tested is called."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.act: Callable[[], Any] = anyio.lowlevel.checkpoint

    async def of(self, label: str) -> None:
        if label == self.label:
            await self.act()


def made_of(contract: GuardedInterface, conduct: Conduct, role: str = "") -> Any:
    """Return an object that has all of a contract."""
    members: dict[str, Any] = {name: _async(name, contract, conduct, role) for name in contract.calls}
    members |= {name: _iterated(name, conduct, role) for name in contract.streams}
    members |= {n: _giving(given, conduct) for n, given in contract.gives.items() if n not in contract.calls}
    members |= {name: given_by(part, conduct) for name, part in contract.parts.items()}
    return type("Made", (), members)()


def given_by(given: Given, conduct: Conduct) -> Any:
    made = made_of(of_protocol(given.protocol), conduct, given.name)
    return [made] if given.several else made


def _label(name: str, role: str) -> str:
    return f"{role}.{name}" if role else name


def _async(name: str, contract: GuardedInterface, conduct: Conduct, role: str) -> Any:
    async def method(self: Any, *_args: Any) -> Any:
        await conduct.of(_label(name, role))
        if name in contract.gives:
            return given_by(contract.gives[name], conduct)
        return self if name == "__aenter__" else None

    return method


def _iterated(name: str, conduct: Conduct, role: str) -> Any:
    async def method(_self: Any, *_args: Any) -> AsyncIterator[int]:
        await conduct.of(_label(name, role))
        yield 1

    return method


def _giving(given: Given, conduct: Conduct) -> Any:
    return lambda _self, *_args: given_by(given, conduct)


class Proof:
    """A guarded plugin, and the one method of it that is called."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.conduct = Conduct(case.label)
        self.health = PluginHealth(case.uri)
        self.limit_s = LONG_S
        """Of the call that is tested; those on the way to it have their time."""
        self._limit_s = LONG_S
        self._dispatcher = Dispatcher(lambda key: self._limit_s if ".plugin." in key else self._limit_s / 100)
        self._instance = made_of(case.contract, self.conduct)
        self._take_rules(type(self._instance))

    def _take_rules(self, made: Any) -> None:
        """Take the rules from a class when no Protocol has them."""
        if protocol_of(self.case.kind, self.case.plugin_id) is None:
            for name, member in vars(Anything).items():
                if (rule := rule_of(member)) is not None:
                    decorate = unlimited(rule.unlimited) if rule.unlimited else deadline(rule.timeout)
                    decorate(getattr(made, name))

    @property
    def record(self) -> MethodRecord:
        return self.health.methods[self.case.label]

    async def call(self) -> None:
        found = self._dispatcher.guard(self.health, self.case.kind, self._instance)
        for step in self.case.way:
            found = getattr(found, step.name)
            if step.how != "part":
                found = found()
            if step.how in ("awaited", "each"):
                found = await found
            if step.how == "each":
                found = found[0]
        self._limit_s = self.limit_s
        self._dispatcher.set_deadlines()
        called = getattr(found, self.case.method)(*((None,) * 3 if self.case.method == "__aexit__" else ()))
        if self.case.rule.each_item:
            _ = [item async for item in called]
        else:
            await called


@pytest.fixture
def proof(case: Case, monkeypatch: pytest.MonkeyPatch) -> Proof:
    monkeypatch.setattr(deadlines, "TASK_MARGIN_S", 0.0)
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
    if proof.case.rule.unlimited:
        with anyio.move_on_after(await_s) as scope:
            await proof.call()
        assert scope.cancelled_caught
        return
    with anyio.fail_after(20), pytest.raises(DeadlineExceeded) as caught:
        await proof.call()
    assert f"plugin {proof.case.uri}: {proof.case.label} took longer than 20ms (io.containerd.timeout.plugin." in str(
        caught.value
    )
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
    always = proof.case.rule.always
    with pytest.raises(OSError if always else Unavailable):
        await proof.call()
    assert (proof.record.retry_s == 0) is always
