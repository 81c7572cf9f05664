"""The protocol buffer wire format of generated messages, by a table compiled once for each message class.

Bytes that end inside a field are refused. A field of an unexpected wire type counts as unknown. Unknown fields are kept
and written again. Go's library does the same; the parser of betterproto2 does not.

The time to read a message grows with its size and with nothing else, whatever its bytes are. A field that repeats has
a limit, since two bytes of a message can become an object of several hundred. So has the number of fields.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import cache, cached_property
from typing import Any

# Loaded with the front ends rather than by the first request: it reads files, which would block the loop.
import betterproto2
from betterproto2 import FieldMetadata

from aiocontainerd.wire.unknown_fields import skipper

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
_WIDTHS = {FIXED64: 8, FIXED32: 4}
_MASK64 = (1 << 64) - 1
_LARGEST = (1 << 63) - 1
MAX_VALUES = 1 << 16
"""Most values of one repeated field. A list of so many records would be larger than a message may be."""
MAX_ENTRIES = 1 << 15
"""Most entries of one map. Maps hold labels, annotations and extensions: no client of containerd comes near."""
MAX_FIELDS = 1 << 17
"""Most fields of one message, repeated ones counted each time."""
_FIELDS = range(MAX_FIELDS + 1)
_FIXED = {
    "double": (FIXED64, struct.Struct("<d")),
    "fixed64": (FIXED64, struct.Struct("<Q")),
    "sfixed64": (FIXED64, struct.Struct("<q")),
    "float": (FIXED32, struct.Struct("<f")),
    "fixed32": (FIXED32, struct.Struct("<I")),
    "sfixed32": (FIXED32, struct.Struct("<i")),
}

_FEW_FIELDS = 32
_LONG_RUN = 8
"""After so many unknown fields in a row more are to be expected."""

Value = Callable[[bytes, int, int], tuple[Any, int]]
"""Function that reads one value: data, position, end of the message -> value, position after it."""
Reader = Callable[[Any, bytes, int, int], int]
"""Function that reads one occurrence of a field into a message and returns the position after it."""
Entry = Callable[[bytes, int, int], tuple[Any, Any]]
"""Function that reads one entry of a map: data, start, end -> key, value."""
Writer = Callable[[Any, bytearray], None]
"""Function that appends one field of a message, or nothing if the field has its default."""


class TooManyValues(ValueError):
    """Error for a repeated field, a map or a message that holds more than its limit."""

    def __init__(self, most: int, where: str) -> None:
        super().__init__(f"more than {most} values in {where}")


class Schema:
    """The table of one message class."""

    def __init__(self, cls: Any) -> None:
        meta = cls._betterproto
        self.cls = cls
        self.readers: dict[int, Reader] = {}
        self.writers: list[Writer] = []
        self.strings: set[int] = set()
        """Tags of single strings and bytes."""
        self.collections: list[str] = []
        self.nested: dict[str, Any] = {}
        """Classes of fields that hold one message, or a list or map of messages."""
        self._constants: dict[str, Any] = {"_unknown_fields": b""}
        self._factories: list[tuple[str, Callable[[], Any]]] = []
        for name, make in meta.default_gen.items():
            self._add_default(name, make)
        for name in meta.sorted_field_names:
            self._add_field(name, meta.meta_by_field_name[name], meta.cls_by_field)
        self.skip_short = skipper(self.readers)

    def new(self) -> Any:
        """Return a message with every field at its default."""
        message = self.cls.__new__(self.cls)
        values = message.__dict__
        values.update(self._constants)
        for name, make in self._factories:
            values[name] = make()
        return message

    def _add_default(self, name: str, make: Callable[[], Any]) -> None:
        if isinstance(make(), list | dict):
            self._factories.append((name, make))
        else:
            self._constants[name] = make()

    def _add_field(self, name: str, meta: FieldMetadata, classes: dict[str, Any]) -> None:
        cls = classes[name]
        self._note_shape(name, meta, classes)
        if meta.proto_type == "map":
            self._add_map(name, meta, cls, classes.get(f"{name}.value"))
            return
        wire, read, write = _kind(meta.proto_type, cls)
        tag = meta.number << 3 | wire
        if not meta.repeated:
            is_message = meta.proto_type == "message"
            self.readers[tag] = _merge_reader(name, cls) if is_message else _single_reader(name, read)
            self.writers.append(_single_writer(name, tag, write, skip_default=not (is_message or meta.optional)))
            return
        self.readers[tag] = _append_reader(name, read)
        if wire == LENGTH:
            self.writers.append(_repeated_writer(name, tag, write))
        else:
            packed = meta.number << 3 | LENGTH
            self.readers[packed] = _packed_reader(name, read)
            self.writers.append(_packed_writer(name, packed, write))

    @cached_property
    def deep(self) -> list[str]:
        """Return the names of fields whose messages may hold lists or maps."""
        return [name for name, cls in self.nested.items() if _holds_collections(cls, {self.cls})]

    def _note_shape(self, name: str, meta: FieldMetadata, classes: dict[str, Any]) -> None:
        is_map = meta.proto_type == "map"
        if meta.repeated or is_map:
            self.collections.append(name)
        elif meta.proto_type in ("string", "bytes"):
            self.strings.add(meta.number << 3 | LENGTH)
        if meta.proto_type == "message":
            self.nested[name] = classes[name]
        elif meta.map_meta and meta.map_meta[1].proto_type == "message":
            self.nested[name] = classes[f"{name}.value"]

    def _add_map(self, name: str, meta: FieldMetadata, entry: Any, value_class: Any) -> None:
        tag = meta.number << 3 | LENGTH
        assert meta.map_meta is not None
        key_type, value_type = (one.proto_type for one in meta.map_meta)
        key, value = _kind(key_type, None), _kind(value_type, value_class)
        any_entry = _any_entry(entry, value_class if value_type == "message" else None)
        make = entry._betterproto.default_gen
        no_value = (lambda: schema(value_class).new()) if value_type == "message" else make["value"]
        self.readers[tag] = _map_reader(name, _usual_entry(key, value, (make["key"](), no_value), any_entry))
        self.writers.append(_map_writer(name, tag, key, value))


@cache
def schema(cls: type[betterproto2.Message]) -> Schema:
    """Return the table of a class, compiled at its first use."""
    return Schema(cls)


def parse(cls: type[betterproto2.Message], data: bytes) -> Any:
    """Return the message of `data`. Raises ValueError for bytes that are no message."""
    table = schema(cls)
    message = table.new()
    _read_fields(table, message, data, 0, len(data))
    return message


def serialize(message: betterproto2.Message) -> bytes:
    """Return the bytes of a message, fields in the order of their numbers."""
    out = bytearray()
    _write_fields(message, out)
    return bytes(out)


def work_to_decode(cls: type[betterproto2.Message], data: bytes) -> int:
    """Return the bytes of `data` without those of its strings, which cost nothing; all of them after a few fields."""
    strings, left, position = schema(cls).strings, len(data), 0
    for _ in range(_FEW_FIELDS):
        if position >= len(data):
            return left
        tag, start = _varint(data, position, len(data))
        position = _skip(tag, data, start, len(data))
        if tag in strings:
            left -= position - start
    return left


def _holds_collections(cls: Any, above: set[Any]) -> bool:
    table = schema(cls)
    if table.collections or cls in above:
        return True
    return any(_holds_collections(one, above | {cls}) for one in table.nested.values())


def parts(message: Any, limit: int) -> int:
    """Return how many list items and map entries a message has, in itself and below. Counting stops at `limit`."""
    table, values = schema(message.__class__), message.__dict__
    count = 0
    for name in table.collections:
        count += len(values[name])
    for name in table.deep:
        value = values[name]
        if not value or count >= limit:
            continue
        for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else (value,):
            count += parts(one, limit - count)
            if count >= limit:
                break
    return count


def _read_fields(table: Schema, message: Any, data: bytes, position: int, end: int) -> None:
    readers = table.readers
    for _ in _FIELDS:
        if position >= end:
            return
        start = position
        tag = data[position]
        position += 1
        if tag >= 0x80:
            tag, position = _varint(data, start, end)
        reader = readers.get(tag)
        if reader is not None:
            position = reader(message, data, position, end)
        else:
            position = _skip_unknown(table, data, start, end)
            _keep_unknown(message.__dict__, data[start:position])
    raise TooManyValues(MAX_FIELDS, "one message")


def _skip_unknown(table: Schema, data: bytes, position: int, end: int) -> int:
    """Return the position of the next known field, or the end."""
    readers = table.readers
    count = 0
    while position < end:
        start = position
        tag = data[position]
        position += 1
        if tag >= 0x80:
            tag, position = _varint(data, start, end)
        if tag in readers:
            return start
        position = _skip(tag, data, position, end)
        count += 1
        if not count % _LONG_RUN:
            position = table.skip_short(data, position, end)
    return position


def _keep_unknown(values: dict[str, Any], data: bytes) -> None:
    """Keep unknown fields with those before. Only a buffer grows without being copied each time."""
    kept = values["_unknown_fields"]
    if not kept:
        values["_unknown_fields"] = data
        return
    if not isinstance(kept, bytearray):
        kept = values["_unknown_fields"] = bytearray(kept)
    kept += data


def _skip(tag: int, data: bytes, position: int, end: int) -> int:
    wire = tag & 7
    if not tag >> 3:
        raise ValueError("invalid field number 0")
    if wire == VARINT:
        return _varint(data, position, end)[1]
    if wire == LENGTH:
        return _length(data, position, end)[1]
    if wire not in _WIDTHS:
        raise ValueError(f"invalid wire type {wire}")
    return _advance(position, _WIDTHS[wire], end)


def _advance(position: int, size: int, end: int) -> int:
    if position + size > end:
        raise ValueError("unexpected EOF")
    return position + size


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    result = shift = 0
    while position < end:
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result & _MASK64, position
        shift += 7
        if shift >= 70:
            raise ValueError("variable length integer overflow")
    raise ValueError("unexpected EOF")


def _length(data: bytes, position: int, end: int) -> tuple[int, int]:
    """Return start and end of a length-delimited value."""
    if position < end and data[position] < 0x80:
        size, start = data[position], position + 1
    else:
        size, start = _varint(data, position, end)
    return start, _advance(start, size, end)


def _put_varint(value: int, out: bytearray) -> None:
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def _put_bytes(data: bytes | bytearray, out: bytearray) -> None:
    _put_varint(len(data), out)
    out += data


Kind = tuple[int, Value, Callable[[Any, bytearray], None]]


def _kind(proto_type: str, cls: Any) -> Kind:
    """Return wire type, reader and writer of one value of a type."""
    if proto_type == "string":
        return LENGTH, _read_string, lambda value, out: _put_bytes(value.encode(), out)
    if proto_type == "bytes":
        return LENGTH, _read_bytes, _put_bytes
    if proto_type == "message":
        return LENGTH, lambda data, position, end: _read_message(cls, data, position, end), _write_message
    if proto_type in _FIXED:
        return _fixed_kind(*_FIXED[proto_type])
    return _varint_kind(proto_type, cls)


def _read_string(data: bytes, position: int, end: int) -> tuple[str, int]:
    if position < end and (size := data[position]) < 0x80 and (stop := position + 1 + size) <= end:
        return data[position + 1 : stop].decode(), stop
    start, stop = _length(data, position, end)
    return data[start:stop].decode(), stop


def _read_bytes(data: bytes, position: int, end: int) -> tuple[bytes, int]:
    start, stop = _length(data, position, end)
    return data[start:stop], stop


def _read_message(cls: Any, data: bytes, position: int, end: int) -> tuple[Any, int]:
    start, stop = _length(data, position, end)
    table = schema(cls)
    message = table.new()
    _read_fields(table, message, data, start, stop)
    return message, stop


def _write_message(message: Any, out: bytearray) -> None:
    body = bytearray()
    _write_fields(message, body)
    _put_bytes(body, out)


def _write_fields(message: Any, out: bytearray) -> None:
    for write in schema(message.__class__).writers:
        write(message, out)
    out += message._unknown_fields


def _fixed_kind(wire: int, form: struct.Struct) -> Kind:
    def read(data: bytes, position: int, end: int) -> tuple[Any, int]:
        after = _advance(position, form.size, end)
        return form.unpack_from(data, position)[0], after

    def write(value: Any, out: bytearray) -> None:
        out += form.pack(value)

    return wire, read, write


def _varint_kind(proto_type: str, cls: Any) -> Kind:
    convert = _FROM_VARINT[proto_type] if proto_type != "enum" else (lambda number: cls(_signed32(number)))
    zigzag = proto_type.startswith("sint")

    def read(data: bytes, position: int, end: int) -> tuple[Any, int]:
        number, position = _varint(data, position, end)
        return convert(number), position

    def write(value: Any, out: bytearray) -> None:
        number = int(value)
        if not -_LARGEST - 1 <= number <= _MASK64:
            raise ValueError(f"{number} has more than 64 bits")
        _put_varint((number << 1 ^ number >> 63) & _MASK64 if zigzag else number & _MASK64, out)

    return VARINT, read, write


def _signed32(number: int) -> int:
    return ((number & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000


def _signed64(number: int) -> int:
    return (number ^ (1 << 63)) - (1 << 63)


def _unzigzag(number: int) -> int:
    return number >> 1 ^ -(number & 1)


_FROM_VARINT: dict[str, Callable[[int], Any]] = {
    "int32": _signed32,
    "int64": _signed64,
    "uint32": lambda number: number & 0xFFFFFFFF,
    "uint64": lambda number: number,
    "sint32": lambda number: _unzigzag(number & 0xFFFFFFFF),
    "sint64": _unzigzag,
    "bool": bool,
}


def _single_reader(name: str, read: Value) -> Reader:
    def reader(message: Any, data: bytes, position: int, end: int) -> int:
        message.__dict__[name], position = read(data, position, end)
        return position

    return reader


def _merge_reader(name: str, cls: Any) -> Reader:
    """Return a reader that merges a repeated occurrence of a message field into the one before."""

    def reader(message: Any, data: bytes, position: int, end: int) -> int:
        start, stop = _length(data, position, end)
        table = schema(cls)
        values = message.__dict__
        if values[name] is None:
            values[name] = table.new()
        _read_fields(table, values[name], data, start, stop)
        return stop

    return reader


def _append_reader(name: str, read: Value) -> Reader:
    def reader(message: Any, data: bytes, position: int, end: int) -> int:
        value, position = read(data, position, end)
        values = message.__dict__[name]
        if len(values) >= MAX_VALUES:
            raise TooManyValues(MAX_VALUES, name)
        values.append(value)
        return position

    return reader


def _packed_reader(name: str, read: Value) -> Reader:
    def reader(message: Any, data: bytes, position: int, end: int) -> int:
        position, stop = _length(data, position, end)
        values = message.__dict__[name]
        while position < stop:
            value, position = read(data, position, stop)
            if len(values) >= MAX_VALUES:
                raise TooManyValues(MAX_VALUES, name)
            values.append(value)
        return stop

    return reader


def _map_reader(name: str, read: Entry) -> Reader:
    def reader(message: Any, data: bytes, position: int, end: int) -> int:
        start, stop = _length(data, position, end)
        key, value = read(data, start, stop)
        values = message.__dict__[name]
        values[key] = value
        if len(values) > MAX_ENTRIES:
            raise TooManyValues(MAX_ENTRIES, name)
        return stop

    return reader


def _usual_entry(key: Kind, value: Kind, default: tuple[Any, Callable[[], Any]], other: Entry) -> Entry:
    """Return a reader of an entry of a key and a value, each at most once. It makes no message of the entry."""
    key_tag, read_key = 1 << 3 | key[0], key[1]
    value_tag, read_value = 2 << 3 | value[0], value[1]
    no_key, no_value = default

    def read(data: bytes, start: int, stop: int) -> tuple[Any, Any]:
        found_key, found, position = no_key, None, start
        while position < stop:
            tag = data[position]
            if tag == key_tag:
                found_key, position = read_key(data, position + 1, stop)
            elif tag == value_tag and found is None:
                found, position = read_value(data, position + 1, stop)
            else:
                return other(data, start, stop)
        return found_key, no_value() if found is None else found

    return read


def _any_entry(entry_class: Any, value_class: Any) -> Entry:
    """Return a reader of any entry: one with several keys or values, or with unknown fields."""

    def read(data: bytes, start: int, stop: int) -> tuple[Any, Any]:
        table = schema(entry_class)
        entry = table.new()
        _read_fields(table, entry, data, start, stop)
        value = schema(value_class).new() if value_class is not None and entry.value is None else entry.value
        return entry.key, value

    return read


def _single_writer(name: str, tag: int, write: Callable[[Any, bytearray], None], *, skip_default: bool) -> Writer:
    head = _head(tag)

    def writer(message: Any, out: bytearray) -> None:
        value = getattr(message, name)
        if value is None or (skip_default and not value):
            return
        out += head
        write(value, out)

    return writer


def _repeated_writer(name: str, tag: int, write: Callable[[Any, bytearray], None]) -> Writer:
    head = _head(tag)

    def writer(message: Any, out: bytearray) -> None:
        for value in getattr(message, name):
            out += head
            write(value, out)

    return writer


def _packed_writer(name: str, tag: int, write: Callable[[Any, bytearray], None]) -> Writer:
    head = _head(tag)

    def writer(message: Any, out: bytearray) -> None:
        values = getattr(message, name)
        if values:
            body = bytearray()
            for value in values:
                write(value, body)
            out += head
            _put_bytes(body, out)

    return writer


def _map_writer(name: str, tag: int, key: Kind, value: Kind) -> Writer:
    head, key_head, value_head = _head(tag), _head(1 << 3 | key[0]), _head(2 << 3 | value[0])

    def writer(message: Any, out: bytearray) -> None:
        for map_key, map_value in getattr(message, name).items():
            body = bytearray(key_head)
            key[2](map_key, body)
            body += value_head
            value[2](map_value, body)
            out += head
            _put_bytes(body, out)

    return writer


def _head(tag: int) -> bytes:
    out = bytearray()
    _put_varint(tag, out)
    return bytes(out)
