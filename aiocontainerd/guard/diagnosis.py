"""Describe an exception in a plugin in one line: what went wrong, where, and what its author can do."""

from __future__ import annotations

import difflib
import re
import sys
import sysconfig
import traceback
from pathlib import Path
from types import FrameType

from aiocontainerd.errors import ContainerdError

_CORE = str(Path(__file__).parents[1])
_LIBRARY = sysconfig.get_path("stdlib")
_SITE = "-packages"
_UNIMPORTABLE = re.compile(r"cannot import name '(\w+)' from '([\w.]+)'")


def describe(error: BaseException, module: str = "") -> str:
    """Return the text of an error of ours; type, text, hint and place of any other error.

    The place is the innermost line of the package that `module` is in, else of any code except the daemon's.
    """
    if isinstance(error, ContainerdError) or type(error).__module__.partition(".")[0] == "aiocontainerd":
        return " ".join(str(error).split()) or type(error).__name__
    text = " ".join(str(error).split())
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    where = place(error, module)
    return f"{what}{_hint(error)}{f' ({where})' if where else ''}"


def _hint(error: BaseException) -> str:
    near = _nearest(error)
    if near:
        return f"; did you mean {near}?"
    if isinstance(error, ModuleNotFoundError):
        return "; install it, and name it in the dependencies of the plugin's package"
    if isinstance(error, SyntaxError):
        return f"; the daemon runs Python {sys.version_info.major}.{sys.version_info.minor}"
    if isinstance(error, AttributeError) and str(error).startswith("immutable type"):
        return "; records are frozen: make a changed copy with msgspec.structs.replace"
    if isinstance(error, TypeError) and "'await' expression" in str(error):
        return "; what is awaited is not async"
    return ""


def _nearest(error: BaseException) -> str:
    """Return the name that the author of a missing name may have meant, "" if none is near."""
    name = getattr(error, "name", None)
    if isinstance(error, AttributeError):
        known = dir(error.obj) if error.obj is not None else []
    elif isinstance(error, ImportError) and not isinstance(error, ModuleNotFoundError):
        found = _UNIMPORTABLE.match(str(error))
        name, known = (found[1], _names_in(found[2])) if found else (None, [])
    else:
        return ""
    near = difflib.get_close_matches(name, [one for one in known if one != name], n=1) if name else []
    return near[0] if near else ""


def _names_in(module: str) -> list[str]:
    loaded = sys.modules.get(module)
    return [*dir(loaded), *getattr(loaded, "__all__", [])] if loaded else []


def place(error: BaseException, module: str = "") -> str:
    """Return file, line and function of the innermost line of a module's package in a traceback, "" without any."""
    return _place(error, module.partition(".")[0].partition(":")[0])


def _place(error: BaseException, package: str) -> str:
    """Return file, line and function, "" if only the daemon's code is in the traceback."""
    frames = [(frame, line) for frame, line in traceback.walk_tb(error.__traceback__) if _is_foreign(frame)]
    own = [(frame, line) for frame, line in frames if _package(frame) == package]
    if not frames:
        return ""
    frame, line = (own or frames)[-1]
    file = Path(frame.f_code.co_filename)
    return f"{file.parent.name}/{file.name}:{line} in {frame.f_code.co_name}"


def _package(frame: FrameType) -> str:
    name: str = frame.f_globals.get("__name__", "")
    return name.partition(".")[0]


def _is_foreign(frame: FrameType) -> bool:
    filename = frame.f_code.co_filename
    if filename.startswith(("<", _CORE)):
        return False
    return not filename.startswith(_LIBRARY) or _SITE in filename
