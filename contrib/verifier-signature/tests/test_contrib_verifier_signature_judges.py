"""The signature verifier: who may sign, and what blocks."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from aiocontainerd_verifier_signature.plugin import Config, SignatureVerifier
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from aiocontainerd.errors import FailedPrecondition
from aiocontainerd.plugin import Descriptor, Verdict
from aiocontainerd.testing.fakes import FakeContentStore
from aiocontainerd.testing.verifier import Subject, VerifierContract, VerifierStore, put_image

pytestmark = pytest.mark.anyio

HEX = hashlib.sha256(b"manifest").hexdigest()
DIGEST = f"sha256:{HEX}"
NAME = "docker.io/library/example:1"


class Trust:
    """A directory of keys and one of signatures, and the verifier that uses them."""

    def __init__(self, directory: Path) -> None:
        self.keys, self.signatures = directory / "keys", directory / "signatures"
        self.keys.mkdir()
        self.signatures.mkdir()

    def key(self, name: str) -> Ed25519PrivateKey:
        private = Ed25519PrivateKey.generate()
        pem = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (self.keys / f"{name}.pem").write_bytes(pem)
        return private

    def sign(self, key: Ed25519PrivateKey, digest: str = DIGEST, *, of: str = "") -> None:
        """Put a signature where that of `of`, else of the digest itself, is looked for."""
        name = (of or digest).partition(":")[2]
        (self.signatures / f"{name}.sig").write_bytes(key.sign(digest.encode()))

    def verifier(self, images: tuple[str, ...] = ("*",)) -> SignatureVerifier:
        return SignatureVerifier(Config(keys_dir=str(self.keys), signatures_dir=str(self.signatures), images=images))

    async def judge(self, name: str = NAME, digest: str = DIGEST, images: tuple[str, ...] = ("*",)) -> Verdict:
        return await self.verifier(images).verify(name, Descriptor("x/y", digest, 8), FakeContentStore())


@pytest.fixture
def trust(tmp_path: Path) -> Trust:
    return Trust(tmp_path)


class TestContract(VerifierContract):
    """The suite of aiocontainerd.testing.verifier."""

    @pytest.fixture
    def verifier(self, trust: Trust) -> SignatureVerifier:
        return trust.verifier()

    @pytest.fixture
    def accepted(self, trust: Trust, content: VerifierStore) -> Subject:
        subject = put_image(content)
        trust.sign(trust.key("release"), subject.target.digest)
        return subject

    @pytest.fixture
    def rejected(self, trust: Trust, content: VerifierStore) -> Subject:
        subject = put_image(content, index=True)
        trust.key("release")
        return subject


async def test_image_signed_by_a_trusted_key_may_be_used(trust: Trust) -> None:
    trust.key("other")
    trust.sign(trust.key("release"))
    assert await trust.judge() == Verdict(True, "signed by release")


async def test_image_without_a_signature_is_blocked(trust: Trust) -> None:
    trust.key("release")
    assert await trust.judge() == Verdict(False, "it has no signature")


async def test_signature_of_an_unknown_key_is_blocked(trust: Trust) -> None:
    trust.key("release")
    trust.sign(Ed25519PrivateKey.generate())
    assert await trust.judge() == Verdict(False, "no trusted key made its signature")


async def test_signature_of_another_digest_is_blocked(trust: Trust) -> None:
    trust.sign(trust.key("release"), f"sha256:{'0' * 64}", of=DIGEST)
    assert await trust.judge() == Verdict(False, "no trusted key made its signature")


async def test_deleted_key_is_trusted_no_longer(trust: Trust) -> None:
    trust.key("other")
    trust.sign(trust.key("release"))
    (trust.keys / "release.pem").unlink()
    assert not (await trust.judge()).ok


async def test_other_images_need_no_signature(trust: Trust) -> None:
    assert (await trust.judge(images=("registry.example.com/*",))).ok
    assert not (await trust.judge("registry.example.com/a:1", images=("registry.example.com/*",))).ok


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda t: (t.signatures / f"{HEX}.sig").write_bytes(b"short"), "does not have 64 bytes"),
        (lambda t: (t.signatures / f"{HEX}.sig").write_bytes(b"x" * 1000), "does not have 64 bytes"),
        (lambda t: (t.keys / "bad.pem").write_text("no key"), "bad.pem cannot be read"),
        (lambda t: (t.keys / "a.pem").write_bytes(rsa_key()), "a.pem is not of Ed25519"),
        (lambda t: (t.keys / "release.pem").unlink(), "keys has no *.pem"),
        (lambda t: shutil.rmtree(t.keys), "No such file or directory"),
    ],
)
async def test_what_cannot_be_read_is_an_error_that_names_it(
    trust: Trust, spoil: Callable[[Trust], object], text: str
) -> None:
    trust.sign(trust.key("release"))
    spoil(trust)
    with pytest.raises(FailedPrecondition) as caught:
        await trust.judge()
    assert text in str(caught.value)


@pytest.mark.parametrize("digest", ["sha512:" + "0" * 128, "sha256:../../etc/passwd", DIGEST + "\n"])
async def test_digest_that_names_no_file_is_an_error(trust: Trust, digest: str) -> None:
    trust.key("release")
    with pytest.raises(FailedPrecondition, match="is not sha256"):
        await trust.judge(digest=digest)


async def test_signature_made_by_openssl_as_the_page_says(trust: Trust, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    page = (Path(__file__).resolve().parents[1] / "README.md").read_text()
    script = page.split("```sh\n# sign\n")[1].split("```")[0]
    environment = {
        "PATH": "/usr/bin:/bin",
        "DIGEST": DIGEST,
        "KEYS": str(trust.keys),
        "SIGNATURES": str(trust.signatures),
    }
    await anyio.run_process(["sh", "-euc", script], cwd=tmp_path, env=environment)
    assert await trust.judge() == Verdict(True, "signed by release")


def rsa_key() -> bytes:
    public = generate_private_key(65537, 1024).public_key()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
