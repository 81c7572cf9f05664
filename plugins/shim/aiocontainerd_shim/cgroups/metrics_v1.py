"""Version 1 cgroups as `io.containerd.cgroups.v1.Metrics`, all that the kernel offers (facts/runtime 4.8)."""

from __future__ import annotations

import os
from collections.abc import Container, Mapping
from functools import lru_cache

from aiocontainerd import api
from aiocontainerd.sys.cgroup import UNLIMITED, read_flat, read_int, read_nested, read_text, to_int

_NANOSECONDS = 1_000_000_000
_UINT32_MAX = 2**32 - 1
_RENAMED = {
    "pgpgin": "pg_pg_in",
    "pgpgout": "pg_pg_out",
    "pgfault": "pg_fault",
    "pgmajfault": "pg_maj_fault",
    "hierarchical_memsw_limit": "hierarchical_swap_limit",
}
_BlkIoLine = tuple[tuple[int, int], str, int]
"""A device by its numbers, an operation or "", a count."""
_KEYS = 256
"""More lines than `memory.stat` has."""
_MEMORY_FILES = {"usage": "memory", "swap": "memory.memsw", "kernel": "memory.kmem", "kernel_tcp": "memory.kmem.tcp"}
_BLKIO_FILES = {
    "io_service_bytes_recursive": "io_service_bytes",
    "io_serviced_recursive": "io_serviced",
    "io_queued_recursive": "io_queued",
    "io_service_time_recursive": "io_service_time",
    "io_wait_time_recursive": "io_wait_time",
    "io_merged_recursive": "io_merged",
    "io_time_recursive": "time",
    "sectors_recursive": "sectors",
}


def metrics(controllers: Mapping[str, str], partitions: str = "/proc/partitions") -> api.cgroups_v1.Metrics:
    """Measure the cgroup with these directories. `partitions` is the file that names block devices."""
    found = {name: path for name, path in controllers.items() if os.path.isdir(path)}
    message = api.cgroups_v1.Metrics()
    if path := found.get("pids"):
        message.pids = _pids(path)
    if "cpuacct" in found or "cpu" in found:
        message.cpu = _cpu(found.get("cpuacct", ""), found.get("cpu", ""))
    if path := found.get("memory"):
        message.memory = _memory(path)
        message.memory_oom_control = _oom_control(path)
    if path := found.get("blkio"):
        message.blkio = _blkio(path, partitions)
    if path := found.get("hugetlb"):
        message.hugetlb = _hugetlb(path)
    if path := found.get("rdma"):
        message.rdma = api.cgroups_v1.RdmaStat(current=_rdma(f"{path}/rdma.current"), limit=_rdma(f"{path}/rdma.max"))
    return message


def _pids(path: str) -> api.cgroups_v1.PidsStat:
    limit = read_int(f"{path}/pids.max")
    return api.cgroups_v1.PidsStat(current=read_int(f"{path}/pids.current"), limit=0 if limit == UNLIMITED else limit)


def _cpu(accounting: str, cpu: str) -> api.cgroups_v1.CpuStat:
    tick_ns = _NANOSECONDS // os.sysconf("SC_CLK_TCK")
    ticks = read_flat(f"{accounting}/cpuacct.stat")
    throttling = read_flat(f"{cpu}/cpu.stat")
    return api.cgroups_v1.CpuStat(
        usage=api.cgroups_v1.CpuUsage(
            total=read_int(f"{accounting}/cpuacct.usage"),
            kernel=ticks.get("system", 0) * tick_ns,
            user=ticks.get("user", 0) * tick_ns,
            per_cpu=[to_int(part) for part in (read_text(f"{accounting}/cpuacct.usage_percpu") or "").split()],
        ),
        throttling=api.cgroups_v1.Throttle(
            periods=throttling.get("nr_periods", 0),
            throttled_periods=throttling.get("nr_throttled", 0),
            throttled_time=throttling.get("throttled_time", 0),
        ),
    )


def _memory(path: str) -> api.cgroups_v1.MemoryStat:
    message = api.cgroups_v1.MemoryStat()
    for key, value in read_flat(f"{path}/memory.stat").items():
        if name := _memory_field(key):
            setattr(message, name, value)
    for field, prefix in _MEMORY_FILES.items():
        if os.path.exists(f"{path}/{prefix}.usage_in_bytes"):
            setattr(message, field, _memory_entry(f"{path}/{prefix}"))
    return message


def _oom_control(path: str) -> api.cgroups_v1.MemoryOomControl:
    values = read_flat(f"{path}/memory.oom_control")
    return api.cgroups_v1.MemoryOomControl(
        oom_kill_disable=values.get("oom_kill_disable", 0),
        under_oom=values.get("under_oom", 0),
        oom_kill=values.get("oom_kill", 0),
    )


@lru_cache(maxsize=_KEYS)
def _memory_field(key: str) -> str:
    """Return the field of a line of `memory.stat`, "" if the message has none.

    The kernel's `swap` is a number, while the field `swap` is a message.
    """
    total = "total_" if key.startswith("total_") else ""
    plain = key.removeprefix("total_")
    name = total + _RENAMED.get(plain, plain)
    return name if isinstance(getattr(api.cgroups_v1.MemoryStat(), name, None), int) else ""


def _memory_entry(prefix: str) -> api.cgroups_v1.MemoryEntry:
    return api.cgroups_v1.MemoryEntry(
        limit=read_int(f"{prefix}.limit_in_bytes"),
        usage=read_int(f"{prefix}.usage_in_bytes"),
        max=read_int(f"{prefix}.max_usage_in_bytes"),
        failcnt=read_int(f"{prefix}.failcnt"),
    )


def _device_names(partitions: str) -> dict[tuple[int, int], str]:
    rows = (line.split() for line in (read_text(partitions) or "").splitlines()[1:])
    return {(int(row[0]), int(row[1])): f"/dev/{row[3]}" for row in rows if len(row) == 4}


def _blkio(path: str, partitions: str) -> api.cgroups_v1.BlkIoStat:
    offered = frozenset(os.listdir(path))
    lines = {field: _blkio_lines(path, name, offered) for field, name in _BLKIO_FILES.items()}
    devices = _device_names(partitions) if any(lines.values()) else {}
    message = api.cgroups_v1.BlkIoStat()
    for field, found in lines.items():
        setattr(message, field, [_blkio_entry(line, devices) for line in found])
    return message


def _blkio_lines(path: str, name: str, offered: Container[str]) -> list[_BlkIoLine]:
    """Of the schedulers' files the first that counts anything: which one does depends on the kernel and the disk."""
    for candidate in (f"{name}_recursive", f"bfq.{name}_recursive", f"throttle.{name}_recursive", f"throttle.{name}"):
        if (file := f"blkio.{candidate}") in offered:
            text = read_text(f"{path}/{file}") or ""
            if lines := [found for line in text.splitlines() if (found := _blkio_line(line))]:
                return lines
    return []


def _blkio_line(line: str) -> _BlkIoLine | None:
    """Parse `MAJOR:MINOR [OPERATION] COUNT`. None for any other line, such as a total."""
    device, *rest = line.split()
    major, colon, minor = device.partition(":")
    if not colon or not rest:
        return None
    return (int(major), int(minor)), rest[0] if len(rest) > 1 else "", to_int(rest[-1])


def _blkio_entry(line: _BlkIoLine, devices: Mapping[tuple[int, int], str]) -> api.cgroups_v1.BlkIoEntry:
    number, operation, value = line
    return api.cgroups_v1.BlkIoEntry(
        op=operation, device=devices.get(number, ""), major=number[0], minor=number[1], value=value
    )


def _hugetlb(path: str) -> list[api.cgroups_v1.HugetlbStat]:
    suffix = ".usage_in_bytes"
    names = (name for name in sorted(os.listdir(path)) if name.startswith("hugetlb.") and name.endswith(suffix))
    sizes = [size for name in names if "." not in (size := name[len("hugetlb.") : -len(suffix)])]
    return [
        api.cgroups_v1.HugetlbStat(
            usage=read_int(f"{path}/hugetlb.{size}.usage_in_bytes"),
            max=read_int(f"{path}/hugetlb.{size}.max_usage_in_bytes"),
            failcnt=read_int(f"{path}/hugetlb.{size}.failcnt"),
            pagesize=size,
        )
        for size in sizes
    ]


def _rdma(path: str) -> list[api.cgroups_v1.RdmaEntry]:
    return [
        api.cgroups_v1.RdmaEntry(
            device=device,
            hca_handles=min(to_int(values.get("hca_handle", "")), _UINT32_MAX),
            hca_objects=min(to_int(values.get("hca_object", "")), _UINT32_MAX),
        )
        for device, values in read_nested(path).items()
    ]
