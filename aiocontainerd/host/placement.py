"""Decide where plugins live: in the daemon, in a process of their own, or behind a socket; and which programs it runs.

`[proxy_plugins.<name>]` names a socket behind which a plugin lives. `isolation` of `[python_plugins.<name>]`, or
`[plugin_isolation] "<kind>.<id>" = "process"` for any plugin, moves a plugin of ours out of the daemon.
`[stream_processors.<id>]` names a program that the daemon runs for each layer of some media types.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import pluggy

from aiocontainerd import durations
from aiocontainerd.config.records import Isolation, IsolationMode, ProxyPlugin, PythonPlugin, StreamProgram
from aiocontainerd.config.timeouts import PLUGIN_INIT
from aiocontainerd.host import hookspecs
from aiocontainerd.host.registration import PluginError, Registration

if TYPE_CHECKING:
    from aiocontainerd.config import Config

log = logging.getLogger(__name__)

_NO_PROXIES: Mapping[str, ProxyPlugin] = MappingProxyType({})
_NO_MODES: Mapping[str, IsolationMode] = MappingProxyType({})
_NO_PROGRAMS: Mapping[str, StreamProgram] = MappingProxyType({})
_HOOKS = ("register_proxy_plugin", "register_stream_processor", "isolate_plugin")


class Placement:
    """What the config says about plugins outside the daemon, and the modules whose hooks can make them."""

    def __init__(
        self,
        proxies: Mapping[str, ProxyPlugin] = _NO_PROXIES,
        modes: Mapping[str, IsolationMode] = _NO_MODES,
        programs: Mapping[str, StreamProgram] = _NO_PROGRAMS,
        import_limit_s: float = durations.parse(PLUGIN_INIT.default),
    ) -> None:
        self.import_limit_s = import_limit_s
        """Seconds in which the module of an isolated plugin has to be imported; 0 means no limit."""
        self._proxies = proxies
        self._programs = programs
        self._modes = modes
        self._outside: list[tuple[Registration, object]] = []
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)

    @classmethod
    def of(cls, config: Config) -> Self:
        """Return what a config says."""
        settings, limit_s = config.settings, config.timeout_s(PLUGIN_INIT.key)
        return cls(settings.proxy_plugins, settings.plugin_isolation, config.stream_processors, limit_s)

    def __repr__(self) -> str:
        return f"<Placement {len(self._proxies)} proxies, {len(self._modes)} isolated, {self._manager.get_plugins()}>"

    def learn(self, module: Any) -> None:
        """Register a module that has one of the hooks. Ignore any other."""
        if any(hasattr(module, name) for name in _HOOKS) and not self._manager.is_registered(module):
            self._manager.register(module)

    def placed(self, registration: Registration, module: str, declared: PythonPlugin | None) -> Registration:
        """Return the registration, or the one that stands for it if the plugin gets a process of its own.

        Raises PluginError where no package can keep it apart in the way that the config says.
        """
        isolation = self.isolation_of(registration.uri, module, declared)
        if isolation is None:
            return registration
        made: Registration | None = self._manager.hook.isolate_plugin(registration=registration, isolation=isolation)
        if made is None:
            raise PluginError(
                f'{registration.uri} cannot have isolation = "process": that is what the package '
                "aiocontainerd-proxy is for, which is not installed"
            )
        self._outside.append((made, isolation))
        return made

    def isolation_of(self, uri: str, module: str, declared: PythonPlugin | None) -> Isolation | None:
        """Return the process that a plugin is to have, None for one that lives in the daemon. Pure.

        Raises PluginError for another user's identity where there is no other process.
        """
        mode = self._modes.get(uri, declared.isolation if declared else "none")
        uid, gid = (declared.uid, declared.gid) if declared else (None, None)
        if mode != "process" and (uid is not None or gid is not None):
            raise PluginError(f'{uri} can have a uid or gid of its own only with isolation = "process"')
        if mode == "none":
            return None
        return Isolation(module=module, uid=uid, gid=gid)

    def outside(self, registration: Registration) -> object:
        """Return the settings of a plugin outside the daemon by its registration, None for a plugin inside."""
        return next((settings for made, settings in self._outside if made is registration), None)

    @property
    def proxies(self) -> Sequence[str]:
        """The names of `[proxy_plugins]`."""
        return tuple(self._proxies)

    def proxy(self, name: str) -> Registration | None:
        """Return the registration of a proxy plugin. Log a warning and return None if no package knows its type."""
        settings = self._proxies[name]
        made: Registration | None = self._manager.hook.register_proxy_plugin(name=name, settings=settings)
        if made is None:
            log.warning(
                'proxy plugin %s is ignored: nothing here can use the type "%s"; there are snapshot, content and diff',
                name,
                settings.type,
            )
        else:
            self._outside.append((made, settings))
        return made

    @property
    def programs(self) -> Sequence[str]:
        """The names of `[stream_processors]`."""
        return tuple(self._programs)

    def program(self, name: str) -> Registration | None:
        """Return the registration of a stream processor. Log a warning and return None if no package can run it."""
        made: Registration | None = self._manager.hook.register_stream_processor(
            name=name, settings=self._programs[name]
        )
        if made is None:
            log.warning("nothing here can run the stream processor %s", name)
        return made
