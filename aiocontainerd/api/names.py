"""Full names of messages and their generated classes; how Python spells the names of the API."""

from __future__ import annotations

import importlib
import keyword
import re
import sys
from typing import TYPE_CHECKING

from aiocontainerd.errors import NotFound

if TYPE_CHECKING:
    import betterproto2

_POOL_PREFIX = "type.googleapis.com/"
_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def class_name(cls: type[betterproto2.Message]) -> str:
    """Return the full protocol buffer name of a generated class, which may be one of a plugin.

    A generated module holds the pool in which its classes are registered.
    """
    pool: betterproto2.MessagePool = sys.modules[cls.__module__].__dict__["default_message_pool"]
    return pool.type_to_url[cls].removeprefix(_POOL_PREFIX)


def message_class(full_name: str) -> type[betterproto2.Message]:
    """Import the package of a message and return the generated class by its full name. Raises NotFound."""
    from aiocontainerd.api.gen.message_pool import default_message_pool

    url = _POOL_PREFIX + full_name
    package = full_name
    while url not in default_message_pool.url_to_type and "." in package:
        package = package.rpartition(".")[0]
        try:
            importlib.import_module(f"aiocontainerd.api.gen.{package}")
        except ModuleNotFoundError:
            continue
    try:
        return default_message_pool.url_to_type[url]
    except KeyError:
        raise NotFound(f"type with url {full_name}") from None


def python_name(name: str) -> str:
    """Return how Python spells a method or field of the API: `CloseIO` is `close_io`, `Import` is `import_`."""
    spelled = _WORD_START.sub("_", name).lower()
    return f"{spelled}_" if keyword.iskeyword(spelled) else spelled
