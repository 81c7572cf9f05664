"""Config files: versions, imports, merge rules, strictness, and where values came from."""

from __future__ import annotations

import tomllib
from collections import ChainMap
from collections.abc import Mapping
from copy import copy
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import pytest

from aiocontainerd import durations
from aiocontainerd.config import Config, ConfigError, load
from aiocontainerd.config.plugin import PluginConfig
from aiocontainerd.config.render import dump, example
from aiocontainerd.config.toml_text import key_lines
from aiocontainerd.host.init_context import InitContext
from aiocontainerd.host.registration import Registration


class Nested(PluginConfig, frozen=True):
    """Inner."""

    depth: int = 1


class Acme(PluginConfig, frozen=True):
    """What the acme plugin can be told."""

    root_path: str = ""
    sync_remove: bool = False
    mount_options: tuple[str, ...] = ()
    nested: Nested = Nested()


async def _init(_context: InitContext[Any]) -> object:
    return object()


ACME = Registration(kind="io.containerd.snapshotter.v1", id="acme", init=_init, config=Acme)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_missing_default_file_gives_the_defaults(tmp_path: Path) -> None:
    config = load(tmp_path / "none.toml", explicit=False)
    assert config.settings.root == "/var/lib/containerd"
    assert config.settings.version == 4


def test_a_missing_named_file_is_an_error_naming_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"failed to load TOML from .*none\.toml: No such file or directory"):
        load(tmp_path / "none.toml")


def test_broken_toml_names_file_and_place(tmp_path: Path) -> None:
    path = write(tmp_path / "c.toml", 'version = 3\nroot = "unclosed\n')
    with pytest.raises(ConfigError, match=r"failed to load TOML from .*c\.toml:2: "):
        load(path)


def test_a_newer_version_is_refused_with_containerds_text(tmp_path: Path) -> None:
    path = write(tmp_path / "c.toml", "version = 5\n")
    with pytest.raises(ConfigError) as failed:
        load(path)
    assert str(failed.value) == (
        f"{path}:1: expected containerd config version equal to or less than `4`, got `5`; "
        "write version = 4, and leave out what only version 5 has"
    )


MISTAKES = """version = 3
roto = 1
[debug]
levle = "debug"
[python_plugins.acme]
module = "acme.plugin"
isolatoin = "process"
[plugin_policy]
alow = ["acme"]
"""


def test_an_unknown_key_is_an_error_with_file_line_and_nearest_key(tmp_path: Path) -> None:
    path = write(tmp_path / "c.toml", MISTAKES)
    with pytest.raises(ConfigError) as failed:
        load(path)
    told = [
        f'{path}:2: unknown key roto; did you mean "root"?',
        f'{path}:4: unknown key debug.levle; did you mean "level"?',
        f'{path}:7: unknown key python_plugins.acme.isolatoin; did you mean "isolation"?',
        f'{path}:9: unknown key plugin_policy.alow; did you mean "allow"?',
    ]
    assert sorted(str(failed.value).splitlines()) == told
    assert sorted(load(path, warn_only=True).warnings) == told


def test_a_wrong_type_is_an_error_even_where_unknown_keys_warn(tmp_path: Path) -> None:
    path = write(tmp_path / "c.toml", 'version = 3\noom_score = "low"\n')
    with pytest.raises(ConfigError) as failed:
        load(path, warn_only=True)
    assert str(failed.value) == f"{path}:2: oom_score: expected `int`, got `str`; write a whole number, without quotes"


@pytest.mark.parametrize("version", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("plugins = 3", "2: plugins: expected `table`, got `int`"),
        ('plugins."io.containerd.server.v1.grpc" = "x"', '2: plugins."io.containerd.server.v1.grpc": expected `table`'),
        ("imports = 3", "2: imports: expected `array`, got `int`"),
        ("imports = [3]", "2: imports.0: expected `str`, got `int`"),
        ("disabled_plugins = [[1]]", "2: disabled_plugins.0: expected `str`, got `array`"),
        ("timeouts = 3", "2: timeouts: expected `table`, got `int`"),
        (
            '[timeouts]\na = "1s"\n"b.c" = 3',
            '4: timeouts."b.c": expected a duration in quotes with its unit, such as "5s", got `int`',
        ),
        ("[proxy_plugins.a]\n[proxy_plugins.b]\naddress = 3", "4: proxy_plugins.b.address: expected `str`, got `int`"),
        (
            '[plugin_isolation]\na = "none"\nb = "thread"',
            '4: plugin_isolation.b: invalid enum value \'thread\'; use "none" or "process"',
        ),
    ],
)
def test_a_value_of_a_wrong_type_is_named_with_its_place_in_every_version(
    tmp_path: Path, version: int, text: str, said: str
) -> None:
    path = tmp_path / "c.toml"
    path.write_text(f"version = {version}\n{text}\n")
    with pytest.raises(ConfigError) as failed:
        load(path)
    assert str(failed.value).startswith(f"{path}:{said}")


def test_a_wrong_type_in_an_old_section_is_named_as_it_is_written(tmp_path: Path) -> None:
    path = write(tmp_path / "c.toml", "version = 2\ngrpc.address = 3\n")
    with pytest.raises(ConfigError) as failed:
        load(path)
    assert str(failed.value) == f"{path}:2: grpc.address: expected `str`, got `int`; write it in quotes"


def test_an_env_of_a_wrong_type_is_left_for_its_plugin_to_refuse(tmp_path: Path) -> None:
    text = """version = 2
plugins."io.containerd.runtime.v2.task".sched_core = true
plugins."io.containerd.shim.v1.manager".env = "x"
"""
    assert load(write(tmp_path / "c.toml", text)).plugin_tables["io.containerd.shim.v1.manager"] == {"env": "x"}


def test_the_same_typo_in_two_proxy_plugins_is_told_of_each(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('version = 3\n[proxy_plugins.a]\nadress = "x"\n[proxy_plugins.b]\nadress = "y"\n')
    assert load(path, warn_only=True).warnings == [
        f'{path}:3: unknown key proxy_plugins.a.adress; did you mean "address"?',
        f'{path}:5: unknown key proxy_plugins.b.adress; did you mean "address"?',
    ]


def test_an_unknown_plugin_key_is_named_with_its_table(tmp_path: Path) -> None:
    path = write(
        tmp_path / "c.toml", 'version = 3\n[plugins."io.containerd.snapshotter.v1.acme"]\nsync_remvoe = true\n'
    )
    with pytest.raises(ConfigError) as failed:
        load(path).check_plugins([ACME])
    assert str(failed.value) == (
        f'{path}:3: unknown key plugins."io.containerd.snapshotter.v1.acme".sync_remvoe; did you mean "sync_remove"?'
    )


def test_a_nested_unknown_plugin_key_is_found(tmp_path: Path) -> None:
    text = 'version = 3\n[plugins."io.containerd.snapshotter.v1.acme".nested]\ndetph = 2\n'
    with pytest.raises(ConfigError, match=r':3: unknown key .*nested\.detph; did you mean "depth"'):
        load(write(tmp_path / "c.toml", text)).check_plugins([ACME])


def test_tables_of_plugins_that_only_containerd_has_get_one_warning(tmp_path: Path) -> None:
    text = """
version = 3
disabled_plugins = ["io.containerd.snapshotter.v1.zfs"]
[plugins."io.containerd.grpc.v1.cri"]
anything = 1
[plugins."io.containerd.snapshotter.v1.aufs"]
"""
    config = load(write(tmp_path / "c.toml", text))
    config.check_plugins([ACME])
    assert config.warnings == [
        "tables of plugins that only containerd has are without effect: "
        f"io.containerd.grpc.v1.cri ({tmp_path}/c.toml:4), io.containerd.snapshotter.v1.aufs ({tmp_path}/c.toml:6)"
    ]


def test_a_plugin_uri_without_a_dot_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "c.toml", 'version = 2\ndisabled_plugins = ["cri"]\n')
    with pytest.raises(ConfigError, match=r':2: invalid disabled plugin URI "cri" expect io\.containerd\.x\.vx'):
        load(path)


def test_root_and_state_must_differ(tmp_path: Path) -> None:
    path = write(tmp_path / "c.toml", 'version = 4\nroot = "/a/b"\nstate = "/a/./b"\n')
    with pytest.raises(ConfigError, match="root and state must be different directories"):
        load(path)


def test_a_bad_timeout_names_its_key_and_line(tmp_path: Path) -> None:
    path = write(tmp_path / "c.toml", 'version = 4\n[timeouts]\n"io.containerd.timeout.shim.load" = "soon"\n')
    with pytest.raises(ConfigError, match=r":3: timeouts\..*shim\.load\": time: invalid duration"):
        load(path)


def test_version_2_server_sections_become_plugin_tables(tmp_path: Path) -> None:
    path = write(tmp_path / "c.toml", 'version = 2\n[grpc]\naddress = "/x.sock"\ngid = 5\n[debug]\naddress = ""\n')
    config = load(path)
    assert config.plugin_tables == {
        "io.containerd.server.v1.grpc": {"address": "/x.sock", "gid": 5},
        "io.containerd.server.v1.ttrpc": {"address": "/x.sock.ttrpc", "gid": 5},
    }
    assert str(config.origin("plugins", "io.containerd.server.v1.grpc", "address")) == f"{path}:3"


def test_the_owner_of_a_ttrpc_socket_without_an_address_is_that_of_the_grpc_socket(tmp_path: Path) -> None:
    text = 'version = 2\n[grpc]\naddress = "/x.sock"\ngid = 5\n[ttrpc]\naddress = ""\nuid = 7\ngid = 8\n'
    config = load(write(tmp_path / "c.toml", text))
    assert config.plugin_tables["io.containerd.server.v1.ttrpc"] == {"address": "/x.sock.ttrpc", "gid": 5}
    assert str(config.origin("plugins", "io.containerd.server.v1.ttrpc", "gid")) == f"{tmp_path / 'c.toml'}:4"


def test_version_1_short_plugin_names_become_uris(tmp_path: Path) -> None:
    config = load(write(tmp_path / "c.toml", "[plugins.scheduler]\nmutation_threshold = 5\n"))
    assert config.plugin_tables == {"io.containerd.gc.v1.scheduler": {"mutation_threshold": 5}}


def test_sched_core_becomes_a_shim_environment_variable(tmp_path: Path) -> None:
    text = 'version = 2\n[plugins."io.containerd.runtime.v2.task"]\nsched_core = true\n'
    config = load(write(tmp_path / "c.toml", text))
    assert config.plugin_tables["io.containerd.shim.v1.manager"] == {"env": ["SCHED_CORE=1"]}


def test_imports_follow_globs_relative_to_the_file_and_survive_cycles(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    main = write(tmp_path / "c.toml", 'version = 4\nimports = ["conf.d/*.toml"]\nroot = "/one"\noom_score = 3\n')
    write(tmp_path / "conf.d" / "10.toml", 'version = 4\nroot = "/ten"\noom_score = 0\nimports = ["../c.toml"]\n')
    last = write(tmp_path / "conf.d" / "20.toml", 'version = 4\nroot = "/twenty"\n')
    config = load(main)
    assert (config.settings.root, config.settings.oom_score) == ("/twenty", 3)
    assert str(config.origin("root")) == f"{last}:2"


def test_later_files_override_plugin_keys_even_with_false_and_replace_lists(tmp_path: Path) -> None:
    table = '[plugins."io.containerd.snapshotter.v1.acme"]\n'
    main = write(
        tmp_path / "c.toml",
        f'version = 4\nimports = ["b.toml"]\n{table}root_path = "/p"\nsync_remove = true\nmount_options = ["a"]\n',
    )
    write(tmp_path / "b.toml", f'version = 4\n{table}sync_remove = false\nmount_options = ["b"]\n')
    config = load(main)
    assert config.plugin_config(ACME) == Acme(root_path="/p", sync_remove=False, mount_options=("b",))


def test_top_level_lists_append_what_is_new(tmp_path: Path) -> None:
    main = write(tmp_path / "c.toml", 'version = 4\nimports = ["b.toml"]\nrequired_plugins = ["a.b"]\n')
    write(tmp_path / "b.toml", 'version = 4\nrequired_plugins = ["a.b", "c.d"]\n')
    assert load(main).settings.required_plugins == ("a.b", "c.d")


def test_a_flag_wins_over_every_file_and_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "c.toml", 'version = 4\nroot = "/file"\n')
    config = load(path, flags={("root",): ("--root", "/flag")})
    assert config.settings.root == "/flag"
    assert str(config.origin("root")) == "--root"


def test_a_dump_loads_to_the_same_config(tmp_path: Path) -> None:
    text = 'version = 3\nroot = "/r"\n[plugins."io.containerd.snapshotter.v1.acme"]\nmount_options = ["x"]\n'
    first = load(write(tmp_path / "a.toml", text))
    again = load(write(tmp_path / "b.toml", dump(first, [ACME])))
    assert again.plugin_config(ACME) == first.plugin_config(ACME)
    assert dump(again, [ACME]) == dump(first, [ACME])


class Limits(PluginConfig, frozen=True):
    """A record with mappings that cannot be changed."""

    rates: Mapping[str, int] = MappingProxyType({"a": 1})
    nested: Mapping[str, Mapping[str, str]] = ChainMap({"b": MappingProxyType({"c": "d"})})
    proxy: MappingProxyType[str, int] = MappingProxyType({})
    absent: str | None = None


def _of(config: type[PluginConfig]) -> Registration:
    return Registration(kind="io.containerd.event-sink.v1", id="acme", init=_init, config=config)


def test_mappings_of_any_kind_are_dumped_and_read_again(tmp_path: Path) -> None:
    text = dump(load(tmp_path / "none.toml", explicit=False), [_of(Limits)])
    assert tomllib.loads(text)["plugins"][_of(Limits).uri] == {
        "rates": {"a": 1}, "nested": {"b": {"c": "d"}}, "proxy": {},
    }  # fmt: skip
    (tmp_path / "c.toml").write_text(text + "a = 7\n")
    read = load(tmp_path / "c.toml").plugin_config(_of(Limits))
    assert read == Limits(nested={"b": {"c": "d"}}, proxy=MappingProxyType({"a": 7}))
    bad = text + 'a = "x"\n'
    (tmp_path / "c.toml").write_text(bad)
    with pytest.raises(ConfigError, match=r"c\.toml:\d+: plugins\..*\.proxy.*: expected `int`, got `str`"):
        load(tmp_path / "c.toml").plugin_config(_of(Limits))


class Inner(msgspec.Struct, frozen=True):
    place: object = Path("/srv")


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"key": (object, Path("/srv"))}, "key: config values cannot be of type PosixPath"),
        ({"fine": (int, 1), "inner": (Inner, Inner())}, "inner.place: config values cannot be of type PosixPath"),
        ({"key": (object, {"a": [1, b"x"]})}, None),
        ({"key": (list[int | None], [1, None])}, r"key\[1\]: TOML has no value for None"),
    ],
)
def test_a_value_that_toml_cannot_have_names_plugin_and_key(config: dict[str, Any], text: str | None) -> None:
    fields = [
        (name, kind, msgspec.field(default_factory=partial(copy, value))) for name, (kind, value) in config.items()
    ]
    record: Any = msgspec.defstruct("Odd", fields, bases=(PluginConfig,), frozen=True)
    if text is None:
        assert "eA==" in dump(Config({}, {}), [_of(record)])
        return
    with pytest.raises(ConfigError, match=rf"^plugin io\.containerd\.event-sink\.v1\.acme: {text}$"):
        dump(Config({}, {}), [_of(record)])


def test_the_example_is_a_config_of_defaults(tmp_path: Path) -> None:
    config = load(write(tmp_path / "e.toml", example([ACME])))
    assert config.settings.root == Config({}, {}).settings.root
    assert config.plugin_config(ACME) == Acme()


def test_key_lines_see_through_strings_arrays_and_quoted_keys() -> None:
    text = """\
a = "x # = ["
b = [
  "one",   # ]
  "two",
]
[t."q.r"]
c = '''
d = 1
'''
e.f = 2
[[list]]
g = { h = 1, i = 2 }
"""
    lines = key_lines(text)
    assert lines[("a",)] == 1
    assert lines[("b",)] == 2
    assert lines[("t", "q.r")] == 6
    assert lines[("t", "q.r", "c")] == 7
    assert ("t", "q.r", "d") not in lines
    assert lines[("t", "q.r", "e", "f")] == 10
    assert lines[("list", "g", "i")] == 12


@pytest.mark.parametrize(
    ("text", "seconds", "printed"),
    [
        ("0", 0, "0s"), ("0s", 0, "0s"), ("1m0s", 60, "1m0s"), ("100ms", 0.1, "100ms"), ("2s", 2, "2s"),
        ("1h2m3.5s", 3723.5, "1h2m3.5s"), ("1.5h", 5400, "1h30m0s"), ("-2s", -2, "-2s"), ("3us", 3e-6, "3µs"),
    ],
)  # fmt: skip
def test_durations_are_read_and_printed_as_go_does(text: str, seconds: float, printed: str) -> None:
    assert durations.parse(text) == pytest.approx(seconds)
    assert durations.render(durations.parse(text)) == printed


@pytest.mark.parametrize("text", ["", "5", "s", "1 s", "1d", "--1s", "1s "])
def test_text_that_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="invalid duration"):
        durations.parse(text)
