"""Image verifiers (kind `io.containerd.image-verifier.v1`): decide whether an image may be pulled (facts/core 13).

Vocabulary. The *target* of an image is the descriptor its name was resolved to: an index or a manifest. A *verdict*
says whether it may be used here, and why not. *Blocking* is a verdict that says no; an *error* is a verifier that
cannot tell.

Life cycle. A pull that the daemon does itself asks every verifier, in the order of their ids, once the name is resolved
and before layers are fetched. The first one that blocks, or fails, ends the pull. The daemon has no service that pulls
yet, and clients that pull by themselves ask no verifier. `content` is the store of the pull's namespace: the
target's own blob is in it, other blobs may be. A verifier keeps no state between calls and may be called for several
images at once.

What must fail and how. A verdict with `ok` false: Unknown `image verifier <id> blocked pull of <name> with digest
<digest> for reason: <reason>`. Whatever `verify` raises is no verdict and blocks, too: `blocking pull of <name> with
digest <digest>: image verifier <id> returned error: <text>`. So does a deadline that passes. `reason` is one line for
the person who pulls; it must not contain secrets. Without verifiers everything may be pulled.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from aiocontainerd.interfaces.content import ContentStore
from aiocontainerd.interfaces.rules import WORK, deadline
from aiocontainerd.oci.descriptor import Descriptor


class Verdict(msgspec.Struct, frozen=True):
    """Whether an image may be used, and the reason if it may not."""

    ok: bool
    reason: str = ""


class ImageVerifier(Protocol):
    """Says whether images may be used."""

    @deadline(WORK)
    async def verify(self, name: str, target: Descriptor, content: ContentStore) -> Verdict:
        """Judge the image `name`, which is `target`. Raise if no judgement is possible: that blocks, as an error."""
        ...
