"""`actr plugins new`: write a small package with a plugin and a test that passes, for its author to change.

Imports the words. Imported by `cli`, and by the generator of the reference page in `host`.
"""

from __future__ import annotations

import importlib.util
import keyword
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from string import Template
from types import MappingProxyType

import msgspec

from aiocontainerd import kinds

SCRIPTS = Path(sys.prefix) / "bin"
"""Programs of the environment that this program runs in, which is that of a daemon."""
TEMPLATES = Path(__file__).parent / "templates"
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*\Z")


class ScaffoldError(Exception):
    """Raised for a package that cannot be written. The text says what to change."""


class Form(msgspec.Struct, frozen=True, kw_only=True):
    """What differs between the packages of two kinds. `{id}` and `{uri}` in `use` stand for the plugin's."""

    kind: str
    interface: str
    summary: str
    use: str
    dependencies: tuple[str, ...] = ("aiocontainerd",)
    needs_root: bool = False
    modules: tuple[str, ...] = ()


FORMS: Mapping[str, Form] = MappingProxyType(
    {
        "snapshotter": Form(
            kind=kinds.SNAPSHOTTER,
            interface="snapshotter",
            summary="A snapshotter of full copies",
            use="Unpack an image there with `ctr images pull --snapshotter {id} IMAGE`; then "
            "`ctr run --snapshotter {id} IMAGE ID` runs on it.",
            needs_root=True,
        ),
        "content": Form(
            kind=kinds.CONTENT,
            interface="content",
            summary="A content store that detects damaged blobs",
            use="A daemon has one content store. Disable its own in the config: "
            '`disabled_plugins = ["io.containerd.content.v1.content"]`.',
            dependencies=("aiocontainerd", "aiocontainerd-content-local"),
        ),
        "differ": Form(
            kind=kinds.DIFFER,
            interface="differ",
            summary="A differ for layers that are one file",
            use="The daemon uses it if the config names it: "
            '`[plugins."io.containerd.service.v1.diff-service"]`, `default = ["{id}", "walking"]`.',
        ),
        "event-sink": Form(
            kind=kinds.EVENT_SINK,
            interface="event_sink",
            summary="An event sink that writes lines of JSON to a file",
            use="Set `path` in its table: every event becomes a line in that file.",
        ),
        "verifier": Form(
            kind=kinds.IMAGE_VERIFIER,
            interface="verifier",
            summary="An image verifier that decides by name",
            use="Nothing in the daemon asks verifiers yet: `ctr images pull` and `actr` pull by themselves.",
        ),
        "credentials": Form(
            kind=kinds.CREDENTIALS,
            interface="credentials",
            summary="Registry credentials from the config",
            use="Nothing in the daemon asks for credentials yet: `ctr images pull` and `actr` pull by themselves.",
        ),
        "service": Form(
            kind=kinds.GRPC,
            interface="rpc_service",
            summary="A gRPC service on the daemon's socket",
            use="Any gRPC client can call it there.",
            modules=("messages",),
        ),
        "stream-processor": Form(
            kind=kinds.STREAM_PROCESSOR,
            interface="stream_processor",
            summary="A stream processor for bzip2 layers",
            use="The daemon calls it for layers of the media types that it accepts.",
        ),
        "mount-handler": Form(
            kind=kinds.MOUNT_HANDLER,
            interface="mount_handler",
            summary="A mount handler for file systems in memory",
            use="It is for mounts of type `{id}`. Nothing in the daemon calls mount handlers yet.",
        ),
        "task-monitor": Form(
            kind=kinds.TASK_MONITOR,
            interface="task_monitor",
            summary="A task monitor that counts",
            use="The daemon tells it about every task.",
        ),
    }
)
"""What `actr plugins new` can write."""


def files(form_name: str, name: str) -> dict[str, str]:
    """Return the files of a new package by path. Only reads templates. Raises ScaffoldError."""
    form = FORMS.get(form_name)
    if form is None:
        raise ScaffoldError(f"no kind {form_name}; there are {', '.join(sorted(FORMS))}")
    if not _NAME.match(name):
        raise ScaffoldError(
            f"{name!r} cannot name a plugin; use small letters, digits and dashes, as in acme-{form_name}"
        )
    package = name.replace("-", "_")
    if keyword.iskeyword(package) or package in sys.stdlib_module_names or importlib.util.find_spec(package):
        raise ScaffoldError(f"{name} cannot be a package: Python has something else by that name; try acme-{name}")
    made = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        f"{package}/__init__.py": "init",
        f"{package}/plugin.py": f"{form_name}.plugin",
        f"tests/test_{package}.py": f"{form_name}.test",
        **{f"{package}/{module}.py": f"{form_name}.{module}" for module in form.modules},
    }
    texts = {path: (TEMPLATES / f"{source}.txt").read_text() for path, source in made.items()}
    values = _values(form, name, package, _class_name(name, texts.values()))
    return {path: Template(text).substitute(values) for path, text in texts.items()}


def write(form_name: str, name: str, directory: Path) -> list[Path]:
    """Write a new package into `directory`, which must be missing or empty. Raises ScaffoldError, OSError."""
    content = files(form_name, name)
    if directory.exists() and any(directory.iterdir()):
        raise ScaffoldError(f"{directory} is there already; choose another with --directory")
    written = []
    for path, text in content.items():
        target = directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        written.append(target)
    return written


def install_command(scripts: Path, package: Path) -> str:
    """Return the command that installs a package into the environment of `scripts`, for its author to change.

    Nothing is downloaded where the environment has what builds the package and what runs its test.
    """
    built_here = "--no-build-isolation " if importlib.util.find_spec("flit_core") else ""
    testing = "" if importlib.util.find_spec("blockbuster") else " 'aiocontainerd[testing]'"
    return f"{scripts}/pip install {built_here}-e {package}{testing}"


def _class_name(name: str, texts: Iterable[str]) -> str:
    """Return a class name that the templates do not use for anything else."""
    made = "".join(part.capitalize() for part in name.split("-"))
    taken = keyword.iskeyword(made) or any(re.search(rf"\b{made}\b", text) for text in texts)
    return f"{made}Plugin" if taken else made


def _values(form: Form, name: str, package: str, class_name: str) -> dict[str, str]:
    uri = f"{form.kind}.{name}"
    return {
        "distribution": name,
        "package": package,
        "id": name,
        "cls": class_name,
        "uri": uri,
        "summary": form.summary,
        "interface": form.interface,
        "dependencies": ", ".join(f'"{one}"' for one in form.dependencies),
        "use": form.use.replace("{id}", name).replace("{uri}", uri),
        "root_note": "; as root, since it mounts" if form.needs_root else "",
        "scripts": str(SCRIPTS),
        "install": install_command(SCRIPTS, Path()),
    }
