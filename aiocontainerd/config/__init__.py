"""Read TOML of containerd's versions 1 to 4 into typed records that know where each value came from.

Imports the words and, for the deadline classes, `interfaces`; it knows plugins only by what they tell it (`plugin`).
Imported by `host`, `daemon` and `cli`.

load.py        `load(path)` -> `Config`: all of it together
source.py      a TOML file as a tree, with the line of every key
toml_text.py   the text of a TOML file: characters, statements, lines of keys
toml_errors.py what is wrong with a text that is no TOML
migrate.py     older versions into the current one
merge.py       a file and its imports into one tree
decode.py      trees into records, with every problem found
records.py     the top-level records and their defaults
plugin.py      what a plugin tells of its config
timeouts.py    keys of `[timeouts]`: the daemon's own, and how plugins declare theirs
log_levels.py  names of log levels and formats
fields.py      which types a config field may have
values.py      types of values that are checked when the config is loaded: durations, addresses, texts
secret.py      values that are never shown
spelling.py    keys in another case than their record's
stock.py       containerd's plugins, and keys that it dropped
hints.py       what is wrong with a key that nobody reads
encode.py      plugins' records into TOML values
render.py      a config as TOML, defaults included
explain.py     every value with its origin
"""

from __future__ import annotations

from aiocontainerd.config.load import Config, load
from aiocontainerd.config.records import ConfigError, Settings

__all__ = ["Config", "ConfigError", "Settings", "load"]
