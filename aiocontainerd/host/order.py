"""The order in which plugins start: each after everything it requires or wants."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from aiocontainerd import kinds

if TYPE_CHECKING:
    from aiocontainerd.host.state import Plugin


class CircularNeedError(Exception):
    """Raised for plugins that require each other in a circle. The text names them in that order."""

    def __init__(self, circle: Sequence[Plugin]) -> None:
        self.circle = circle
        names = " -> ".join(plugin.uri for plugin in (*circle, circle[0]))
        super().__init__(f"plugins require each other in a circle: {names}")


def dependency_order(enabled: Mapping[str, Plugin]) -> list[Plugin]:
    """Return the plugins, each after what it requires and wants, early ones first. Raises CircularNeedError."""
    by_kind: dict[str, list[Plugin]] = {}
    for plugin in enabled.values():
        by_kind.setdefault(plugin.kind, []).append(plugin)
    done: dict[str, Plugin] = {}
    trail: list[Plugin] = []

    def needs(plugin: Plugin) -> Iterable[Plugin]:
        for kind in (*plugin.registration.requires, *plugin.registration.wants):
            if kind == kinds.ALL:
                yield from (p for p in enabled.values() if kinds.ALL not in p.registration.requires)
            else:
                yield from by_kind.get(kind, ())

    def visit(plugin: Plugin) -> None:
        if plugin.uri in done:
            return
        if plugin in trail:
            raise CircularNeedError(trail[trail.index(plugin) :])
        trail.append(plugin)
        for need in needs(plugin):
            if need is not plugin:
                visit(need)
        trail.pop()
        done[plugin.uri] = plugin

    for uri in sorted(enabled, key=lambda uri: (not enabled[uri].registration.early, uri)):
        visit(enabled[uri])
    return list(done.values())
