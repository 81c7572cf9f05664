"""Finding plugins: installed ones, declared ones, the allow-list, and modules that cannot be used."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, EntryPoint
from pathlib import Path

import pytest

from aiocontainerd.config.records import PluginPolicy, PythonPlugin
from aiocontainerd.host import discovery, hookspecs, loading, policy
from aiocontainerd.host.registry import Registry
from aiocontainerd.host.state import State

GOOD = """
from aiocontainerd.plugin import Registration, hookimpl, kinds

async def init(context):
    return object()

@hookimpl
def register_plugins():
    return [Registration(kind=kinds.SNAPSHOTTER, id="acme", init=init)]
"""
CLASS = """
from aiocontainerd.plugin import Registration, hookimpl, kinds

class Plugin:
    async def init(self, context):
        return self

    @hookimpl
    def register_plugins(self):
        return [Registration(kind=kinds.SNAPSHOTTER, id="acme", init=self.init)]
"""
ONLY_DECLARED = PluginPolicy(allow=("nothing-that-is-installed",))


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield a directory on the interpreter's path whose modules are forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("acme"):
            del sys.modules[name]


def discovered(module: str) -> Registry:
    registry = Registry()
    discovery.discover(registry, {"acme": PythonPlugin(module=module)}, ONLY_DECLARED)
    return registry


def failed(modules: Path, text: str, caplog: pytest.LogCaptureFixture) -> str:
    """Return the reason of the row of a module that cannot be used; checks that one error line told it."""
    (modules / "acme_bad.py").write_text(text)
    row = discovered("acme_bad").get("python_plugins.acme")
    assert row is not None
    assert row.state == State.FAILED
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [record.getMessage() for record in errors] == [
        f"plugin module acme_bad of acme cannot be loaded: {row.reason}"
    ]
    assert errors[0].exc_info is None
    return row.reason


def entry(name: str, distribution: str) -> EntryPoint:
    class Installed(Distribution):
        def read_text(self, filename: str) -> str | None:
            return f"Metadata-Version: 2.1\nName: {distribution}\n" if filename == "METADATA" else None

        def locate_file(self, path: str | os.PathLike[str]) -> Path:
            return Path(path)

    found = EntryPoint(name, f"{name}.plugin", hookspecs.ENTRY_POINT_GROUP)
    vars(found)["dist"] = Installed()
    return found


@pytest.mark.parametrize(
    ("allow", "distribution", "allowed"),
    [
        ((), "anything", True),
        (("acme",), "acme", True),
        (("acme",), "acme-more", False),
        (("acme-*", "other"), "acme-more", True),
        (("ACME",), "acme", False),
        (("acme",), "", False),
    ],
)
def test_an_allow_list_names_distributions_or_patterns(
    allow: tuple[str, ...], distribution: str, allowed: bool
) -> None:
    assert (not policy.admit(PluginPolicy(allow=allow), distribution, None).refusal) is allowed


def test_candidates_come_in_a_stable_order_built_in_first() -> None:
    found, refused = discovery.candidates(
        [entry("zeta", "z-dist"), entry("beta", "b-dist"), entry("alpha", "evil")],
        {"y": PythonPlugin(module="y.mod"), "x": PythonPlugin(module="x.mod")},
        PluginPolicy(allow=("?-dist",)),
    )
    assert [c.module for c in found] == [*discovery.BUILT_IN, "beta.plugin", "zeta.plugin", "x.mod", "y.mod"]
    assert [c.distribution for c in refused] == ["evil"]


def test_a_denied_distribution_is_logged_by_name_and_not_loaded(caplog: pytest.LogCaptureFixture) -> None:
    registry = Registry()
    discovery.discover(registry, {}, PluginPolicy(allow=("aiocontainerd-gc",)))
    assert registry.get("io.containerd.gc.v1.scheduler") is not None
    assert registry.get("io.containerd.content.v1.content") is None
    refusal = "plugin_policy.allow does not name aiocontainerd-content-local"
    assert f"plugin package aiocontainerd-content-local is not loaded: {refusal}" in caplog.messages
    row = registry["python_plugins.content-local"]
    assert (row.state, row.reason) == (State.SKIPPED, f"{refusal}: skip plugin")


def test_every_installed_first_party_package_registers() -> None:
    registry = Registry()
    discovery.discover(registry, {}, PluginPolicy())
    assert registry.statistics() == {"registered": len(registry.plugins)}
    assert len(registry.plugins) > len(discovery.BUILT_IN)


def test_a_declared_module_registers_through_its_hook(modules: Path) -> None:
    (modules / "acme_good.py").write_text(GOOD)
    plugin = discovered("acme_good")["io.containerd.snapshotter.v1.acme"]
    assert plugin.state == State.REGISTERED


def test_a_declared_class_is_made_once_and_asked(modules: Path) -> None:
    (modules / "acme_pkg").mkdir()
    (modules / "acme_pkg" / "mod.py").write_text(CLASS)
    assert discovered("acme_pkg.mod:Plugin").get("io.containerd.snapshotter.v1.acme") is not None


def test_a_module_that_does_not_import_is_one_line_with_the_root_cause(
    modules: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reason = failed(modules, "import acme_missing_library", caplog)
    assert reason.startswith(
        "ModuleNotFoundError: No module named 'acme_missing_library'; install it, and name it in the dependencies"
    )
    assert reason.endswith("/acme_bad.py:1 in <module>)")


def test_a_module_with_a_syntax_error_is_named(modules: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert failed(modules, "def broken(:", caplog).startswith("SyntaxError: ")


def test_a_module_that_exits_at_import_does_not_end_the_daemon(modules: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert failed(modules, "raise SystemExit('no')", caplog).startswith("SystemExit: no (")


def test_a_module_without_the_hook_is_told_what_to_write(modules: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert failed(modules, "x = 1", caplog) == (
        "acme_bad registers nothing; write @register(kinds.<KIND>, <id>) above a class, "
        "or @hookimpl def register_plugins()"
    )


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        ("['acme']", "returned a list with str; write Registration(kind=..., id=..., init=...)"),
        ("None", "returned nothing; return a list of Registration"),
        ("7", "returned int, not a list of Registration"),
    ],
)
def test_a_hook_that_returns_something_else_is_told_what(
    modules: Path, caplog: pytest.LogCaptureFixture, returned: str, reason: str
) -> None:
    text = f"from aiocontainerd.plugin import hookimpl\n@hookimpl\ndef register_plugins():\n    return {returned}\n"
    assert re.fullmatch(
        rf"register_plugins of acme_bad {re.escape(reason)} \(.*/acme_bad.py:2\)", failed(modules, text, caplog)
    )


def test_a_hook_that_raises_is_a_row_with_its_words(modules: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = (
        "from aiocontainerd.plugin import hookimpl\n@hookimpl\ndef register_plugins():\n    raise OSError('no acme')\n"
    )
    assert failed(modules, text, caplog).startswith("OSError: no acme (")


def test_a_hook_with_arguments_of_its_own_is_refused(modules: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = "from aiocontainerd.plugin import hookimpl\n@hookimpl\ndef register_plugins(acme):\n    return []\n"
    reason = failed(modules, text, caplog)
    assert reason.startswith("register_plugins of acme_bad takes (acme); write `def register_plugins()`")


def test_an_attribute_that_is_missing_is_named(modules: Path) -> None:
    (modules / "acme_good.py").write_text(GOOD)
    row = discovered("acme_good:Nothing")["python_plugins.acme"]
    assert row.reason == "module acme_good has no Nothing"


def test_an_id_that_is_taken_fails_the_second_package(modules: Path) -> None:
    (modules / "acme_one.py").write_text(GOOD)
    (modules / "acme_two.py").write_text(GOOD)
    registry = Registry()
    declared = {"one": PythonPlugin(module="acme_one"), "two": PythonPlugin(module="acme_two")}
    discovery.discover(registry, declared, ONLY_DECLARED)
    assert registry["io.containerd.snapshotter.v1.acme"].state == State.REGISTERED
    assert registry["python_plugins.two:io.containerd.snapshotter.v1.acme"].reason == (
        "plugin io.containerd.snapshotter.v1.acme is registered twice: by one and by two; choose another id"
    )


def test_a_config_field_that_nothing_is_decoded_into_fails_its_plugin_when_it_is_loaded(
    modules: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = """
from __future__ import annotations
from typing import TYPE_CHECKING
from aiocontainerd.plugin import PluginConfig, Registration, hookimpl, kinds, register
if TYPE_CHECKING:
    from pathlib import Path

class Config(PluginConfig, frozen=True):
    place: Path | None = None

@register(kinds.SNAPSHOTTER, "acme", config=Config)
class Acme: pass
"""
    whose = "the config of plugin io.containerd.snapshotter.v1.acme is acme_bad.Config, whose field place is of type"
    assert failed(modules, text, caplog) == (
        f"{whose} Path | None, which is not defined where its class is; import what it names outside of TYPE_CHECKING"
    )
    caplog.clear()
    del sys.modules["acme_bad"]
    hook = GOOD.replace('id="acme"', 'id="acme", config=Config').replace(
        "async def init", "class Config(PluginConfig, frozen=True):\n    place: Path = Path()\n\nasync def init"
    )
    imports = "from pathlib import Path\nfrom aiocontainerd.plugin import PluginConfig\n"
    assert failed(modules, imports + hook, caplog).startswith(f"{whose} Path, which no value in TOML becomes")


def test_a_type_of_a_config_may_be_written_below_its_plugin(modules: Path) -> None:
    (modules / "acme_late.py").write_text("""
from __future__ import annotations
from aiocontainerd.plugin import PluginConfig, kinds, register

class Config(PluginConfig, frozen=True):
    places: tuple[Place, ...] = ()

@register(kinds.SNAPSHOTTER, "acme", config=Config)
class Acme: pass

class Place(PluginConfig, frozen=True):
    path: str
""")
    assert discovered("acme_late")["io.containerd.snapshotter.v1.acme"].state == State.REGISTERED


def test_what_a_module_imports_from_another_distribution_of_its_namespace_is_not_its_own(modules: Path) -> None:
    body = "from aiocontainerd.plugin import kinds, register\n{}@register(kinds.EVENT_SINK, '{}')\nclass {}: ...\n"
    for name, more in (("one", ""), ("two", "from acme_shared.one import One\n")):
        (modules / "acme_shared" / name).mkdir(parents=True)
        (modules / "acme_shared" / name / "__init__.py").write_text(body.format(more, name, name.title()))
    assert [one.id for one in loading.registrations_of("acme_shared.one")] == ["one"]
    assert [one.id for one in loading.registrations_of("acme_shared.two")] == ["two"]


def test_what_a_module_imports_from_its_own_package_is_its_own(modules: Path) -> None:
    (modules / "acme_whole").mkdir()
    (modules / "acme_whole" / "__init__.py").write_text("")
    (modules / "acme_whole" / "parts.py").write_text(
        "from aiocontainerd.plugin import kinds, register\n@register(kinds.EVENT_SINK, 'a')\nclass A: ...\n"
    )
    (modules / "acme_whole" / "plugin.py").write_text("from acme_whole.parts import A\n")
    assert [one.id for one in loading.registrations_of("acme_whole.plugin")] == ["a"]
