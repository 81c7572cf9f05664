"""Events as lines of text: time, namespace, topic, payload."""

from __future__ import annotations

import base64
import dataclasses
import enum
import json
from typing import TYPE_CHECKING

from aiocontainerd import api, typeurl
from aiocontainerd.cli.actr import output
from aiocontainerd.errors import ContainerdError
from aiocontainerd.wire.anys import unmarshal
from aiocontainerd.wire.times import time_from_wire

if TYPE_CHECKING:
    from aiocontainerd.events import Envelope


def line_of(envelope: Envelope) -> str:
    """Return one line for an event. A payload that cannot be decoded is shown with its type and its bytes in base64."""
    payload = json.dumps(_payload(envelope.event), separators=(",", ":"))
    return " ".join((output.time(envelope.timestamp_ns), envelope.namespace, envelope.topic, payload))


def _payload(event: typeurl.Any) -> object:
    try:
        return _shown(unmarshal(event))
    except ContainerdError:
        return _raw(event.type_url, event.value)


def _raw(type_url: str, value: bytes) -> object:
    return {"type_url": type_url, "value": base64.b64encode(value).decode()}


def _shown(value: object) -> object:
    """Return the JSON form of a message or a field, with the field names that filters use and without empty fields."""
    if isinstance(value, api.protobuf.Any):
        return _raw(value.type_url, value.value)
    if isinstance(value, api.protobuf.Timestamp):
        return _time(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, list):
        return [_shown(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _shown(item) for key, item in value.items()}
    return _fields(value) if dataclasses.is_dataclass(value) else value


def _time(value: api.protobuf.Timestamp) -> str | None:
    try:
        return output.time(time_from_wire(value))
    except OverflowError:
        return None


def _fields(message: object) -> dict[str, object]:
    assert dataclasses.is_dataclass(message)
    given = {field.name.rstrip("_"): getattr(message, field.name) for field in dataclasses.fields(message)}
    return {name: _shown(value) for name, value in given.items() if value}
