"""Decide whether an index may delete data that it does not know. Pure.

Data that an index does not know is either what a crash left, or data of a newer or another index. Only an index whose
mark lies beside the data, with a generation that the index has reached, can rule out the second.
"""

from __future__ import annotations

import msgspec

from aiocontainerd.index.mark import Mark, is_related

BROUGHT = "it came from elsewhere since the daemon was stopped"
"""Why data is unknown to an index that is the right one and was closed in order."""
_NEW = "it is new and the data is not"


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """What an index knows of itself and of the data.

    `past`: identities that it had before. `met`: it has claimed this data before. `upgraded`: an earlier release, which
    wrote no marks, began it.
    `recognises`: some of its records have their data here, and nothing here is numbered beyond what it has given out.
    """

    identity: str
    generation: int
    met: bool
    upgraded: bool
    recognises: bool
    past: frozenset[str] = frozenset()


def doubt(standing: Standing, mark: Mark | None) -> str:
    """Return why an index may not delete what it does not know; "" if it may."""
    if mark is not None:
        if mark.identity not in {standing.identity, *standing.past}:
            if not is_related(mark.identity, standing.identity):
                return _NEW if not standing.generation else "the data belongs to another index"
            if mark.generation <= standing.generation:
                return "another copy of it has been in use here since"
        if mark.generation > standing.generation:
            return f"it is older than the data (generation {standing.generation}, the data has {mark.generation})"
        return ""
    if standing.met:
        return "the mark beside the data is gone"
    if not standing.upgraded:
        return _NEW
    return "" if standing.recognises else "it recognises nothing of the data"
