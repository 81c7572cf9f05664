"""Cgroups: found for a process on hosts of version 1, 2 and both, and measured."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from aiocontainerd_shim.cgroups import metrics_v1
from aiocontainerd_shim.cgroups.cgroup import Cgroup, find

from aiocontainerd import api
from aiocontainerd.errors import NotFound
from aiocontainerd.sys import cgroup
from aiocontainerd.wire.anys import unmarshal


def write(directory: Path, files: dict[str, str]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name).write_text(text + "\n")


class Host:
    """A process 42 with /proc and cgroup trees of its own."""

    def __init__(self, path: Path) -> None:
        self.proc = path / "proc"
        self.root = path / "cgroup"
        self._mounts: list[str] = []

    def mount(self, name: str, fs_type: str, options: str, top: str = "/") -> None:
        point = self.root / name if name else self.root
        point.mkdir(parents=True, exist_ok=True)
        self._mounts.append(f"30 20 0:26 {top} {point} rw - {fs_type} none rw,{options}")

    def find(self, membership: str, state: str = "S") -> Cgroup:
        write(self.proc / "42", {"cgroup": membership, "stat": f"42 (a) name) {state} 1 42"})
        write(self.proc / "self", {"mountinfo": "\n".join(self._mounts)})
        return find(42, proc=str(self.proc), root=str(self.root))


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def v1_metrics(found: Cgroup) -> api.cgroups_v1.Metrics:
    value = found.stats()
    assert value.type_url == "io.containerd.cgroups.v1.Metrics"
    message = unmarshal(value)
    assert isinstance(message, api.cgroups_v1.Metrics)
    return message


def v2_metrics(found: Cgroup) -> api.cgroups_v2.Metrics:
    value = found.stats()
    assert value.type_url == "io.containerd.cgroups.v2.Metrics"
    message = unmarshal(value)
    assert isinstance(message, api.cgroups_v2.Metrics)
    return message


def test_version_2_is_measured_whole(host: Host) -> None:
    host.mount("", "cgroup2", "nsdelegate")
    pressure = "some avg10=1.50 avg60=0.25 avg300=0.00 total=77\nfull avg10=0.50 avg60=0.00 avg300=0.00 total=7"
    write(
        host.root / "pod" / "c1",
        {
            "pids.current": "3",
            "pids.max": "max",
            "cpu.stat": "usage_usec 10\nuser_usec 6\nsystem_usec 4\nnr_periods 1\nnr_throttled 2\n"
            "throttled_usec 3\nnr_bursts 5\nburst_usec 6\nfuture_key 9",
            "cpu.pressure": pressure,
            "memory.stat": "anon 1\nfile 2\nkernel_stack 3\nthp_collapse_alloc 31\nworkingset_refault_anon 8",
            "memory.current": "100",
            "memory.max": "max",
            "memory.peak": "200",
            "memory.swap.current": "5",
            "memory.swap.max": "6",
            "memory.swap.peak": "7",
            "memory.pressure": pressure,
            "memory.events": "low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\noom_group_kill 6",
            "io.stat": "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n7:1",
            "io.pressure": pressure,
            "hugetlb.2MB.current": "4",
            "hugetlb.2MB.max": "max",
            "hugetlb.2MB.events": "max 9",
            "hugetlb.2MB.rsvd.current": "1",
            "rdma.current": "mlx5_0 hca_handle=2 hca_object=3",
            "rdma.max": "mlx5_0 hca_handle=max hca_object=5",
        },
    )
    found = host.find("0::/pod/c1")
    assert found.is_unified
    metrics = v2_metrics(found)
    assert metrics.pids == api.cgroups_v2.PidsStat(current=3, limit=2**64 - 1)
    assert metrics.cpu is not None
    assert metrics.cpu.psi is not None
    assert metrics.cpu.psi.some == api.cgroups_v2.PsiData(avg10=1.5, avg60=0.25, total=77)
    assert metrics.cpu.psi.full == api.cgroups_v2.PsiData(avg10=0.5, total=7)
    assert (metrics.cpu.usage_usec, metrics.cpu.nr_bursts, metrics.cpu.burst_usec) == (10, 5, 6)
    memory = metrics.memory
    assert memory is not None
    assert (memory.anon, memory.kernel_stack, memory.thp_collapse_alloc) == (1, 3, 31)
    assert (memory.usage, memory.usage_limit, memory.max_usage) == (100, 2**64 - 1, 200)
    assert (memory.swap_usage, memory.swap_limit, memory.swap_max_usage) == (5, 6, 7)
    assert memory.psi == metrics.cpu.psi
    assert metrics.memory_events == api.cgroups_v2.MemoryEvents(
        low=1, high=2, max=3, oom=4, oom_kill=5, oom_group_kill=6
    )
    assert metrics.io is not None
    assert metrics.io.usage == [api.cgroups_v2.IoEntry(major=8, minor=0, rbytes=1, wbytes=2, rios=3, wios=4)]
    assert metrics.io.psi == metrics.cpu.psi
    assert metrics.hugetlb == [api.cgroups_v2.HugeTlbStat(current=4, max=2**64 - 1, pagesize="2MB", failcnt=9)]
    assert metrics.rdma == api.cgroups_v2.RdmaStat(
        current=[api.cgroups_v2.RdmaEntry(device="mlx5_0", hca_handles=2, hca_objects=3)],
        limit=[api.cgroups_v2.RdmaEntry(device="mlx5_0", hca_handles=2**32 - 1, hca_objects=5)],
    )


def test_controllers_that_are_not_enabled_are_left_out(host: Host) -> None:
    host.mount("", "cgroup2", "nsdelegate")
    write(host.root / "c1", {"cpu.stat": "usage_usec 10"})
    metrics = v2_metrics(host.find("0::/c1"))
    assert metrics.cpu == api.cgroups_v2.CpuStat(usage_usec=10)
    assert (metrics.pids, metrics.memory, metrics.io, metrics.rdma, metrics.memory_events) == (None,) * 5


def test_version_1_is_measured_whole(host: Host) -> None:
    for names in ("cpu,cpuacct", "memory", "pids", "blkio", "hugetlb", "rdma"):
        host.mount(names, "cgroup", names)
    write(
        host.root / "cpu,cpuacct" / "c1",
        {
            "cpuacct.usage": "1000",
            "cpuacct.stat": "user 3\nsystem 2",
            "cpuacct.usage_percpu": "400 600",
            "cpu.stat": "nr_periods 1\nnr_throttled 2\nthrottled_time 3",
        },
    )
    write(
        host.root / "memory" / "c1",
        {
            "memory.stat": "cache 1\nrss 2\npgpgin 7\npgmajfault 10\nhierarchical_memory_limit 16\n"
            "hierarchical_memsw_limit 17\ntotal_cache 18\ntotal_pgfault 26\nswap 99\nshmem 5",
            "memory.usage_in_bytes": "10",
            "memory.limit_in_bytes": "20",
            "memory.max_usage_in_bytes": "15",
            "memory.failcnt": "1",
            "memory.kmem.tcp.usage_in_bytes": "3",
            "memory.oom_control": "oom_kill_disable 0\nunder_oom 1\noom_kill 4",
        },
    )
    write(host.root / "pids" / "c1", {"pids.current": "2", "pids.max": "max"})
    write(
        host.root / "blkio" / "c1",
        {
            "blkio.io_serviced_recursive": "Total 0",
            "blkio.throttle.io_serviced_recursive": "8:0 Read 5\n8:0 Write 6\n8:0 Total 11\nTotal 11",
            "blkio.sectors_recursive": "8:0 12",
        },
    )
    write(
        host.root / "hugetlb" / "c1",
        {"hugetlb.2MB.usage_in_bytes": "1", "hugetlb.2MB.max_usage_in_bytes": "2", "hugetlb.2MB.failcnt": "3"},
    )
    write(
        host.root / "rdma" / "c1",
        {"rdma.current": "mlx4 hca_handle=1 hca_object=2", "rdma.max": "mlx4 hca_handle=max hca_object=max"},
    )
    write(host.proc, {"partitions": "major minor  #blocks  name\n\n   8        0  1048576 sda"})
    found = host.find(
        "5:cpu,cpuacct:/c1\n4:memory:/c1\n3:pids:/c1\n2:blkio:/c1\n6:hugetlb:/c1\n7:rdma:/c1\n1:name=systemd:/x"
    )
    assert not found.is_unified
    metrics = v1_metrics(found)
    tick_ns = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    assert metrics.cpu == api.cgroups_v1.CpuStat(
        usage=api.cgroups_v1.CpuUsage(total=1000, kernel=2 * tick_ns, user=3 * tick_ns, per_cpu=[400, 600]),
        throttling=api.cgroups_v1.Throttle(periods=1, throttled_periods=2, throttled_time=3),
    )
    memory = metrics.memory
    assert memory is not None
    assert (memory.cache, memory.rss, memory.pg_pg_in, memory.pg_maj_fault) == (1, 2, 7, 10)
    assert (memory.hierarchical_memory_limit, memory.hierarchical_swap_limit) == (16, 17)
    assert (memory.total_cache, memory.total_pg_fault) == (18, 26)
    assert memory.usage == api.cgroups_v1.MemoryEntry(limit=20, usage=10, max=15, failcnt=1)
    assert memory.kernel_tcp == api.cgroups_v1.MemoryEntry(usage=3)
    assert memory.swap is None
    assert metrics.memory_oom_control == api.cgroups_v1.MemoryOomControl(under_oom=1, oom_kill=4)
    assert metrics.pids == api.cgroups_v1.PidsStat(current=2)
    assert metrics.blkio is not None
    assert metrics.blkio.io_serviced_recursive == [
        api.cgroups_v1.BlkIoEntry(op=op, device="/dev/sda", major=8, value=value)
        for op, value in (("Read", 5), ("Write", 6), ("Total", 11))
    ]
    assert metrics.blkio.sectors_recursive == [api.cgroups_v1.BlkIoEntry(device="/dev/sda", major=8, value=12)]
    assert metrics.hugetlb == [api.cgroups_v1.HugetlbStat(usage=1, max=2, failcnt=3, pagesize="2MB")]
    assert metrics.rdma is not None
    assert metrics.rdma.limit == [api.cgroups_v1.RdmaEntry(device="mlx4", hca_handles=2**32 - 1, hca_objects=2**32 - 1)]


def test_a_measurement_opens_no_file_that_the_kernel_does_not_offer(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.mount("blkio", "cgroup", "blkio")
    write(host.root / "blkio" / "c1", {"blkio.throttle.io_serviced_recursive": "Total 0"})
    found = host.find("2:blkio:/c1")
    opened: list[str] = []
    monkeypatch.setattr(cgroup, "_read", lambda path: opened.append(Path(path).name))
    v1_metrics(found)
    assert opened == ["blkio.throttle.io_serviced_recursive"]


def test_a_cgroup_that_goes_while_it_is_measured_is_not_found(host: Host) -> None:
    host.mount("blkio", "cgroup", "blkio")
    write(host.root / "blkio" / "c1", {})
    found = host.find("2:blkio:/c1")
    directory = host.root / "blkio" / "c1"

    class Going(Cgroup):
        def _measure(self) -> api.cgroups_v1.Metrics | api.cgroups_v2.Metrics:
            directory.rmdir()
            return metrics_v1._blkio(str(directory), "")  # type: ignore[return-value]

    with pytest.raises(NotFound, match=r"^cgroup does not exist$"):
        Going(found.paths).stats()


def test_hybrid_host_counts_as_version_1(host: Host) -> None:
    host.mount("memory", "cgroup", "memory")
    host.mount("unified", "cgroup2", "nsdelegate")
    write(host.root / "memory" / "c1", {"memory.stat": "cache 1"})
    write(host.root / "unified" / "c1", {"cgroup.procs": ""})
    found = host.find("4:memory:/c1\n0::/c1")
    assert not found.is_unified
    assert found.paths.controllers == {"memory": str(host.root / "memory" / "c1")}


def test_mounted_part_of_a_tree_is_seen_through(host: Host) -> None:
    host.mount("memory", "cgroup", "memory", top="/docker/outer")
    write(host.root / "memory" / "c1", {"memory.stat": "cache 1"})
    found = host.find("4:memory:/docker/outer/c1")
    assert found.paths.controllers == {"memory": str(host.root / "memory" / "c1")}


def test_missing_cgroup_is_not_found(host: Host) -> None:
    host.mount("", "cgroup2", "nsdelegate")
    with pytest.raises(NotFound, match=r"^cgroup does not exist$"):
        host.find("0::/gone")
    write(host.root / "c1", {})
    found = host.find("0::/c1")
    (host.root / "c1").rmdir()
    with pytest.raises(NotFound, match=r"^cgroup does not exist$"):
        found.stats()


def test_process_that_has_gone_is_not_found(host: Host) -> None:
    with pytest.raises(NotFound, match=r"^cgroup does not exist$"):
        find(43, proc=str(host.proc), root=str(host.root))


def test_process_that_has_exited_has_no_cgroup_of_its_own(host: Host) -> None:
    host.mount("memory", "cgroup", "memory")
    with pytest.raises(NotFound, match=r"^cgroup does not exist$"):
        host.find("4:memory:/", state="Z")


def test_all_controllers_are_enabled_down_to_the_parent(host: Host) -> None:
    host.mount("", "cgroup2", "nsdelegate")
    write(host.root, {"cgroup.controllers": "cpu memory", "cgroup.subtree_control": ""})
    write(host.root / "pod", {"cgroup.subtree_control": ""})
    write(host.root / "pod" / "locked" / "c1", {"cgroup.subtree_control": ""})
    refused = cgroup.enable_controllers(str(host.root / "pod" / "locked" / "c1"), root=str(host.root))
    assert [error.filename for error in refused] == [str(host.root / "pod" / "locked" / "cgroup.subtree_control")]
    for directory in (host.root, host.root / "pod"):
        assert (directory / "cgroup.subtree_control").read_text().strip() == "+cpu +memory"
    assert not (host.root / "pod" / "locked" / "c1" / "cgroup.subtree_control").read_text().strip()


def test_this_process_can_be_measured_here() -> None:
    found = find(os.getpid())
    metrics = v2_metrics(found) if found.is_unified else v1_metrics(found)
    assert metrics.cpu is not None
