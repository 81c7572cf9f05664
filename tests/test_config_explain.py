"""`config explain` and secrets: origins of values, and what is never shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from aiocontainerd.cli.actr.main import actr
from aiocontainerd.cli.daemon import main
from aiocontainerd.config import Config, ConfigError, load
from aiocontainerd.config.explain import explain, matching
from aiocontainerd.config.render import dump
from aiocontainerd.plugin import InitContext, PluginConfig, Registration, Secret

URI = "io.containerd.event-sink.v1.acme"


class Account(PluginConfig, frozen=True):
    """Inner."""

    name: str = "nobody"
    token: Secret = Secret()


class Acme(PluginConfig, frozen=True):
    """What the acme plugin can be told."""

    url: str = ""
    token: Secret = Secret()
    accounts: tuple[Account, ...] = ()
    main: Account = Account()


async def _init(_context: InitContext[Any]) -> object:
    return object()


ACME = [Registration(kind="io.containerd.event-sink.v1", id="acme", init=_init, config=Acme)]
TEXT = f"""version = 4
root = "/r"

[plugins."{URI}"]
token = "hunter2"
accounts = [{{ name = "a", token = "hunter3" }}]
main = {{ token = "hunter4" }}
"""


def written(directory: Path, text: str = TEXT) -> Config:
    (directory / "c.toml").write_text(text)
    return load(directory / "c.toml", flags={("state",): ("--state", "/s")})


def test_every_value_has_its_file_and_line_its_flag_or_default(tmp_path: Path) -> None:
    lines = [str(value) for value in explain(written(tmp_path), ACME)]
    assert f'root = "/r"  # {tmp_path}/c.toml:2' in lines
    assert 'state = "/s"  # --state' in lines
    assert 'temp = ""  # default' in lines
    assert 'timeouts."io.containerd.timeout.plugin.init" = "30s"  # default; Starting a plugin.' in lines
    assert f'plugins."{URI}".url = ""  # default' in lines


def test_secrets_are_redacted_wherever_they_stand(tmp_path: Path) -> None:
    config = written(tmp_path)
    assert [str(value) for value in explain(config, ACME, URI)] == [
        f'plugins."{URI}".url = ""  # default',
        f'plugins."{URI}".token = "<redacted>"  # {tmp_path}/c.toml:5',
        f'plugins."{URI}".accounts = [{{"name": "a", "token": "<redacted>"}}]  # {tmp_path}/c.toml:6',
        f'plugins."{URI}".main.name = "nobody"  # default',
        f'plugins."{URI}".main.token = "<redacted>"  # {tmp_path}/c.toml:7',
    ]
    assert "hunter" not in dump(config, ACME)
    assert dump(config, ACME, reveal=True).count("hunter") == 3
    assert "hunter" not in repr(config.plugin_config(ACME[0]))


def test_what_a_table_of_an_absent_plugin_calls_a_secret_is_redacted(tmp_path: Path) -> None:
    config = written(tmp_path, 'version = 4\n[plugins."io.x.v1.y"]\napi_token = "hunter2"\nurl = "u"\nlist = ["a"]\n')
    assert 'api_token = "<redacted>"' in dump(config, [])
    assert 'url = "u"' in dump(config, [])
    assert 'api_token = "hunter2"' in dump(config, [], reveal=True)


def test_a_secret_gives_its_value_only_when_asked() -> None:
    secret = Secret("hunter2")
    assert (f"{secret}", str(secret), repr(secret), "%s" % secret) == ("<redacted>",) * 4  # noqa: UP031 - as logs do
    assert (secret.reveal(), bool(secret), bool(Secret())) == ("hunter2", True, False)
    assert secret == Secret("hunter2") != Secret("hunter3")
    assert hash(secret) == hash(Secret("hunter2"))


def test_a_secret_of_another_type_is_refused_with_its_line(tmp_path: Path) -> None:
    config = written(tmp_path, f'version = 4\n[plugins."{URI}"]\ntoken = 7\n')
    with pytest.raises(ConfigError, match=r"c\.toml:3: plugins\..*\.token: expected `str`, got `int`"):
        config.plugin_config(ACME[0])


def test_a_field_of_a_type_that_toml_has_not_is_refused() -> None:
    class Odd(PluginConfig, frozen=True):
        path: complex = 0j

    odd = Registration(kind="io.containerd.event-sink.v1", id="odd", init=_init, config=Odd)
    config = Config({"plugins": {odd.uri: {"path": 1}}}, {})
    with pytest.raises(NotImplementedError, match="config fields cannot be of type complex"):
        config.plugin_config(odd)


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("", ()),
        ("root", ("root",)),
        ("debug.level", ("debug", "level")),
        (URI, ("plugins", URI)),
        (f"{URI}.main.name", ("plugins", URI, "main", "name")),
        (f"plugins.{URI}.url", ("plugins", URI, "url")),
        (f'plugins."{URI}".url', ("plugins", URI, "url")),
        ('timeouts."io.containerd.timeout.task.state"', ("timeouts", "io.containerd.timeout.task.state")),
    ],
)
def test_a_key_is_understood_with_and_without_quotes(key: str, path: tuple[str, ...]) -> None:
    assert matching(key, [URI]) == path


def test_both_programs_explain(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('version = 4\nroot = "/r"\n')
    expected = f'root = "/r"  # {tmp_path}/c.toml:2\n'
    path = str(tmp_path / "c.toml")
    assert CliRunner().invoke(actr, ["config", "explain", "root", "--config", path]).output == expected
    assert CliRunner().invoke(main, ["--config", path, "config", "explain", "root"]).output == expected
    absent = CliRunner().invoke(actr, ["config", "explain", "rooot", "--config", path])
    assert absent.exit_code == 1
    assert "the config has no key rooot" in absent.output


def test_a_record_with_secrets_makes_its_round_trip() -> None:
    from aiocontainerd.config.encode import encode
    from aiocontainerd.config.values import decode_hook

    config = Acme(token=Secret("x"), main=Account(token=Secret("y")))
    assert msgspec.convert(encode(config, URI, reveal=True), Acme, dec_hook=decode_hook) == config
