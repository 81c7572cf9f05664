"""The entry points of the programs: run one, or name in one line the extra that it was installed without."""

from __future__ import annotations

import importlib
import os
import sys
import threading

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
    except SystemExit as end:
        _end_despite_threads(program, end.code)
        raise
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in OF_EXTRAS:
            raise
        sys.exit(f"{program}: the package {package} is missing; pip install 'aiocontainerd[{extra}]' brings it")


def _end_despite_threads(program: str, code: object) -> None:
    """Exit at once if threads would keep the interpreter from ending: a plugin's module started them."""
    if all(thread.daemon or thread is threading.main_thread() for thread in threading.enumerate()):
        return
    from aiocontainerd.host.leftovers import holding_threads

    left = holding_threads([threading.main_thread()])
    if not left:
        return
    if isinstance(code, str):
        print(code, file=sys.stderr)
    names = ", ".join(thread.name for thread in left)
    print(f"{program}: ending without threads that a plugin's module started: {names}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))
