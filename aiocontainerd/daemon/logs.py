"""Write log records to standard error, one line each, as text (`time=… level=… msg=…`) or JSON (facts/core 16)."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

from aiocontainerd.config.log_levels import TRACE, check_format, number_of
from aiocontainerd.guard.clock import running
from aiocontainerd.timestamps import format_rfc3339

_NAMES = {TRACE: "trace", logging.WARNING: "warning", logging.CRITICAL: "fatal"}
_OF_PLUGIN = "aiocontainerd.plugin."
"""Beginning of the names of `InitContext.log`."""
_NANOSECONDS = 1_000_000_000


def setup(level: str = "", form: str = "") -> None:
    """Send all records to standard error. Raises ValueError for an unknown level or format."""
    number = number_of(level)
    check_format(form)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(number)
    for noisy in ("asyncio", "hpack", "h2"):
        logging.getLogger(noisy).setLevel(max(number, logging.WARNING))


class TextFormatter(logging.Formatter):
    """`time="…" level=info msg="…" key=value`."""

    def format(self, record: logging.LogRecord) -> str:
        return " ".join(f"{key}={_quoted(value)}" for key, value in _fields(self, record).items())


class JsonFormatter(logging.Formatter):
    """One JSON object for each record."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(_fields(self, record), ensure_ascii=False, default=str)


def _fields(formatter: logging.Formatter, record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "time": format_rfc3339(int(record.created * _NANOSECONDS)),
        "level": _NAMES.get(record.levelno, record.levelname.lower()),
        "msg": record.getMessage(),
    }
    plugin = _plugin_of(record.name)
    if plugin:
        fields["plugin"] = plugin
    extra = getattr(record, "fields", None)
    if isinstance(extra, dict):
        fields.update(extra)
    if record.exc_info:
        fields["error"] = formatter.formatException(record.exc_info)
    return fields


def _plugin_of(logger: str) -> str:
    """Return the plugin that logs: whose logger it is, or which is at work; "" for the daemon's own words."""
    if logger.startswith(_OF_PLUGIN):
        return f"io.containerd.{logger.removeprefix(_OF_PLUGIN)}"
    clock = running.get()
    if clock is None or logger.startswith("aiocontainerd."):
        return ""
    return clock.uri


def _quoted(value: object) -> str:
    text = str(value)
    plain = text and all(char.isalnum() or char in "-._/@^+:" for char in text)
    return text if plain else json.dumps(text, ensure_ascii=False)
