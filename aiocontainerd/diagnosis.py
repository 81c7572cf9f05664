"""One line that says what went wrong in a plugin, where, and what its author can do."""

from __future__ import annotations

import sys
import sysconfig
import traceback
from pathlib import Path

from aiocontainerd.errors import ContainerdError

_CORE = str(Path(__file__).parent)
_LIBRARY = sysconfig.get_path("stdlib")
_SITE = "-packages"


def describe(error: BaseException) -> str:
    """The text of errors that are written to be read; type, text, hint and place of all others."""
    if isinstance(error, ContainerdError) or type(error).__module__.partition(".")[0] == "aiocontainerd":
        return " ".join(str(error).split()) or type(error).__name__
    text = " ".join(str(error).split())
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    place = _place(error)
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


def _place(error: BaseException) -> str:
    """File, line and function of the innermost frame that is no code of the daemon or a library."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_foreign(frame.filename)]
    if not frames:
        return ""
    innermost = frames[-1]
    file = Path(innermost.filename)
    return f"{file.parent.name}/{file.name}:{innermost.lineno} in {innermost.name}"


def _is_foreign(filename: str) -> bool:
    if filename.startswith(("<", _CORE)):
        return False
    return not filename.startswith(_LIBRARY) or _SITE in filename
