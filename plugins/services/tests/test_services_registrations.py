"""What is registered, and that each service has every method of the API."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from aiocontainerd_services.plugin import register_plugins

from aiocontainerd import kinds
from aiocontainerd.config.plugin import PluginConfig
from aiocontainerd.rpc.binding import bind
from aiocontainerd.serve import (
    containers,
    content,
    diff,
    events,
    health,
    images,
    introspection,
    leases,
    namespaces,
    snapshots,
    version,
)

SERVICES: list[Any] = [
    containers.ContainersGrpc,
    content.ContentGrpc,
    diff.DiffGrpc,
    events.EventsGrpc,
    events.EventsTtrpc,
    images.ImagesGrpc,
    introspection.IntrospectionGrpc,
    leases.LeasesGrpc,
    namespaces.NamespacesGrpc,
    snapshots.SnapshotsGrpc,
]


@pytest.mark.parametrize("service", SERVICES, ids=lambda service: service.__name__)
def test_every_method_of_the_api_is_there(service: Any) -> None:
    assert [path for path, method in bind(service(None)).items() if method.call is None] == []


@pytest.mark.parametrize("service", [version.VersionGrpc, health.HealthGrpc])
def test_every_method_of_a_service_without_parts_is_there(service: Any) -> None:
    assert [path for path, method in bind(service()).items() if method.call is None] == []


def test_the_ids_are_containerds() -> None:
    ids: dict[str, set[str]] = {}
    for registration in register_plugins():
        ids.setdefault(registration.kind, set()).add(registration.id)
    subjects = {"namespaces", "containers", "content", "images", "snapshots", "diff", "introspection"}
    assert ids[kinds.SERVICE] >= {f"{subject}-service" for subject in subjects}
    assert ids[kinds.GRPC] >= subjects | {"leases", "events", "version", "healthcheck"}
    assert ids[kinds.TTRPC] == {"events"}
    assert ids[kinds.LEASE] == {"manager"}
    assert ids[kinds.WARNING] == {"deprecations"}


def test_the_diff_service_is_configured_as_containerds() -> None:
    (diff,) = [r for r in register_plugins() if r.id == "diff-service"]
    config: PluginConfig = diff.config()
    assert (getattr(config, "default", None), getattr(config, "sync_fs", None)) == (("walking",), False)


def test_registering_imports_no_message() -> None:
    code = "import sys, aiocontainerd_services.plugin as p; list(p.register_plugins()); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [name for name in done.stdout.split() if name.startswith(("aiocontainerd.api.gen", "betterproto2"))] == []
