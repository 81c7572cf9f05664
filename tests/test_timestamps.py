"""Points in time: exact to the nanosecond on every way in and out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiocontainerd import api, timestamps
from aiocontainerd.timestamps import NANOSECONDS, ZERO_NS, format_rfc3339, parse_rfc3339
from aiocontainerd.wire.times import time_from_wire, time_to_wire

LAST_NS = 253_402_300_800 * NANOSECONDS - 1
moments = st.integers(ZERO_NS, LAST_NS)


@given(moments)
def test_rfc3339_keeps_every_nanosecond(ns: int) -> None:
    assert parse_rfc3339(format_rfc3339(ns)) == ns


@given(moments)
def test_the_wire_keeps_every_nanosecond_and_counts_them_forwards(ns: int) -> None:
    message = time_to_wire(ns)
    assert 0 <= message.nanos < NANOSECONDS
    assert time_from_wire(message) == ns


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (ZERO_NS, "0001-01-01T00:00:00Z"),
        (1, "1970-01-01T00:00:00.000000001Z"),
        (-1, "1969-12-31T23:59:59.999999999Z"),
        (1_500_000_000, "1970-01-01T00:00:01.5Z"),
        (LAST_NS, "9999-12-31T23:59:59.999999999Z"),
    ],
)
def test_times_print_as_go_prints_them(ns: int, text: str) -> None:
    assert format_rfc3339(ns) == text
    assert parse_rfc3339(text) == ns


def test_zones_and_small_letters_are_read() -> None:
    assert parse_rfc3339("1970-01-01T01:00:00.25+01:00") == 250_000_000
    assert parse_rfc3339("1970-01-01t00:00:00z") == 0
    assert parse_rfc3339("1969-12-31T19:00:00-05:00") == 0


@pytest.mark.parametrize(
    "text",
    [
        "", "now", "2024-01-01", "2024-01-01T00:00:00", "2024-13-01T00:00:00Z", "2024-01-01T25:00:00Z",
        "2024-02-30T00:00:00Z", "2024-01-01T00:00:00.1234567890Z", "2024-01-01T00:00:00Z\n",
        "2024-01-01T00:00:00+25:00",
    ],
)  # fmt: skip
def test_what_is_no_time_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="is not an RFC 3339 time") as failed:
        parse_rfc3339(text)
    assert repr(text) in str(failed.value)


def test_an_absent_time_is_gos_zero_time() -> None:
    assert time_from_wire(None) == ZERO_NS
    assert time_from_wire(api.protobuf.Timestamp()) == 0


def test_now_is_the_wall_clock() -> None:
    assert timestamps.now_ns() > parse_rfc3339("2024-01-01T00:00:00Z")
