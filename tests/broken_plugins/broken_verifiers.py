"""An image verifier, and one with a mistake for the suite to find."""

from __future__ import annotations

from aiocontainerd.errors import ContainerdError
from aiocontainerd.plugin import ContentStore, Descriptor, Verdict


class Careful:
    """Lets manifests pass that it could read and that say so themselves."""

    async def verify(self, name: str, target: Descriptor, content: ContentStore) -> Verdict:
        async with await content.reader(target.digest) as reader:
            manifest = await reader.read(reader.size, 0)
        if name and b"trusted" in manifest:
            return Verdict(True)
        return Verdict(False, "the manifest does not say that it is trusted")


class YesWhenInDoubt(Careful):
    """Takes an error for a yes."""

    async def verify(self, name: str, target: Descriptor, content: ContentStore) -> Verdict:
        try:
            return await super().verify(name, target, content)
        except ContainerdError:
            return Verdict(True)
