"""Write `docs/plugins/tools.md`: what a plugin uses besides its kind, out of the docstrings of the modules."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Annotated, Any, get_origin

import msgspec

from aiocontainerd.host.doc_parts import code, member, prose, record, signature

_HEAD = """\
# Reference of tools

Generated from the modules that are named; `make docs` writes it anew. It has what a plugin uses besides the contract
of its kind. [The reference of kinds](reference.md) has `InitContext`, the kinds and the keys of `[timeouts]`.

Names of `aiocontainerd.plugin` are imported from there. Everything else is imported from the module that is named.
"""
_FILTERS = """\
An element of `filters` chooses an object if all of its selectors match. Several elements are alternatives. No element,
and an empty one, choose everything.

| selector | matches |
|---|---|
| `labels.tier` | an object that has the field |
| `image==alpine` | a field that is present and equal |
| `image!=alpine` | a field that differs, or is absent |
| `topic~=^/tasks/` | a field in which the regular expression (RE2) is found; an absent field is an empty text |
| `id==a,labels.tier==web` | both |
| `topic=="/tasks/exit"` | the same as `==`, with a value that begins with one of `, . " / \\| = ! ~` |
| `labels."acme.io/tier"==web` | a label whose name has dots or slashes |

A value in double quotes has Go's escapes. After `~=`, `/.../` and `|...|` are quotes, too.

| list of | fields |
|---|---|
| containers | `id`, `image`, `runtime.name`, `labels.NAME` |
| images | `name`, `target.digest`, `target.mediatype`, `labels.NAME`, `annotations.NAME` |
| blobs | `digest`, `labels.NAME` |
| ingests | `ref` |
| snapshots | `kind` (`active`, `view`, `committed`), `name`, `parent`, `labels.NAME` |
| leases | `id`, `labels.NAME` |
| plugins | `type`, `id` |
| events | `namespace`, `topic`, `event.FIELD` of the payload |

A plugin that lists something matches by `filters.compile_filters(texts).matches(adaptor)`.
"""

Section = tuple[str, str, str, Sequence[str]]
"""Title, words before the tables, module, and names in it."""

SECTIONS: Sequence[Section] = (
    ("Events", "`Envelope` and `EventBus` of `aiocontainerd.plugin`. The bus of a plugin is `context.bus`.",
     "aiocontainerd.events", ("Envelope", "EventBus", "Subscription")),
    ("Typed values: `typeurl`", "`from aiocontainerd.plugin import typeurl`.", "aiocontainerd.wire.anys",
     ("Any", "marshal", "unmarshal", "message_name")),
    ("The current call: `call`", "`from aiocontainerd.plugin import call`.", "aiocontainerd.context",
     ("CallContext", "current", "namespace", "lease", "use")),
    ("Errors: `errors`", "`from aiocontainerd.plugin import errors`. Anything else that a plugin raises is a failure.",
     "aiocontainerd.errors", ()),
    ("Durations: `durations`", "`from aiocontainerd.plugin import durations`.", "aiocontainerd.durations",
     ("parse", "render")),
    ("Times: `timestamps`", "`from aiocontainerd.plugin import timestamps`.", "aiocontainerd.wire.times", ()),
    ("Programs: `programs`", "`from aiocontainerd.plugin import programs`.", "aiocontainerd.sys.programs", ()),
    ("Filters", _FILTERS, "aiocontainerd.filters", ("compile_filters", "Filter", "field")),
    ("Reading and writing content", "What a content store gives: `context.get(kinds.METADATA, \"bolt\").content`, or "
     "the `content` that a call of a verifier brings.", "aiocontainerd.interfaces.content",
     ("ContentStore", "Reader", "Writer", "BlobInfo", "IngestStatus")),
    ("Stores of records", "The parts of the metadata store, `context.get(kinds.METADATA, \"bolt\")`, which a plugin "
     "requires by `requires=[kinds.METADATA]`.", "aiocontainerd.interfaces.metadata",
     ("MetadataStore", "NamespaceStore", "ContainerStore", "ImageStore", "LeaseStore", "Namespace", "Container",
      "Image", "Lease", "Resource")),
    ("Snapshotters of one's own", "", "aiocontainerd.snapshots.base", ("SnapshotterBase",)),
    ("Layers", "", "aiocontainerd.snapshots.layer", ("Layer",)),
    ("Files of layers", "", "aiocontainerd.snapshots.disk",
     ("make_directory", "names_in", "remove_tree", "usage_of_tree")),
    ("Mounts", "", "aiocontainerd.sys.mount", ("Mount",)),
    ("Tests: `testing.host`", "", "aiocontainerd.testing.host", ("running", "Host")),
    ("Tests: `testing.stand_ins`", "", "aiocontainerd.testing.stand_ins",
     ("needed_by", "of_kinds", "FakeDeprecations")),
    ("Tests: `testing.fakes`", "", "aiocontainerd.testing.fakes",
     ("FakeContentStore", "FakeReader", "FakeWriter", "FakeSnapshotter", "FakeBus", "digest_of")),
    ("Tests: `testing.fake_records`", "", "aiocontainerd.testing.fake_records",
     ("FakeMetadata", "FakeNamespaces", "FakeContainers", "FakeImages", "FakeLeases")),
    ("Tests: `testing.images`", "Images made in a test.", "aiocontainerd.testing.images", ()),
    ("The client library", "`pip install aiocontainerd` is the client library. It works with containerd, too:\n\n"
     "    async with Client(\"/run/containerd/containerd.sock\", namespace=\"default\") as client:\n"
     "        for image in await client.images.list():\n            print(image.name)\n",
     "aiocontainerd.client.client", ("Client",)),
    ("`client.containers`", "", "aiocontainerd.client.containers", ("Containers",)),
    ("`client.images`", "", "aiocontainerd.client.images", ("Images",)),
    ("`client.content`", "", "aiocontainerd.client.content", ("Content",)),
    ("`client.snapshots(NAME)`", "", "aiocontainerd.client.snapshots", ("Snapshots",)),
    ("`client.leases`", "", "aiocontainerd.client.leases", ("Leases",)),
    ("`client.namespaces`", "", "aiocontainerd.client.namespaces", ("Namespaces",)),
    ("`client.tasks`", "", "aiocontainerd.client.tasks", ("Tasks",)),
    ("`client.diff`", "", "aiocontainerd.client.diff", ("Diff",)),
    ("`client.events`, `client.introspection`", "", "aiocontainerd.client.daemon", ("Events", "Introspection")),
    ("`client.plugins`", "", "aiocontainerd.client.plugins", ("Plugins",)),
)  # fmt: skip


def tools_page() -> str:
    """Return the text of `docs/plugins/tools.md`."""
    return "\n".join([_HEAD, _names(), *(_section(*section) for section in SECTIONS)])


def _names() -> str:
    """Return a row for each name that an author imports."""
    plugin = importlib.import_module("aiocontainerd.plugin")
    rows = ["## Names of `aiocontainerd.plugin`\n", "| name | |", "|---|---|"]
    rows += [f"| `{name}` | {_first_sentence(getattr(plugin, name))} |" for name in plugin.__all__]
    return "\n".join(rows) + "\n"


def _first_sentence(value: object) -> str:
    if isinstance(value, str):
        return f"`{value}`"
    if get_origin(value) is Annotated:
        return "A type of config keys: text whose form is checked when the config is read."
    text = " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())
    head, end, _ = text.partition(". ")
    return _cell(f"{head}." if end else text)


def _section(title: str, words: str, module_name: str, names: Sequence[str]) -> str:
    module = importlib.import_module(module_name)
    parts = [f"## {title}\n", f"`{module_name}`\n"]
    if words:
        parts.append(f"{prose(words.strip())}\n")
    else:
        parts.append(f"{prose(inspect.getdoc(module) or '')}\n")
    chosen = [(name, getattr(module, name)) for name in names or _public(module)]
    functions = [(name, value) for name, value in chosen if inspect.isfunction(value)]
    parts += [_class(name, value) for name, value in chosen if isinstance(value, type) and not _is_plain_error(value)]
    plain = [(name, value) for name, value in chosen if isinstance(value, type) and _is_plain_error(value)]
    if plain:
        parts.append(_table("error", [(name, _cell(_words(value))) for name, value in plain]))
    if functions:
        parts.append(_table("function", [(_called(value, name), _cell(_words(value))) for name, value in functions]))
    return "\n".join(parts)


def _public(module: ModuleType) -> Iterator[str]:
    """Yield the names of classes and functions that a module defines for others."""
    listed = getattr(module, "__all__", ())
    for name, value in vars(module).items():
        own = name in listed if listed else getattr(value, "__module__", "") == module.__name__
        if own and not name.startswith("_") and (isinstance(value, type) or inspect.isfunction(value)):
            yield name


def _is_plain_error(value: type) -> bool:
    return issubclass(value, Exception)


def _class(name: str, cls: type) -> str:
    if issubclass(cls, msgspec.Struct):
        return record(cls)
    rows = [(_called(value, key), _cell(_words(value))) for key, value in _members(cls)]
    init = vars(cls).get("__init__")
    made = "" if init is None or getattr(cls, "_is_protocol", False) else f"{code(_made(name, init))}\n"
    return f"### {name}\n\n{inspect.getdoc(cls) or ''}\n\n{made}{_table('member', rows) if rows else ''}"


def _made(name: str, init: Any) -> str:
    return signature(init).replace("__init__", name, 1).removesuffix(" -> None")


def _members(cls: type) -> Iterator[tuple[str, Any]]:
    """Yield the public methods and properties of a class, its bases' first; not those of Python's own classes."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.partition(".")[0] == "aiocontainerd":
            found |= {name: value for name, value in vars(base).items() if not name.startswith("_")}
    for name, value in found.items():
        if inspect.isroutine(value) or isinstance(value, property) or hasattr(value, "attrname"):
            yield name, value


def _called(value: Any, name: str = "") -> str:
    if isinstance(value, classmethod | staticmethod):
        value = value.__func__
    function = getattr(value, "func", None)  # a cached property
    text = member(name or value.__name__, property(function) if function is not None else value)
    return text.replace(f"{value.__name__}(", f"{name}(", 1) if name and hasattr(value, "__name__") else text


def _words(value: Any) -> str:
    return " ".join((inspect.getdoc(value) or "").split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _table(head: str, rows: Sequence[tuple[str, str]]) -> str:
    lines = [f"| {head} | |", "|---|---|", *(f"| `{left}` | {right} |" for left, right in rows)]
    return "\n".join(lines) + "\n"
