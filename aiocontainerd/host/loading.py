"""Load `module` or `module:Name` and collect its registrations. Errors are one line for the author."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Iterable
from functools import cache
from typing import Any

import pluggy

from aiocontainerd.host import authoring, hookspecs, needs
from aiocontainerd.host.registration import PluginError, Registration


def registrations_of(path: str) -> list[Registration]:
    """Return what a module registers: by its hook `register_plugins`, and by objects that `@register` decorates.

    With `module:Name`, return what that object registers. An undecorated class is instantiated for its hook methods.
    Raises PluginError saying what to write, or whatever the import raises.
    """
    found = _found(path)
    for registration in found:
        needs.check_kind(registration)
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
    manager.register(holder, name=path)
    try:
        hooks = [hook for hook in manager.hook.register_plugins.get_hookimpls() if hook.plugin is holder]
        found = [registration for hook in hooks for registration in _checked(hook.function(), path)]
    finally:
        manager.unregister(holder)
    if not hooks and callable(getattr(holder, "register_plugins", None)):
        raise PluginError(f"register_plugins of {path} is not marked; write @hookimpl above it")
    return found


def _checked(returned: Any, path: str) -> list[Registration]:
    if inspect.iscoroutine(returned):
        returned.close()
        raise PluginError(f"register_plugins of {path} is async; write `def register_plugins()`")
    if not isinstance(returned, Iterable):
        raise PluginError(f"register_plugins of {path} returned {type(returned).__name__}, not a list of Registration")
    found = list(returned)
    for registration in found:
        if not isinstance(registration, Registration):
            raise PluginError(f"register_plugins of {path} returned {type(registration).__name__}, not Registration")
    return found
