"""The specs and records that `actr run` makes, against those of Debian's `ctr` for the same image and flags."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from aiocontainerd.testing import images
from harness import SCRIPTS, Ours, Peer, peer

pytestmark = [pytest.mark.integration, pytest.mark.root, pytest.mark.timeout(180)]

ETC = images.BuiltLayer(
    images.tar_of(
        [
            images.entry("etc/passwd", b"root:x:0:0::/:\napp:x:100:200::/:\ndup:x:100:201::/:\n"),
            images.entry(
                "etc/group", b"root:x:0:\nwheel:x:10:root,app\naudio:x:29:root\napp:x:200:app\nvideo:x:44:app,dup\n"
            ),
        ]
    )
)
BARE = images.BuiltLayer(images.tar_of([images.entry("etc/hello", b"hello\n")]))
BUSYBOX = images.busybox_layer()
IMAGES = {
    "plain": images.BuiltImage(layers=[BUSYBOX, ETC]),
    "bare": images.BuiltImage(layers=[BUSYBOX, BARE]),
    "env": images.BuiltImage(layers=[BUSYBOX, ETC], env=["A=1", "BARE", "A=2", "", "E=", "=odd", "B=1"]),
    "noenv": images.BuiltImage(layers=[BUSYBOX, ETC], env=[]),
    "entrypoint": images.BuiltImage(
        layers=[BUSYBOX, ETC],
        settings={
            "Entrypoint": ["/bin/sh"], "Labels": {"a": "b", "empty": ""}, "StopSignal": "SIGQUIT", "WorkingDir": "/w",
        },
    ),
}  # fmt: skip
USERS = ("app", "dup", "100", "555", "0", "root", "root:root", "app:wheel", "100:10", ":", "app:", ":wheel", "5:", "+5")
_AGE = frozenset({"CreatedAt", "UpdatedAt"})


@pytest.fixture(scope="module")
def daemon() -> Iterator[Peer]:
    with peer(Ours) as found:
        yield found


def actr(daemon: Peer, *args: str) -> int:
    command = [str(SCRIPTS / "actr"), "-a", str(daemon.address), "-n", daemon.namespace, *args]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60).returncode


def recorded(daemon: Peer) -> dict[str, Any]:
    """Return the record of the container, without what may differ, and remove it."""
    record: dict[str, Any] = json.loads(daemon.ctr("containers", "info", "c1").stdout)
    daemon.ctr("tasks", "rm", "-f", "c1", check=False)
    daemon.ctr("containers", "rm", "c1")
    spec = record["Spec"]
    for path in ("ociVersion", "linux.maskedPaths", "linux.resources.cpu"):  # 1.6 has older ones, `create` no shares
        *above, last = path.split(".")
        at = spec
        for name in above:
            at = at[name]
        at.pop(last, None)
    return {key: value for key, value in record.items() if key not in _AGE}


def assert_equal(daemon: Peer, image: images.BuiltImage, flags: Sequence[str] = (), args: Sequence[str] = ()) -> None:
    archive = daemon.directory / "image.tar"
    images.write_archive(archive, "docker.io/library/t:1", [image])
    assert actr(daemon, "images", "import", str(archive)) == 0
    daemon.ctr("containers", "create", *flags, "docker.io/library/t:1", "c1", *args)
    theirs = recorded(daemon)
    actr(daemon, "run", "-d", *flags, "docker.io/library/t:1", "c1", *args)  # it need not start for its record
    assert recorded(daemon) == theirs


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_makes_the_same_record(daemon: Peer, name: str) -> None:
    assert_equal(daemon, IMAGES[name])


@pytest.mark.parametrize("user", USERS)
def test_a_user_of_an_image_has_the_same_ids_and_groups(daemon: Peer, user: str) -> None:
    assert_equal(daemon, images.BuiltImage(layers=[BUSYBOX, ETC], settings={"User": user}))


@pytest.mark.parametrize(
    "flags",
    ["--env A=b --env X= --env X=2", "--env PATH --env NEW", "--net-host --env HOSTNAME=q", "--privileged",
     "--read-only --cwd /tmp", "--memory-limit 64000000", "--label a=b --label c --annotation a=z --annotation q=r",
     "--mount type=tmpfs,dst=/mnt --mount src=/etc,dst=/srv", '--mount type=bind,"src=/a,b",dst=/mnt',],
)  # fmt: skip
def test_flags_make_the_same_record(daemon: Peer, flags: str) -> None:
    assert_equal(daemon, IMAGES["env"], flags.split())


def test_arguments_take_the_place_of_the_entrypoint(daemon: Peer) -> None:
    assert_equal(daemon, IMAGES["entrypoint"], args=["a", "b"])
