"""Memory that plugins come to keep: whose it is, and what is left out."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aiocontainerd.guard.attribution_memory import growth_of, measuring
from aiocontainerd.guard.owners import Owners

URI, OTHER, SECOND = (
    "io.containerd.snapshotter.v1.acme",
    "io.containerd.differ.v1.other",
    "io.containerd.differ.v1.acme",
)
MEGABYTES = 1 << 20
SOURCE = """
import json

KEPT = []

def leak(count):
    for _ in range(count):
        KEPT.append(bytes(1 << 20))

def use(count):
    for _ in range(count):
        bytes(1 << 20)

def leak_in_a_library(count):
    KEPT.append(json.loads(json.dumps(["x" * 1000 + str(n) for n in range(count)])))
"""


@pytest.fixture
def acme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "acme_memory").mkdir()
    (tmp_path / "acme_memory" / "plugin.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("acme_memory.plugin")
    for name in ("acme_memory", "acme_memory.plugin"):
        del sys.modules[name]


@pytest.fixture
def owners() -> Owners:
    return Owners({"acme_memory": (URI,), "other": (OTHER,)})


def test_ten_megabytes_that_a_plugin_leaks_are_its_growth_with_their_line(acme: Any, owners: Owners) -> None:
    with measuring(True):
        acme.leak(10)
        growth = growth_of(URI, owners)
        others = growth_of(OTHER, owners)
    assert growth is not None
    assert 10 * MEGABYTES <= growth.size < 10.1 * MEGABYTES
    where, size = growth.lines[0]
    assert (where, size >= 10 * MEGABYTES) == (f"{acme.__file__}:8", True)
    assert growth.shared_with == []
    assert others is not None
    assert others.size == 0


def test_what_it_kept_before_and_what_it_gives_back_is_no_growth(acme: Any, owners: Owners) -> None:
    acme.leak(10)
    with measuring(True):
        acme.use(10)
        growth = growth_of(URI, owners)
    assert growth is not None
    assert growth.size < MEGABYTES / 100


def test_what_a_library_allocates_for_a_plugin_is_the_plugins(acme: Any, owners: Owners) -> None:
    with measuring(True):
        acme.leak_in_a_library(2000)
        growth = growth_of(URI, owners)
    assert growth is not None
    assert growth.size > 1.9 * MEGABYTES
    assert growth.lines[0][0] == f"{acme.__file__}:15"


def test_plugins_of_one_package_share_what_it_keeps(acme: Any) -> None:
    with measuring(True):
        acme.leak(1)
        growth = growth_of(SECOND, Owners({"acme_memory": (URI, SECOND)}))
    assert growth is not None
    assert growth.size >= MEGABYTES
    assert growth.shared_with == [URI]


def test_without_being_asked_nothing_is_measured(acme: Any, owners: Owners) -> None:
    with measuring(False):
        acme.leak(1)
        assert growth_of(URI, owners) is None
