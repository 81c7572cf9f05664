"""Encode config records of plugins into what TOML has: tables, lists, strings, numbers, booleans and times."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import msgspec

from aiocontainerd.config.records import ConfigError
from aiocontainerd.config.secret import REDACTED, Secret
from aiocontainerd.config.values import Duration

_TOML = (str, int, float, datetime.date, datetime.time)


def encode(record: msgspec.Struct, uri: str, *, reveal: bool = False) -> dict[str, Any]:
    """Return the table of the plugin `uri`. Keys without a value have None. Secrets are redacted unless `reveal`.

    Raises ConfigError, which names the plugin and the key, for a value that TOML cannot have.
    """
    hook = partial(known, reveal=reveal)
    try:
        table: dict[str, Any] = msgspec.to_builtins(record, enc_hook=hook, str_keys=True)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ConfigError(f"plugin {uri}: {_first_bad(record, hook)}: {error}") from error
    for key, value in table.items():
        if value is not None:
            _check(value, f"plugin {uri}: {key}")
    return table


def known(value: Any, *, reveal: bool = False) -> Any:
    """Encode values that msgspec does not know: secrets, durations, and mappings other than dicts."""
    if isinstance(value, Duration):
        return value.to_toml()
    if isinstance(value, Secret):
        return value.reveal() if reveal else REDACTED if value else ""
    if isinstance(value, Mapping):
        return dict(value)
    raise NotImplementedError(f"config values cannot be of type {type(value).__name__}")


def _first_bad(value: Any, hook: Callable[[Any], Any]) -> str:
    """Return the dotted key of the first value below a record that cannot be encoded."""
    inner = ((field.encode_name, getattr(value, field.name)) for field in msgspec.structs.fields(value))
    for key, held in inner:
        try:
            msgspec.to_builtins(held, enc_hook=hook, str_keys=True)
        except (NotImplementedError, TypeError, ValueError):
            return f"{key}.{_first_bad(held, hook)}" if isinstance(held, msgspec.Struct) else key
    return "the record"


def _check(value: Any, place: str) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            if inner is not None:
                _check(inner, f"{place}.{key}")
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            _check(inner, f"{place}[{number}]")
    elif not isinstance(value, _TOML):
        raise ConfigError(f"{place}: TOML has no value for {value!r}")
