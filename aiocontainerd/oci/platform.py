"""Platforms: specifiers, their normal form, and which of an image's platforms suits a host (facts/core 14)."""

from __future__ import annotations

import platform as _host
import re
from collections.abc import Callable, Sequence

import msgspec

from aiocontainerd.errors import InvalidArgument

_ARCHITECTURES = {
    "i386": ("386", ""),
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
}
_KNOWN_OS = frozenset(
    (
        "aix", "android", "darwin", "dragonfly", "freebsd", "illumos", "ios", "js", "linux", "netbsd", "openbsd",
        "plan9", "solaris", "windows", "zos",
    )
)  # fmt: skip
_KNOWN_ARCHITECTURES = frozenset(
    (
        "386", "amd64", "arm", "arm64", "loong64", "mips", "mips64", "mips64le", "mipsle", "ppc64", "ppc64le",
        "riscv64", "s390x", "wasm",
    )
)  # fmt: skip
_COMPONENT = re.compile(r"[A-Za-z0-9_-]+\Z")
_OS = re.compile(r"([A-Za-z0-9_-]+)(?:\(([A-Za-z0-9_.-]*)((?:\+[A-Za-z0-9_.-]+)*)\))?\Z")
_ARM64_MINOR = {"v8": 9, "v9": 6}
"""The highest minor version with a name, for each major version. v9.0 implies v8.5."""


class Platform(msgspec.Struct, frozen=True, rename={"os_version": "os.version", "os_features": "os.features"}):
    """The system a program runs on, as in an image index (OCI image specification, image-index.md)."""

    os: str = ""
    architecture: str = ""
    variant: str = ""
    os_version: str = ""
    os_features: tuple[str, ...] = ()

    def __str__(self) -> str:
        extra = "".join(f"+{feature}" for feature in self.os_features)
        system = f"{self.os}({self.os_version}{extra})" if self.os_version or extra else self.os
        return "/".join(part for part in (system or "unknown", self.architecture, self.variant) if part)


def parse(specifier: str) -> Platform:
    """Parse `os[(version+feature...)]/arch[/variant]`, `os` or `arch`. Raises InvalidArgument."""
    parts = specifier.split("/")
    if len(parts) > 3 or not all(parts):
        raise InvalidArgument(f'platform "{specifier}": must be <os>[/<arch>[/<variant>]]')
    found = _OS.match(parts[0])
    if not found or not all(_COMPONENT.match(part) for part in parts[1:]):
        raise InvalidArgument(f'platform "{specifier}": a component has an invalid character')
    if len(parts) == 1:
        return _parse_one(specifier, found)
    features = tuple(feature for feature in (found[3] or "").split("+") if feature)
    variant = parts[2] if len(parts) == 3 else ""
    return normalize(Platform(found[1], parts[1], variant, found[2] or "", features))


def _parse_one(specifier: str, found: re.Match[str]) -> Platform:
    system = _normalize_os(found[1])
    host = default()
    if system in _KNOWN_OS:
        return normalize(Platform(system, host.architecture, host.variant, found[2] or ""))
    architecture = _ARCHITECTURES.get(specifier.lower(), (specifier.lower(), ""))
    if architecture[0] in _KNOWN_ARCHITECTURES:
        return normalize(Platform(host.os, *architecture))
    raise InvalidArgument(f'platform "{specifier}": unknown operating system or architecture')


def normalize(platform: Platform) -> Platform:
    """Return the platform in the names that images use."""
    architecture, variant = platform.architecture.lower(), platform.variant.lower()
    if architecture in _ARCHITECTURES:
        architecture, implied = _ARCHITECTURES[architecture]
        variant = implied or variant
    if (architecture, variant) in (("amd64", "v1"), ("arm64", "v8"), ("arm64", "8"), ("arm64", "v8.0")):
        variant = ""
    if architecture == "arm":
        variant = {"": "v7", "5": "v5", "6": "v6", "7": "v7", "8": "v8"}.get(variant, variant)
    return msgspec.structs.replace(platform, os=_normalize_os(platform.os), architecture=architecture, variant=variant)


def _normalize_os(system: str) -> str:
    lowered = system.lower()
    return {"macos": "darwin", "": "linux"}.get(lowered, lowered)


def default() -> Platform:
    """Return the platform of this host."""
    machine = _host.machine()
    variants = {"armv7l": "v7", "armv6l": "v6", "armv5tel": "v5", "armv8l": "v8"}
    if machine in variants:
        return Platform("linux", "arm", variants[machine])
    return normalize(Platform(_host.system(), machine))


def candidates(wanted: Platform) -> list[Platform]:
    """Return the platforms whose programs `wanted` runs, best first."""
    chain = _variants(wanted.architecture, wanted.variant)
    return [
        normalize(Platform(wanted.os, architecture, variant, wanted.os_version, wanted.os_features))
        for architecture, variant in chain
    ]


def _variants(architecture: str, variant: str) -> list[tuple[str, str]]:
    if architecture == "amd64":
        return [("amd64", v) for v in _downwards(variant or "v1", 1)] + [("386", "")]
    if architecture == "arm":
        return [("arm", v) for v in _downwards(variant or "v7", 5)]
    if architecture == "arm64":
        return [("arm64", v) for v in _arm64_downwards(variant or "v8")] + [("arm", f"v{n}") for n in (8, 7, 6, 5)]
    return [(architecture, variant)]


def _downwards(variant: str, lowest: int) -> list[str]:
    number = variant.removeprefix("v")
    if not number.isdecimal():
        return [variant]
    return [f"v{n}" for n in range(int(number), lowest - 1, -1)]


def _arm64_downwards(variant: str) -> list[str]:
    major, _, minor = variant.partition(".")
    if major not in _ARM64_MINOR or (minor and not minor.isdecimal()):
        return [variant]
    steps = [f"{major}.{n}" if n else major for n in range(int(minor or 0), -1, -1)]
    if major == "v9":
        top = min(int(minor or 0) + 5, _ARM64_MINOR["v8"])
        steps += [f"v8.{n}" if n else "v8" for n in range(top, -1, -1)]
    return steps


Ranking = Callable[[Platform], int | None]
"""A function that ranks a platform: 0 suits best, None does not suit."""


def ranking(wanted: Sequence[Platform], *, strict: bool = False) -> Ranking:
    """Return a ranking of an image's platforms: those of the first `wanted` platform come first, then the second.

    An empty `wanted` takes any platform. With `strict`, compatible variants and architectures do not suit.
    """
    accepted = [c for w in wanted for c in ([normalize(w)] if strict else candidates(normalize(w)))]

    def rank(platform: Platform) -> int | None:
        if not accepted:
            return 0
        own = normalize(platform)
        for place, candidate in enumerate(accepted):
            if _suits(own, candidate):
                return place
        return None

    return rank


def _suits(own: Platform, candidate: Platform) -> bool:
    same = (own.os, own.architecture, own.variant) == (candidate.os, candidate.architecture, candidate.variant)
    version = not own.os_version or not candidate.os_version or own.os_version.startswith(candidate.os_version)
    return same and version and set(own.os_features) <= set(candidate.os_features)
