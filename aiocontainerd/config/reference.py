"""Write `config.example.toml` from the config records (`make docs`; `--check` only says whether it is stale)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from aiocontainerd import discovery
from aiocontainerd.config import render

EXAMPLE = Path(__file__).resolve().parents[2] / "config.example.toml"


def main(argv: list[str] | None = None) -> int:
    """Write the file, or compare it; the exit status."""
    parser = argparse.ArgumentParser(description="Generate config.example.toml from the config records.")
    parser.add_argument("--check", action="store_true", help="only say whether it is stale; exit status 1 if it is")
    check = parser.parse_args(argv).check
    text = render.example(discovery.all_registrations())
    if not check:
        EXAMPLE.write_text(text)
        return 0
    if EXAMPLE.exists() and EXAMPLE.read_text() == text:
        return 0
    sys.stderr.write(f"stale: {EXAMPLE.name}: run `make docs`\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
