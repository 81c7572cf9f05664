"""`[plugin_policy]`: which installed packages may bring plugins, and of which kinds. Only reads packages."""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import os
import re
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution

import msgspec

from aiocontainerd.config.records import AllowedPackage, PluginPolicy


class Admission(msgspec.Struct, frozen=True):
    """Whether a package may bring plugins. `refusal` says why not; `kinds` are patterns, none for every kind."""

    refusal: str = ""
    kinds: tuple[str, ...] = ()

    def allows(self, kind: str) -> bool:
        """Return whether plugins of a kind may come from this package."""
        return not self.refusal and (not self.kinds or any(fnmatch.fnmatchcase(kind, one) for one in self.kinds))


EVERYTHING = Admission()


def admit(policy: PluginPolicy, name: str, distribution: Distribution | None) -> Admission:
    """Return what a package may bring. An empty allow-list admits every package with everything.

    If several entries name a package, one whose conditions hold is enough, and the kinds of those entries add up.
    """
    wrong = wrong_python(distribution)
    if wrong:
        return Admission(wrong)
    if not policy.allow:
        return EVERYTHING
    entries = [entry for entry in map(_entry, policy.allow) if fnmatch.fnmatchcase(name, entry.distribution)]
    if not entries:
        return Admission(f"plugin_policy.allow does not name {name or 'a package without a name'}")
    problems = [_problem(entry, name, distribution) for entry in entries]
    admitted = [entry for entry, problem in zip(entries, problems, strict=True) if not problem]
    if not admitted:
        return Admission(next(filter(None, problems)))
    if any(not entry.kinds for entry in admitted):
        return EVERYTHING
    return Admission(kinds=tuple(kind for entry in admitted for kind in entry.kinds))


def wrong_python(distribution: Distribution | None) -> str:
    """Return the reason if a package needs another Python than this one, else ""."""
    wanted = header(distribution, "Requires-Python")
    if distribution is None or not wanted or _meets_lower_bound(wanted):
        return ""
    running = ".".join(str(part) for part in sys.version_info[:3])
    if _in_range(running, wanted):
        return ""
    return f"{distribution.name} {distribution.version} needs Python {wanted}, the daemon runs {running}"


def header(distribution: Distribution | None, name: str) -> str:
    """Return a field of a package's METADATA, "" if it has none.

    `Distribution.metadata` would import the mail parser and parse the whole description.
    """
    if distribution is None:
        return ""
    text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
    fields, _, _ = text.replace("\r\n", "\n").partition("\n\n")
    found = re.search(rf"^{re.escape(name)}[ \t]*:[ \t]*(.*(?:\n[ \t].*)*)", fields, re.IGNORECASE | re.MULTILINE)
    return " ".join(found[1].split()) if found else ""


def _meets_lower_bound(wanted: str) -> bool:
    """Return whether a range has the common form `>=3.11` and includes this Python. Needs no parser of ranges."""
    bound = re.fullmatch(r">=\s*(\d+(?:\.\d+){0,2})", wanted)
    return bound is not None and sys.version_info[:3] >= tuple(map(int, bound[1].split(".")))


def _entry(entry: str | AllowedPackage) -> AllowedPackage:
    return AllowedPackage(distribution=entry) if isinstance(entry, str) else entry


def _problem(entry: AllowedPackage, name: str, distribution: Distribution | None) -> str:
    if not (entry.version or entry.record_sha256):
        return ""
    if distribution is None:
        return f"plugin_policy.allow wants a version or RECORD of {name}, which is not installed as a package"
    if entry.version and not _in_range(distribution.version, entry.version):
        return f"plugin_policy.allow wants {name} {entry.version}, {distribution.version} is installed"
    if entry.record_sha256:
        return _record_problem(entry.record_sha256.lower(), name, distribution)
    return ""


def _in_range(version: str, wanted: str) -> bool:
    """Return whether a version is in a range (PEP 440). Raises ValueError for an invalid range."""
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    try:
        return SpecifierSet(wanted).contains(version, prereleases=True)
    except InvalidSpecifier as error:
        raise ValueError(f"{wanted!r} is no range of versions; write it as >=1.2,<2") from error


def _record_problem(pinned: str, name: str, distribution: Distribution) -> str:
    """Return the reason if the RECORD has another hash, or a file differs from its RECORD; else ""."""
    record = distribution.read_text("RECORD")
    if record is None:
        return f"plugin_policy.allow pins the RECORD of {name}, which has none"
    found = hashlib.sha256(record.encode()).hexdigest()
    if found != pinned:
        return f"plugin_policy.allow pins another RECORD of {name}: record_sha256 is {found}"
    changed = next(changed_files(distribution), "")
    return f"{changed} of {name} is not the file of its RECORD" if changed else ""


def changed_files(distribution: Distribution) -> Iterator[str]:
    """Yield the files of an installed package whose sha256 differs from the RECORD."""
    for file in distribution.files or ():
        if file.hash is None or file.hash.mode != "sha256":
            continue
        try:
            digest = hashlib.sha256(file.locate().read_bytes()).digest()  # type: ignore[attr-defined] # a PathLike
        except OSError:
            yield os.fspath(file)
            continue
        if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != file.hash.value:
            yield os.fspath(file)
