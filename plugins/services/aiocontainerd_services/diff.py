"""The configured differs as one: each is asked in turn until one does the work (facts/core 8)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec

from aiocontainerd.errors import Unimplemented
from aiocontainerd.host.registration import PluginError
from aiocontainerd.interfaces.differ import ApplyOptions, CompareOptions, Differ
from aiocontainerd.oci.descriptor import Descriptor
from aiocontainerd.sys.mount import Mount


class DiffService:
    """A Differ made of other differs. `sync_fs` syncs after every apply, whatever the request says."""

    def __init__(self, differs: Sequence[Differ], *, sync_fs: bool = False) -> None:
        self._differs = differs
        self._sync_fs = sync_fs

    def use(self, differs: Sequence[Differ]) -> None:
        """Ask these differs from now on."""
        self._differs = differs

    async def apply(self, layer: Descriptor, mounts: Sequence[Mount], options: ApplyOptions) -> Descriptor:
        """Unpack a layer by the first differ that can. Raises Unimplemented if none can."""
        asked = msgspec.structs.replace(options, sync_fs=options.sync_fs or self._sync_fs)
        return await self._first(lambda differ: differ.apply(layer, mounts, asked))

    async def compare(self, lower: Sequence[Mount], upper: Sequence[Mount], options: CompareOptions) -> Descriptor:
        """Write a difference by the first differ that can. Raises Unimplemented if none can."""
        return await self._first(lambda differ: differ.compare(lower, upper, options))

    async def _first(self, ask: Callable[[Differ], Awaitable[Descriptor]]) -> Descriptor:
        refusal = Unimplemented("no differ is configured")
        for differ in self._differs:
            try:
                return await ask(differ)
            except Unimplemented as error:
                refusal = error
        raise refusal


def choose(names: Sequence[str], loaded: Mapping[str, Differ]) -> list[Differ]:
    """Return the configured differs in their order. Raises PluginError naming one that is not loaded."""
    for name in names:
        if name not in loaded:
            known = ", ".join(sorted(loaded)) or "none"
            raise PluginError(f"needed differ not loaded: {name} (loaded: {known})")
    return [loaded[name] for name in names]
