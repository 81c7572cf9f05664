"""Write `docs/hooks.md` and `docs/plugins/reference.md`, out of hookspecs, interfaces and scaffolds."""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import msgspec

from aiocontainerd import kinds, scaffold
from aiocontainerd.config.timeouts import CORE, Timeout
from aiocontainerd.host import hookspecs
from aiocontainerd.host.doc_parts import code, member, prose, record, signature
from aiocontainerd.host.init_context import InitContext
from aiocontainerd.host.registration import Registration
from aiocontainerd.interfaces import PROTOCOLS, SERVICES, rules

HOOK_TESTS = Path(__file__).resolve().parents[2] / "tests" / "test_host_hookspecs.py"

NOT_CALLED: Mapping[str, str] = MappingProxyType(
    {
        kinds.IMAGE_VERIFIER: "Nothing in the daemon pulls yet, so nothing asks verifiers.",
        kinds.CREDENTIALS: "Nothing in the daemon pulls or pushes yet, so nothing asks for credentials.",
        kinds.MOUNT_HANDLER: "The daemon has no mount manager yet, so nothing calls mount handlers.",
        kinds.SANDBOX_CONTROLLER: "The daemon has no sandboxes yet, so nothing calls sandbox controllers.",
    }
)
"""Kinds that have a contract and that nothing in the daemon calls, and why."""

_SHOWN = {path.partition(":")[2] for path in (*PROTOCOLS.values(), *SERVICES.values())}
"""Protocols that have a section of their own."""

_HOOKS_HEAD = f"""\
# Hooks

Generated from `aiocontainerd/host/hookspecs.py` and `tests/test_host_hookspecs.py`; `make docs` writes it anew.

Most plugins need none of them: `@register` ([reference](plugins/reference.md)) does what `register_plugins` does. A
module implements a hook with a function of its name under `@hookimpl` (`from aiocontainerd.plugin import hookimpl`),
or an object does, with a method. Modules are found by the entry point group `{hookspecs.ENTRY_POINT_GROUP}`, or
named in the config: `[python_plugins.acme]`, `module = "acme.plugin"` (or `"acme.plugin:Plugin"` for a class).
"""
_REFERENCE_HEAD = """\
# Reference of plugin kinds

Generated from `aiocontainerd/interfaces/` and the packages of `actr plugins new`; `make docs` writes it anew.
Hooks are on [a page of their own](../hooks.md). So are [the tools](tools.md): events, typed values, the current call,
filters, stores and readers, helpers of tests, and the client library.

A plugin is a class, or a coroutine function `init`, under
`@register(kind, id, requires=..., config=..., timeouts=...)`.
Everything on this page can be imported from `aiocontainerd.plugin` or the module that is named.

## Keys of `[timeouts]`

A plugin declares the keys that it reads: `timeouts=(Timeout(key, default, sentence), ...)` in its registration, and
`context.timeout_s(timeout)` where it needs the seconds. A key that nobody declares is an error in a config file. The
deadline class of a method is the last word of a `plugin` key. With a plugin's URI behind it, such a key is about that
plugin alone. *Never refused* is a method that an open circuit breaker lets through ([operations](operations.md)).
"""


def hook_functions() -> Iterator[Callable[..., object]]:
    """Yield every hook specification, in the order of the module."""
    for function in vars(hookspecs).values():
        if inspect.isfunction(function) and hasattr(function, f"{hookspecs.PROJECT}_spec"):
            yield function


def hooks_page() -> str:
    """Return the text of `docs/hooks.md`."""
    return "\n".join([_HOOKS_HEAD, *(_hook(function) for function in hook_functions())])


def reference_page(registrations: Iterable[Registration]) -> str:
    """Return the text of `docs/plugins/reference.md`."""
    head = (_REFERENCE_HEAD, _timeouts(registrations), _context(), _contents())
    return "\n".join([*head, *(_kind(kind) for kind in PROTOCOLS), _services()])


def _timeouts(registrations: Iterable[Registration]) -> str:
    """Return the table of declared keys: first the daemon's own, then those of first-party plugins."""
    rows = ["| key | default | read by | limits |", "|---|---|---|---|"]
    rows += [_timeout(timeout, "the daemon") for timeout in CORE]
    for one in sorted(registrations, key=lambda one: one.uri):
        rows += [_timeout(timeout, f"`{one.uri}`") for timeout in one.timeouts]
    return "\n".join(rows) + "\n"


def _context() -> str:
    """Return the words of `InitContext`, and a row for each of its properties and methods."""
    rows = ["## The context of an init\n", f"{inspect.getdoc(InitContext)}\n", "| member | |", "|---|---|"]
    for name, value in vars(InitContext).items():
        if not name.startswith("_"):
            rows.append(f"| `{member(name, value)}` | {' '.join((inspect.getdoc(value) or '').split())} |")
    return "\n".join(rows) + "\n"


def _timeout(timeout: Timeout, reader: str) -> str:
    return f"| `{timeout.key}` | {timeout.default} | {reader} | {timeout.doc} |"


def _hook(function: Callable[..., object]) -> str:
    parts = [f"## {function.__name__}\n", code(signature(function)), f"{inspect.getdoc(function)}\n"]
    parts.append("It has no deadline. The daemon calls it while it starts or reloads, and it must not wait.\n")
    example = _example(function.__name__)
    if example:
        parts.append(f"An example, from `tests/test_host_hookspecs.py`:\n\n{code(example)}")
    return "\n".join(parts)


def _example(hook: str) -> str:
    """Return the class of `tests/test_host_hookspecs.py` that has a method of this name. Its tests run it."""
    text = HOOK_TESTS.read_text()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef) and any(getattr(one, "name", "") == hook for one in node.body):
            lines = text.splitlines()[node.lineno - 1 : node.end_lineno]
            return textwrap.dedent("\n".join(lines))
    return ""


def _contents() -> str:
    rows = ["## Kinds\n", "| kind | instance | `actr plugins new` |", "|---|---|---|"]
    scaffolds = {form.kind: name for name, form in scaffold.FORMS.items()}
    for kind, path in PROTOCOLS.items():
        anchor = kind.replace(".", "")
        name = f"`{scaffolds[kind]}`" if kind in scaffolds else ""
        rows.append(f"| [`{kind}`](#{anchor}) | `{path.partition(':')[2]}` | {name} |")
    return "\n".join(rows) + "\n"


def _kind(kind: str) -> str:
    """Return the section of a kind: contract, records, Protocol and scaffold."""
    module_name, _, name = PROTOCOLS[kind].partition(":")
    module = importlib.import_module(f"aiocontainerd.interfaces.{module_name}")
    parts = [f"## {kind}\n", f"`aiocontainerd/interfaces/{module_name}.py`\n"]
    if kind in NOT_CALLED:
        parts.append(f"**{NOT_CALLED[kind]}**\n")
    parts.append(f"{prose(inspect.getdoc(module) or '')}\n")
    own = [value for value in vars(module).values() if getattr(value, "__module__", "") == module.__name__]
    parts += [record(value) for value in own if isinstance(value, type) and issubclass(value, msgspec.Struct)]
    protocols = [value for value in own if getattr(value, "_is_protocol", False)]
    parts += [_protocol(value) for value in protocols if value.__name__ not in _SHOWN]
    parts.append(_protocol(getattr(module, name)))
    parts += [_scaffold(form) for form, made in scaffold.FORMS.items() if made.kind == kind]
    return "\n".join(parts)


def _services() -> str:
    """Return the section of the services, each with its contract. Contracts of kinds are not repeated."""
    module = importlib.import_module("aiocontainerd.interfaces.services")
    parts = [
        f"## {kinds.SERVICE}\n",
        "`aiocontainerd/interfaces/services.py`\n",
        f"{prose(inspect.getdoc(module) or '')}\n",
    ]
    paths = [path for path in SERVICES.values() if path not in PROTOCOLS.values()]
    for path in paths:
        module_name, _, name = path.partition(":")
        module = importlib.import_module(f"aiocontainerd.interfaces.{module_name}")
        parts.append(_protocol(getattr(module, name)))
    return "\n".join(parts)


def _protocol(protocol: type) -> str:
    rows = [f"### {protocol.__name__}\n", f"{inspect.getdoc(protocol)}\n"]
    if rules.why_unguarded(protocol):
        rows.append(f"Not guarded: {rules.why_unguarded(protocol)}.\n")
    rows += ["| member | deadline class | |", "|---|---|---|"]
    for name, value in _own(protocol):
        words = (
            " ".join((inspect.getdoc(value) or "").split()) if callable(value) or isinstance(value, property) else ""
        )
        rows.append(f"| `{member(name, value)}` | {_rule(rules.rule_of(value))} | {words} |")
    return "\n".join(rows) + "\n"


def _rule(rule: rules.Rule | None) -> str:
    """Return the deadline class of a method, and what else its rule says."""
    if rule is None:
        return ""
    words = [f"`{_short(rule.timeout)}`" if rule.timeout else "none"]
    words[0] += " for each item" if rule.each_item else ""
    return ", ".join([*words, *(["never refused"] if rule.always else [])])


def _own(protocol: type) -> Iterator[tuple[str, object]]:
    seen: dict[str, object] = {}
    for base in reversed(protocol.__mro__):
        if getattr(base, "_is_protocol", False) and base.__module__ != "typing":
            members = {**inspect.get_annotations(base), **vars(base)}
            seen |= {name: value for name, value in members.items() if not name.startswith("_")}
    yield from seen.items()


def _short(deadline: str) -> str:
    return deadline.removeprefix(rules.PREFIX)


def _scaffold(form: str) -> str:
    text = scaffold.files(form, f"acme-{form}")[f"acme_{form.replace('-', '_')}/plugin.py"]
    words = f"`actr plugins new {form} acme-{form}` begins with this, and a test of it that passes:"
    return f"{words}\n\n{code(text.strip())}"
