"""The info action: what this shim and its OCI runtime can do (facts/runtime 3.6)."""

from __future__ import annotations

import subprocess

from aiocontainerd import __version__, api, typeurl
from aiocontainerd.wire.anys import any_to_wire
from aiocontainerd_shim.oci import choice
from aiocontainerd_shim.task.records import OPTIONS_URL, options_from_wire

_FEATURES_TIMEOUT_S = 5.0


def runtime_info(name: str, stdin: bytes) -> bytes:
    """Return a RuntimeInfo message. `stdin` is an Any of runtime options and may be empty."""
    value = api.protobuf.Any.parse(stdin)
    options = options_from_wire(value) if value.type_url.rpartition("/")[2] == OPTIONS_URL else None
    binary = (options.binary_name if options else "") or choice.find()
    features = _features(binary)
    return bytes(
        api.types.RuntimeInfo(
            name=name,
            version=api.types.RuntimeVersion(version=__version__),
            options=value if value.type_url else None,
            features=any_to_wire(typeurl.Any(typeurl.FEATURES_URL, features)) if features else None,
        )
    )


def _features(binary: str) -> bytes:
    """Return the JSON of `<runtime> features`; empty if the runtime has no such verb."""
    try:
        done = subprocess.run([binary, "features"], capture_output=True, timeout=_FEATURES_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return b""
    return done.stdout if done.returncode == 0 else b""
