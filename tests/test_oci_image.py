"""Image documents, above all that none can be read as another (facts/security 2021-41190)."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from collections.abc import Callable

import pytest

from aiocontainerd.errors import InvalidArgument, Unimplemented
from aiocontainerd.oci import image
from aiocontainerd.oci.descriptor import Descriptor

DIGEST = "sha256:" + "a" * 64
CHILD = {"digest": DIGEST, "size": 3, "mediaType": image.OCI_CONFIG}
TYPES = (image.OCI_INDEX, image.DOCKER_INDEX, image.OCI_MANIFEST, image.DOCKER_MANIFEST)


def document(kind: str, **more: object) -> bytes:
    body: dict[str, object] = {"schemaVersion": 2, **more}
    body |= {"manifests": []} if kind in image.INDEX_TYPES else {"config": CHILD, "layers": []}
    return json.dumps(body).encode()


def decode(data: bytes, media_type: str) -> object:
    return (image.decode_index if media_type in image.INDEX_TYPES else image.decode_manifest)(data, media_type)


@pytest.mark.parametrize("outer", TYPES)
@pytest.mark.parametrize("inner", TYPES)
def test_a_document_of_another_sort_than_its_type_is_refused(outer: str, inner: str) -> None:
    data = document(outer, mediaType=inner)
    if (outer in image.INDEX_TYPES) == (inner in image.INDEX_TYPES):
        decode(data, outer)
    else:
        with pytest.raises(InvalidArgument):
            decode(data, outer)


@pytest.mark.parametrize("outer", TYPES)
def test_the_other_sorts_fields_and_schema_1_are_refused(outer: str) -> None:
    other: dict[str, object] = {"config": CHILD} if outer in image.INDEX_TYPES else {"manifests": []}
    schema_1: dict[str, object] = {"fsLayers": []}
    for extra in (other, schema_1):
        with pytest.raises(InvalidArgument):
            decode(document(outer, **extra), outer)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda data: data.decode().encode("utf-16"), "is not UTF-8"),
        (lambda data: data.decode().encode("utf-32-le"), "is not valid JSON"),
        (lambda data: b"\xef\xbb\xbf" + data, "is not valid JSON"),
        (lambda data: data.replace(b"noted", b"n\xc3\x28ted"), "is not UTF-8: invalid continuation byte at "),
        (lambda data: data.replace(b"noted", b"n\xff"), "is not UTF-8"),
        (lambda data: data.replace(b"noted", b"\xed\xa0\x80"), "is not UTF-8"),
        (lambda data: data.replace(b"noted", b"\xc0\xaf"), "is not UTF-8"),
        (lambda data: data.replace(b"noted", b"\\ud800"), "is not UTF-8: surrogates not allowed"),
        (lambda data: data.replace(b'"noted"', b"NaN"), "NaN is no value"),
        (lambda data: data.replace(b'"noted"', b'"a","k":"b"'), "a key appears twice"),
        (lambda data: data.replace(b'"noted"', b'null,"\\u006b":null'), "a key appears twice"),
    ],
)
def test_a_document_is_json_in_utf_8_or_refused(kind: str, change: Callable[[bytes], bytes], text: str) -> None:
    data = document(kind, annotations={"k": "noted"})
    decode(data, kind)
    decode(data.replace(b"noted", "\u00e9\U0001f600".encode() + b"\\ud83d\\ude00"), kind)
    with pytest.raises(InvalidArgument, match=text):
        decode(change(data), kind)


def test_a_config_is_json_in_utf_8_or_refused() -> None:
    for data in ('{"os":"linux"}'.encode("utf-16"), b'{"os":"\xff"}', b'{"os":"a","os":"b"}'):
        with pytest.raises(InvalidArgument, match=r"image config is not UTF-8|a key appears twice"):
            image.decode_config(data)


def peak_mib(decoded: Callable[[], object]) -> float:
    tracemalloc.start()
    try:
        decoded()
        return tracemalloc.get_traced_memory()[1] / (1 << 20)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("kind", "members", "limit"),
    [(image.OCI_MANIFEST, "layers", image.MAX_LAYERS), (image.OCI_INDEX, "manifests", image.MAX_MANIFESTS)],
)
def test_too_long_a_list_is_refused_before_it_costs_memory(kind: str, members: str, limit: int) -> None:
    def of(count: int) -> bytes:
        body: dict[str, object] = {members: [{**CHILD, "size": n} for n in range(count)]}
        return json.dumps(body | ({"config": CHILD} if members == "layers" else {})).encode()

    decode(of(limit), kind)
    data = of(20_000)

    def refused() -> None:
        with pytest.raises(InvalidArgument, match=f"{members}, more than {limit}"):
            decode(data, kind)

    assert peak_mib(refused) < 24


@pytest.mark.parametrize("filler", [b"[],", b"{},", b'"ab",', b"10000,"])
def test_a_document_of_many_values_is_refused_before_it_is_read(filler: bytes) -> None:
    data = b'{"manifests":[],"x":[' + filler * (image.MAX_DOCUMENT_BYTES // len(filler) - 20) + b"0]}"

    def refused() -> None:
        with pytest.raises(InvalidArgument, match=f"more than {image.MAX_JSON_VALUES} values"):
            image.decode_index(data, image.OCI_INDEX)

    assert peak_mib(refused) < 1


@pytest.mark.parametrize(
    "data",
    [
        b"", b"[]", b"{", b'{"manifests":[],"manifests":[]}', b'{"manifests":[{"digest":"x","size":1}]}',
        b'{"manifests":' + b"[" * 70 + b"]" * 70 + b"}", b'{"manifests":' + b"[" * 100_000,
        b'{"manifests":[{"digest":"' + DIGEST.encode() + b'","size":-1}]}',
    ],
)  # fmt: skip
def test_malformed_documents_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidArgument):
        image.decode_index(data, image.OCI_INDEX)


def test_large_documents_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="more than"):
        image.decode_index(b" " * (image.MAX_DOCUMENT_BYTES + 1), image.OCI_INDEX)


def test_null_is_as_good_as_absent() -> None:
    config = image.decode_config(b'{"os":"linux","config":{"Cmd":null,"Env":["A=b"]},"rootfs":{"diff_ids":null}}')
    assert config.config is not None
    assert (config.config.cmd, config.config.env, config.rootfs.diff_ids) == (None, ("A=b",), ())


def test_chain_ids_hash_what_is_below() -> None:
    one, two = "sha256:" + "1" * 64, "sha256:" + "2" * 64
    wanted = "sha256:" + hashlib.sha256(f"{one} {two}".encode()).hexdigest()
    assert image.chain_ids([one, two]) == [one, wanted]


def test_children_are_labelled_by_sort_and_number() -> None:
    def child(media_type: str, fill: str) -> image.ChildDescriptor:
        return image.ChildDescriptor("sha256:" + fill * 64, 1, media_type)

    labels = image.child_labels(
        [
            child(image.OCI_CONFIG, "a"),
            child(image.OCI_LAYER + "+gzip", "b"),
            child(image.DOCKER_LAYER_GZIP, "c"),
            child(image.OCI_MANIFEST, "d"),
            child("application/x", "e"),
        ]
    )
    assert list(labels) == [f"containerd.io/gc.ref.content.{key}" for key in ("config", "l.0", "l.1", "m.0", "0")]


@pytest.mark.parametrize(
    ("media_type", "kind"),
    [
        (image.OCI_MANIFEST, "manifest"), (image.DOCKER_INDEX, "index"), (image.DOCKER_LAYER_GZIP, "layer"),
        (image.OCI_CONFIG, "config"), ("application/vnd.in-toto+json", "attestation"), ("a/b", "unknown"),
    ],
)  # fmt: skip
def test_ingests_are_named_by_sort_and_digest(media_type: str, kind: str) -> None:
    assert image.ingest_key(Descriptor(media_type, DIGEST, 1)) == f"{kind}-{DIGEST}"
    named = Descriptor(media_type, DIGEST, 1, {image.REF_ANNOTATION: "v1"})
    assert image.ingest_key(named) == f"{kind}-v1@{DIGEST}"


@pytest.mark.parametrize(
    "media_type",
    [
        "application/vnd.oci.image.layer.v1.tar", "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.oci.image.layer.v1.tar+zstd", "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd", "application/vnd.oci.image.layer.v2.dir",
        "application/vnd.docker.image.rootfs.diff.tar", "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
        "application/vnd.docker.image.rootfs.diff.tar.gzip+encrypted",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.erofs.layer.v1", "application/vnd.erofs.layer.v1+zstd",
    ],
)  # fmt: skip
def test_layers_are_known_by_rule(media_type: str) -> None:
    assert image.is_layer(media_type)
    child = image.ChildDescriptor(DIGEST, 1, media_type)
    assert image.child_labels([child]) == {"containerd.io/gc.ref.content.l.0": DIGEST}


@pytest.mark.parametrize(
    "media_type",
    ["", "application/octet-stream", "application/vnd.docker.image.rootfs.diff.tarball", "application/vnd.acme.layer",
     "application/vnd.oci.image.config.v1+json"],
)  # fmt: skip
def test_other_blobs_are_no_layers(media_type: str) -> None:
    assert not image.is_layer(media_type)


def test_schema_1_is_not_converted() -> None:
    with pytest.raises(Unimplemented, match="no longer supported"):
        image.refuse_schema1(image.DOCKER_SCHEMA1)
