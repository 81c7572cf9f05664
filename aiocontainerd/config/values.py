"""Types of config values that are checked when the config is loaded: durations, addresses, texts of a certain form.

A value that does not fit is told with file, line and key, before anything starts. A plugin declares types of its own:

    def check_colour(text: str) -> None:
        if not re.fullmatch("#[0-9a-f]{6}", text):
            raise ValueError(f'"{text}" is no colour; write it as #12ab9f')

    Colour = Annotated[str, Checked(check_colour)]

    class Config(PluginConfig, frozen=True):
        colour: Colour = "#000000"
        pause: Duration = Duration("5s")
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Self, get_args, get_origin

import msgspec

from aiocontainerd import durations
from aiocontainerd.config.secret import Secret

_NANOSECOND_S = 1e-9
_LONGEST_SOCKET_PATH = 104
_PORT = re.compile(r"[0-9]{1,5}\Z")
_LARGEST_PORT = 65535
_NAMES = {str: "str", int: "int", float: "float", bool: "bool", list: "array", dict: "object"}
"""Types as messages of msgspec name them."""


class Checked(msgspec.Struct, frozen=True):
    """The form that the strings of a config key have: `Annotated[str, Checked(check)]`.

    `check` raises ValueError for a string that does not fit, saying what is wrong with it.
    """

    check: Callable[[str], object]


class Duration:
    """A length of time, not negative: `Duration("1m30s")`. A config may have an integer, too: nanoseconds.

    `seconds` is a float. Durations of the same length are equal; one of no length is false.
    """

    __slots__ = ("_text", "seconds")

    def __init__(self, text: str) -> None:
        self._text = text
        self.seconds = durations.parse(text)
        if self.seconds < 0:
            raise ValueError(f'a duration cannot be negative, "{text}" is')

    @classmethod
    def from_toml(cls, written: object) -> Self:
        if isinstance(written, str):
            return cls(written)
        if not isinstance(written, int) or isinstance(written, bool):
            raise ValueError(f'Expected a duration such as "1m30s", got `{kind_of(written)}`')
        return cls(durations.render(written * _NANOSECOND_S))

    def to_toml(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return self._text

    def __bool__(self) -> bool:
        return self.seconds > 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Duration) and other.seconds == self.seconds

    def __hash__(self) -> int:
        return hash((Duration, self.seconds))


class DurationText(Duration):
    """A duration that is always written with its unit, as containerd wants it in `[timeouts]`."""

    __slots__ = ()

    @classmethod
    def from_toml(cls, written: object) -> Self:
        if isinstance(written, dict):
            raise ValueError("Expected a duration, got a table; write the whole key in quotes")
        if not isinstance(written, str):
            raise ValueError(f'Expected a duration in quotes with its unit, such as "5s", got `{kind_of(written)}`')
        return cls(written)


def _socket_path(text: str) -> None:
    size = len(text.removeprefix("unix://").encode())
    if size > _LONGEST_SOCKET_PATH:
        raise ValueError(f"the path of a socket has at most {_LONGEST_SOCKET_PATH} bytes, {text} has {size}")


def _tcp_address(text: str) -> None:
    _, colon, port = text.rpartition(":")
    if text and not (colon and _PORT.match(port) and int(port) <= _LARGEST_PORT):
        raise ValueError(f'"{text}" is no address of a TCP port; write it as 127.0.0.1:2376')


def _variable(text: str) -> None:
    if text.find("=") < 1:
        raise ValueError(f'"{text}" is no variable; write it as NAME=value')


def _filter(text: str) -> None:
    from aiocontainerd import filters
    from aiocontainerd.errors import InvalidArgument

    try:
        filters.compile_filters([text])
    except InvalidArgument as error:
        raise ValueError(error.message) from error


SocketAddress = Annotated[str, Checked(_socket_path)]
"""The path of a Unix socket, with or without `unix://`. "" is for the plugin to interpret."""

TcpAddress = Annotated[str, Checked(_tcp_address)]
"""`host:port`, `[IPv6 address]:port` or `:port`. "" is for the plugin to interpret."""

OwnerId = Annotated[int, msgspec.Meta(ge=-1, le=(1 << 32) - 2)]
"""The number of a user or group. -1 leaves a file's as it is."""

EnvEntry = Annotated[str, Checked(_variable)]
"""A variable of an environment: `NAME=value`."""

FilterText = Annotated[str, Checked(_filter)]
"""A filter of events or lists, in containerd's language (facts/core 2)."""


class Misfit(msgspec.Struct, frozen=True):
    """A string that does not have the form of its key: the steps to it, and what is wrong with it."""

    steps: tuple[str, ...]
    why: str


def misfits(value: Any, kind: Any, steps: tuple[str, ...] = ()) -> Iterator[Misfit]:
    """Yield every string of a decoded value, of the type `kind`, that does not have its form."""
    if get_origin(kind) is Annotated:
        kind, *forms = get_args(kind)
        for form in forms:
            if isinstance(form, Checked) and isinstance(value, str):
                yield from _misfit(value, form, steps)
    if isinstance(value, msgspec.Struct):
        for field in msgspec.structs.fields(value):
            yield from misfits(getattr(value, field.name), field.type, (*steps, field.encode_name))
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from misfits(inner, _inner(kind), (*steps, str(key)))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from misfits(inner, _inner(kind), (*steps, str(number)))


def _misfit(text: str, form: Checked, steps: tuple[str, ...]) -> Iterator[Misfit]:
    try:
        form.check(text)
    except ValueError as error:
        yield Misfit(steps, str(error))


def _inner(kind: Any) -> Any:
    """Return the type of what is in a list or table, None if it is not told."""
    arguments = [argument for argument in get_args(kind) if argument is not Ellipsis]
    return arguments[-1] if arguments else None


def kind_of(written: object) -> str:
    """Return the name of a value's type, as messages of msgspec name it."""
    return _NAMES.get(type(written), type(written).__name__)


def decode_hook(kind: Any, written: Any) -> Any:
    """Decode types that msgspec does not know. Raises NotImplementedError, or ValueError for a wrong value."""
    if (get_origin(kind) or kind) is MappingProxyType:
        return MappingProxyType(_mapping(kind, written))
    if isinstance(kind, type) and issubclass(kind, Duration):
        return kind.from_toml(written)
    if kind is not Secret:
        raise NotImplementedError(f"config fields cannot be of type {kind.__name__}")
    if not isinstance(written, str):
        raise ValueError(f"Expected `str`, got `{kind_of(written)}`")
    return Secret(written)


def _mapping(kind: Any, written: Any) -> dict[Any, Any]:
    wanted: Any = dict[get_args(kind) or (Any, Any)]  # type: ignore[misc] # a type made of what a field is annotated with
    try:
        found: dict[Any, Any] = msgspec.convert(written, wanted, dec_hook=decode_hook)
    except msgspec.ValidationError as error:
        raise ValueError(str(error).partition(" - at `")[0]) from error
    return found
