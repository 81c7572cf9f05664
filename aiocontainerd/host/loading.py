"""Load `module` or `module:Name` and collect its registrations. Errors are one line for the author."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Iterable
from functools import cache
from typing import Any

import pluggy

from aiocontainerd.guard import diagnosis
from aiocontainerd.host import authoring, hookspecs, needs
from aiocontainerd.host.registration import PluginError, Registration

_MARK = f"{hookspecs.PROJECT}_impl"
"""The attribute that pluggy's marker gives to a function."""


def registrations_of(path: str) -> list[Registration]:
    """Return what a module registers: by its hook `register_plugins`, and by objects that `@register` decorates.

    With `module:Name`, return what that object registers. An undecorated class is instantiated for its hook methods.
    Raises PluginError saying what to write, or whatever the import raises.
    """
    found = _found(path)
    for registration in found:
        needs.check_kind(registration)
        _check_init(registration)
        authoring.check_config(registration)
    return found


def _found(path: str) -> list[Registration]:
    target = load(path)
    found = list(authoring.carried(target))
    if found:
        return found
    holder = target() if isinstance(target, type) else target
    found = _by_hook(holder, path)
    if inspect.ismodule(holder):
        found += [one for one in authoring.carried_by_module(holder) if one not in found]
        if not found and not hasattr(holder, "register_plugins"):
            _check_hook_names(holder, path)
            raise PluginError(
                f"{path} registers nothing; write @register(kinds.<KIND>, <id>) above a class, "
                "or @hookimpl def register_plugins()"
            )
    return found


def load(path: str) -> Any:
    """Return a module, or with `module:Name` an attribute of it. Raises PluginError if there is no such thing."""
    module_name, _, attribute = path.partition(":")
    if not all(part.isidentifier() for part in module_name.split(".")):
        raise PluginError(f"{path!r} is no path of a module; write it as acme.plugin or acme.plugin:Name")
    found: Any = _imported(module_name)
    for name in filter(None, attribute.split(".")):
        if not hasattr(found, name):
            near = difflib.get_close_matches(name, [n for n in vars(found) if not n.startswith("_")], n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise PluginError(f"module {module_name} has no {name}{hint}")
        found = getattr(found, name)
    return found


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise PluginError(f"there is no module {name} (no {error.name} is installed)") from error
        raise


@cache
def _manager() -> pluggy.PluginManager:
    """Return the plugin manager. It holds one implementation of the hooks at a time."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    return manager


def _by_hook(holder: Any, path: str) -> list[Registration]:
    """Return what the hook `register_plugins` of a module or object returns, nothing if it has no such hook."""
    manager = _manager()
    _check_hook_parameters(holder, path)
    manager.register(holder, name=path)
    try:
        hooks = [hook for hook in manager.hook.register_plugins.get_hookimpls() if hook.plugin is holder]
        found = [registration for hook in hooks for registration in _checked(hook.function, path)]
    finally:
        manager.unregister(holder)
    if not hooks and callable(getattr(holder, "register_plugins", None)):
        raise PluginError(f"register_plugins of {path} is not marked; write @hookimpl above it")
    return found


def _check_hook_parameters(holder: Any, path: str) -> None:
    """Raise PluginError for a hook that asks for something which no hook of its name is given."""
    for name, spec in _specs().items():
        function: Any = getattr(holder, name, None)
        if not hasattr(function, _MARK):
            continue
        given = list(inspect.signature(spec).parameters)
        asked = [one for one in inspect.signature(function).parameters if one != "self"]
        if not set(asked) <= set(given):
            raise PluginError(
                f"{name} of {path} takes ({', '.join(asked)}); write `def {name}({', '.join(given)})`{_at(function)}"
            )


def _check_hook_names(holder: Any, path: str) -> None:
    """Raise PluginError for a function under `@hookimpl` whose name is no hook's."""
    for name, function in vars(holder).items():
        if hasattr(function, _MARK) and name not in _specs():
            near = difflib.get_close_matches(name, _specs(), n=1, cutoff=0.0)
            raise PluginError(f"{name} of {path} is no hook; did you mean {near[0]}?{_at(function)}")


def _specs() -> dict[str, Any]:
    mark = f"{hookspecs.PROJECT}_spec"
    return {name: function for name, function in vars(hookspecs).items() if hasattr(function, mark)}


def _check_init(registration: Registration) -> None:
    """Raise PluginError for an init that cannot be called with a context."""
    init: Any = registration.init
    if inspect.iscoroutine(init):
        init.close()
        raise PluginError(f"init of {registration.uri} is called already; write init={init.__name__}, without (...)")
    if isinstance(init, type):
        raise PluginError(
            f"init of {registration.uri} is the class {init.__name__}; write @register above the class, "
            "or give an `async def init(context)` that returns an instance"
        )
    if not callable(init):
        raise PluginError(f"init of {registration.uri} is {type(init).__name__}; write `async def init(context)`")
    if not authoring.takes(init, 1):
        raise PluginError(
            f"init of {registration.uri} takes ({', '.join(inspect.signature(init).parameters)}); "
            f"write `async def {getattr(init, '__name__', 'init')}(context)`{_at(init)}"
        )


def _at(function: Any) -> str:
    """Return where a function is written, for the end of a message."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return "" if code is None else f" ({diagnosis.short(code.co_filename)}:{code.co_firstlineno})"


def _checked(hook: Any, path: str) -> list[Registration]:
    """Call a hook and return its registrations. Raises PluginError for anything else."""
    returned, at = hook(), _at(hook)
    if inspect.iscoroutine(returned):
        returned.close()
    if inspect.iscoroutine(returned) or inspect.isasyncgen(returned):
        raise PluginError(f"register_plugins of {path} is async; write `def register_plugins()`{at}")
    if returned is None:
        raise PluginError(f"register_plugins of {path} returned nothing; return a list of Registration{at}")
    if not isinstance(returned, Iterable) or isinstance(returned, str | bytes):
        raise PluginError(f"register_plugins of {path} returned {_kind_of(returned)}, not a list of Registration{at}")
    found = list(returned)
    for registration in found:
        if not isinstance(registration, Registration):
            raise PluginError(
                f"register_plugins of {path} returned a list with {_kind_of(registration)}; "
                f"write Registration(kind=..., id=..., init=...){at}"
            )
    return found


def _kind_of(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
