"""Mistakes that people make in a config: each line names the place, and a remedy that works or none."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from aiocontainerd.config import ConfigError, load
from aiocontainerd.host import discovery

GRPC = 'plugins."io.containerd.server.v1.grpc"'
GC = 'plugins."io.containerd.gc.v1.scheduler"'
BOLT = 'plugins."io.containerd.metadata.v1.bolt"'
CRI = 'plugins."io.containerd.grpc.v1.cri"'
ISOLATE = 'plugin_isolation."io.containerd.snapshotter.v1.native"'
LONG = "/" + "a" * 104


def told(path: Path, text: str) -> tuple[str, list[str]]:
    """Return the error of a config, "" if a daemon starts with it, and its warnings; without the file's directory."""
    path.write_text(text)
    try:
        found, _ = discovery.problems(load(path))
    except ConfigError as error:
        return str(error).replace(f"{path.parent}/", ""), []
    return "", [line.replace(f"{path.parent}/", "") for line in found]


WARNED = {
    "subreaper = true": "2: subreaper has no effect; containerd dropped it, too",
    "no_subreaper = true": "2: no_subreaper has no effect; containerd dropped it, too",
    'plugin_dir = "/x"': "2: plugin_dir has no effect; containerd dropped it, too",
    'enabled_plugins = ["cri"]': (
        "2: unknown key enabled_plugins; every plugin is enabled that disabled_plugins does not name"
    ),
    '[grpc]\nadress = "/x"': '3: [grpc] has no key adress; it has no effect; did you mean "address"?',
    f"[grpc]\ngid = 5\n[{GRPC}]\nuid = 7": f"3: [grpc] gid has no effect beside [{GRPC}]",
    "[plugins.io.containerd.gc.v1.scheduler]\nx = 1": (
        f"2: [plugins.io.containerd.gc.v1.scheduler] has no effect without quotes; write [{GC}]"
    ),
    "[plugins.cri]\nx = 1": f"2: [plugins.cri] has no effect; write [{CRI}], only version 1 has short names",
    "[plugins.acme]\nx = 1": "2: [plugins.acme] has no effect",
    "[plugins]\nfoo = 1": "3: plugins.foo is no table of a plugin and has no effect",
    '[plugins."io.containerd.grpc.v1.cri.containerd"]\nx = 1': (
        f'2: [plugins."io.containerd.grpc.v1.cri.containerd"] has no effect; write [{CRI}.containerd]'
    ),
    '[plugins."io.containerd.gc.v1.schedular"]\nx = 1': (
        '2: no plugin "io.containerd.gc.v1.schedular" is installed, its table has no effect; '
        'did you mean "io.containerd.gc.v1.scheduler"?'
    ),
    '[plugins."io.containerd.snapshotter.v1.overlayfs"]\nasync_remove = true': (
        '3: plugins."io.containerd.snapshotter.v1.overlayfs".async_remove has no effect; containerd dropped it, too'
    ),
    'disabled_plugins = ["io.containerd.snapshotter.v1.overlay"]': (
        '2: disabled_plugins: no plugin "io.containerd.snapshotter.v1.overlay" is installed; '
        'did you mean "io.containerd.snapshotter.v1.overlayfs"?'
    ),
    '[plugin_isolation]\n"io.containerd.snapshotter.v1.nativ" = "process"': (
        '3: plugin_isolation: no plugin "io.containerd.snapshotter.v1.nativ" is installed; '
        'did you mean "io.containerd.snapshotter.v1.native"?'
    ),
    '[proxy_plugins.a]\ntype = "snapshotter"\naddress = "/x"': (
        '3: proxy_plugins.a.type: "snapshotter" is none; use "snapshot", "content" or "diff"'
    ),
    '[plugins."io.containerd.runtime.v2.task"]\nsched_core = "false"': (
        '3: plugins."io.containerd.runtime.v2.task".sched_core has no effect; containerd dropped it, too'
    ),
    'disabled_plugins = ["containerd.grpc.v1.cri"]': (
        '2: disabled_plugins: no plugin "containerd.grpc.v1.cri" is installed; '
        'did you mean "io.containerd.grpc.v1.cri"?'
    ),
    'disabled_plugins = ["io.containerd.snapshotter.v1.*"]': (
        '2: disabled_plugins: no plugin "io.containerd.snapshotter.v1.*" is installed; '
        "name each plugin, a pattern has no effect"
    ),
    '[plugins."IO.containerd.gc.v1.scheduler"]\nx = 1': (
        '2: no plugin "IO.containerd.gc.v1.scheduler" is installed, its table has no effect; '
        'did you mean "io.containerd.gc.v1.scheduler"?'
    ),
    '[plugins."io.containerd.grpc.v1.nri"]\nx = 1': (
        '2: no plugin "io.containerd.grpc.v1.nri" is installed, its table has no effect; '
        'did you mean "io.containerd.nri.v1.nri"?'
    ),
    '[plugins."io.containerd.gc.v2.scheduler"]\nx = 1': (
        '2: no plugin "io.containerd.gc.v2.scheduler" is installed, its table has no effect; '
        'did you mean "io.containerd.gc.v1.scheduler"?'
    ),
    '[proxy_plugins.a]\ntype = "snapshot"': "2: proxy_plugins.a.address is missing; it will not load",
    '[stream_processors."x.y"]\naccepts = ["a"]\nreturns = "b"\npath = ""': (
        '5: stream_processors."x.y".path is missing; it will not load'
    ),
}
"""Keys and tables without effect that are no mistakes, after `version = 3` -> the warning."""

REFUSED = {
    'rooot = "/x"': '2: unknown key rooot; did you mean "root"?',
    '[debug]\nlevle = "info"': '3: unknown key debug.levle; did you mean "level"?',
    'level = "debug"': "2: unknown key level; it belongs below [debug]",
    'address = "/x"': f"2: unknown key address; it belongs below [{GRPC}]",
    'sandbox_image = "pause"': f"2: unknown key sandbox_image; it belongs below [{CRI}]",
    "wholly_unlike = 1": "2: unknown key wholly_unlike",
    '[plugin."io.containerd.gc.v1.scheduler"]\nx = 1': '2: unknown table plugin; did you mean "plugins"?',
    '[grcp]\naddress = "/x"': '2: unknown table grcp; did you mean "grpc"?',
    '["io.containerd.grpc.v1.cri"]\nx = 1': (
        f'2: unknown table "io.containerd.grpc.v1.cri"; a plugin\'s table is written [{CRI}]'
    ),
    "[io.containerd.grpc.v1.cri]\nx = 1": f"2: unknown table io; a plugin's table is written [{CRI}]",
    f"[{GC}]\npause_treshold = 0.1": f'3: unknown key {GC}.pause_treshold; did you mean "pause_threshold"?',
    '[timeouts]\n"io.containerd.timeout.shim.laod" = "5s"': (
        '3: unknown key timeouts."io.containerd.timeout.shim.laod"; did you mean "io.containerd.timeout.shim.load"?'
    ),
    '[proxy_plugins.a]\ntype = "diff"\nadress = "/x"': '4: unknown key proxy_plugins.a.adress; did you mean "address"?',
    '[stream_processors.x]\naccept = ["a"]\nreturns = "b"\npath = "c"': (
        '3: unknown key stream_processors.x.accept; did you mean "accepts"?'
    ),
    'required_plugins = ["io.containerd.snapshotter.v1.overlay"]': (
        "2: required plugin io.containerd.snapshotter.v1.overlay is not installed; "
        'did you mean "io.containerd.snapshotter.v1.overlayfs"?'
    ),
    'disabled_plugins = "io.containerd.grpc.v1.cri"': (
        "2: disabled_plugins: expected `array`, got `str`; write it in brackets: disabled_plugins = [...]"
    ),
    'disabled_plugins = ["cri"]': (
        '2: invalid disabled plugin URI "cri" expect io.containerd.x.vx; write "io.containerd.grpc.v1.cri"'
    ),
    'imports = "conf.d/*.toml"': "2: imports: expected `array`, got `str`; write it in brackets: imports = [...]",
    'imports = ["none.toml"]': "2: failed to load TOML from none.toml: No such file or directory",
    "root = 3": "2: root: expected `str`, got `int`; write it in quotes",
    'root = "/a"\nstate = "/a"': "3: root and state must be different directories, both are /a",
    'oom_score = "-999"': "2: oom_score: expected `int`, got `str`; write a whole number, without quotes",
    "oom_score = -2000": "2: oom_score: expected `int` >= -1000",
    '[debug]\nlevel = "verbose"': (
        '3: debug.level: unknown log level "verbose"; use one of trace, debug, info, warn, warning, error, fatal, panic'
    ),
    '[debug]\nformat = "JSON"': '3: debug.format: unknown log format "JSON"; use one of text, json',
    "[grpc]\naddress = 3": "3: grpc.address: expected `str`, got `int`; write it in quotes",
    f'[grpc]\naddress = "{LONG}"': f"3: grpc.address: the path of a socket has at most 104 bytes, {LONG} has 105",
    f'[{GRPC}]\naddress = "{LONG}"': (f"3: {GRPC}.address: the path of a socket has at most 104 bytes, {LONG} has 105"),
    '[plugins."io.containerd.server.v1.grpc-tcp"]\naddress = "127.0.0.1"': (
        '3: plugins."io.containerd.server.v1.grpc-tcp".address: "127.0.0.1" is no address of a TCP port; '
        "write it as 127.0.0.1:2376"
    ),
    '[timeouts]\n"a.b" = 5': (
        '3: timeouts."a.b": expected a duration in quotes with its unit, such as "5s", got `int`'
    ),
    '[timeouts]\n"a.b" = "5"': '3: timeouts."a.b": time: invalid duration "5" (write it as 500ms, 2s or 1m30s)',
    '[timeouts]\n"a.b" = "-5s"': '3: timeouts."a.b": a duration cannot be negative, "-5s" is',
    '[timeouts]\na.b = "5s"': "3: timeouts.a: expected a duration, got a table; write the whole key in quotes",
    f'[{GC}]\nschedule_delay = "1 minute"': (
        f'3: {GC}.schedule_delay: time: invalid duration "1 minute" (write it as 500ms, 2s or 1m30s)'
    ),
    f'[{BOLT}]\ncontent_sharing_policy = "isolatd"': (
        f'3: {BOLT}.content_sharing_policy: invalid enum value \'isolatd\'; use "shared" or "isolated"'
    ),
    f"[{BOLT}]\ncache_bytes = -1": f"3: {BOLT}.cache_bytes: expected `int` >= 0",
    '[plugins."io.containerd.snapshotter.v1.overlayfs"]\nsync_remove = "true"': (
        '3: plugins."io.containerd.snapshotter.v1.overlayfs".sync_remove: expected `bool`, got `str`; '
        "write true or false, without quotes"
    ),
    '[plugins."io.containerd.snapshotter.v1.overlayfs"]\nmount_options = "noatime"': (
        '3: plugins."io.containerd.snapshotter.v1.overlayfs".mount_options: expected `array`, got `str`; '
        "write it in brackets: mount_options = [...]"
    ),
    '[plugins."io.containerd.shim.v1.manager"]\nenv = ["A"]': (
        '3: plugins."io.containerd.shim.v1.manager".env.0: "A" is no variable; write it as NAME=value'
    ),
    '[plugins."io.containerd.shim.v1.manager"]\nsocket_dir = "run"': (
        '3: plugins."io.containerd.shim.v1.manager".socket_dir: "run" is not absolute'
    ),
    '[plugins."io.containerd.runtime.v2.task"]\nplatforms = ["linux/"]': (
        '3: plugins."io.containerd.runtime.v2.task".platforms.0: '
        'platform "linux/": must be <os>[/<arch>[/<variant>]]; write it as linux/amd64, or host'
    ),
    '[[proxy_plugins]]\nname = "x"': (
        "2: proxy_plugins: expected `table`, got `array`; write [proxy_plugins] in single brackets"
    ),
    '[stream_processors.x]\nenv = ["A"]': '3: stream_processors.x.env.0: "A" is no variable; write it as NAME=value',
    '[python_plugins.a]\nmodul = "x"': '2: python_plugins.a.module is missing; did you write it as "modul"?',
    '[python_plugins.a]\nmodule = "acme/plugin.py"': (
        '3: python_plugins.a.module: "acme/plugin.py" is no path of a module; '
        "write it as acme.plugin or acme.plugin:Plugin"
    ),
    '[plugin_isolation]\n"io.containerd.snapshotter.v1.native" = "proces"': (
        f'3: {ISOLATE}: invalid enum value \'proces\'; use "none" or "process"'
    ),
    '[plugin_policy]\nallow = [{distribution = "a", version = "1.2"}]': (
        '3: plugin_policy.allow.0.version: "1.2" is no range of versions; write it as >=1.2,<2'
    ),
    '[plugin_policy]\nallow = [{distribution = "a", record_sha256 = "abc"}]': (
        '3: plugin_policy.allow.0.record_sha256: "abc" is no SHA-256; it has 64 hexadecimal digits'
    ),
    '[plugins."io.containerd.shim-launcher.v1.aio"]\nfork_sever = true': (
        '3: unknown key plugins."io.containerd.shim-launcher.v1.aio".fork_sever; did you mean "fork_server"?'
    ),
    'root = ["/a"]': "2: root: expected `str`, got `array`; write one text in quotes",
    "oom_score = 1.5": "2: oom_score: expected `int`, got `float`; write a whole number",
    "oom_score = true": "2: oom_score: expected `int`, got `bool`; write a whole number",
    f'[{GC}]\npause_threshold = "0.02"': (
        f"3: {GC}.pause_threshold: expected `float`, got `str`; write a number, without quotes"
    ),
    f"[{BOLT}]\nno_sync = 1": f"3: {BOLT}.no_sync: expected `bool`, got `int`; write true or false",
    f'[{BOLT}]\nno_sync = ""': f"3: {BOLT}.no_sync: expected `bool`, got `str`; write true or false, without quotes",
    '[proxy_plugins.a]\nexports = "/x"': (
        "3: proxy_plugins.a.exports: expected `table`, got `str`; write a table: [proxy_plugins.a.exports]"
    ),
    "[proxy_plugins.a]\nexports = []": (
        "3: proxy_plugins.a.exports: expected `table`, got `array`; write a table: [proxy_plugins.a.exports]"
    ),
    '[proxy_plugins]\na = "/x"': "3: proxy_plugins.a: expected `table`, got `str`; write a table: [proxy_plugins.a]",
    '[plugins]\n"io.containerd.gc.v1.scheduler" = 3': (f"3: {GC}: expected `table`, got `int`; write a table: [{GC}]"),
    '[stream_processors.io.containerd.x]\naccepts = ["a"]': (
        "2: unknown key stream_processors.io.containerd; write the whole name in quotes: "
        '[stream_processors."io.containerd.x"]'
    ),
    '[proxy_plugins.acme.v1]\ntype = "snapshot"': (
        '2: unknown key proxy_plugins.acme.v1; write the whole name in quotes: [proxy_plugins."acme.v1"]'
    ),
    "[grpc]\ngid = 4294967295": "3: grpc.gid: expected `int` <= 4294967294",
    "[ttrpc]\nuid = -2": "3: ttrpc.uid: expected `int` >= -1",
    f"[{GRPC}]\ngid = 4294967296": f"3: {GRPC}.gid: expected `int` <= 4294967294",
    'root = "/run/containerd"': "2: root and state must be different directories, both are /run/containerd",
}
"""What no daemon starts with, after `version = 3` -> the error."""


@pytest.mark.parametrize("text", WARNED)
def test_what_has_no_effect_is_a_warning(tmp_path: Path, text: str) -> None:
    assert told(tmp_path / "c.toml", f"version = 3\n{text}\n") == ("", [f"c.toml:{WARNED[text]}"])


@pytest.mark.parametrize("text", REFUSED)
def test_what_cannot_work_is_an_error(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    expected = REFUSED[text]
    assert told(tmp_path / "c.toml", f"version = 3\n{text}\n") == (f"c.toml:{expected}", [])


VERSION_3 = "or begin the file with version = 3"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[grpc]\naddress = "/x"', f"2: [grpc] has no effect in version 4; write it below [{GRPC}], {VERSION_3}"),
        (
            '[debug]\naddress = "/x"',
            "3: address in [debug] has no effect in version 4; "
            f'write it below [plugins."io.containerd.server.v1.debug"], {VERSION_3}',
        ),
        (
            "[metrics]\ngrpc_histogram = true",
            "2: [metrics] has no effect in version 4; "
            f'write it below [plugins."io.containerd.server.v1.metrics"], {VERSION_3}',
        ),
    ],
)
def test_a_section_of_version_3_in_version_4_says_where_its_keys_are(tmp_path: Path, text: str, said: str) -> None:
    assert told(tmp_path / "c.toml", f"version = 4\n{text}\n") == ("", [f"c.toml:{said}"])


@pytest.mark.parametrize(
    ("version", "said"),
    [
        (
            "5",
            "expected containerd config version equal to or less than `4`, got `5`; "
            "write version = 4, and leave out what only version 5 has",
        ),
        ("-1", "there is no config version -1; write version = 4"),
        ('"3"', "version must be a number, got '3'; write version = 4"),
    ],
)
def test_a_version_that_is_none_says_what_to_write(tmp_path: Path, version: str, said: str) -> None:
    assert told(tmp_path / "c.toml", f"version = {version}\n") == (f"c.toml:1: {said}", [])


def test_a_line_that_is_no_toml_is_shown_without_its_value(tmp_path: Path) -> None:
    error, _ = told(tmp_path / "c.toml", 'version = 3\n[debug]\nlevel = "hunter2\n')
    assert error.startswith("failed to load TOML from c.toml:3: ")
    assert "; the line begins with: level =; " in error
    assert "hunter2" not in error
