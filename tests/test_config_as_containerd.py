"""What containerd starts on: empty and zero values, integers for durations, any case, old sections (facts/core 16)."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiocontainerd.config import Config, ConfigError, load
from aiocontainerd.config.records import DEFAULT_ROOT, DEFAULT_STATE
from aiocontainerd.config.values import Duration
from aiocontainerd.host import discovery

GRPC = "io.containerd.server.v1.grpc"
TCP = "io.containerd.server.v1.grpc-tcp"
BOLT = "io.containerd.metadata.v1.bolt"
GC = "io.containerd.gc.v1.scheduler"


def loaded(directory: Path, text: str) -> Config:
    (directory / "c.toml").write_text(text)
    config = load(directory / "c.toml")
    discovery.checked_registrations(config)
    return config


def test_an_empty_root_and_state_are_the_default_ones(tmp_path: Path) -> None:
    settings = loaded(tmp_path, 'version = 2\nroot = ""\nstate = ""\ntemp = ""\noom_score = 0\n').settings
    assert (settings.root, settings.state) == (DEFAULT_ROOT, DEFAULT_STATE)


def test_empty_and_zero_keys_of_old_sections_have_their_defaults(tmp_path: Path) -> None:
    text = """version = 2
[grpc]
address = ""
tcp_address = ""
uid = 0
max_recv_message_size = 0
max_send_message_size = 0
[ttrpc]
address = ""
[debug]
address = ""
[metrics]
address = ""
grpc_histogram = false
"""
    config = loaded(tmp_path, text)
    assert (config.plugin_tables, config.warnings) == ({}, [])


def test_the_tcp_port_has_the_message_sizes_of_its_section(tmp_path: Path) -> None:
    text = 'version = 2\n[grpc]\ntcp_address = "127.0.0.1:1"\nmax_recv_message_size = 5\n'
    assert loaded(tmp_path, text).plugin_tables == {
        GRPC: {"max_recv_message_size": 5},
        TCP: {"address": "127.0.0.1:1", "max_recv_message_size": 5},
    }


def test_a_plugins_table_wins_over_the_section_it_replaced(tmp_path: Path) -> None:
    text = f'version = 3\n[grpc]\naddress = "/old"\ngid = 5\n[plugins."{GRPC}"]\naddress = "/new"\n'
    config = loaded(tmp_path, text)
    assert config.plugin_tables[GRPC] == {"address": "/new"}
    assert len(config.warnings) == 2


@pytest.mark.parametrize("level", ["info", "INFO", "Info", "WARN", "Warning", "TRACE", ""])
def test_a_log_level_may_have_any_case(tmp_path: Path, level: str) -> None:
    assert loaded(tmp_path, f'version = 2\n[debug]\nlevel = "{level}"\n').settings.debug.level == level


@pytest.mark.parametrize(
    ("written", "seconds"), [("100000000", 0.1), ("0", 0), ('"1m30s"', 90), ('"0"', 0), ("5", 5e-9)]
)
def test_a_duration_of_a_plugin_is_a_text_or_an_integer_of_nanoseconds(
    tmp_path: Path, written: str, seconds: float
) -> None:
    config = loaded(tmp_path, f'version = 3\n[plugins."{GC}"]\nschedule_delay = {written}\n')
    (scheduler,) = [one for one in discovery.all_registrations() if one.uri == GC]
    delay = getattr(config.plugin_config(scheduler), "schedule_delay")  # noqa: B009 - a key of another package's record
    assert isinstance(delay, Duration)
    assert delay.seconds == pytest.approx(seconds)


def test_keys_may_have_any_case_but_names_have_their_own(tmp_path: Path) -> None:
    text = f"""Version = 3
ROOT = "/r"
[Debug]
Level = "debug"
[GRPC]
Address = "/x.sock"
GID = 7
[Proxy_Plugins.Stargz]
Type = "snapshot"
ADDRESS = "/s.sock"
[plugins."{GC}"]
Pause_Threshold = 0.5
"""
    config = loaded(tmp_path, text)
    assert config.warnings == []
    assert (config.settings.root, config.settings.debug.level) == ("/r", "debug")
    assert config.plugin_tables[GRPC] == {"address": "/x.sock", "gid": 7}
    assert config.settings.proxy_plugins["Stargz"].type == "snapshot"
    assert str(config.origin("plugins", GRPC, "address")) == f"{tmp_path}/c.toml:6"


def test_a_key_in_both_cases_is_unknown_in_the_other(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as failed:
        loaded(tmp_path, 'version = 3\nroot = "/r"\nRoot = "/R"\n')
    assert str(failed.value) == f'{tmp_path}/c.toml:3: unknown key Root; did you mean "root"?'


def test_an_import_without_a_version_has_version_1(tmp_path: Path) -> None:
    (tmp_path / "b.toml").write_text('disabled_plugins = ["cri", "leases", "diff-service"]\n[grpc]\ngid = 5\n')
    config = loaded(tmp_path, 'version = 4\nimports = ["b.toml"]\n')
    assert config.settings.disabled_plugins == (
        "io.containerd.grpc.v1.cri", "io.containerd.grpc.v1.leases", "io.containerd.service.v1.diff-service",
    )  # fmt: skip
    assert config.plugin_tables[GRPC] == {"gid": 5}


def test_an_address_is_a_plain_string_that_any_encoder_takes(tmp_path: Path) -> None:
    config = loaded(tmp_path, 'version = 3\n[grpc]\naddress = "/x.sock"\n')
    (grpc,) = [one for one in discovery.all_registrations() if one.uri == GRPC]
    for record in (config.plugin_config(grpc), grpc.config()):
        assert type(record.address) is str  # type: ignore[attr-defined] # a key of another module's record


def test_an_empty_choice_is_the_default_one(tmp_path: Path) -> None:
    config = loaded(tmp_path, f'version = 3\n[plugins."{BOLT}"]\ncontent_sharing_policy = ""\n')
    (bolt,) = [one for one in discovery.all_registrations() if one.uri == BOLT]
    assert getattr(config.plugin_config(bolt), "content_sharing_policy") == "shared"  # noqa: B009 - as above


@pytest.mark.parametrize("owner", [-1, 0, 4294967294])
def test_a_socket_may_have_any_owner_that_a_file_may_have(tmp_path: Path, owner: int) -> None:
    config = loaded(tmp_path, f"version = 2\n[grpc]\nuid = {owner}\n")
    assert config.plugin_tables == ({GRPC: {"uid": owner}} if owner else {})


def test_a_key_that_moved_has_the_line_where_it_was_written(tmp_path: Path) -> None:
    text = 'version = 2\n[debug]\naddress = "/d.sock"\n[metrics]\naddress = "127.0.0.1:1338"\ngrpc_histogram = true\n'
    (warning,) = loaded(tmp_path, text).warnings
    assert warning == (
        "tables of plugins that only containerd has are without effect: "
        f"io.containerd.metrics.v1.grpc-prometheus ({tmp_path}/c.toml:6), "
        f"io.containerd.server.v1.debug ({tmp_path}/c.toml:3), io.containerd.server.v1.metrics ({tmp_path}/c.toml:5)"
    )


@pytest.mark.parametrize(
    ("written", "env"), [("true", ["SCHED_CORE=1"]), ("false", None), ('"false"', None), ("1", None)]
)
def test_sched_core_counts_only_as_a_boolean(tmp_path: Path, written: str, env: list[str] | None) -> None:
    config = loaded(tmp_path, f'version = 2\n[plugins."io.containerd.runtime.v2.task"]\nsched_core = {written}\n')
    assert config.plugin_tables.get("io.containerd.shim.v1.manager", {}).get("env") == env
