"""The log of deprecations in use, which Introspection.Server shows (facts/core 12)."""

from __future__ import annotations

from collections.abc import Callable

from aiocontainerd import timestamps
from aiocontainerd.errors import InvalidArgument
from aiocontainerd.interfaces.services import Deprecation

PREFIX = "io.containerd.deprecation/"

MESSAGES: dict[str, str] = {
    "cri-registry-mirrors": "The `mirrors` key of the CRI registry config is deprecated; use `config_path` instead.",
    "cri-registry-auths": "The `auths` key of the CRI registry config is deprecated; use image pull secrets instead.",
    "cri-registry-configs": "The `configs` key of the CRI registry config is deprecated; use `config_path` instead.",
    "cri-cni-bin-dir": "The `bin_dir` key of the CRI CNI config is deprecated; use `bin_dirs` instead.",
    "tracing-processor-config": "The config of the OTLP tracing processor is deprecated; use OTEL_* variables instead.",
    "tracing-service-config": "The config of the tracing service is deprecated; use OTEL_* variables instead.",
    "nri-v010-plugin": "An NRI 0.1.0 plugin is in use, which is deprecated; use a plugin of the current NRI instead.",
    "nri-plugin-interface": "An NRI plugin uses a deprecated call; update the plugin.",
    "cgroup-v1": "cgroup v1 is deprecated; use a host with cgroup v2.",
    "enable-cdi": "The `enable_cdi` key of the CRI config is deprecated; CDI devices are always enabled.",
    "runc-options-task-api-address": "The runtime option `task_api_address` is deprecated; use the bootstrap protocol.",
    "runc-options-task-api-version": "The runtime option `task_api_version` is deprecated; use the bootstrap protocol.",
}


class Deprecations:
    """A DeprecationLog in memory. `clock` gives nanoseconds since 1970."""

    def __init__(self, clock: Callable[[], int] = timestamps.now_ns) -> None:
        self._clock = clock
        self._last_ns: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<Deprecations in use: {', '.join(sorted(self._last_ns)) or 'none'}>"

    def emit(self, deprecation: str) -> None:
        """Record a use, now. Raises InvalidArgument for an id that no deprecation has."""
        name = deprecation.removeprefix(PREFIX)
        if name not in MESSAGES:
            raise InvalidArgument(f"unknown deprecation {deprecation}")
        self._last_ns[name] = self._clock()

    def warnings(self) -> list[Deprecation]:
        """Return each deprecation used so far with its latest use, sorted by id."""
        return [
            Deprecation(id=PREFIX + name, message=MESSAGES[name], last_occurrence_ns=used_ns)
            for name, used_ns in sorted(self._last_ns.items())
        ]
