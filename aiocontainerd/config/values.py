"""Types of config values that are checked when the config is loaded: durations, addresses, texts of a certain form.

A value that does not fit is told with file, line and key, before anything starts. A plugin declares types of its own:

    class Colour(Text):
        @classmethod
        def check(cls, text: str) -> None:
            if text not in ("red", "green"):
                raise ValueError(f'"{text}" is no colour; use red or green')

    class Config(PluginConfig, frozen=True):
        colour: Colour = Colour("red")
        pause: Duration = Duration("5s")
"""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import Any, Self, get_args, get_origin

import msgspec

from aiocontainerd import durations
from aiocontainerd.config.secret import Secret

_NANOSECOND_S = 1e-9
_LONGEST_SOCKET_PATH = 104
_PORT = re.compile(r"[0-9]{1,5}\Z")
_LARGEST_PORT = 65535
_NAMES = {str: "str", int: "int", float: "float", bool: "bool", list: "array", dict: "object"}
"""Types as messages of msgspec name them."""


class Value:
    """Base of config types that are written as one string or number."""

    __slots__ = ()

    @classmethod
    def from_toml(cls, written: object) -> Self:
        """Return the value. Raises ValueError, saying what is wrong with what is written."""
        raise NotImplementedError

    def to_toml(self) -> str | int:
        """Return the value as TOML has it."""
        raise NotImplementedError


class Text(str, Value):
    """A string of a certain form. It can be used as any other string."""

    __slots__ = ()

    @classmethod
    def check(cls, text: str) -> None:
        """Raise ValueError for a text that does not fit, saying what is wrong with it."""

    @classmethod
    def from_toml(cls, written: object) -> Self:
        if not isinstance(written, str):
            raise ValueError(f"Expected `str`, got `{kind_of(written)}`")
        cls.check(written)
        return cls(written)

    def to_toml(self) -> str:
        return str(self)


class Duration(Value):
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


class SocketAddress(Text):
    """The path of a Unix socket, with or without `unix://`. "" is for the plugin to interpret."""

    __slots__ = ()

    @classmethod
    def check(cls, text: str) -> None:
        size = len(text.removeprefix("unix://").encode())
        if size > _LONGEST_SOCKET_PATH:
            raise ValueError(f"the path of a socket has at most {_LONGEST_SOCKET_PATH} bytes, {text} has {size}")


class TcpAddress(Text):
    """`host:port`, `[IPv6 address]:port` or `:port`. "" is for the plugin to interpret."""

    __slots__ = ()

    @classmethod
    def check(cls, text: str) -> None:
        _, colon, port = text.rpartition(":")
        if text and not (colon and _PORT.match(port) and int(port) <= _LARGEST_PORT):
            raise ValueError(f'"{text}" is no address of a TCP port; write it as 127.0.0.1:2376')


class EnvEntry(Text):
    """A variable of an environment: `NAME=value`."""

    __slots__ = ()

    @classmethod
    def check(cls, text: str) -> None:
        if text.find("=") < 1:
            raise ValueError(f'"{text}" is no variable; write it as NAME=value')


class FilterText(Text):
    """A filter of events or lists, in containerd's language (facts/core 2)."""

    __slots__ = ()

    @classmethod
    def check(cls, text: str) -> None:
        from aiocontainerd import filters
        from aiocontainerd.errors import InvalidArgument

        try:
            filters.compile_filters([text])
        except InvalidArgument as error:
            raise ValueError(error.message) from error


def kind_of(written: object) -> str:
    """Return the name of a value's type, as messages of msgspec name it."""
    return _NAMES.get(type(written), type(written).__name__)


def decode_hook(kind: Any, written: Any) -> Any:
    """Decode types that msgspec does not know. Raises NotImplementedError, or ValueError for a wrong value."""
    if (get_origin(kind) or kind) is MappingProxyType:
        return MappingProxyType(_mapping(kind, written))
    if isinstance(kind, type) and issubclass(kind, Value):
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
