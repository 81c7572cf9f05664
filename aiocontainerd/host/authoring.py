"""`@register` makes a class, or a coroutine function, a plugin.

    @register(kinds.SNAPSHOTTER, "acme-reflink", config=Config)
    class Reflink(SnapshotterBase): ...

Importing the module registers nothing. The decorated object carries its `Registration`, and discovery collects what
the objects of a module carry.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from aiocontainerd import durations
from aiocontainerd.config.fields import BadField, bad_default, bad_field, undefined_field
from aiocontainerd.config.plugin import PluginConfig
from aiocontainerd.config.timeouts import Timeout
from aiocontainerd.host.init_context import InitContext
from aiocontainerd.host.registration import Check, PluginError, Registration

CARRIER = "__plugin_registrations__"
GIVEN = ("config", "context", "root")

PluginT = TypeVar("PluginT", bound=Callable[..., Any])


def register(
    kind: str,
    plugin_id: str,
    *,
    requires: Iterable[str] = (),
    wants: Iterable[str] = (),
    config: type[PluginConfig] = PluginConfig,
    timeouts: Iterable[Timeout] = (),
    check: Check | None = None,
) -> Callable[[PluginT], PluginT]:
    """Make the decorated class or coroutine function a plugin. It is returned unchanged and may be registered again.

    `requires` names kinds that start before it. It does not start if all plugins of such a kind fail. Where there is
    none at all, `context.get` tells. `wants` names kinds that start before it, and that may all fail. `timeouts` are
    the keys of `[timeouts]` that it reads by `context.timeout_s`.
    `check(root, config)` looks at what is on disk before anything is written.

    A coroutine function is the plugin's `init`: it takes the context and returns the instance.

    A class is instantiated at `init`. Its `__init__` may ask, by name, for `config`, `context` and `root`: the
    directory that the config's `root_path` names, else the plugin's own. Then its coroutine `start` is awaited, if it
    has one, with the context if it takes an argument. Both may raise SkipPlugin. When the plugin stops, its coroutine
    `aclose` is awaited, if it has one. It is not awaited after a failed `start`, which itself gives back what it took.

    Raises PluginError, which names the object, for a target that can never work.
    """
    uri = f"{kind}.{plugin_id}"
    for name, named in (("requires", requires), ("wants", wants)):
        if isinstance(named, str):
            raise PluginError(f"plugin {uri} has {name}={named!r}; write a list of kinds, [{named!r}]")
        if not isinstance(named, Iterable):
            raise PluginError(f"plugin {uri} has {name}={named!r}; write a list of kinds")
    if not isinstance(timeouts, Iterable) or isinstance(timeouts, str):
        raise PluginError(f"plugin {uri} has timeouts={timeouts!r}; write a list of Timeout")

    def carry(target: PluginT) -> PluginT:
        made = Registration(
            kind=kind,
            id=plugin_id,
            requires=tuple(requires),
            wants=tuple(wants),
            config=config,
            timeouts=tuple(timeouts),
            check=check,
            init=_init_of(target, plugin_id),
        )
        setattr(target, CARRIER, (*carried(target), made))
        return target

    if not (isinstance(config, type) and issubclass(config, PluginConfig)):
        raise PluginError(_no_config(uri, config))
    with suppress(NameError):  # of a type that is written further down; whoever loads the module checks again
        _refuse(uri, config, bad_field(config))
    return carry


def check_config(registration: Registration) -> None:
    """Raise PluginError for a config field that no value can be decoded into, or a timeout with an invalid default.

    The error names the plugin, the field and its type.
    """
    if not (isinstance(registration.config, type) and issubclass(registration.config, PluginConfig)):
        raise PluginError(_no_config(registration.uri, registration.config))
    for timeout in registration.timeouts:
        if not isinstance(timeout, Timeout):
            raise PluginError(
                f"plugin {registration.uri} has {timeout!r} in timeouts; write Timeout(key, default, sentence)"
            )
        if not isinstance(timeout.default, str):
            raise PluginError(
                f"plugin {registration.uri} declares timeout {timeout.key} with the default {timeout.default!r}; "
                "write it with its unit, such as '5s'"
            )
        try:
            durations.parse(timeout.default)
        except ValueError as error:
            raise PluginError(f"plugin {registration.uri} declares timeout {timeout.key}: {error}") from error
    config = registration.config
    try:
        bad = bad_field(config)
    except NameError as error:
        bad = undefined_field(config, error)
    _refuse(registration.uri, config, bad)
    wrong = bad_default(config)
    if wrong:
        raise PluginError(f"the config of plugin {registration.uri} is {_name(config)}, whose {wrong}")


def _no_config(uri: str, config: object) -> str:
    """Return what is wrong with something else in the place of a config record, and what to write."""
    if isinstance(config, PluginConfig):
        return f"the config of plugin {uri} is a record; write its class, config={type(config).__name__}"
    if isinstance(config, type) and config.__module__ != "builtins":
        name = config.__name__
        return f"the config of plugin {uri} is {_name(config)}; write class {name}(PluginConfig, frozen=True)"
    return f"the config of plugin {uri} is {config!r}, not a subclass of PluginConfig"


def _refuse(uri: str, config: type[PluginConfig], bad: BadField | None) -> None:
    if bad is not None:
        raise PluginError(f"the config of plugin {uri} is {_name(config)}, whose {bad}")


def carried(target: object) -> tuple[Registration, ...]:
    """Return the registrations that decorate this object. A subclass does not inherit them."""
    found: tuple[Registration, ...] = getattr(target, "__dict__", {}).get(CARRIER, ())
    return found


def carried_by_module(module: Any) -> list[Registration]:
    """Return the registrations of a module's objects, in the order they are written.

    An object that the module imported counts if it comes from the same package: the outermost one that is no namespace,
    which several distributions may share.
    """
    package = _package(module.__name__)
    found: list[Registration] = []
    for value in vars(module).values():
        home = getattr(value, "__module__", None) or ""
        if _package(home) == package:
            found += [registration for registration in carried(value) if registration not in found]
    return found


def _package(name: str) -> str:
    """Return the outermost package of a module that is no namespace: a package without a file of its own."""
    parts = name.split(".")
    names = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
    return next((one for one in names if not _is_namespace(sys.modules.get(one))), name)


def _is_namespace(module: object) -> bool:
    return hasattr(module, "__path__") and getattr(module, "__file__", None) is None


def _init_of(target: Any, plugin_id: str) -> Callable[[InitContext[Any]], Awaitable[object]]:
    if inspect.iscoroutinefunction(target):
        if not takes(target, 1):
            raise PluginError(f"{_name(target)} takes {_taken(target)}; write `async def {target.__name__}(context)`")
        init_function: Callable[[InitContext[Any]], Awaitable[object]] = target
        return init_function
    if not callable(target):
        raise PluginError(
            f"plugin {plugin_id} is an object of {type(target).__name__}; write @register above its class"
        )
    if not isinstance(target, type):
        raise PluginError(f"{_name(target)} (plugin {plugin_id}) is not async; write `async def {target.__name__}`")
    wanted = _wanted(target)
    starts_with_context = _check_life_cycle(target)

    async def init(context: InitContext[Any]) -> object:
        instance = target(**{name: _given(name, context) for name in wanted})
        if starts_with_context is not None:
            await (instance.start(context) if starts_with_context else instance.start())
        if hasattr(instance, "aclose"):
            context.on_stop(instance.aclose)
        return instance

    init.__module__, init.__qualname__ = target.__module__, f"{target.__qualname__}.init"
    return init


def _given(name: str, context: InitContext[Any]) -> object:
    if name == "root":
        root = Path(getattr(context.config, "root_path", "") or context.root)
        context.exports["root"] = os.fspath(root)
        return root
    return context.config if name == "config" else context


def _wanted(target: type) -> list[str]:
    """Return what `__init__` asks for. Raises PluginError for any other parameter without a default."""
    parameters = inspect.signature(target).parameters.values()
    wanted = []
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.name in GIVEN and parameter.kind is not parameter.POSITIONAL_ONLY:
            wanted.append(parameter.name)
        elif parameter.default is parameter.empty:
            raise PluginError(
                f"{_name(target)}.__init__ asks for {parameter.name!r}; a plugin's class is given any of "
                f"{', '.join(GIVEN)} by name"
            )
    return wanted


def _check_life_cycle(target: type) -> bool | None:
    """Return whether `start` takes the context, or None without a `start`. Raises PluginError if it is not async."""
    if inspect.iscoroutinefunction(vars(target).get("__init__")):
        raise PluginError(
            f"{_name(target)}.__init__ is async; write `def __init__`, and what waits in `async def start`"
        )
    for name in ("start", "aclose"):
        method = getattr(target, name, None)
        if method is not None and not inspect.iscoroutinefunction(method):
            raise PluginError(f"{_name(target)}.{name} is not async; write `async def {name}`")
    start, aclose = getattr(target, "start", None), getattr(target, "aclose", None)
    if aclose is not None and not takes(aclose, 1):
        raise PluginError(f"{_name(target)}.aclose takes {_taken(aclose)}; write `async def aclose(self)`")
    if start is None:
        return None
    if not (takes(start, 1) or takes(start, 2)):
        raise PluginError(f"{_name(target)}.start takes {_taken(start)}; write `async def start(self, context)`")
    return takes(start, 2)


def takes(function: Callable[..., object], count: int) -> bool:
    """Return whether a function can be called with that many positional arguments."""
    try:
        inspect.signature(function).bind(*[None] * count)
    except TypeError:
        return False
    return True


def _taken(function: Callable[..., object]) -> str:
    return f"({', '.join(inspect.signature(function).parameters)})"


def _name(target: Any) -> str:
    return f"{target.__module__}.{getattr(target, '__qualname__', type(target).__qualname__)}"
