"""What `aiocontainerd-plugin serve MODULE[:NAME]` finds to serve."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiocontainerd import kinds
from aiocontainerd.cli.plugin import target
from aiocontainerd.plugin import PluginError

MODULE = """
from aiocontainerd.plugin import Registration, hookimpl, kinds, register
from aiocontainerd.testing.fakes import FakeContentStore, FakeSnapshotter

class AcmeReflinkSnapshotter(FakeSnapshotter):
    def __init__(self, root):
        super().__init__()

class Blobs(FakeContentStore):
    pass

class Layers:
    def __init__(self, context):
        self.context = context
    async def apply(self, layer, mounts, options): ...
    async def compare(self, lower, upper, options): ...

class Nothing:
    pass

@register(kinds.SNAPSHOTTER, "marked")
class Marked(FakeSnapshotter):
    pass

async def init(context): ...

@hookimpl
def register_plugins():
    return [
        Registration(kind=kinds.SNAPSHOTTER, id="one", init=init),
        Registration(kind=kinds.EVENT_SINK, id="sink", init=init),
    ]
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "acme_served.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("acme_served", None)


def uris(path: str, wanted: str = "") -> list[str]:
    return [registration.uri for registration in target.registrations(path, wanted)]


def test_a_module_gives_those_of_its_plugins_that_have_an_api() -> None:
    assert uris("acme_served") == [f"{kinds.SNAPSHOTTER}.one", f"{kinds.SNAPSHOTTER}.marked"]


@pytest.mark.parametrize("wanted", ["marked", f"{kinds.SNAPSHOTTER}.marked"])
def test_an_id_or_a_uri_chooses_one(wanted: str) -> None:
    assert uris("acme_served", wanted) == [f"{kinds.SNAPSHOTTER}.marked"]


def test_a_registered_class_keeps_its_id() -> None:
    assert uris("acme_served:Marked") == [f"{kinds.SNAPSHOTTER}.marked"]


@pytest.mark.parametrize(
    ("name", "wanted", "uri"),
    [
        ("AcmeReflinkSnapshotter", "", f"{kinds.SNAPSHOTTER}.acme-reflink"),
        ("AcmeReflinkSnapshotter", "mine", f"{kinds.SNAPSHOTTER}.mine"),
        ("AcmeReflinkSnapshotter", f"{kinds.SNAPSHOTTER}.mine", f"{kinds.SNAPSHOTTER}.mine"),
        ("Blobs", "", f"{kinds.CONTENT}.blobs"),
        ("Layers", "", f"{kinds.DIFFER}.layers"),
    ],
)
def test_a_class_that_registers_nothing_is_known_by_its_methods(name: str, wanted: str, uri: str) -> None:
    assert uris(f"acme_served:{name}", wanted) == [uri]


def test_a_differ_needs_the_content_of_a_daemon() -> None:
    (registration,) = target.registrations("acme_served:Layers")
    assert registration.requires == (kinds.METADATA,)


def test_what_cannot_be_served_is_named() -> None:
    with pytest.raises(PluginError, match=r"^acme_served:Nothing is neither a registered plugin nor"):
        uris("acme_served:Nothing")
    with pytest.raises(PluginError, match=r"^acme_served registers no two that could be served; it registers .*one"):
        uris("acme_served", "two")


def test_one_of_several_has_to_be_chosen_for_an_api_without_names() -> None:
    assert target.sole([], "content") is None
    assert target.sole(["a"], "content") == "a"
    with pytest.raises(PluginError, match="several plugins would serve content; choose one with --id"):
        target.sole(["a", "b"], "content")
