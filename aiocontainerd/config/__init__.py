"""Config: TOML of containerd's versions 1 to 4, read into typed records that know where each value came from.

source.py   a TOML file as a tree, with the line of every key
migrate.py  older versions into the current one
merge.py    a file and its imports into one tree
records.py  the top-level records and their defaults
timeouts.py keys of `[timeouts]`: the daemon's own, and how those of plugins are declared
load.py     all of it together: `load(path)` -> `Config`
render.py   a config as TOML, defaults included
"""

from __future__ import annotations

from aiocontainerd.config.load import Config, load
from aiocontainerd.config.records import ConfigError, Settings

__all__ = ["Config", "ConfigError", "Settings", "load"]
