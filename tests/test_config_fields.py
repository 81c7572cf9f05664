"""Which types the fields of a plugin's config may have, and what is said of any other before it has a value."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping
from datetime import date
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import msgspec
import pytest

from aiocontainerd.config.fields import USABLE, bad_field, undefined_field
from aiocontainerd.host import discovery
from aiocontainerd.plugin import PluginConfig, Secret


class Colour(StrEnum):
    """A choice."""

    RED = "red"


class Place(msgspec.Struct, frozen=True):
    """A table with a field that cannot be."""

    where: Path = Path("/")


class Node(msgspec.Struct, frozen=True):
    """A table in itself."""

    below: tuple[Node, ...] = ()


class Other(msgspec.Struct, frozen=True):
    """Another table."""

    name: str = ""


def config(written: str) -> type[PluginConfig]:
    """Return a config with one field, of a type as a module with `from __future__ import annotations` has it."""
    field: Any = ("key", written, None)
    made: Any = msgspec.defstruct("Config", [field], bases=(PluginConfig,), module=__name__, frozen=True)
    return made  # type: ignore[no-any-return] # defstruct does not tell its bases


USED = (Annotated, Any, Callable, Colour, Iterable, Literal, Mapping, MappingProxyType, Secret, date, ipaddress)
"""What the texts below name."""


@pytest.mark.parametrize(
    "written",
    [
        "str", "int | None", "bool", "float", "date", "Secret", "Secret | None", "list[Secret]", "tuple[str, ...]",
        "dict[str, Node]", "Mapping[str, str]", "MappingProxyType[str, Secret]", "frozenset[str]", "Any", "Colour",
        "Literal['a', 'b']", "str | int | list[int]", "Annotated[int, msgspec.Meta(ge=1, extra={'unit': 's'})]",
    ],
)  # fmt: skip
def test_types_that_values_of_toml_become_are_fine(written: str) -> None:
    assert bad_field(config(written)) is None


@pytest.mark.parametrize(
    ("written", "key", "named"),
    [
        ("Path", "key", "Path"),
        ("Path | None", "key", "Path"),
        ("list[Path]", "key", "Path"),
        ("MappingProxyType[str, Path]", "key", "Path"),
        ("dict[str, Place]", "key.where", "Path"),
        ("ipaddress.IPv4Address", "key", "IPv4Address"),
        ("object", "key", "object"),
        ("Iterable[str]", "key", "collections.abc.Iterable[str]"),
        ("Callable[[int], int]", "key", "collections.abc.Callable[[int], int]"),
    ],
)
def test_any_other_type_is_named_with_its_field_before_there_is_a_value(written: str, key: str, named: str) -> None:
    bad = bad_field(config(written))
    assert str(bad) == f"field {key} is of type {named}, which no value in TOML becomes; there are {USABLE}"


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("Node | Other", "multiple Struct types, all Struct types must be tagged"),
        ("list[int] | tuple[str, ...]", "more than one array-like"),
        ("Secret | str", "a custom type may not contain any additional types"),
    ],
)
def test_types_that_no_decoder_tells_apart_are_named_with_their_field(written: str, why: str) -> None:
    bad = bad_field(config(written))
    assert bad is not None
    assert bad.key == "key"
    assert why in bad.why


def test_a_type_that_is_not_there_is_named_with_its_field() -> None:
    unknown = config("list[Nowhere]")
    with pytest.raises(NameError) as raised:
        bad_field(unknown)
    bad = undefined_field(unknown, raised.value)
    assert str(bad).startswith("field key is of type list[Nowhere], which is not defined where its class is")


def test_every_plugin_of_the_daemon_has_a_config_that_can_be_decoded() -> None:
    assert [r.uri for r in discovery.all_registrations() if bad_field(r.config)] == []
