"""Every plugin kind is used by a registration or explained in the architecture page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from aiocontainerd import kinds
from aiocontainerd.host import discovery

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "architecture.md").read_text()
KINDS = {name: value for name, value in vars(kinds).items() if name.isupper() and name != "ALL"}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_kind_is_a_versioned_name_that_the_page_explains(kind: str) -> None:
    assert re.fullmatch(r"io\.containerd\.[a-z.-]+\.v[12]", kind)
    assert f"| `{kind.removeprefix('io.containerd.')}` |" in PAGE


def test_kinds_are_distinct() -> None:
    assert len(set(KINDS.values())) == len(KINDS)


def test_every_registration_is_of_a_known_kind_and_requires_known_kinds() -> None:
    for registration in discovery.all_registrations():
        assert registration.kind in KINDS.values(), registration.uri
        assert set(registration.requires) <= {*KINDS.values(), kinds.ALL}, registration.uri
