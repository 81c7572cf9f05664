"""Contract of image verifiers (interfaces/verifier.py): a verdict or an error, never a yes for want of knowledge.

    pytest --pyargs aiocontainerd.testing.verifier --target acme.plugin:Signatures --target-config keys={tmp}

Or subclass `VerifierContract` in a test module and give it a fixture `verifier`. Only the author knows which images
are good: the fixtures `accepted` and `rejected` may name one of each, after putting what it takes into `content`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import msgspec
import pytest

from aiocontainerd import kinds
from aiocontainerd.errors import Unavailable
from aiocontainerd.interfaces.content import Reader
from aiocontainerd.interfaces.verifier import ImageVerifier, Verdict
from aiocontainerd.oci.descriptor import Descriptor
from aiocontainerd.testing.contract import Contract, Targeted
from aiocontainerd.testing.fake_records import FakeMetadata
from aiocontainerd.testing.fakes import FakeContentStore, FakeReader
from aiocontainerd.testing.images import CONFIG_TYPE, INDEX_TYPE, MANIFEST_TYPE
from aiocontainerd.testing.target import Bench

NAME = "registry.example/suite/image:1"
VERDICT_S = 10.0
"""A pull waits for a verdict; within this there is one, or an error."""
MISSING = f"sha256:{'0' * 64}"


class VerifierStore(FakeContentStore):
    """A store that counts the readers that are open, and can refuse to open any."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.open_readers = 0
        self.broken = False

    async def reader(self, digest: str) -> Reader:  # type: ignore[override]  # another reader, of the same Protocol
        self.asked += 1
        if self.broken:
            raise Unavailable("the content store is broken")
        reader = _CountedReader((await super().reader(digest))._data, self)
        self.open_readers += 1
        return reader


class _CountedReader(FakeReader):
    def __init__(self, data: bytes, store: VerifierStore) -> None:
        super().__init__(data)
        self._store = store
        self._counted = True

    async def close(self) -> None:
        await super().close()
        self._store.open_readers -= self._counted
        self._counted = False


class Subject(msgspec.Struct, frozen=True):
    """An image to judge."""

    name: str
    target: Descriptor


def put_image(content: FakeContentStore, *, index: bool = False) -> Subject:
    """Put an image of one empty layer into the store, as a manifest or an index of one."""
    config = content.put(b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}')
    blob = content.blobs[config]
    manifest = msgspec.json.encode(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {"mediaType": CONFIG_TYPE, "digest": config, "size": len(blob)},
            "layers": [],
        }
    )
    target = Descriptor(MANIFEST_TYPE, content.put(manifest), len(manifest))
    if not index:
        return Subject(NAME, target)
    listed = {"mediaType": MANIFEST_TYPE, "digest": target.digest, "size": target.size}
    data = msgspec.json.encode({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [listed]})
    return Subject(NAME, Descriptor(INDEX_TYPE, content.put(data), len(data)))


async def judged(verifier: ImageVerifier, subject: Subject, content: FakeContentStore) -> Verdict | None:
    """Return the verdict, None for an error. Fail the test if neither comes in time."""
    with anyio.fail_after(VERDICT_S):
        try:
            return await verifier.verify(subject.name, subject.target, content)
        except TimeoutError:
            raise
        except Exception:  # noqa: BLE001 - whatever a verifier raises is an error, and blocks
            return None


@pytest.mark.anyio
class VerifierContract(Contract):
    """What every image verifier must do. See the module."""

    @pytest.fixture
    def content(self) -> VerifierStore:
        return VerifierStore()

    @pytest.fixture
    def accepted(self) -> Subject | None:
        """Return an image that the verifier accepts."""
        return None

    @pytest.fixture
    def rejected(self) -> Subject | None:
        """Return an image that the verifier rejects."""
        return None

    @pytest.mark.parametrize("index", [False, True], ids=["manifest", "index"])
    async def test_answer_is_a_verdict_or_an_error(
        self, verifier: ImageVerifier, content: VerifierStore, index: bool
    ) -> None:
        verdict = await judged(verifier, put_image(content, index=index), content)
        if verdict is None:
            return
        assert type(verdict) is Verdict
        assert type(verdict.ok) is bool
        assert isinstance(verdict.reason, str)

    async def test_verdict_that_blocks_says_why_in_a_line(
        self, verifier: ImageVerifier, content: VerifierStore
    ) -> None:
        verdict = await judged(verifier, put_image(content), content)
        if verdict is None or verdict.ok:
            pytest.skip("the verifier does not block the suite's image")
        assert verdict.reason.strip()
        assert "\n" not in verdict.reason

    async def test_same_image_gets_the_same_verdict(self, verifier: ImageVerifier, content: VerifierStore) -> None:
        subject = put_image(content)
        assert await judged(verifier, subject, content) == await judged(verifier, subject, content)

    async def test_several_images_are_judged_at_once(self, verifier: ImageVerifier, content: VerifierStore) -> None:
        subject = put_image(content)
        alone = await judged(verifier, subject, content)
        verdicts: list[Verdict | None] = []

        async def judge() -> None:
            verdicts.append(await judged(verifier, subject, content))

        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(judge)
        assert verdicts == [alone] * 10

    async def test_what_cannot_be_read_is_not_approved(self, verifier: ImageVerifier, content: VerifierStore) -> None:
        subject = put_image(content)
        content.broken = True
        verdict = await judged(verifier, subject, content)
        if not content.asked:
            pytest.skip("the verifier reads no content")
        assert verdict is None or not verdict.ok

    async def test_image_whose_blob_is_missing_is_not_approved(
        self, verifier: ImageVerifier, content: VerifierStore
    ) -> None:
        verdict = await judged(verifier, Subject(NAME, Descriptor(MANIFEST_TYPE, MISSING, 100)), content)
        if not content.asked:
            pytest.skip("the verifier reads no content")
        assert verdict is None or not verdict.ok

    @pytest.mark.parametrize("data", [b"", b"{", b"null", b"[]", b'{"layers":1}', b"\xff" * 1000], ids=range(6))
    async def test_manifest_that_is_none_is_judged_in_time(
        self, verifier: ImageVerifier, content: VerifierStore, data: bytes
    ) -> None:
        subject = Subject(NAME, Descriptor(MANIFEST_TYPE, content.put(data), len(data)))
        verdict = await judged(verifier, subject, content)
        assert verdict is None or isinstance(verdict, Verdict)

    async def test_content_is_left_as_it_was(self, verifier: ImageVerifier, content: VerifierStore) -> None:
        subject = put_image(content)
        before = dict(content.blobs)
        await judged(verifier, subject, content)
        assert content.blobs == before
        assert content.ingests == {}
        assert content.open_readers == 0

    async def test_cancelled_call_leaves_no_reader_open(self, verifier: ImageVerifier, content: VerifierStore) -> None:
        subject = put_image(content)
        for delay_s in (0.0, 0.001, 0.01):
            with anyio.move_on_after(delay_s):
                await judged(verifier, subject, content)
        assert content.open_readers == 0

    async def test_accepted_image_is_approved(
        self, verifier: ImageVerifier, content: VerifierStore, accepted: Subject | None
    ) -> None:
        if accepted is None:
            pytest.skip("no fixture `accepted` names an image that the verifier lets pass")
        verdict = await judged(verifier, accepted, content)
        assert verdict is not None
        assert verdict.ok

    async def test_rejected_image_is_blocked_with_a_reason(
        self, verifier: ImageVerifier, content: VerifierStore, rejected: Subject | None
    ) -> None:
        if rejected is None:
            pytest.skip("no fixture `rejected` names an image that the verifier blocks")
        verdict = await judged(verifier, rejected, content)
        assert verdict is not None
        assert not verdict.ok
        assert verdict.reason.strip()


class TestVerifier(Targeted, VerifierContract):
    """The verifier that `--target` names."""

    kind = kinds.IMAGE_VERIFIER

    @pytest.fixture
    async def verifier(self, bench: Bench, content: VerifierStore, tmp_path: Path) -> AsyncIterator[ImageVerifier]:
        needs = {kinds.METADATA: FakeMetadata(content), kinds.CONTENT: content}
        async with bench.open(self.kind, tmp_path / "root", needs) as opened:
            yield opened
