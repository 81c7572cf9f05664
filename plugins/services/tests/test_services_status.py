"""docs/status.md tells the truth: every method of the API is in it, and is served where it says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aiocontainerd.api.services import SERVICES
from aiocontainerd.rpc.binding import bind
from aiocontainerd.serve.containers import ContainersGrpc
from aiocontainerd.serve.content import ContentGrpc
from aiocontainerd.serve.diff import DiffGrpc
from aiocontainerd.serve.events import EventsGrpc, EventsTtrpc
from aiocontainerd.serve.health import HealthGrpc
from aiocontainerd.serve.images import ImagesGrpc
from aiocontainerd.serve.introspection import IntrospectionGrpc
from aiocontainerd.serve.leases import LeasesGrpc
from aiocontainerd.serve.namespaces import NamespacesGrpc
from aiocontainerd.serve.plugins import PluginsGrpc
from aiocontainerd.serve.snapshots import SnapshotsGrpc
from aiocontainerd.serve.tasks import TasksGrpc
from aiocontainerd.serve.version import VersionGrpc

PAGE = Path(__file__).parents[3] / "docs" / "status.md"
PARTS: tuple[Any, ...] = (
    ContainersGrpc, ContentGrpc, DiffGrpc, EventsGrpc, EventsTtrpc, ImagesGrpc,
    IntrospectionGrpc, LeasesGrpc, NamespacesGrpc, SnapshotsGrpc, TasksGrpc,
)  # fmt: skip
REFUSED = {("containerd.services.snapshots.v1.Snapshots", "Cleanup")}


def rows() -> dict[tuple[str, str], str]:
    found: dict[tuple[str, str], str] = {}
    service = ""
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and cells[2] in ("works", "UNIMPLEMENTED"):
            service = cells[0].strip("`") or service
            found[service, cells[1]] = cells[2]
    return found


def served() -> set[tuple[str, str]]:
    unused: Any = None
    made = [*(part(None) for part in PARTS), PluginsGrpc(unused, unused, None), VersionGrpc(), HealthGrpc()]
    methods = [method for service in made for method in bind(service).values() if method.call]
    return {(method.service, method.method) for method in methods} - REFUSED


def test_every_method_of_containerds_sockets_has_a_row() -> None:
    wanted = {
        (service, method)
        for service, methods in SERVICES.items()
        if service.startswith(("aiocontainerd.", "containerd.services.", "grpc.health."))
        for method in methods
    }
    assert wanted - set(rows()) == set()


def test_a_row_says_works_where_the_method_is_served() -> None:
    claimed = {key for key, status in rows().items() if status == "works"}
    assert claimed == served()
