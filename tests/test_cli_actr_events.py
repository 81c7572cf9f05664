"""Events as `actr events` shows them: also those that it cannot decode."""

from __future__ import annotations

import json

import pytest

from aiocontainerd import api, typeurl
from aiocontainerd.cli.actr.event_lines import line_of
from aiocontainerd.events import Envelope
from aiocontainerd.wire.anys import marshal


def shown(event: typeurl.Any) -> object:
    line = line_of(Envelope(timestamp_ns=1, namespace="ns", topic="/a/b", event=event))
    time, namespace, topic, payload = line.split(" ", 3)
    assert (time, namespace, topic) == ("1970-01-01T00:00:00.000000001Z", "ns", "/a/b")
    return json.loads(payload)


def test_fields_have_the_names_that_filters_use() -> None:
    exited = api.protobuf.Timestamp(seconds=1, nanos=5)
    event = api.event_types.TaskExit(container_id="c", id="c", pid=7, exit_status=3, exited_at=exited)
    assert shown(marshal(event)) == {
        "container_id": "c", "id": "c", "pid": 7, "exit_status": 3, "exited_at": "1970-01-01T00:00:01.000000005Z",
    }  # fmt: skip


@pytest.mark.parametrize("type_url", ["containerd.runc.v1.Options", "acme.example/Options"])
def test_options_of_a_runtime_are_shown_whether_or_not_their_type_is_known(type_url: str) -> None:
    options = api.protobuf.Any(type_url=type_url, value=b"\x01")
    runtime = api.event_types.ContainerCreateRuntime(name="r", options=options)
    event = api.event_types.ContainerCreate(id="c", image="i", runtime=runtime)
    raw = {"type_url": type_url, "value": "AQ=="}
    assert shown(marshal(event)) == {"id": "c", "image": "i", "runtime": {"name": "r", "options": raw}}


@pytest.mark.parametrize("type_url", ["acme.Unknown", "containerd.events.TaskExit", ""])
def test_a_payload_that_cannot_be_decoded_is_shown_raw(type_url: str) -> None:
    assert shown(typeurl.Any(type_url, b"\xff")) == {"type_url": type_url, "value": "/w=="}


def test_a_time_outside_of_the_calendar_is_no_error() -> None:
    event = api.event_types.TaskExit(id="c", exited_at=api.protobuf.Timestamp(seconds=1 << 60))
    assert shown(marshal(event)) == {"id": "c", "exited_at": None}
