"""`[plugin_policy]`: packages by name, kind, version and RECORD; pythons they need."""

from __future__ import annotations

import base64
import hashlib
from importlib.metadata import Distribution, PathDistribution
from pathlib import Path

import msgspec
import pytest

from aiocontainerd.config.records import AllowedPackage, PluginPolicy
from aiocontainerd.host.policy import EVERYTHING, admit, changed_files

SNAPSHOTTER, DIFFER = "io.containerd.snapshotter.v1", "io.containerd.differ.v1"


@pytest.fixture
def package(tmp_path: Path) -> Distribution:
    """Return an installed package `acme` 1.4 of one module, with its RECORD."""
    return installed(tmp_path)


def installed(directory: Path, *, python: str = ">=3.11") -> Distribution:
    (directory / "acme.py").write_text("x = 1\n")
    info = directory / "acme-1.4.dist-info"
    info.mkdir()
    info.joinpath("METADATA").write_text(
        f"Metadata-Version: 2.1\nName: acme\nVersion: 1.4\nRequires-Python: {python}\n"
    )
    digest = base64.urlsafe_b64encode(hashlib.sha256(b"x = 1\n").digest()).rstrip(b"=").decode()
    info.joinpath("RECORD").write_text(f"acme.py,sha256={digest},6\nacme-1.4.dist-info/RECORD,,\n")
    return PathDistribution(info)


def refusal(package: Distribution | None, *allow: str | AllowedPackage) -> str:
    return admit(PluginPolicy(allow=allow), "acme", package).refusal


def record(package: Distribution) -> str:
    return hashlib.sha256((package.read_text("RECORD") or "").encode()).hexdigest()


def test_without_a_list_everything_is_allowed_and_with_one_only_what_it_names(package: Distribution) -> None:
    assert admit(PluginPolicy(), "acme", package) == EVERYTHING
    assert refusal(package, "other") == "plugin_policy.allow does not name acme"
    assert refusal(package, "other", "ac*") == ""


def test_kinds_add_up_and_an_entry_without_them_allows_all(package: Distribution) -> None:
    one = AllowedPackage(distribution="acme", kinds=(SNAPSHOTTER,))
    two = AllowedPackage(distribution="a*", kinds=("io.containerd.event-*",))
    admitted = admit(PluginPolicy(allow=(one, two)), "acme", package)
    assert [admitted.allows(kind) for kind in (SNAPSHOTTER, "io.containerd.event-sink.v1", DIFFER)] == [
        True, True, False,
    ]  # fmt: skip
    assert admit(PluginPolicy(allow=(one, "acme")), "acme", package) == EVERYTHING


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        (">=1.4,<2", ""),
        ("==1.4", ""),
        (">=2", "plugin_policy.allow wants acme >=2, 1.4 is installed"),
    ],
)
def test_a_version_must_be_in_the_range(package: Distribution, wanted: str, text: str) -> None:
    assert refusal(package, AllowedPackage(distribution="acme", version=wanted)) == text


def test_a_range_that_is_none_is_said(package: Distribution) -> None:
    with pytest.raises(ValueError, match=r"'2 or so' is no range of versions; write it as >=1\.2,<2"):
        refusal(package, AllowedPackage(distribution="acme", version="2 or so"))


def test_a_pinned_record_must_be_the_one_that_is_installed(package: Distribution) -> None:
    pinned = AllowedPackage(distribution="acme", record_sha256=record(package).upper())
    assert refusal(package, pinned) == ""
    other = msgspec.structs.replace(pinned, record_sha256="0" * 64)
    assert refusal(package, other) == (
        f"plugin_policy.allow pins another RECORD of acme: record_sha256 is {record(package)}"
    )
    assert refusal(package, other, pinned) == ""


def test_a_file_that_is_not_as_the_record_says_is_named(package: Distribution, tmp_path: Path) -> None:
    pinned = AllowedPackage(distribution="acme", record_sha256=record(package))
    (tmp_path / "acme.py").write_text("x = 2\n")
    assert refusal(package, pinned) == "acme.py of acme is not the file of its RECORD"
    (tmp_path / "acme.py").unlink()
    assert list(changed_files(package)) == ["acme.py"]


def test_what_is_no_package_has_no_version() -> None:
    assert refusal(None, AllowedPackage(distribution="acme", version=">=1")) == (
        "plugin_policy.allow wants a version or RECORD of acme, which is not installed as a package"
    )


def test_another_python_is_refused_with_both_versions(tmp_path: Path) -> None:
    package = installed(tmp_path, python=">=3.99")
    assert refusal(package).startswith("acme 1.4 needs Python >=3.99, the daemon runs 3.")
