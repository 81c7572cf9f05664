"""The delete action: removes what is left of a container whose shim is gone (facts/runtime 3.5)."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from aiocontainerd import api, timestamps
from aiocontainerd.errors import ContainerdError, os_text
from aiocontainerd.sys.mount import unmount_recursive
from aiocontainerd.wire.times import time_to_wire
from aiocontainerd_shim.children.reaper import Reaper
from aiocontainerd_shim.oci import choice
from aiocontainerd_shim.oci.runtime import OciError, OciRuntime, runtime_root
from aiocontainerd_shim.program import bootstrap
from aiocontainerd_shim.task import records

if TYPE_CHECKING:
    from aiocontainerd_shim.program.bootstrap import Identity

log = logging.getLogger(__name__)

KILLED_STATUS = 137
NO_PID = 0xFFFFFFFF


def clean_up(identity: Identity) -> api.task_v3.DeleteResponse:
    """Kill and remove the container of `identity.bundle`.

    The answer has the exit that is on disk, or else status 137 and the present time. The pid is -1 if no pid was
    written. One failing step is logged and does not keep the next from being done.
    """
    bundle = identity.bundle
    try:
        _delete(identity)
    except (OciError, ContainerdError) as failure:
        log.warning("container %s: the OCI runtime cannot remove it: %s", identity.id, failure)
    try:
        unmount_recursive(str(bundle / "rootfs"))
    except OSError as failure:
        log.warning("container %s: its root stays mounted: %s", identity.id, os_text(failure, "unmount"))
    bootstrap.remove_stale_socket(identity)
    record = records.read_process(bundle)
    known = record is not None and record.exited_at_ns is not None
    return api.task_v3.DeleteResponse(
        pid=_pid(bundle),
        exit_status=record.exit_status or 0 if record and known else KILLED_STATUS,
        exited_at=time_to_wire((record.exited_at_ns if record and known else None) or timestamps.now_ns()),
    )


def _delete(identity: Identity) -> None:
    """Remove what the OCI runtime keeps of the container, if it keeps anything."""
    options, shim = records.read_options(identity.bundle), records.read_shim(identity.bundle)
    root = shim.root if shim else runtime_root(options.root, identity.namespace)
    if not (Path(root) / identity.id).exists():
        return
    binary = shim.binary if shim else choice.choose(options.binary_name, identity.env).binary
    asyncio.run(_run_delete(identity, binary, root))


async def _run_delete(identity: Identity, binary: str, root: str) -> None:
    reaper = Reaper()
    reaper.start()
    runtime = OciRuntime(binary, root, reaper, env=identity.env, log=identity.bundle / "log.json")
    try:
        await runtime.delete(identity.id, force=True)
    finally:
        reaper.stop()


def _pid(bundle: Path) -> int:
    try:
        return int((bundle / "init.pid").read_text())
    except (OSError, ValueError):
        return NO_PID
