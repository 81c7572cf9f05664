"""Turn events into lines of JSON."""

from __future__ import annotations

import base64
import dataclasses
import enum
import json
from typing import Any

from aiocontainerd.plugin import Envelope, errors, timestamps, typeurl

_TIMESTAMP = "google.protobuf.Timestamp"


def line_of(envelope: Envelope) -> bytes:
    """Return an event as one line: time, namespace, topic, type of the payload, and its fields.

    Fields have the names of the `.proto` file, and those with default values are there too. Bytes are base64, times RFC
    3339. A payload of a type that the API does not have is given as its bytes, `value`.
    """
    fields = {
        "timestamp": timestamps.format_rfc3339(envelope.timestamp_ns),
        "namespace": envelope.namespace,
        "topic": envelope.topic,
        "type": envelope.event.type_url,
        "event": _payload(envelope.event),
    }
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def _payload(event: typeurl.Any) -> Any:
    try:
        return _json(typeurl.unmarshal(event))
    except errors.ContainerdError:
        return {"value": _json(event.value)}


def _json(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, list):
        return [_json(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _json(item) for key, item in value.items()}
    return _message(value) if dataclasses.is_dataclass(value) else value


def _message(message: Any) -> Any:
    if typeurl.message_name(message) == _TIMESTAMP:
        try:
            return timestamps.format_rfc3339(timestamps.from_wire(message))
        except OverflowError:
            return None
    return {field.name: _json(getattr(message, field.name)) for field in dataclasses.fields(message)}
