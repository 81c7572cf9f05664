"""The names of imported images (facts/core 13, "Import naming"): pure rules over annotations."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from aiocontainerd.oci.image import NAME_ANNOTATION, REF_ANNOTATION


class Naming(msgspec.Struct, frozen=True, kw_only=True):
    """How to name manifests. `allow_overwrite` takes names outside of `prefix`, `add_digest` adds a name by digest."""

    prefix: str = ""
    allow_overwrite: bool = False
    add_digest: bool = False
    skip_named_digest: bool = False


def names_of(annotations: Mapping[str, str], digest: str, naming: Naming) -> list[str]:
    """Return the names of one manifest of an archive."""
    names: list[str] = []
    given = annotations.get(NAME_ANNOTATION)
    if given:
        if prefixed(given, naming) == given:
            names.append(given)
    elif named := prefixed(annotations.get(REF_ANNOTATION, ""), naming):
        names.append(named)
    if naming.add_digest and naming.prefix and not (names and naming.skip_named_digest):
        names.append(f"{naming.prefix}@{digest}")
    return names


def prefixed(value: str, naming: Naming) -> str:
    """Return the name that an annotation's value makes under a prefix, "" for none."""
    if not value:
        return ""
    if not any(character in value for character in "/:@"):
        return f"{naming.prefix}:{value}" if naming.prefix else ""
    if naming.allow_overwrite:
        return value
    within = value == naming.prefix or value.startswith(tuple(f"{naming.prefix}{mark}" for mark in "/:@"))
    return value if naming.prefix and within else ""
