"""Plays requests that containerd refuses, or answers against expectation, and tells the codes and texts.

`refusals.jsonl` beside this file has one call a line: a service below `containerd.services` and a method, the request
(a list for a stream), the namespace and the lease if they are not the usual ones, and what containerd 2.1 answered,
with `{names}` for what differs from run to run. Requests without the message that they are about are not in it, since
containerd 2.1 dies of them. The calls are made by grpcio, which changes no text. To record them anew:

    python refusals.py SOCKET DIRECTORY NAMESPACE

DIRECTORY is one of the daemon's own; the root of a container is made there.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import re
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from aiocontainerd import api, typeurl
from aiocontainerd.oci import spec
from aiocontainerd.oci.image import ContainerConfig
from aiocontainerd.oci.user import User
from aiocontainerd.rpc import binding
from aiocontainerd.testing.images import busybox_layer
from aiocontainerd.typeurl import Any as TypedAny
from aiocontainerd.wire import codec
from aiocontainerd.wire.anys import any_to_wire

grpc: Any = importlib.import_module("grpc")
"""It has no type stubs."""

RECORDED = Path(__file__).with_suffix(".jsonl")
RUNTIME = "io.containerd.runc.v2"
SNAPSHOTTER = "native"
BLOB = b"{}"
DIGEST = f"sha256:{hashlib.sha256(BLOB).hexdigest()}"
CALL_S = 20.0
_KEPT = {"containerd.io/gc.root": "yes"}
_ENDLESS_S = 0.5
"""For a call that would go on for ever: it was not refused."""
_ENDLESS = ("Subscribe", "Wait")
_MASKS = (
    (r"containerd-mount\w+", "{mount}"),
    (r"(?<=\{namespace\}/)\d+(?=/)", "{number}"),
    ("\N{NO-BREAK SPACE}", " "),  # Go's protobuf package writes one or the other, to keep texts from being relied on
)


class Ours(msgspec.Struct, frozen=True, array_like=True):
    """Our own answer: its code, a pattern of the whole text, and the reason."""

    code: int
    pattern: str
    reason: str


class Refusal(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One call and its recorded answer: code 0 for any answer but a status. `ours` is our answer where it differs."""

    call: str
    request: Any
    namespace: str | None = None
    lease: str = ""
    code: int = 0
    text: str = ""
    ours: Ours | None = None


def recorded() -> list[Refusal]:
    """Return every call in order."""
    return [msgspec.json.decode(line, type=Refusal) for line in RECORDED.read_bytes().splitlines()]


class Player:
    """Asks one daemon."""

    def __init__(self, channel: Any, directory: Path, namespace: str) -> None:
        self._channel = channel
        self._directory = directory
        self._namespace = namespace
        self._words = {
            "directory": str(directory), "runtime": RUNTIME, "snapshotter": SNAPSHOTTER, "digest": DIGEST,
            "namespace": namespace, "long": "x" * 5000, "long_key": "l" * 4096,
        }  # fmt: skip

    def answer(self, refusal: Refusal) -> tuple[int, str]:
        """Return the code and the text of the answer, with `{names}` for this daemon's own words."""
        given = refusal.request if isinstance(refusal.request, list) else [refusal.request]
        request_class = binding.signature(*_names(refusal.call)).request_class
        requests = [msgspec.convert(self._filled(one), request_class, strict=False) for one in given]
        namespace = self._namespace if refusal.namespace is None else refusal.namespace
        code, text, _ = self._call(refusal.call, requests, namespace, refusal.lease)
        return code, self._masked(text)

    def call(self, call: str, request: Any) -> Any:
        """Make a call that has to succeed; its last response."""
        code, text, responses = self._call(call, request if isinstance(request, list) else [request], self._namespace)
        assert code == 0, f"{call}: {code} {text}"
        return responses[-1] if responses else None

    def _call(self, call: str, requests: list[Any], namespace: str, lease: str = "") -> tuple[int, str, list[Any]]:
        bound = binding.signature(*_names(call))
        opened = self._channel.stream_stream(bound.path, request_serializer=codec.encode)
        headers = [("containerd-namespace", namespace)] if namespace else []
        headers += [("containerd-lease", lease)] if lease else []
        endless = bound.method in _ENDLESS
        stream = opened(iter(requests), metadata=headers, timeout=_ENDLESS_S if endless else CALL_S)
        responses: list[Any] = []
        try:
            responses.extend(codec.decode(bound.response_class, data) for data in stream)
        except grpc.RpcError as error:
            if endless and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                return 0, "", responses
            return error.code().value[0], error.details(), responses
        return 0, "", responses

    def _filled(self, value: Any) -> Any:
        if isinstance(value, str):
            return re.sub(r"\{(\w+)\}", lambda found: self._words.get(found[1], found[0]), value)
        if isinstance(value, list):
            return [self._filled(one) for one in value]
        if isinstance(value, dict):
            return {self._filled(name): self._filled(one) for name, one in value.items()}
        return value

    def _masked(self, text: str) -> str:
        for name in ("directory", "namespace"):
            text = text.replace(self._words[name], f"{{{name}}}")
        for pattern, name in _MASKS:
            text = re.sub(pattern, name, text)
        return text

    def prepare(self) -> None:
        """Make what the requests are about.

        Containers `c1` with a running task, `c2` without, `c3` without a spec and `c4` with a broken one; a blob; an
        image `img`; snapshots `active`, `view` and `done`; a lease `l1`; the namespace `made`.
        """
        self._blob()
        self.call("namespaces.v1.Namespaces/Create", api.namespaces.CreateNamespaceRequest(
            namespace=api.namespaces.Namespace(name="made")))  # fmt: skip
        self.call("leases.v1.Leases/Create", api.leases.CreateRequest(id="l1"))
        target = api.types.Descriptor(media_type="application/x", digest=DIGEST, size=len(BLOB))
        self.call("images.v1.Images/Create", api.images.CreateImageRequest(
            image=api.images.Image(name="img", target=target)))  # fmt: skip
        self._snapshots()
        self._containers()

    def _blob(self) -> None:
        action = api.content.WriteAction.COMMIT
        self.call("content.v1.Content/Write", [
            api.content.WriteContentRequest(action=action, ref="blob", total=len(BLOB), data=BLOB, labels=_KEPT)
        ])  # fmt: skip

    def _snapshots(self) -> None:
        service = "snapshots.v1.Snapshots"
        for key in ("first", "active"):
            self.call(f"{service}/Prepare", api.snapshots.PrepareSnapshotRequest(
                snapshotter=SNAPSHOTTER, key=key, labels=_KEPT))  # fmt: skip
        self.call(f"{service}/Commit", api.snapshots.CommitSnapshotRequest(
            snapshotter=SNAPSHOTTER, key="first", name="done", labels=_KEPT))  # fmt: skip
        self.call(f"{service}/View", api.snapshots.ViewSnapshotRequest(
            snapshotter=SNAPSHOTTER, key="view", parent="done", labels=_KEPT))  # fmt: skip

    def _containers(self) -> None:
        root = self._directory / "root-of-c1"
        with tarfile.open(fileobj=io.BytesIO(busybox_layer().tar)) as archive:
            archive.extractall(root)
        specs = {"c1": self._spec("c1"), "c2": self._spec("c2"), "c4": TypedAny(typeurl.SPEC_URL, b"nonsense")}
        for name in ("c1", "c2", "c3", "c4"):
            container = api.containers.Container(
                id=name, runtime=api.containers.ContainerRuntime(name=RUNTIME),
                spec=any_to_wire(specs.get(name, TypedAny("x", b""))),
            )  # fmt: skip
            self.call("containers.v1.Containers/Create", api.containers.CreateContainerRequest(container=container))
        mounts = [api.types.Mount(type="bind", source=str(root), options=["rbind", "rw"])]
        self.call("tasks.v1.Tasks/Create", api.tasks.CreateTaskRequest(container_id="c1", rootfs=mounts))
        self.call("tasks.v1.Tasks/Start", api.tasks.StartRequest(container_id="c1"))

    def _spec(self, name: str) -> TypedAny:
        wishes = spec.Wishes(args=("sleep", "1000"))
        return spec.to_any(spec.make(self._namespace, name, ContainerConfig(env=("PATH=/bin",)), User(), wishes))

    def clear(self) -> None:
        """Remove the container and its task."""
        for name in ("c1", "c2", "c3", "c4"):
            self._call("tasks.v1.Tasks/Kill", [api.tasks.KillRequest(container_id=name, signal=9)], self._namespace)
            self._call("tasks.v1.Tasks/Wait", [api.tasks.WaitRequest(container_id=name)], self._namespace)
            self._call("tasks.v1.Tasks/Delete", [api.tasks.DeleteTaskRequest(container_id=name)], self._namespace)


def _names(call: str) -> tuple[str, str]:
    service, method = call.split("/")
    return (service if service.startswith("grpc.") else f"containerd.services.{service}"), method


@contextmanager
def player(socket: Path, directory: Path, namespace: str) -> Iterator[Player]:
    """Return a player of a daemon that has what the requests are about; its task ends with the block."""
    with grpc.insecure_channel(f"unix:{socket}") as channel:
        made = Player(channel, directory, namespace)
        made.prepare()
        try:
            yield made
        finally:
            made.clear()


def main(socket: str, directory: str, namespace: str) -> None:
    """Print every call with what the daemon answers."""
    with player(Path(socket), Path(directory), namespace) as made:
        for refusal in recorded():
            code, text = made.answer(refusal)
            sys.stdout.buffer.write(msgspec.json.encode(msgspec.structs.replace(refusal, code=code, text=text)) + b"\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
