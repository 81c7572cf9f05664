"""Print what our distributions require of others, extras included: the source of requirements.lock."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PROJECTS = ("pyproject.toml", "plugins/*/pyproject.toml", "contrib/*/pyproject.toml")
OURS = "aiocontainerd"


def required(path: Path) -> Iterator[str]:
    """Yield the requirements of one distribution, without those that are distributions of this repository."""
    project = tomllib.loads(path.read_text())["project"]
    for requirements in (project.get("dependencies", []), *project.get("optional-dependencies", {}).values()):
        yield from (requirement for requirement in requirements if not requirement.startswith(OURS))


if __name__ == "__main__":
    print(
        *sorted({line for pattern in PROJECTS for path in REPOSITORY.glob(pattern) for line in required(path)}),
        sep="\n",
    )
