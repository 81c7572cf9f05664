"""`docs/install.md`, read and done, in a mount namespace where the host's directories are empty.

Packages are not installed and nothing is downloaded: what Python packages ours require are linked into the environment
that the page makes. `init.py` stands in for systemd, and starts what the unit files say.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiocontainerd.testing.images import write_busybox
from harness import IN_MOUNT_NAMESPACE, REPOSITORY, cgroups_named

pytestmark = [pytest.mark.root, pytest.mark.integration, pytest.mark.timeout(300)]

PAGE = REPOSITORY / "docs" / "install.md"
UNIT = REPOSITORY / "contrib" / "systemd" / "aiocontainerd.service"
BLOCK = re.compile(r"^```(\w+) ?(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
STAND_INS = {
    "apt-get": "#!/bin/sh\n",
    "systemctl": f'#!/bin/sh\nexec {sys.executable} {Path(__file__).with_name("init.py")} "$@"\n',
    "git": '#!/bin/sh\n[ "$1" = pull ] && exec /usr/bin/git commit -q --allow-empty -m newer\nexec /usr/bin/git "$@"\n',
}
LINK = f"{sys.executable} {Path(__file__).with_name('environments.py')} $release\n"


def blocks() -> Iterator[tuple[str, str]]:
    """Yield language and text of each block, in the order of the page."""
    for language, _, text in BLOCK.findall(PAGE.read_text()):
        yield language, text


def script(namespace: str) -> str:
    """Return one shell script of the whole page. A checkout that is pulled is installed again, as the page says."""
    texts = [text for language, text in blocks() if language == "sh"]
    (install,) = [text for text in texts if "-m venv" in text]
    page = "".join(f"{text}{install}" if "git pull" in text else text for text in texts)
    page = page.replace("python3 -m venv $release\n", f"/usr/bin/python3 -m venv $release\n{LINK}")
    return f"set -eux\nexport CONTAINERD_NAMESPACE={namespace}\n{page}"


def prepared(directory: Path) -> Path:
    """Return a checkout with a commit, as a reader has it, and the stand-ins on a path of their own."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True).stdout
    checkout = directory / "checkout"
    for name in filter(None, os.fsdecode(listed).split("\0")):
        target = checkout / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPOSITORY / name, target)
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", *words], cwd=checkout, check=True, env=environment(directory))
    (directory / "bin").mkdir()
    for program, text in STAND_INS.items():
        (directory / "bin" / program).write_text(text)
        (directory / "bin" / program).chmod(0o755)
    return checkout


def environment(directory: Path) -> dict[str, str]:
    """Return the environment of the reader's shell."""
    who = {f"GIT_{role}_{key}": "reader" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
    return {
        **who,
        "HOME": str(directory),
        "INIT_STATE": str(directory / "init"),
        "PATH": f"{directory}/bin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "TMPDIR": str(directory),
    }


CONFIG = """version = 4
[plugins."io.containerd.shim-launcher.v1.aio"]
cgroup = "/{0}-shims"
"""
HOST = """
for directory in /opt /usr/local /root /etc/containerd /run/containerd /etc/systemd/system /var/lib; do
  mkdir -p $directory
  mount -t tmpfs tmpfs $directory
done
mkdir -p /var/lib/containerd /usr/local/bin
cp config.toml /etc/containerd
systemctl start containerd
ctr images import busybox.tar
cd checkout
"""
"""A host whose directories are empty, with stock containerd running."""


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Path]:
    """Yield the reader's directory. Daemons that are left by a page that fails are ended."""
    yield tmp_path
    for pid in (tmp_path / "init").glob("*.service"):
        os.kill(int(pid.read_text()), signal.SIGKILL)


def test_who_follows_the_page_has_the_systems_containerd_and_comes_back(reader: Path) -> None:
    prepared(reader)
    namespace = f"t{secrets.token_hex(4)}"
    (reader / "config.toml").write_text(CONFIG.format(namespace))
    write_busybox(reader / "busybox.tar")
    (reader / "page.sh").write_text(f"set -eu\n{HOST}{script(namespace)}systemctl stop containerd\n")
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", IN_MOUNT_NAMESPACE, "page", "sh", "page.sh"],
        cwd=reader, env=environment(reader), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    logs = "".join(path.read_text()[-3000:] for path in (reader / "init").glob("*.log"))
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-6000:]}\n{logs}"
    for language, text in blocks():
        assert language != "text" or text in done.stdout
    assert cgroups_named(namespace) == []


def test_the_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    text = UNIT.read_text()
    unit.write_text(text.replace("/opt/aiocontainerd/bin/aiocontainerd", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, [line for line in done.stderr.splitlines() if UNIT.name in line]) == (0, [])


def test_the_unit_stands_in_for_containerds(tmp_path: Path) -> None:
    root = tmp_path / "etc" / "systemd" / "system"
    root.mkdir(parents=True)
    shutil.copy(UNIT, root)
    subprocess.run(["systemctl", f"--root={tmp_path}", "enable", UNIT.stem], check=True, capture_output=True)
    assert (root / "containerd.service").readlink().name == UNIT.name
    assert (root / "multi-user.target.wants" / UNIT.name).is_symlink()
    assert {"KillMode=process", "Delegate=yes", "Type=notify"} <= set(UNIT.read_text().splitlines())
