"""Find what to serve: the plugins of a module or of an object in it, or a class that registers nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeVar

from aiocontainerd import kinds
from aiocontainerd.host import authoring, loading
from aiocontainerd.host.registration import PluginError, Registration

SERVED_KINDS = (kinds.SNAPSHOTTER, kinds.CONTENT, kinds.DIFFER)
_METHODS_OF = {
    kinds.SNAPSHOTTER: ("prepare", "commit", "mounts"),
    kinds.CONTENT: ("writer", "reader", "abort"),
    kinds.DIFFER: ("apply", "compare"),
}
_SUFFIX = re.compile(r"(?<=.)(Snapshotter|ContentStore|Store|Differ|Plugin)\Z")
_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

T = TypeVar("T")


def registrations(path: str, wanted: str = "") -> list[Registration]:
    """Return the registrations of `module` or `module:Name` that can be served.

    `wanted` is an id or a URI. It chooses one of several, and it names a class that registers nothing.
    Raises PluginError if nothing is left, and whatever importing the module raises.
    """
    found = _found(path, wanted)
    served = [r for r in found if r.kind in SERVED_KINDS and wanted in ("", r.id, r.uri)]
    if not served:
        known = ", ".join(r.uri for r in found) or "nothing"
        what = f"no {wanted}" if wanted else "no snapshotter, content store or differ"
        raise PluginError(f"{path} registers {what} that could be served; it registers {known}")
    return served


def _found(path: str, wanted: str) -> Sequence[Registration]:
    target = loading.load(path)
    bare = isinstance(target, type) and not authoring.carried(target) and not hasattr(target, "register_plugins")
    return [_of_class(target, path, wanted)] if bare else loading.registrations_of(path)


def _of_class(cls: type, path: str, wanted: str) -> Registration:
    kind = next((kind for kind, names in _METHODS_OF.items() if all(hasattr(cls, name) for name in names)), "")
    if not kind:
        raise PluginError(f"{path} is neither a registered plugin nor a snapshotter, content store or differ")
    plugin_id = wanted.removeprefix(f"{kind}.") or default_id(cls.__name__)
    authoring.register(kind, plugin_id, requires=(kinds.METADATA,) if kind == kinds.DIFFER else ())(cls)
    return authoring.carried(cls)[-1]


def default_id(class_name: str) -> str:
    """Return the id of a class, such as `acme-reflink` for AcmeReflinkSnapshotter."""
    return _WORD_START.sub("-", _SUFFIX.sub("", class_name)).lower()


def sole(found: Sequence[T], what: str) -> T | None:
    """Return the only plugin of a kind, None without one. Raises PluginError for several: requests name none."""
    if len(found) > 1:
        raise PluginError(f"several plugins would serve {what}; choose one with --id")
    return found[0] if found else None
