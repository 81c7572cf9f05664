"""Naming what is in an image archive (facts/core 13)."""

from __future__ import annotations

from aiocontainerd.distribution.import_names import Naming, names_of
from aiocontainerd.oci.image import NAME_ANNOTATION, REF_ANNOTATION

DIGEST = "sha256:" + "a" * 64


def names(naming: Naming, **annotations: str) -> list[str]:
    keys = {"name": NAME_ANNOTATION, "ref": REF_ANNOTATION}
    return names_of({keys[key]: value for key, value in annotations.items()}, DIGEST, naming)


def test_a_tag_gets_the_prefix() -> None:
    assert names(Naming(prefix="r.io/a"), ref="1") == ["r.io/a:1"]
    assert names(Naming(), ref="1") == []


def test_a_whole_name_must_continue_the_prefix_unless_any_may() -> None:
    assert names(Naming(prefix="r.io/a"), ref="r.io/a:2") == ["r.io/a:2"]
    assert names(Naming(prefix="r.io/a"), ref="r.io/ab:2") == []
    assert names(Naming(prefix="x", allow_overwrite=True), ref="r.io/ab:2") == ["r.io/ab:2"]


def test_the_image_name_comes_first_and_alone() -> None:
    overwrite = Naming(prefix="import", allow_overwrite=True)
    assert names(overwrite, name="docker.io/library/a:1", ref="1") == ["docker.io/library/a:1"]
    assert names(Naming(prefix="r.io/a"), name="docker.io/library/a:1", ref="1") == []


def test_an_empty_image_name_is_none() -> None:
    assert names(Naming(prefix="import", allow_overwrite=True), name="", ref="1") == ["import:1"]
    assert names(Naming(prefix="import", allow_overwrite=True), name="") == []


def test_digests_name_as_well() -> None:
    assert names(Naming(prefix="p", add_digest=True), ref="1") == ["p:1", f"p@{DIGEST}"]
    assert names(Naming(prefix="p", add_digest=True, skip_named_digest=True), ref="1") == ["p:1"]
    assert names(Naming(prefix="p", add_digest=True, skip_named_digest=True)) == [f"p@{DIGEST}"]
