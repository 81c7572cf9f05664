"""The entry points of the programs: run one, or name in one line the extra that it was installed without."""

from __future__ import annotations

import importlib
import sys

OF_EXTRAS = frozenset({"click", "hpack", "packaging", "re2", "rich", "tomli_w", "uvloop", "zstandard"})
"""Packages that only the extras `daemon` and `cli` bring."""


def actr() -> None:
    """Run `actr`."""
    _run("actr", "cli", "aiocontainerd.cli.actr.main")


def daemon() -> None:
    """Run `aiocontainerd`."""
    _run("aiocontainerd", "daemon", "aiocontainerd.cli.daemon")


def plugin() -> None:
    """Run `aiocontainerd-plugin`."""
    _run("aiocontainerd-plugin", "daemon", "aiocontainerd.cli.plugin.main")


def _run(program: str, extra: str, module: str) -> None:
    try:
        importlib.import_module(module).main()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in OF_EXTRAS:
            raise
        sys.exit(f"{program}: the package {package} is missing; pip install 'aiocontainerd[{extra}]' brings it")
