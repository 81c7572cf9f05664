"""Check the field types of a config record before there is any value: can a value of TOML become each of them?"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Iterator
from functools import partial
from types import MappingProxyType
from typing import Annotated, Any, Literal

import msgspec
import msgspec.inspect

from aiocontainerd.config.encode import known
from aiocontainerd.config.secret import Secret
from aiocontainerd.config.values import Duration, decode_hook, misfits

USABLE = "str, int, float, bool, dates and times, Secret, Duration, and lists, tables and Structs of these"
_KNOWN = (Secret, MappingProxyType, Ellipsis)
"""Types that `decode_hook` makes, and `...`, which is no type but may be a type argument."""
_PLAIN = (str, int, float, bool, list, dict, tuple, Duration, Secret)
_UNDEFINED = "is not defined where its class is; import what it names outside of TYPE_CHECKING"


class BadField(msgspec.Struct, frozen=True):
    """A field that no value can be decoded into: its dotted key, its type as written, and the reason."""

    key: str
    type: str
    why: str

    def __str__(self) -> str:
        return f"field {self.key} is of type {self.type}, which {self.why}"


def bad_field(record: type[msgspec.Struct]) -> BadField | None:
    """Return the first field, at any depth, that no value can be decoded into, None if there is none.

    Raises NameError for a type that is not known yet because its module is still being imported.
    """
    return next(_bad(record, "", set()), None)


def bad_default(record: type[msgspec.Struct]) -> str:
    """Return what is wrong with the first default of a record, or with a key without a type; "" if nothing is."""
    return next(_bad_defaults(record, "", set()), "")


def _bad_defaults(record: type[msgspec.Struct], at: str, seen: set[type]) -> Iterator[str]:
    seen.add(record)
    for name, value in vars(record).items():
        if not name.startswith("_") and type(value) in _PLAIN and name not in inspect.get_annotations(record):
            yield f"key {at}{name} has no type; write {name}: {type(value).__name__} = {value!r}"
    for field in msgspec.structs.fields(record):
        key = f"{at}{field.encode_name}"
        if field.default_factory is not msgspec.NODEFAULT:
            yield from _bad_value(field.default_factory(), field.type, key)
        elif field.default is not msgspec.NODEFAULT:
            yield from _bad_value(field.default, field.type, key)
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct) and field.type not in seen:
            yield from _bad_defaults(field.type, f"{key}.", seen)


def _bad_value(value: Any, kind: Any, key: str) -> Iterator[str]:
    """Yield why a default, which nothing decodes, is no value of its field."""
    named = (kind, *typing.get_args(kind))
    made = [one for one in named if isinstance(one, type) and issubclass(one, Duration | Secret)]
    if made and isinstance(value, str) and str not in typing.get_args(kind):
        shown = f"{made[0].__name__}({value!r})" if made[0] is Secret else f'{made[0].__name__}("5s")'
        yield f"field {key} is of type {_written(kind)}, and its default is the text {value!r}; write {shown}"
        return
    try:
        decoded = msgspec.convert(
            msgspec.to_builtins(value, enc_hook=partial(known, reveal=True), str_keys=True), kind, dec_hook=decode_hook
        )
    except (msgspec.ValidationError, NotImplementedError, TypeError, ValueError) as error:
        remedy = f"; write {_written(kind)} | None" if value is None else ""
        yield f"field {key} is of type {_written(kind)}, and its default is {value!r}: {error}{remedy}"
        return
    for misfit in misfits(decoded, kind):
        yield f"field {key} has the default {value!r}, which its own check refuses: {misfit.why}"


def undefined_field(record: type[msgspec.Struct], error: NameError) -> BadField:
    """Return the field whose type has the name that `error` says is not defined."""
    for base in record.__mro__:
        for name, written in vars(base).get("__annotations__", {}).items():
            if isinstance(written, str) and re.search(rf"\b{re.escape(error.name or '')}\b", written):
                return BadField(name, written, _UNDEFINED)
    return BadField("of a table", error.name or str(error), _UNDEFINED)


def _bad(kind: Any, key: str, seen: set[type]) -> Iterator[BadField]:
    """Yield what is wrong with a type and with its parts."""
    if kind in _KNOWN or (isinstance(kind, type) and issubclass(kind, Duration)):
        return
    known = _known(kind)
    if isinstance(known, msgspec.inspect.CustomType) and typing.get_origin(kind) not in _KNOWN:
        yield BadField(key, _written(kind), f"no value in TOML becomes; there are {USABLE}")
        return
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind not in seen:
        seen.add(kind)
        for field in msgspec.structs.fields(kind):
            yield from _bad(field.type, f"{key}.{field.encode_name}".lstrip("."), seen)
    for part in _parts(kind):
        yield from _bad(part, key, seen)
    if isinstance(known, TypeError):
        yield BadField(key, _written(kind), f"cannot be told apart: {str(known).partition(' - type ')[0]}")


def _known(kind: Any) -> msgspec.inspect.Type | TypeError:
    """Return what msgspec makes of a type, or its error."""
    try:
        return msgspec.inspect.type_info(kind)
    except TypeError as error:
        return error


def _parts(kind: Any) -> tuple[Any, ...]:
    """Return the type arguments of a generic type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return arguments[:1]
    return () if origin is Literal else arguments


def _written(kind: Any) -> str:
    return kind.__qualname__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)
