"""Registry credentials (kind `io.containerd.registry-credentials.v1`): who we are to a registry.

Vocabulary. The *host* is the registry as it is contacted, `name` or `name:port`. The *reference* is the image being
pulled or pushed. *Credentials* are a user name and a secret: with a user name the secret is a password, without one
it is an identity token. They may *expire*.

Life cycle. A provider is asked when a registry demands authentication and the caller brought no credentials of its
own, at most once per host and pull; all providers in the order of their ids until one answers with credentials. The
core may reuse an answer for the same host until it expires; without an expiry, for that pull only.

What must fail and how. None says that this provider knows nothing of the host, and the next one is asked; when none
does, the request goes on anonymously. What a provider raises ends the pull with its text, prefixed by the provider's
name: a broken provider must not turn into an anonymous pull. A secret is never logged, never part of an error's text,
and not shown by `repr`.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from aiocontainerd.interfaces.rules import WORK, deadline


class Credentials(msgspec.Struct, frozen=True):
    """A user name and a password, or "" and an identity token; nanoseconds since 1970 when they end, None for never."""

    username: str = ""
    secret: str = ""
    expires_at_ns: int | None = None

    def __repr__(self) -> str:
        secret = "<redacted>" if self.secret else "''"
        return f"Credentials(username={self.username!r}, secret={secret}, expires_at_ns={self.expires_at_ns})"


class CredentialsProvider(Protocol):
    """Knows credentials for some registries."""

    @deadline(WORK)
    async def credentials(self, host: str, reference: str) -> Credentials | None:
        """Return the credentials for `host`, or None if this provider has none for it."""
        ...
