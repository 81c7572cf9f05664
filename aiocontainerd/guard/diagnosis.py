"""Describe an exception in a plugin in one line: what went wrong, where, and what its author can do."""

from __future__ import annotations

import asyncio
import difflib
import errno
import inspect
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from aiocontainerd.errors import ContainerdError, os_text, safe_text

_CORE = str(Path(__file__).parents[1])
_LIBRARY = sysconfig.get_path("stdlib")
_SITE = "-packages"
_UNIMPORTABLE = re.compile(r"cannot import name '(\w+)' from '([\w.]+)'")
_UNKNOWN_KEYWORD = re.compile(r"(\w+)\(\) got an unexpected keyword argument '(\w+)'")
_UNKNOWN_FIELD = re.compile(r"Unexpected keyword argument '(\w+)'")
_CIRCULAR = re.compile(r"partially initialized module '([\w.]+)'")
LONGEST = 1000
"""Characters of an error's text that are told."""
_TOLD_OF_GROUP = 3
"""Errors of a group that are told."""


def describe(error: BaseException, module: str = "") -> str:
    """Return the text of an error of ours, or of a read-only file system; of a group, those in it.

    Of any other error: type, text, hint and place.
    The place is the innermost line of the package that `module` is in, else of any code except the daemon's.
    """
    if isinstance(error, BaseExceptionGroup):
        return _of_group(error, module)
    text = said(error)
    if isinstance(error, ContainerdError) or type(error).__module__.partition(".")[0] == "aiocontainerd":
        return text or type(error).__name__
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return os_text(error)
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    where = place(error, module) or (place(error.__cause__, module) if error.__cause__ is not None else "")
    return f"{what}{_hint(error)}{f' ({where})' if where else ''}"


def said(error: BaseException) -> str:
    """Return the text of any error on one line, with escapes for what no terminal shows, and cut if it is very long.

    The file and line of a SyntaxError are its place, and no part of its text.
    """
    return printable(error.msg if isinstance(error, SyntaxError) and type(error.msg) is str else safe_text(error))


def printable(text: str) -> str:
    """Return a text on one line, with escapes for what no terminal shows, and cut if it is very long."""
    cut = f"... ({len(text)} characters)" if len(text) > LONGEST else ""
    words = " ".join(text[:LONGEST].split())
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in words) + cut


def _of_group(group: BaseExceptionGroup[BaseException], module: str) -> str:
    """Return what is wrong with each error in a group. A group of one is that one."""
    errors = list(_leaves(group))
    if len(errors) == 1:
        return describe(errors[0], module)
    parts = [describe(error, module) for error in errors[:_TOLD_OF_GROUP]]
    more = len(errors) - len(parts)
    where = "" if any(place(error, module) for error in errors) else place(group, module)
    told = f"{'; '.join(parts)}{f'; and {more} more' if more else ''}{f' ({where})' if where else ''}"
    return f"{len(errors)} errors at once: {told}"


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def _hint(error: BaseException) -> str:
    base = _uninitialised(error)
    if base:
        return f"; does __init__ call super().__init__(...) of {base}?"
    near = _nearest(error)
    if near:
        return f"; did you mean {near}?"
    if isinstance(error, ModuleNotFoundError):
        return "; install it, and name it in the dependencies of the plugin's package"
    if isinstance(error, SyntaxError):
        return f"; the daemon runs Python {sys.version_info.major}.{sys.version_info.minor}"
    if isinstance(error, AttributeError) and said(error).startswith("immutable type"):
        return "; records are frozen: make a changed copy with msgspec.structs.replace"
    if isinstance(error, asyncio.CancelledError):
        return ": the plugin itself raised it; nobody cancelled it"
    text = said(error)
    if isinstance(error, ImportError) and (circular := _CIRCULAR.search(text)):
        return f"; {circular[1]} is imported by what it imports: import one of the two in the function that needs it"
    if isinstance(error, AttributeError) and (circular := _CIRCULAR.search(text)):
        return f"; {circular[1]} is imported by what it imports, or hides another module of its name"
    if isinstance(error, TypeError) and "'await' expression" in text:
        return "; what is awaited is not async"
    if isinstance(error, RuntimeError) and "asyncio.run()" in text:
        return "; the daemon's loop runs already: await the coroutine"
    if isinstance(error, RuntimeError) and text in ("no running event loop", "There is no current event loop"):
        return "; the daemon's loop does not run yet: do this in `start`, or in `init`"
    return ""


def _uninitialised(error: BaseException) -> str:
    """Return the base class of ours whose `__init__` sets the attribute that an object lacks, "" if there is none."""
    if not isinstance(error, AttributeError) or error.obj is None:
        return ""
    for base in type(error.obj).__mro__[1:]:
        init = vars(base).get("__init__")
        names = getattr(getattr(init, "__code__", None), "co_names", ())
        if base.__module__.partition(".")[0] == "aiocontainerd" and error.name in names:
            return base.__name__
    return ""


def _nearest(error: BaseException) -> str:
    """Return the name that the author of a missing name may have meant, "" if none is near."""
    name = getattr(error, "name", None)
    if isinstance(error, AttributeError):
        known = dir(error.obj) if error.obj is not None else []
    elif isinstance(error, TypeError):
        found = _UNKNOWN_KEYWORD.search(said(error))
        name, known = (found[2], _parameters_of(found[1])) if found else (None, [])
        if found is None and (found := _UNKNOWN_FIELD.fullmatch(said(error))):
            name, known = found[1], _fields_of_records()
    elif isinstance(error, ImportError) and not isinstance(error, ModuleNotFoundError):
        found = _UNIMPORTABLE.match(said(error))
        name, known = (found[1], _names_in(found[2])) if found else (None, [])
    else:
        return ""
    words = [one for one in known if one != name and (not one.startswith("_") or (name or "").startswith("_"))]
    near = difflib.get_close_matches(name, words, n=1) if name else []
    return near[0] if near else ""


def _parameters_of(function: str) -> list[str]:
    """Return the parameters of a function that authors import."""
    found = getattr(sys.modules.get("aiocontainerd.plugin"), function, None)
    return list(inspect.signature(found).parameters) if found else []


def _fields_of_records() -> list[str]:
    """Return the fields of all records that authors import: msgspec does not say which one got an unknown field."""
    author = sys.modules.get("aiocontainerd.plugin")
    records = [getattr(author, name) for name in getattr(author, "__all__", ())]
    return sorted({field for record in records for field in getattr(record, "__struct_fields__", ())})


def _names_in(module: str) -> list[str]:
    loaded = sys.modules.get(module)
    return [*dir(loaded), *getattr(loaded, "__all__", [])] if loaded else []


def place(error: BaseException, module: str = "") -> str:
    """Return file, line and function of the innermost line of a module's package in a traceback, "" without any."""
    return _place(error, module.partition(".")[0].partition(":")[0])


def _place(error: BaseException, package: str) -> str:
    """Return file, line and function, "" if only the daemon's code is in the traceback."""
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return f"{short(error.filename)}:{error.lineno}"
    frames = [(frame, line) for frame, line in traceback.walk_tb(error.__traceback__) if _is_foreign(frame)]
    own = [(frame, line) for frame, line in frames if _package(frame) == package]
    if not frames:
        return ""
    frame, line = (own or frames)[-1]
    return f"{short(frame.f_code.co_filename)}:{line} in {frame.f_code.co_name}"


def short(name: str) -> str:
    """Return the name of a file with that of its directory."""
    file = Path(name)
    return f"{file.parent.name}/{file.name}"


def _package(frame: FrameType) -> str:
    name: str = frame.f_globals.get("__name__", "")
    return name.partition(".")[0]


def _is_foreign(frame: FrameType) -> bool:
    filename = frame.f_code.co_filename
    if filename.startswith(("<", _CORE)):
        return False
    return not filename.startswith(_LIBRARY) or _SITE in filename
