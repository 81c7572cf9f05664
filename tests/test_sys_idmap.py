from __future__ import annotations

import os

import pytest

from aiocontainerd.errors import InvalidArgument
from aiocontainerd.sys import idmap


def test_a_map_is_a_list_of_ranges() -> None:
    assert idmap.parse_map("0:1000:1,1:100000:65535") == [(0, 1000, 1), (1, 100000, 65535)]


@pytest.mark.parametrize("text", ["0:1000", "a:b:c", "0:-1:5", "0:1:2:3"])
def test_a_range_that_is_none_is_refused_in_the_words_of_go(text: str) -> None:
    with pytest.raises(InvalidArgument, match="require the format `container-id:host-id:size`"):
        idmap.parse_map(text)


def test_the_hosts_ids_of_root() -> None:
    assert idmap.root_pair("1:5:1,0:1000:1", "0:2000:10") == (1000, 2000)
    assert idmap.root_pair("1:5:1", "0:2000:10") is None


def test_both_maps_are_needed() -> None:
    with pytest.raises(InvalidArgument, match="both uidmap= and gidmap="), idmap.user_namespace("0:1:1", ""):
        pass


@pytest.mark.root
def test_a_user_namespace_is_another_than_ours() -> None:
    with idmap.user_namespace("0:1000:10", "0:1000:10") as namespace:
        assert os.fstat(namespace).st_ino != os.stat("/proc/self/ns/user").st_ino


@pytest.mark.root
def test_maps_the_kernel_refuses_are_an_error() -> None:
    with pytest.raises(OSError, match="Invalid argument"), idmap.user_namespace("0:1:5,0:1:5", "0:1:5"):
        pass
