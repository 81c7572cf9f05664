"""The protocol buffer API: `from aiocontainerd import api`, then `api.images.Image`.

`images` is an alias of a generated package, which is imported when the alias is first used. Importing all packages
takes longer than starting the daemon, so no module uses an alias while it is imported itself. The room imports
`errors` only. `wire`, `rpc`, `serve`, `client`, `daemon`, `cli` and the plugins import it.

- `proto/`, `gen/`: the `.proto` files and the modules generated from them (`make proto`, `generate`)
- `services`: every service with its methods, as a table of names
- `names`: full names of messages and their classes
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aiocontainerd.api.gen import ttrpc as ttrpc
    from aiocontainerd.api.gen.aiocontainerd.plugins import v1 as plugins
    from aiocontainerd.api.gen.containerd import events as event_types
    from aiocontainerd.api.gen.containerd import types as types
    from aiocontainerd.api.gen.containerd.runc import v1 as runc
    from aiocontainerd.api.gen.containerd.runtime.bootstrap import v1 as bootstrap
    from aiocontainerd.api.gen.containerd.runtime.sandbox import v1 as runtime_sandbox
    from aiocontainerd.api.gen.containerd.services.containers import v1 as containers
    from aiocontainerd.api.gen.containerd.services.content import v1 as content
    from aiocontainerd.api.gen.containerd.services.diff import v1 as diff
    from aiocontainerd.api.gen.containerd.services.events import v1 as events
    from aiocontainerd.api.gen.containerd.services.events.ttrpc import v1 as events_ttrpc
    from aiocontainerd.api.gen.containerd.services.images import v1 as images
    from aiocontainerd.api.gen.containerd.services.introspection import v1 as introspection
    from aiocontainerd.api.gen.containerd.services.leases import v1 as leases
    from aiocontainerd.api.gen.containerd.services.mounts import v1 as mounts
    from aiocontainerd.api.gen.containerd.services.namespaces import v1 as namespaces
    from aiocontainerd.api.gen.containerd.services.sandbox import v1 as sandbox
    from aiocontainerd.api.gen.containerd.services.snapshots import v1 as snapshots
    from aiocontainerd.api.gen.containerd.services.streaming import v1 as streaming
    from aiocontainerd.api.gen.containerd.services.tasks import v1 as tasks
    from aiocontainerd.api.gen.containerd.services.transfer import v1 as transfer
    from aiocontainerd.api.gen.containerd.services.version import v1 as version
    from aiocontainerd.api.gen.containerd.task import v2 as task_v2
    from aiocontainerd.api.gen.containerd.task import v3 as task_v3
    from aiocontainerd.api.gen.containerd.types import transfer as transfer_types
    from aiocontainerd.api.gen.containerd.v1 import types as task_types
    from aiocontainerd.api.gen.google import protobuf as protobuf
    from aiocontainerd.api.gen.google import rpc as rpc
    from aiocontainerd.api.gen.grpc.health import v1 as health
    from aiocontainerd.api.gen.io.containerd.cgroups import v1 as cgroups_v1
    from aiocontainerd.api.gen.io.containerd.cgroups import v2 as cgroups_v2
    from aiocontainerd.api.gen.nri.pkg.api import v1alpha1 as nri
    from aiocontainerd.api.gen.runtime import v1 as cri
    from aiocontainerd.api.gen.runtimeoptions import v1 as runtimeoptions

PACKAGES: dict[str, str] = {
    "bootstrap": "containerd.runtime.bootstrap.v1",
    "cgroups_v1": "io.containerd.cgroups.v1",
    "cgroups_v2": "io.containerd.cgroups.v2",
    "containers": "containerd.services.containers.v1",
    "content": "containerd.services.content.v1",
    "cri": "runtime.v1",
    "diff": "containerd.services.diff.v1",
    "event_types": "containerd.events",
    "events": "containerd.services.events.v1",
    "events_ttrpc": "containerd.services.events.ttrpc.v1",
    "health": "grpc.health.v1",
    "images": "containerd.services.images.v1",
    "introspection": "containerd.services.introspection.v1",
    "leases": "containerd.services.leases.v1",
    "mounts": "containerd.services.mounts.v1",
    "namespaces": "containerd.services.namespaces.v1",
    "nri": "nri.pkg.api.v1alpha1",
    "plugins": "aiocontainerd.plugins.v1",
    "protobuf": "google.protobuf",
    "rpc": "google.rpc",
    "runc": "containerd.runc.v1",
    "runtime_sandbox": "containerd.runtime.sandbox.v1",
    "runtimeoptions": "runtimeoptions.v1",
    "sandbox": "containerd.services.sandbox.v1",
    "snapshots": "containerd.services.snapshots.v1",
    "streaming": "containerd.services.streaming.v1",
    "task_types": "containerd.v1.types",
    "task_v2": "containerd.task.v2",
    "task_v3": "containerd.task.v3",
    "tasks": "containerd.services.tasks.v1",
    "transfer": "containerd.services.transfer.v1",
    "transfer_types": "containerd.types.transfer",
    "ttrpc": "ttrpc",
    "types": "containerd.types",
    "version": "containerd.services.version.v1",
}


def __getattr__(name: str) -> Any:
    package = PACKAGES.get(name)
    if package is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"aiocontainerd.api.gen.{package}")
    globals()[name] = module
    return module
