"""The version in which an OCI runtime gets a spec: what a spec needs, what a runtime takes, which runtime gets it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from aiocontainerd_shim.oci import choice, spec, tries, versions
from aiocontainerd_shim.oci.choice import Choice

from aiocontainerd.errors import FailedPrecondition

OLD = """#!/bin/sh
PATH=/usr/bin:/bin
# Takes specs of 1.0 and 1.1, and creates nothing. It notes that it was run.
echo "$@" >> "$0.calls"
while [ $# -gt 0 ]; do case $1 in --bundle) bundle=$2;; --log) log=$2;; esac; shift; done
case $(cat "$bundle/config.json") in
*'"ociVersion":"1.0'*|*'"ociVersion":"1.1'*) echo '{"level":"error","msg":"no root at '"$bundle"'"}' > "$log";;
*) echo '{"level":"error","msg":"unknown version specified"}' > "$log";;
esac
exit 1
"""
NEW = OLD.replace('\'"ociVersion":"1.1\'', '\'"ociVersion":"\'')


def made(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def calls(program: str) -> int:
    return len(Path(f"{program}.calls").read_text().splitlines())


def config(version: str, **more: object) -> bytes:
    return msgspec.json.encode({"ociVersion": version, **more})


@pytest.fixture(autouse=True)
def _no_findings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(choice, "_complaints", {})
    monkeypatch.setattr(versions, "_known", {})
    (tmp_path / "tries").mkdir()
    monkeypatch.setattr(tries, "_places", [tmp_path / "tries"])
    yield
    left = {path.name for path in (tmp_path / "tries").iterdir()}
    assert left <= {versions.CACHE_FILE}


@pytest.fixture
def both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a host with an older crun, which is preferred, and a newer runc; both work."""
    made(tmp_path / "crun", OLD)
    made(tmp_path / "runc", NEW)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(choice, "_complaints", {"crun": "", "runc": ""})
    return tmp_path


@pytest.mark.parametrize(
    ("later", "version"),
    [
        ({"domainname": "x"}, "1.1.0"),
        ({"mounts": [{"destination": "/a"}, {"destination": "/b", "uidMappings": [{"size": 1}]}]}, "1.1.0"),
        ({"linux": {"resources": {"unified": {"memory.high": "1"}}}}, "1.1.0"),
        ({"linux": {"seccomp": {"syscalls": [{"names": ["x"], "action": "SCMP_ACT_NOTIFY"}]}}}, "1.1.0"),
        ({"linux": {"namespaces": [{"type": "pid"}, {"type": "time"}]}}, "1.1.0"),
        ({"mounts": [{"destination": "/b", "options": ["rbind", "ridmap"]}]}, "1.2.0"),
        ({"process": {"execCPUAffinity": {"initial": "0"}}}, "1.2.1"),
        ({"linux": {"seccomp": {"architectures": ["SCMP_ARCH_X86", "SCMP_ARCH_LOONGARCH64"]}}}, "1.2.1"),
        ({"linux": {"netDevices": {"eth0": {}}}}, "1.3.0"),
        ({"linux": {"memoryPolicy": {"mode": "MPOL_BIND"}}}, "1.3.0"),
        ({"linux": {"intelRdt": {"schemata": ["L3:0=f"]}}}, "1.3.0"),
    ],
)
def test_what_a_spec_uses_came_with_a_version(later: dict[str, object], version: str) -> None:
    before = [*spec.KNOWN, spec.BASE][[*spec.KNOWN, spec.BASE].index(version) + 1]
    assert spec.first_later(config("1.3.0", **later), version) == ""
    assert spec.first_later(config("1.3.0", **later), before) != ""


def test_empty_fields_and_fields_of_old_are_nothing_later() -> None:
    usual = {
        "process": {"args": ["sh"], "rlimits": []},
        "mounts": [{"destination": "/proc", "type": "proc", "options": ["nosuid"]}],
        "linux": {"netDevices": None, "memoryPolicy": {}, "resources": {"cpu": {"shares": 2}}},
    }
    assert spec.first_later(config("1.3.0", **usual), spec.BASE) == ""


def test_a_spec_of_another_version_is_the_same_but_for_its_version() -> None:
    text = b'{"ociVersion": "1.3.0", "big": 12345678901234567890123, "text": "\\u00e9", "list": [1.50]}'
    changed = spec.in_version(text, "1.1.0")
    assert changed == b'{"ociVersion":"1.1.0","big":12345678901234567890123,"text":"\\u00e9","list":[1.50]}'


def test_the_highest_version_is_found_by_trying_and_kept_while_the_file_is_the_same(tmp_path: Path) -> None:
    old, new = made(tmp_path / "old", OLD), made(tmp_path / "new", NEW)
    assert (versions.highest(old), versions.highest(new)) == ("1.1.0", "1.3.0")
    tried = calls(old)
    versions._known.clear()  # as in the next process
    assert versions.highest(old) == "1.1.0"
    assert calls(old) == tried
    made(tmp_path / "fresh", NEW)
    (tmp_path / "fresh").replace(old)
    assert versions.highest(old) == "1.3.0"


def test_a_program_that_is_missing_or_hangs_takes_every_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(tries.LIMIT_ENV, "0.05")
    hanging = made(tmp_path / "hanging", "#!/bin/sh\nexec sleep 60\n")
    assert versions.highest(hanging) == versions.highest("/nonexistent/runc") == spec.KNOWN[0]


def test_a_runtime_gets_the_highest_version_it_takes(both: Path) -> None:
    modern = config("1.3.0", process={"args": ["sh"]})
    assert choice.choose("", {}, modern) == Choice("crun", config("1.1.0", process={"args": ["sh"]}))
    for taken in ("1.0.2-dev", "1.1.0", "1.1.0-rc.1", "", "odd", "2.0.0"):
        assert choice.choose("", {}, config(taken)) == Choice("crun")
    assert choice.choose("", {}, b"no JSON") == Choice("crun")


def test_a_spec_that_uses_what_is_newer_goes_to_the_next_runtime(both: Path) -> None:
    modern = config("1.3.0", linux={"netDevices": {"eth0": {}}})
    assert choice.choose("", {}, modern) == Choice("runc")
    (both / "runc").unlink()
    told = "^crun takes ociVersion 1.1.0 at most, and this spec of 1.3.0 uses linux.netDevices$"
    with pytest.raises(FailedPrecondition, match=told):
        choice.choose("", {}, modern)


def test_a_runtime_that_is_named_gets_a_version_that_it_takes_too(both: Path) -> None:
    lowered = Choice(str(both / "crun"), config("1.1.0"))
    assert choice.choose(str(both / "crun"), {}, config("1.2.0")) == lowered
    assert choice.choose("", {choice.CONFIGURED_ENV: str(both / "crun")}, config("1.3.0")) == lowered
    assert choice.choose(str(both / "runc"), {}, config("1.4.0")) == Choice(str(both / "runc"))


def test_what_was_found_is_told(both: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = choice.findings()
    assert not list((both / "tries").iterdir())  # processes that this one forks know it without a file
    assert (found.chosen, found.highest) == ("crun", {"crun": "1.1.0", "runc": "1.3.0"})
    monkeypatch.setattr(choice, "_complaints", {"crun": "hybrid", "runc": "broken"})
    assert choice.findings().complaint == "no OCI runtime works on this host: crun: hybrid; runc: broken"


@pytest.mark.root
@pytest.mark.parametrize("name", [name for name in choice.CANDIDATES if shutil.which(name)])
def test_a_real_runtime_takes_what_was_found(name: str, tmp_path: Path) -> None:
    highest = versions.highest(name)
    assert highest in (*spec.KNOWN, spec.BASE)
    assert versions._complaint(str(shutil.which(name)), highest) == versions._complaint(
        str(shutil.which(name)), spec.BASE
    )
