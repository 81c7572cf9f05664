"""Tell the health of a gRPC service from what the front ends count of its methods. Its deadlines are its callers'."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from aiocontainerd import kinds
from aiocontainerd.errors import Cancelled, DeadlineExceeded
from aiocontainerd.guard.health import MethodHealth, PluginHealth
from aiocontainerd.interfaces.plugins import PluginRow
from aiocontainerd.rpc.metrics import BUCKETS_S, Metrics

Row = PluginRow[PluginHealth]


def served_methods(plugins: Sequence[Row], plugin: Row) -> list[MethodHealth]:
    """Return each method of a plugin's service that was called, the most called first; [] for one without service."""
    found = _paths(plugins, plugin)
    methods = [
        _method(name, [front for front, path in found if path == name]) for name in sorted({p for _, p in found})
    ]
    return sorted(methods, key=lambda method: -method.calls)


def last_error(plugins: Sequence[Row], plugin: Row) -> tuple[str, float]:
    """Return method and text of the last error that a plugin's service answered with, and its time; ("", 0.0)."""
    found = [
        (when, f"{path.rpartition('/')[2]}: {text}")
        for metrics, path in _paths(plugins, plugin)
        for text, when in [metrics.last_errors.get(path, ("", 0.0))]
        if when
    ]
    when, text = max(found, default=(0.0, ""))
    return text, when


def quantiles_s(plugins: Sequence[Row], plugin: Row) -> tuple[float, float]:
    """Return the median and the 99th percentile of all calls of a plugin's service, (0.0, 0.0) without any."""
    counts = [metrics.latency[path].counts for metrics, path in _paths(plugins, plugin) if path in metrics.latency]
    together = [sum(column) for column in zip(*counts, strict=True)]
    return quantile_s(together, 0.5), quantile_s(together, 0.99)


def _paths(plugins: Sequence[Row], plugin: Row) -> list[tuple[Metrics, str]]:
    """Return the paths of a plugin's service that were called, with the front end that counted them."""
    service = getattr(plugin.instance, "service_name", "") if plugin.kind == kinds.GRPC else ""
    if not service:
        return []
    fronts = [found for found in (_metrics(other) for other in plugins) if found is not None]
    return [(front, path) for front in fronts for path in front.started if path.startswith(f"/{service}/")]


def _metrics(plugin: Row) -> Metrics | None:
    if plugin.kind != kinds.SERVER or not plugin.is_loaded:
        return None
    found = getattr(getattr(plugin.instance, "front", None), "metrics", None)
    return found if isinstance(found, Metrics) else None


def _method(path: str, fronts: Sequence[Metrics]) -> MethodHealth:
    handled: dict[int, int] = {}
    for metrics in fronts:
        for (of, code), count in metrics.handled.items():
            if of == path:
                handled[code] = handled.get(code, 0) + count
    calls = sum(handled.values())
    counts = [sum(column) for column in zip(*_counts(path, fronts), strict=True)]
    return MethodHealth(
        method=path.rpartition("/")[2],
        timeout="",
        limit_s=0.0,
        calls=calls,
        errors=calls - handled.get(0, 0),
        expired=handled.get(DeadlineExceeded.code, 0),
        cancelled=handled.get(Cancelled.code, 0),
        in_flight=sum(metrics.started[path] for metrics in fronts) - calls,
        abandoned=0,
        p50_s=quantile_s(counts, 0.5),
        p99_s=quantile_s(counts, 0.99),
        failures_in_a_row=0,
        retry_s=0.0,
        last_error=max((metrics.last_errors.get(path, ("", 0.0)) for metrics in fronts), key=lambda one: one[1])[0],
    )


def _counts(path: str, fronts: Iterable[Metrics]) -> list[list[int]]:
    found = [metrics.latency[path].counts for metrics in fronts if path in metrics.latency]
    return found or [[0] * (len(BUCKETS_S) + 1)]


def quantile_s(counts: Sequence[int], share: float) -> float:
    """Return the upper bound of the bucket that `share` of the calls did not exceed; the last bound if it has none."""
    wanted, seen = share * sum(counts), 0
    for bucket, count in enumerate(counts):
        seen += count
        if count and seen >= wanted:
            return BUCKETS_S[min(bucket, len(BUCKETS_S) - 1)]
    return 0.0
