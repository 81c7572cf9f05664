"""Render a config as TOML, for `config default`, `config dump` and `config.example.toml`."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
import tomli_w

from aiocontainerd.config import timeouts
from aiocontainerd.config.encode import encode, known
from aiocontainerd.config.load import Config
from aiocontainerd.config.plugin import Configured
from aiocontainerd.config.records import DEFAULT_IMPORTS, Settings, StreamProgram
from aiocontainerd.config.secret import REDACTED

if TYPE_CHECKING:
    from aiocontainerd.config.timeouts import Timeout

_SECRET_NAME = re.compile(r"secret|token|password|passwd|credential", re.IGNORECASE)
_EXAMPLE_HEAD = """\
# Every key of the daemon and its first-party plugins with its default.
# Generated from the config records; `make docs` writes it anew.
"""


def tree_of(config: Config, registrations: Iterable[Configured], *, reveal: bool = False) -> dict[str, Any]:
    """Return the whole config with every default filled in. Tables of plugins that are not installed are kept.

    Secrets are redacted unless `reveal`. Raises ConfigError for a value that TOML cannot have.
    """
    tree: dict[str, Any] = msgspec.to_builtins(config.settings, enc_hook=known)
    registrations = list(registrations)
    defaults = {key: timeout.default for key, timeout in declared(registrations).items()}
    tree["timeouts"] = {**defaults, **tree["timeouts"]}
    tree["stream_processors"] = msgspec.to_builtins(config.stream_processors, enc_hook=known)
    plugins: dict[str, Any] = dict(config.plugin_tables) if reveal else _guessed(config.plugin_tables)
    for registration in registrations:
        plugins[registration.uri] = encode(config.plugin_config(registration), registration.uri, reveal=reveal)
    tree["plugins"] = {uri: plugins[uri] for uri in sorted(plugins)}
    return tree


def dump(config: Config, registrations: Iterable[Configured], *, reveal: bool = False) -> str:
    """Return the whole config as TOML. Its imports begin with containerd's own pattern, as in what containerd prints.

    Secrets are redacted unless `reveal`.
    """
    registrations = list(registrations)
    tree = _without_none(tree_of(config, registrations, reveal=reveal))
    tree["imports"] = list(dict.fromkeys([DEFAULT_IMPORTS, *config.settings.imports]))
    limits, plugins = tree.pop("timeouts"), tree.pop("plugins")
    parts = [tomli_w.dumps(tree), _timeouts(limits, declared(registrations)), tomli_w.dumps({"plugins": plugins})]
    return "\n".join(parts)


def example(registrations: Iterable[Configured]) -> str:
    """Return all defaults as TOML, each table under the words of its record."""
    registrations = sorted(registrations, key=lambda r: r.uri)
    tree = tree_of(Config({}, {}), registrations)
    parts = [_EXAMPLE_HEAD, _scalars(tree)]
    defaults = Settings()
    parts += [
        _table((name,), tree[name], type(getattr(defaults, name))) for name in ("debug", "cgroup", "plugin_policy")
    ]
    parts.append(_timeouts(tree["timeouts"], declared(registrations)))
    for number, (name, values) in enumerate(sorted(tree["stream_processors"].items())):
        parts.append(_table(("stream_processors", name), values, None if number else StreamProgram))
    for registration in registrations:
        values = tree["plugins"][registration.uri]
        if values:
            parts.append(_plugin_table(registration, values))
    return "\n".join(parts)


def declared(registrations: Iterable[Configured]) -> dict[str, Timeout]:
    """Return the keys of `[timeouts]` that the daemon and these plugins declare, sorted by name."""
    return timeouts.declared(timeout for registration in registrations for timeout in registration.timeouts)


def _timeouts(values: Mapping[str, str], known: Mapping[str, Timeout]) -> str:
    """Return the table `[timeouts]`, each key under what it limits."""
    lines = ["[timeouts]\n"]
    for key, value in values.items():
        timeout = known.get(key)
        lines.append(f"{_wrapped(timeout.doc) if timeout else ''}{tomli_w.dumps({key: value})}")
    return "".join(lines)


def _plugin_table(registration: Configured, values: Mapping[str, Any]) -> str:
    """Return a plugin's table. A default that is computed at run time, such as the user id, is only named."""
    computed = [f.name for f in msgspec.structs.fields(registration.config) if inspect.isbuiltin(f.default_factory)]
    fixed = {key: value for key, value in values.items() if key not in computed}
    table = _table(("plugins", registration.uri), fixed, registration.config)
    return table + "".join(f"# {name}: the daemon's own\n" for name in computed)


def _table(path: tuple[str, ...], values: Mapping[str, Any], record: type[msgspec.Struct] | None) -> str:
    header = ".".join(part if part.isidentifier() else f'"{part}"' for part in path)
    return f"{_comment(record)}[{header}]\n{_scalars(values)}"


def _scalars(values: Mapping[str, Any]) -> str:
    """Return the keys of a table that are no tables themselves."""
    return tomli_w.dumps(_without_none({k: v for k, v in values.items() if not isinstance(v, dict)}))


def _comment(record: type[msgspec.Struct] | None) -> str:
    return _wrapped(inspect.getdoc(record) or "") if record is not None else ""


def _wrapped(text: str) -> str:
    words = " ".join(text.split())
    return textwrap.fill(words, 118, initial_indent="# ", subsequent_indent="# ") + "\n" if words else ""


def _guessed(value: Any, key: str = "") -> Any:
    """Redact tables of plugins that are not installed. Their secrets are guessed by key names."""
    if isinstance(value, Mapping):
        return {name: _guessed(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [_guessed(inner, key) for inner in value]
    return REDACTED if isinstance(value, str) and value and _SECRET_NAME.search(key) else value


def _without_none(value: Any) -> Any:
    """Leave out keys without a value, as TOML has no null."""
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return value
