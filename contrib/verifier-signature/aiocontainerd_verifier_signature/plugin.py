"""A verifier of detached Ed25519 signatures: `[plugins."io.containerd.image-verifier.v1.signature"]`."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from anyio import to_thread

from aiocontainerd.plugin import (
    ContentStore,
    Descriptor,
    InitContext,
    PluginConfig,
    SkipPlugin,
    Verdict,
    errors,
    kinds,
    register,
)
from aiocontainerd_verifier_signature.signatures import Unreadable, signer_of


class Config(PluginConfig, frozen=True):
    """`keys_dir` has the public keys that may sign, `*.pem`; `signatures_dir` has `<sha256 hex>.sig` of each target.

    Images whose names match none of `images`, shell patterns, need no signature.
    """

    keys_dir: str = ""
    signatures_dir: str = ""
    images: tuple[str, ...] = ("*",)


@register(kinds.IMAGE_VERIFIER, "signature", config=Config)
class SignatureVerifier:
    """Reads keys and signature for every image, so that a key that is deleted stops being trusted at once."""

    def __init__(self, config: Config) -> None:
        self._config = config

    async def start(self, context: InitContext[Config]) -> None:
        """Raise SkipPlugin where it is not configured. What is wrong with directories blocks pulls, not the start."""
        if not self._config.keys_dir or not self._config.signatures_dir:
            raise SkipPlugin("keys_dir and signatures_dir are not configured")
        context.exports.update(keys_dir=self._config.keys_dir, signatures_dir=self._config.signatures_dir)

    async def verify(self, name: str, target: Descriptor, content: ContentStore) -> Verdict:  # noqa: ARG002 - the Protocol's
        """Raise FailedPrecondition naming the file where a key or the signature cannot be read."""
        if not any(fnmatchcase(name, pattern) for pattern in self._config.images):
            return Verdict(True, "no signature is needed")
        keys, signatures = Path(self._config.keys_dir), Path(self._config.signatures_dir)
        try:
            signer = await to_thread.run_sync(signer_of, target.digest, keys, signatures)
        except FileNotFoundError:
            return Verdict(False, "it has no signature")
        except Unreadable as error:
            raise errors.FailedPrecondition(str(error)) from error
        return Verdict(True, f"signed by {signer}") if signer else Verdict(False, "no trusted key made its signature")
