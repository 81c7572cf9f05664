"""Read keys and signatures from files. Blocks: run it in a thread.

A signature is the 64 bytes of Ed25519 (RFC 8032) over the text of the digest, `sha256:<hex>`, without a line end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

SIGNATURE_BYTES = 64
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


class Unreadable(Exception):
    """A file that must be looked at for a judgement cannot be used."""


def signer_of(digest: str, keys: Path, signatures: Path) -> str:
    """Return the name of the key that signed the digest, "" if none did.

    Raise FileNotFoundError if there is no signature, Unreadable naming what cannot be read.
    """
    from cryptography.exceptions import InvalidSignature

    signature = _signature(digest, signatures)
    for name, key in _trusted(keys):
        try:
            key.verify(signature, digest.encode())
        except InvalidSignature:
            continue
        return name
    return ""


def _signature(digest: str, directory: Path) -> bytes:
    found = _DIGEST.fullmatch(digest)
    if not found:
        raise Unreadable(f"digest {digest} is not sha256: its signature has no name")
    path = directory / f"{found[1]}.sig"
    try:
        with path.open("rb") as file:
            signature = file.read(SIGNATURE_BYTES + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Unreadable(f"signature {path}: {error.strerror}") from error
    if len(signature) != SIGNATURE_BYTES:
        raise Unreadable(f"signature {path} does not have {SIGNATURE_BYTES} bytes")
    return signature


def _trusted(directory: Path) -> Iterator[tuple[str, Ed25519PublicKey]]:
    """Return the keys by the names of their files without `.pem`. Raise Unreadable if there is none, or a bad one."""
    try:
        paths = sorted(path for path in directory.iterdir() if path.suffix == ".pem")
    except OSError as error:
        raise Unreadable(f"keys_dir {directory}: {error.strerror}") from error
    if not paths:
        raise Unreadable(f"keys_dir {directory} has no *.pem")
    for path in paths:
        yield path.stem, _key(path)


def _key(path: Path) -> Ed25519PublicKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise Unreadable(f"key {path} cannot be read: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise Unreadable(f"key {path} is not of Ed25519")
    return key
