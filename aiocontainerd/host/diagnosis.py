"""Describe an exception in a plugin in one line: what went wrong, where, and what its author can do."""

from __future__ import annotations

import sys
import sysconfig
import traceback
from pathlib import Path
from types import FrameType

from aiocontainerd.errors import ContainerdError

_CORE = str(Path(__file__).parents[1])
_LIBRARY = sysconfig.get_path("stdlib")
_SITE = "-packages"


def describe(error: BaseException, module: str = "") -> str:
    """Return the text of an error of ours; type, text, hint and place of any other error.

    The place is the innermost line of the package that `module` is in, else of any code except the daemon's.
    """
    if isinstance(error, ContainerdError) or type(error).__module__.partition(".")[0] == "aiocontainerd":
        return " ".join(str(error).split()) or type(error).__name__
    text = " ".join(str(error).split())
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    place = _place(error, module.partition(".")[0].partition(":")[0])
    return f"{what}{_hint(error)}{f' ({place})' if place else ''}"


def _hint(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError):
        return "; install it, and name it in the dependencies of the plugin's package"
    if isinstance(error, SyntaxError):
        return f"; the daemon runs Python {sys.version_info.major}.{sys.version_info.minor}"
    if isinstance(error, AttributeError) and str(error).startswith("immutable type"):
        return "; records are frozen: make a changed copy with msgspec.structs.replace"
    if isinstance(error, TypeError) and "'await' expression" in str(error):
        return "; what is awaited is not async"
    return ""


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
