"""The one import of a plugin author.

from aiocontainerd.plugin import InitContext, PluginConfig, Registration, hookimpl, kinds

class Config(PluginConfig):
    root_path: str = ""

async def init(context: InitContext[Config]) -> object: ...

@hookimpl
def register_plugins():
    return [Registration(kind=kinds.SNAPSHOTTER, id="acme", config=Config, init=init)]
"""

from __future__ import annotations

from aiocontainerd import kinds
from aiocontainerd.hookspecs import hookimpl
from aiocontainerd.registry import InitContext, Plugin, PluginConfig, Registration, SkipPlugin, State

__all__ = ["InitContext", "Plugin", "PluginConfig", "Registration", "SkipPlugin", "State", "hookimpl", "kinds"]
