"""Write the generated documents, `config.example.toml` and `docs/hooks.md` (`make docs`; `--check` only compares)."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from aiocontainerd import discovery, hookspecs
from aiocontainerd.config import render
from aiocontainerd.config.records import PluginPolicy

REPOSITORY = Path(__file__).resolve().parents[1]
FIRST_PARTY = PluginPolicy(allow=("aiocontainerd", "aiocontainerd-*"))

_HOOKS_HEAD = f"""\
# Hooks

Generated from `aiocontainerd/hookspecs.py`; `make docs` writes it anew.

A plugin module implements a hook with a function of its name under `@hookimpl` (`from aiocontainerd.plugin import
hookimpl`). Modules are found by the entry point group `{hookspecs.ENTRY_POINT_GROUP}`, or named in the config:
`[python_plugins.acme]`, `module = "acme.plugin"` (or `"acme.plugin:Plugin"` for a class).
"""


def hook_functions() -> Iterator[Callable[..., object]]:
    """Every hook specification, in the order of the module."""
    for function in vars(hookspecs).values():
        if inspect.isfunction(function) and hasattr(function, f"{hookspecs.PROJECT}_spec"):
            yield function


def hooks_page() -> str:
    """The text of `docs/hooks.md`."""
    return "\n".join([_HOOKS_HEAD, *(_section(function) for function in hook_functions())])


def _section(function: Callable[..., object]) -> str:
    signature = f"{function.__name__}{inspect.signature(function)}".replace("'", "")
    return f"## {function.__name__}\n\n```python\n{signature}\n```\n\n{inspect.getdoc(function)}\n"


def documents() -> dict[Path, str]:
    """Every generated document and its text."""
    return {
        REPOSITORY / "config.example.toml": render.example(discovery.all_registrations(FIRST_PARTY)),
        REPOSITORY / "docs" / "hooks.md": hooks_page(),
    }


def main(argv: list[str] | None = None) -> int:
    """Write the documents, or compare them; the exit status."""
    parser = argparse.ArgumentParser(description="Generate config.example.toml and docs/hooks.md.")
    parser.add_argument("--check", action="store_true", help="only say what is stale; exit status 1 if anything is")
    check = parser.parse_args(argv).check
    stale = [(path, text) for path, text in documents().items() if not path.exists() or path.read_text() != text]
    for path, text in stale:
        if check:
            sys.stderr.write(f"stale: {path.relative_to(REPOSITORY)}: run `make docs`\n")
        else:
            path.write_text(text)
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
