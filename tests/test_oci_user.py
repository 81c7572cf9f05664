"""USER strings and the files they are looked up in (facts/runtime 7.7, facts/security 2024-40635, 2026-46680)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from aiocontainerd.errors import InvalidArgument, NotFound
from aiocontainerd.oci import user
from aiocontainerd.oci.user import User

FILES: dict[str, Sequence[Sequence[str]]] = {
    "/etc/passwd": [["root", "x", "0", "0"], ["app", "x", "100", "200"], ["2147483648", "x", "0", "0"]],
    "/etc/group": [["root", "x", "0", ""], ["wheel", "x", "10", "app,root"], ["app", "x", "200", ""]],
}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", User(0, 0, (0, 10))),
        ("root", User(0, 0, (0, 10))),
        ("0:0", User(0, 0, (0, 10))),
        ("app", User(100, 200, (200, 10))),
        ("100", User(100, 200, (200, 10))),
        ("+0100", User(100, 200, (200, 10))),
        ("00000000000000000000100", User(100, 200, (200, 10))),
        ("555", User(555, 0, (0,))),
        ("555:666", User(555, 666, (666,))),
        ("app:wheel", User(100, 10, (10,))),
        ("app:0", User(100, 0, (0, 10))),
        ("2147483647", User(2147483647, 0, (0,))),
        (":", User(0, 0, (0, 10))),
        ("app:", User(100, 0, (0, 10))),
        (":wheel", User(0, 10, (10,))),
        (":7", User(0, 7, (7, 10))),
        ("5:", User(5, 0, (0,))),
    ],
)
def test_the_user_of_an_image_has_the_groups_of_its_uid(text: str, wanted: User) -> None:
    assert user.of_image(text, FILES.__getitem__) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("app", User(100, 200, (200, 10))),
        ("100", User(100, 200, (200, 10))),
        ("root", User(0, 0, (0, 10))),
        ("100:200", User(100, 200, (200,))),
        ("app:wheel", User(100, 10, (10,))),
        ("root:", User(0, 0, (0,))),
    ],
)
def test_a_user_given_with_a_group_has_no_other(text: str, wanted: User) -> None:
    assert user.given(text, FILES.__getitem__) == wanted


def test_an_exec_has_the_primary_group_only() -> None:
    assert user.of_exec("app", FILES.__getitem__) == User(100, 200, (200,))
    assert user.of_exec("app:wheel", FILES.__getitem__) == User(100, 10, (10,))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("2147483648", "uid"), ("-1000", "uid"), ("405:2147483648", "gid"), ("9" * 36, "uid"), ("0:" + "9" * 36, "gid"),
        ("+2147483648", "uid"), ("app:-1", "gid"),
    ],
)  # fmt: skip
def test_numbers_out_of_range_are_never_names(text: str, kind: str) -> None:
    with pytest.raises(InvalidArgument, match=rf'invalid USER value "{text.replace("+", "[+]")}": {kind} out of range'):
        user.of_image(text, FILES.__getitem__)


@pytest.mark.parametrize(("text", "message"), [("ghost", "no users found"), ("app:ghosts", "no groups found")])
def test_unknown_names_are_not_found(text: str, message: str) -> None:
    with pytest.raises(NotFound, match=message):
        user.of_image(text, FILES.__getitem__)


@pytest.mark.parametrize("line", ["me:x:7", "me:x:7:", "me:x:7::", "  me:x:7:0:more:of:it"])
def test_a_line_of_passwd_may_end_before_the_group(tmp_path: Path, line: str) -> None:
    root_with(tmp_path).write_text(f" # me:x:1:1\n{line}\n")
    assert user.of_image("me", user.reader(str(tmp_path))) == User(7, 0, (0,))


@pytest.mark.parametrize("line", ["me", "me:x", "me:x:", "me:x:abc:0", "me:x:-1:0", "me:x:7:abc"])
def test_a_line_of_passwd_without_numbers_is_nobody(tmp_path: Path, line: str) -> None:
    root_with(tmp_path).write_text(f"{line}\n")
    with pytest.raises(NotFound):
        user.of_image("me", user.reader(str(tmp_path)))


def test_three_parts_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="invalid USER value a:b:c"):
        user.given("a:b:c", FILES.__getitem__)


def root_with(tmp_path: Path, name: str = "passwd") -> Path:
    (tmp_path / "etc").mkdir()
    return tmp_path / "etc" / name


def test_links_stay_within_the_root(tmp_path: Path) -> None:
    passwd = root_with(tmp_path)
    passwd.symlink_to("/../../../etc/inner")
    (tmp_path / "etc" / "inner").write_text("me:x:7:8\n# no:x:1:1\n")
    assert user.reader(str(tmp_path))("/etc/passwd") == [["me", "x", "7", "8"]]


@pytest.mark.parametrize("kind", ["fifo", "directory"])
def test_what_is_not_a_regular_file_is_refused_before_it_is_read(tmp_path: Path, kind: str) -> None:
    passwd = root_with(tmp_path)
    os.mkfifo(passwd) if kind == "fifo" else passwd.mkdir()
    with pytest.raises(InvalidArgument, match="not a regular file"):
        user.reader(str(tmp_path))("/etc/passwd")


def test_a_file_may_have_ten_mebibytes_and_not_a_byte_more(tmp_path: Path) -> None:
    group = root_with(tmp_path, "group")
    last = b"\nend:x:9:"
    group.write_bytes(b"#" * (user.MAX_FILE_BYTES - len(last)) + last)
    assert user.reader(str(tmp_path))("/etc/group") == [["end", "x", "9", ""]]
    with group.open("ab") as file:
        file.write(b"\n")
    with pytest.raises(InvalidArgument, match="larger than"):
        user.reader(str(tmp_path))("/etc/group")


def test_a_missing_file_is_empty(tmp_path: Path) -> None:
    assert user.reader(str(tmp_path))("/etc/passwd") == []
