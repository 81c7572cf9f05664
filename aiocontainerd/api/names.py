"""Generated classes and the full names of their messages."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

from aiocontainerd.errors import NotFound

if TYPE_CHECKING:
    import betterproto2

_POOL_PREFIX = "type.googleapis.com/"


def class_name(cls: type[betterproto2.Message]) -> str:
    """The full protocol buffer name of a generated class, of the API or of one that a plugin brings.

    A generated module has the pool in which its classes are registered.
    """
    pool: betterproto2.MessagePool = sys.modules[cls.__module__].__dict__["default_message_pool"]
    return pool.type_to_url[cls].removeprefix(_POOL_PREFIX)


def message_class(full_name: str) -> type[betterproto2.Message]:
    """The generated class of a message by its full name, importing its package. Raises NotFound."""
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
