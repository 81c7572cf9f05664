"""A small proxy snapshotter on grpcio and protobuf, of another stack than ours: copies of directories.

    python grpcio_snapshotter.py STUBS ROOT SOCKET

STUBS holds the modules that protoc made of our .proto files. Records are in one JSON file below ROOT, written anew
after every change, so that a killed process finds them again. It knows no namespaces, capabilities or health.
"""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

grpc: Any = importlib.import_module("grpc")
"""It has no type stubs, and neither has what it generates."""

VIEW, ACTIVE, COMMITTED = 1, 2, 3


class Refused(Exception):
    """Code and text of an answer that is an error."""


class Snapshotter:
    """The Snapshots service. `pb` is the module of its messages, `types` that of mounts."""

    def __init__(self, root: Path, pb: Any, types: Any) -> None:
        self._pb, self._types = pb, types
        self._root, self._file = root, root / "records.json"
        self._records: dict[str, dict[str, Any]] = json.loads(self._file.read_text()) if self._file.exists() else {}

    def prepare(self, request: Any) -> Any:
        return self._pb.PrepareSnapshotResponse(mounts=self._make(request, ACTIVE))

    def view(self, request: Any) -> Any:
        return self._pb.ViewSnapshotResponse(mounts=self._make(request, VIEW))

    def mounts(self, request: Any) -> Any:
        return self._pb.MountsResponse(mounts=self._mounts(self._get(request.key)))

    def commit(self, request: Any) -> Any:
        if request.name in self._records:
            raise Refused(grpc.StatusCode.ALREADY_EXISTS, f'snapshot "{request.name}": already exists')
        record = self._get(request.key)
        del self._records[request.key]
        self._records[request.name] = {**record, "kind": COMMITTED, "labels": dict(request.labels)}
        self._save()
        return self._empty()

    def remove(self, request: Any) -> Any:
        record = self._get(request.key)
        if any(other["parent"] == request.key for other in self._records.values()):
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, "cannot remove snapshot with child: failed precondition")
        del self._records[request.key]
        self._save()
        shutil.rmtree(self._root / record["id"])
        return self._empty()

    def stat(self, request: Any) -> Any:
        return self._pb.StatSnapshotResponse(info=self._info(request.key, self._get(request.key)))

    def update(self, request: Any) -> Any:
        record = self._get(request.info.name)
        record["labels"] = dict(request.info.labels)
        self._save()
        return self._pb.UpdateSnapshotResponse(info=self._info(request.info.name, record))

    def list(self, _request: Any) -> Iterator[Any]:
        infos = [self._info(key, record) for key, record in sorted(self._records.items())]
        yield self._pb.ListSnapshotsResponse(info=infos)

    def usage(self, request: Any) -> Any:
        files = list((self._root / self._get(request.key)["id"]).rglob("*"))
        return self._pb.UsageResponse(size=sum(f.lstat().st_size for f in files), inodes=len(files))

    def cleanup(self, _request: Any) -> Any:
        (self._root / "cleaned").touch()
        return self._empty()

    def _make(self, request: Any, kind: int) -> Any:
        if request.key in self._records:
            raise Refused(grpc.StatusCode.ALREADY_EXISTS, f'snapshot "{request.key}": already exists')
        directory = self._root / f"{time.time_ns()}"
        if request.parent:
            source = self._root / self._get(request.parent)["id"]
            subprocess.run(["cp", "-a", str(source), str(directory)], check=True)
        else:
            directory.mkdir(0o755)
        record = {"id": directory.name, "kind": kind, "parent": request.parent, "labels": dict(request.labels)}
        self._records[request.key] = record
        self._save()
        return self._mounts(record)

    def _mounts(self, record: dict[str, Any]) -> Any:
        options = ["rbind", "ro" if record["kind"] == VIEW else "rw"]
        return [self._types.Mount(type="bind", source=str(self._root / record["id"]), options=options)]

    def _get(self, key: str) -> dict[str, Any]:
        if key not in self._records:
            raise Refused(grpc.StatusCode.NOT_FOUND, f"snapshot {key} does not exist: not found")
        return self._records[key]

    def _info(self, key: str, record: dict[str, Any]) -> Any:
        return self._pb.Info(name=key, parent=record["parent"], kind=record["kind"], labels=record["labels"])

    def _save(self) -> None:
        fresh = self._file.with_suffix(".new")
        fresh.write_text(json.dumps(self._records))
        fresh.replace(self._file)

    def _empty(self) -> Any:
        from google.protobuf import empty_pb2

        return empty_pb2.Empty()


def answering(method: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    """Return a servicer's method: what is refused is the call's status."""

    def answer(_self: Any, request: Any, context: Any = None) -> Any:
        try:
            return method(request)
        except Refused as refused:
            context.abort(*refused.args)

    return answer


def main(stubs: str, root: str, address: str) -> None:
    """Serve until killed."""
    sys.path.insert(0, stubs)
    package = "containerd.services.snapshots.v1"
    pb: Any = importlib.import_module(f"{package}.snapshots_pb2")
    rpc: Any = importlib.import_module(f"{package}.snapshots_pb2_grpc")
    types: Any = importlib.import_module("containerd.types.types_pb2")
    Path(root).mkdir(exist_ok=True)
    Path(address).unlink(missing_ok=True)
    snapshotter = Snapshotter(Path(root), pb, types)
    names = ("Prepare", "View", "Mounts", "Commit", "Remove", "Stat", "Update", "List", "Usage", "Cleanup")
    members = {name: answering(getattr(snapshotter, name.lower())) for name in names}
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=1))
    rpc.add_SnapshotsServicer_to_server(type("Servicer", (rpc.SnapshotsServicer,), members)(), server)
    server.add_insecure_port(f"unix:{address}")
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main(*sys.argv[1:])
