"""The cgroup of a container: found by a process in it, measured as the messages clients know (facts/runtime 4.8)."""

from __future__ import annotations

from collections.abc import Sequence

from aiocontainerd import api, typeurl
from aiocontainerd.errors import NotFound
from aiocontainerd.sys import cgroup
from aiocontainerd.sys.mountinfo import MountInfo
from aiocontainerd.wire.anys import marshal

_GONE = "cgroup does not exist"


class Cgroup:
    """Directories of a cgroup, which may vanish at any time."""

    def __init__(self, paths: cgroup.CgroupPaths, *, proc: str = "/proc") -> None:
        self.paths = paths
        self._proc = proc

    def __repr__(self) -> str:
        return f"<Cgroup {self.paths.unified or self.paths.controllers.get('memory', 'v1')}>"

    @property
    def is_unified(self) -> bool:
        """Whether it is of version 2."""
        return self.paths.is_unified

    def exists(self) -> bool:
        """Return whether the cgroup is still there."""
        return self.paths.exists()

    def stats(self) -> typeurl.Any:
        """Return `io.containerd.cgroups.v1.Metrics` or `v2.Metrics`. Raises NotFound where the cgroup has gone."""
        if not self.exists():
            raise NotFound(_GONE)
        try:
            return marshal(self._measure())
        except FileNotFoundError as error:
            raise NotFound(_GONE) from error

    def _measure(self) -> api.cgroups_v1.Metrics | api.cgroups_v2.Metrics:
        if self.is_unified:
            from aiocontainerd_shim.cgroups.metrics_v2 import metrics as metrics_v2

            return metrics_v2(self.paths.unified)
        from aiocontainerd_shim.cgroups.metrics_v1 import metrics as metrics_v1

        return metrics_v1(self.paths.controllers, f"{self._proc}/partitions")

    def enable_controllers(self) -> list[OSError]:
        """Enable all controllers down to this cgroup on version 2; return what the kernel refused, for the log."""
        return cgroup.enable_controllers(self.paths.unified) if self.is_unified else []


def find(
    pid: int, *, proc: str = "/proc", root: str = cgroup.ROOT, mounts: Sequence[MountInfo] | None = None
) -> Cgroup:
    """Return the cgroup of a running process. Raises NotFound where the process or its cgroup has gone.

    `mounts` are those of the cgroup trees, for a caller that looks for many.
    """
    try:
        paths = cgroup.locate(pid, proc=proc, root=root, mounts=mounts)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise NotFound(_GONE) from error
    if _has_exited(f"{proc}/{pid}/stat") or not paths.exists():
        raise NotFound(_GONE)
    return Cgroup(paths, proc=proc)


def _has_exited(stat_path: str) -> bool:
    """Return whether the process is over.

    A dead process counts as a member of the root, which is no container's cgroup.
    """
    text = cgroup.read_text(stat_path)
    return text is None or text.rpartition(")")[2].split()[0] in ("Z", "X")
