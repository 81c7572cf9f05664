"""Fill a virtual environment with what our distributions require of others, without downloading anything."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

OURS = "aiocontainerd"


def required_by(name: str, extras: frozenset[str] = frozenset()) -> Iterator[Requirement]:
    """Yield the requirements of an installed distribution that hold here, its own extras' included."""
    for line in distribution(name).requires or []:
        requirement = Requirement(line)
        if not requirement.marker or any(requirement.marker.evaluate({"extra": one}) for one in ("", *extras)):
            yield requirement


def brought_by(name: str, extras: frozenset[str]) -> set[str]:
    """Return the names of all that comes with a distribution."""
    found: set[str] = set()
    waiting = [Requirement(f"{name}[{','.join(extras)}]")]
    while waiting:
        requirement = waiting.pop()
        if (key := canonicalize_name(requirement.name)) not in found:
            found.add(key)
            waiting += required_by(key, frozenset(requirement.extras))
    return found


def link(name: str, site_packages: Path) -> None:
    """Put what an installed distribution consists of into another environment."""
    installed = Path(str(distribution(name).locate_file("")))
    tops = {installed / file.parts[0] for file in distribution(name).files or []}
    metadata = installed.glob(f"{name.replace('-', '_')}-*.egg-info")  # of what has no wheel
    for top in {*tops, *metadata}:
        if top.name not in ("..", "__pycache__") and top.exists() and not (site_packages / top.name).exists():
            (site_packages / top.name).symlink_to(top)


def main(environment: Path) -> None:
    """Link what the daemon with `actr` requires of others, and what builds our packages, into an environment."""
    (site_packages,) = environment.glob("lib/python3*/site-packages")
    for name in {*brought_by(OURS, frozenset({"daemon", "cli"})), "flit-core"}:
        if not name.startswith(OURS):
            link(name, site_packages)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
