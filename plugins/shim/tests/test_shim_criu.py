"""What CRIU is told of a container's standard streams, and what its failures are traced to."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from aiocontainerd_shim.oci import criu

from aiocontainerd.errors import InvalidArgument


def test_streams_of_the_host_are_external_and_pipes_are_not(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    fifo = os.open(tmp_path / "fifo", os.O_RDWR)
    command = ["unshare", "-m", "sh", "-c", f"mount -t tmpfs none {tmp_path}; echo up >&2; read line"]
    with subprocess.Popen(command, stdin=fifo, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.stderr is not None
            inside = process.stderr.readline()
            if inside != b"up\n":
                pytest.skip(f"needs a mount namespace: {inside!r}")
            streams = criu.streams_of(process.pid)
        finally:
            process.kill()
    inode = (os.fstat(fifo)).st_ino
    os.close(fifo)
    assert streams[0].startswith("file[")
    assert streams[0].endswith(f":{inode:x}]")
    assert streams[1:] == ["", ""]


def test_a_dump_leaves_each_external_stream_out_once() -> None:
    assert criu.dump_config(["file[1:a]", "", "file[1:a]"]) == "external file[1:a]\n"
    assert criu.dump_config(["", "", ""]) == ""


def test_a_restore_is_given_its_own_streams_in_their_place() -> None:
    assert criu.restore_config(["file[1:a]", "file[1:b]", "file[1:a]"]) == (
        "inherit-fd fd[0]:file[1:a]\ninherit-fd fd[1]:file[1:b]\n"
    )
    assert criu.restore_config(["", "", "file[1:c]"]) == "inherit-fd fd[2]:file[1:c]\n"


def test_streams_are_kept_beside_the_images(tmp_path: Path) -> None:
    assert criu.kept_streams(tmp_path) == []
    criu.keep_streams(tmp_path, ["file[1:a]", "", "file[2:b]"])
    assert criu.kept_streams(tmp_path) == ["file[1:a]", "", "file[2:b]"]
    criu.keep_streams(tmp_path, ["", "", ""])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        '["file[1:a]\\naction-script /bin/evil"]',
        '["file[1:a] x"]',
        '["", "", "", ""]',
        '["pipe:[1]"]',
        '{"a": 1}',
        "no json",
    ],
)
def test_streams_that_no_checkpoint_has_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / criu.STREAMS_FILE).write_text(text)
    with pytest.raises(InvalidArgument, match=criu.STREAMS_FILE):
        criu.kept_streams(tmp_path)


def test_streams_are_not_read_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("[]")
    (tmp_path / criu.STREAMS_FILE).symlink_to("real")
    with pytest.raises(InvalidArgument, match=criu.STREAMS_FILE):
        criu.kept_streams(tmp_path)


LOG = """\
(00.000123) Version: 3.17.1 (gitid 0)
(00.000200) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted
(00.000300) Error (criu/vdso.c:381): vdso: Unexpected rt vDSO area bounds
(00.000400) Error (criu/cr-dump.c:1): Dumping FAILED.
"""


def test_the_cause_is_the_first_error_of_criu_that_matters(tmp_path: Path) -> None:
    (tmp_path / "dump.log").write_text(LOG)
    assert criu.reason(tmp_path / "dump.log", "criu failed") == "vdso: Unexpected rt vDSO area bounds"
    (tmp_path / "restore.log").write_text("(00.1)      7: Error (criu/files-reg.c:9): File x has bad size\n")
    assert criu.reason(tmp_path / "restore.log", "") == "File x has bad size"


def test_without_a_log_the_cause_is_what_was_printed(tmp_path: Path) -> None:
    missing = 'CRIU version check failed: exec: "criu": executable file not found in $PATH'
    assert criu.reason(tmp_path / "none", missing) == "CRIU is not installed"
    assert criu.reason(tmp_path / "none", "unknown command checkpoint") == "this OCI runtime was built without CRIU"
    assert criu.reason(tmp_path / "none", "something else") == ""
