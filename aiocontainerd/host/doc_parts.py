"""Turn docstrings, records and signatures into parts of the generated pages."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable

import msgspec


def prose(text: str) -> str:
    """Return the words of a module, with indented parts (code or tables) in fences."""
    paragraphs = []
    for paragraph in text.split("\n\n"):
        indented = all(line.startswith("    ") for line in paragraph.splitlines())
        paragraphs.append(code(textwrap.dedent(paragraph), "").rstrip() if indented else paragraph)
    return "\n\n".join(paragraphs)


def record(record: type[msgspec.Struct]) -> str:
    """Return the words and fields of a record, with its annotations as they are written."""
    names, defaults = record.__struct_fields__, record.__struct_defaults__
    given = dict(zip(names[len(names) - len(defaults) :], defaults, strict=True))
    annotations = {name: text for base in record.__mro__ for name, text in inspect.get_annotations(base).items()}
    fields = [f"    {name}: {annotations[name]}{_default(given.get(name, msgspec.NODEFAULT))}" for name in names]
    return f"{inspect.getdoc(record)}\n\n" + code("\n".join([f"class {record.__name__}(Struct):", *fields]))


def _default(value: object) -> str:
    if value is msgspec.NODEFAULT:
        return ""
    return f" = {value!r}" if isinstance(value, str | int | None) else " = ..."


def member(name: str, value: object) -> str:
    """Return a member of a class as a cell of a table: a method with its signature, else its name and type."""
    if isinstance(value, property):
        returned = inspect.get_annotations(value.fget).get("return", "") if value.fget else ""
        return f"{name}: {returned}"
    if not callable(value):
        return f"{name}: {value}"
    return f"{_prefix(value)}{signature(value)}".replace("|", "\\|")


def _prefix(function: Callable[..., object]) -> str:
    """Return the word before a call: a coroutine function is `async`, a context manager stands behind `with`."""
    inner = getattr(function, "__wrapped__", None)
    if inspect.isasyncgenfunction(inner):
        return "async with "
    if inspect.isgeneratorfunction(inner):
        return "with "
    return "async " if inspect.iscoroutinefunction(function) else ""


def signature(function: Callable[..., object]) -> str:
    """Return name, parameters and result of a function as they are written, without `self`."""
    found = inspect.signature(function)
    parts: list[str] = []
    for one in found.parameters.values():
        if one.name in ("self", "cls") and not parts:
            continue
        if one.kind is one.KEYWORD_ONLY and not any(part.startswith("*") for part in parts):
            parts.append("*")
        parts.append(_parameter(one))
    result = "" if found.return_annotation is found.empty else f" -> {_unquoted(found.return_annotation)}"
    return f"{function.__name__}({', '.join(parts)}){result}"


def _parameter(one: inspect.Parameter) -> str:
    stars = "*" * (one.kind is one.VAR_POSITIONAL) + "**" * (one.kind is one.VAR_KEYWORD)
    annotation = "" if one.annotation is one.empty else f": {_unquoted(one.annotation)}"
    equals = " = " if annotation else "="
    return f"{stars}{one.name}{annotation}{'' if one.default is one.empty else equals + _shown(one.default)}"


def _unquoted(annotation: object) -> str:
    return str(inspect.formatannotation(annotation)).replace("'", "")


def _shown(default: object) -> str:
    return repr(default) if isinstance(default, str | bytes | int | float | None) or default == () else "..."


def code(text: str, language: str = "python") -> str:
    """Return a text in fences."""
    return f"```{language}\n{text}\n```\n"
