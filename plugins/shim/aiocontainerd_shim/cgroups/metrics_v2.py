"""Version 2 cgroups as `io.containerd.cgroups.v2.Metrics`, all that the kernel offers (facts/runtime 4.8)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar

from aiocontainerd import api
from aiocontainerd.sys.cgroup import read_flat, read_int, read_nested, to_int

if TYPE_CHECKING:
    import betterproto2

_M = TypeVar("_M", bound="betterproto2.Message")
_UINT32_MAX = 2**32 - 1
_MEMORY_FILES = {
    "usage": "memory.current",
    "usage_limit": "memory.max",
    "max_usage": "memory.peak",
    "swap_usage": "memory.swap.current",
    "swap_limit": "memory.swap.max",
    "swap_max_usage": "memory.swap.peak",
}
_IO_KEYS = ("rbytes", "wbytes", "rios", "wios")


def metrics(path: str) -> api.cgroups_v2.Metrics:
    """Measure the cgroup of this directory. A controller that is not enabled leaves its part out."""
    message = api.cgroups_v2.Metrics(cpu=_cpu(path), hugetlb=_hugetlb(path))
    if os.path.exists(f"{path}/pids.current"):
        message.pids = api.cgroups_v2.PidsStat(
            current=read_int(f"{path}/pids.current"), limit=read_int(f"{path}/pids.max")
        )
    if os.path.exists(f"{path}/memory.stat"):
        message.memory = _memory(path)
    if events := read_flat(f"{path}/memory.events"):
        message.memory_events = _filled(api.cgroups_v2.MemoryEvents(), events)
    if os.path.exists(f"{path}/io.stat"):
        message.io = api.cgroups_v2.IoStat(usage=_io(f"{path}/io.stat"), psi=_psi(f"{path}/io.pressure"))
    if os.path.exists(f"{path}/rdma.current"):
        message.rdma = api.cgroups_v2.RdmaStat(current=_rdma(f"{path}/rdma.current"), limit=_rdma(f"{path}/rdma.max"))
    return message


def _filled(message: _M, values: dict[str, int]) -> _M:
    """Set the fields that have the names of the kernel's keys; other keys are newer than the message."""
    for key, value in values.items():
        if isinstance(getattr(message, key, None), int):
            setattr(message, key, value)
    return message


def _cpu(path: str) -> api.cgroups_v2.CpuStat:
    message = _filled(api.cgroups_v2.CpuStat(), read_flat(f"{path}/cpu.stat"))
    message.psi = _psi(f"{path}/cpu.pressure")
    return message


def _memory(path: str) -> api.cgroups_v2.MemoryStat:
    message = _filled(api.cgroups_v2.MemoryStat(), read_flat(f"{path}/memory.stat"))
    for field, name in _MEMORY_FILES.items():
        setattr(message, field, read_int(f"{path}/{name}"))
    message.psi = _psi(f"{path}/memory.pressure")
    return message


def _psi(path: str) -> api.cgroups_v2.PsiStats | None:
    lines = read_nested(path)
    if not lines:
        return None
    return api.cgroups_v2.PsiStats(some=_psi_data(lines.get("some")), full=_psi_data(lines.get("full")))


def _psi_data(values: dict[str, str] | None) -> api.cgroups_v2.PsiData | None:
    if values is None:
        return None
    return api.cgroups_v2.PsiData(
        avg10=float(values.get("avg10", 0)),
        avg60=float(values.get("avg60", 0)),
        avg300=float(values.get("avg300", 0)),
        total=to_int(values.get("total", "")),
    )


def _io(path: str) -> list[api.cgroups_v2.IoEntry]:
    entries = []
    for device, values in read_nested(path).items():
        major, colon, minor = device.partition(":")
        if colon and values:
            counts = {key: to_int(values.get(key, "")) for key in _IO_KEYS}
            entries.append(api.cgroups_v2.IoEntry(major=int(major), minor=int(minor), **counts))
    return entries


def _hugetlb(path: str) -> list[api.cgroups_v2.HugeTlbStat]:
    suffix = ".current"
    names = (name for name in sorted(os.listdir(path)) if name.startswith("hugetlb.") and name.endswith(suffix))
    sizes = [size for name in names if "." not in (size := name[len("hugetlb.") : -len(suffix)])]
    return [
        api.cgroups_v2.HugeTlbStat(
            current=read_int(f"{path}/hugetlb.{size}.current"),
            max=read_int(f"{path}/hugetlb.{size}.max"),
            pagesize=size,
            failcnt=read_flat(f"{path}/hugetlb.{size}.events").get("max", 0),
        )
        for size in sizes
    ]


def _rdma(path: str) -> list[api.cgroups_v2.RdmaEntry]:
    return [
        api.cgroups_v2.RdmaEntry(
            device=device,
            hca_handles=min(to_int(values.get("hca_handle", "")), _UINT32_MAX),
            hca_objects=min(to_int(values.get("hca_object", "")), _UINT32_MAX),
        )
        for device, values in read_nested(path).items()
    ]
