"""Write the generated documents (`make docs`): `config.example.toml`, and the pages of hooks, plugin kinds and tools.

`--check` only compares.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from aiocontainerd.config import render
from aiocontainerd.config.records import PluginPolicy
from aiocontainerd.host import discovery
from aiocontainerd.host.doc_pages import hook_functions, hooks_page, reference_page
from aiocontainerd.host.doc_tools import tools_page

__all__ = ["documents", "hook_functions", "hooks_page", "main", "reference_page", "tools_page"]

REPOSITORY = Path(__file__).resolve().parents[2]
FIRST_PARTY = PluginPolicy(
    allow=(
        "aiocontainerd",
        *(f"aiocontainerd-{folder.parent.name}" for folder in sorted(REPOSITORY.glob("plugins/*/pyproject.toml"))),
    )
)


def documents() -> dict[Path, str]:
    """Return the text of every generated document by path."""
    registrations = discovery.all_registrations(FIRST_PARTY)
    return {
        REPOSITORY / "config.example.toml": render.example(registrations),
        REPOSITORY / "docs" / "hooks.md": hooks_page(),
        REPOSITORY / "docs" / "plugins" / "reference.md": reference_page(registrations),
        REPOSITORY / "docs" / "plugins" / "tools.md": tools_page(),
    }


def main(argv: list[str] | None = None) -> int:
    """Write the documents, or compare them. Return the exit status."""
    parser = argparse.ArgumentParser(
        description="Generate config.example.toml and the pages of hooks and plugin kinds."
    )
    parser.add_argument("--check", action="store_true", help="only say what is stale; exit status 1 if anything is")
    check = parser.parse_args(argv).check
    stale = [(path, text) for path, text in documents().items() if not path.exists() or path.read_text() != text]
    for path, text in stale:
        if check:
            sys.stderr.write(f"stale: {path.relative_to(REPOSITORY)}: run `make docs`\n")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
