"""Taking and restoring a snapshot of a shim: from its objects to records and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from aiocontainerd.timestamps import ZERO_NS
from aiocontainerd_shim.cgroups.cgroup import Cgroup
from aiocontainerd_shim.io.stdio import HeldFds, ProcessIO
from aiocontainerd_shim.rest.descriptors import HANG_UP, READABLE, Descriptors
from aiocontainerd_shim.rest.records import RestedContainer, RestedProcess, RestedStreams
from aiocontainerd_shim.task.container import Container
from aiocontainerd_shim.task.process import ExecProcess, Process
from aiocontainerd_shim.task.service import TaskService


def take(service: TaskService, held: Descriptors) -> list[RestedContainer]:
    """Return a record of every container; the descriptors that the records name are put into `held`."""
    return [_container(container, held) for container in service.containers]


def restore(service: TaskService, record: RestedContainer, fds: Sequence[int]) -> None:
    """Make the container of a record known to `service`, which goes on with it."""
    container = service.adopt(
        record.id,
        Path(record.bundle),
        binary=record.binary,
        root=record.root,
        options=record.options,
        stdio=record.init.stdio,
    )
    _restore_process(container.init, record.init, fds)
    for exec_record in record.execs:
        process = ExecProcess(container.site, exec_record.exec_id, exec_record.stdio, exec_record.spec)
        _restore_process(process, exec_record, fds)
        container.execs[process.exec_id] = process
    cgroup = None if record.cgroup is None else Cgroup(record.cgroup)
    oom = None if record.oom is None else msgspec.structs.replace(record.oom, fd=fds[record.oom.fd])
    container.watch_again(cgroup, oom)


def _container(container: Container, held: Descriptors) -> RestedContainer:
    site, oom = container.site, container.oom
    return RestedContainer(
        id=site.id,
        bundle=str(site.bundle),
        binary=site.runtime.binary,
        root=site.runtime.root,
        options=site.options,
        init=_process(container.init, held),
        execs=[_process(process, held, process.spec) for process in container.execs.values()],
        cgroup=container.cgroup.paths if container.cgroup else None,
        oom=None if oom is None else msgspec.structs.replace(oom, fd=held.put(oom.fd, READABLE)),
    )


def _process(process: Process, held: Descriptors, spec: bytes = b"") -> RestedProcess:
    return RestedProcess(
        exec_id=process.exec_id,
        stdio=process.stdio,
        spec=spec,
        state=process.state,
        pid=process.pid,
        exit_status=process.exit_status,
        exited_at_ns=None if process.exited_at_ns == ZERO_NS else process.exited_at_ns,
        exited=process.exited.is_set(),
        streams=_streams(process.streams.held, held) if process.streams is not None else None,
    )


def _streams(fds: HeldFds, held: Descriptors) -> RestedStreams:
    stdin = held.put(fds.stdin) if fds.stdin >= 0 else -1
    outputs = [(path, held.put(fd, HANG_UP)) for path, fd in fds.outputs]
    logger = None
    if fds.logger is not None:
        pid, pidfd = fds.logger
        logger = (pid, held.put(pidfd))
    relay = None
    if fds.relay is not None:
        reader, target = fds.relay
        relay = (held.put(reader, READABLE), held.put(target))
    return RestedStreams(stdin, outputs, logger, relay, fds.relayed)


def _restore_process(process: Process, record: RestedProcess, fds: Sequence[int]) -> None:
    process.state, process.pid = record.state, record.pid
    process.exit_status = record.exit_status
    process.exited_at_ns = ZERO_NS if record.exited_at_ns is None else record.exited_at_ns
    if record.exited:
        process.exited.set()
    if record.streams is not None:
        process.streams = ProcessIO.holding(_held_fds(record.streams, fds))


def _held_fds(record: RestedStreams, fds: Sequence[int]) -> HeldFds:
    stdin = fds[record.stdin] if record.stdin >= 0 else -1
    outputs = [(path, fds[place]) for path, place in record.outputs]
    logger = None
    if record.logger is not None:
        pid, place = record.logger
        logger = (pid, fds[place])
    relay = None if record.relay is None else (fds[record.relay[0]], fds[record.relay[1]])
    return HeldFds(stdin, outputs, logger, relay, record.relayed)
