"""`actr plugins new`: each kind's package is written, installs from its folder offline, and passes its test."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from aiocontainerd import scaffold
from aiocontainerd.cli.actr.main import actr
from aiocontainerd.cli.plugin.main import main
from aiocontainerd.interfaces import PROTOCOLS

KINDS = sorted(scaffold.FORMS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_package_is_complete_and_nothing_is_left_of_the_template(kind: str) -> None:
    files = scaffold.files(kind, "acme-one")
    project = tomllib.loads(files["pyproject.toml"])
    assert project["project"]["name"] == "acme-one"
    assert project["project"]["entry-points"]["aiocontainerd.plugins"] == {"acme-one": "acme_one.plugin"}
    for path, text in files.items():
        assert "$" not in text, path
        if path.endswith(".py"):
            ast.parse(text)
    uri = f"{scaffold.FORMS[kind].kind}.acme-one"
    assert uri in files["README.md"]
    assert PROTOCOLS[scaffold.FORMS[kind].kind].partition(":")[0] == scaffold.FORMS[kind].interface


@pytest.mark.parametrize(
    ("kind", "name", "defined"),
    [
        ("verifier", "config", "ConfigPlugin"),
        ("mount-handler", "mount", "MountPlugin"),
        ("verifier", "true", "TruePlugin"),
        ("verifier", "acme-config", "AcmeConfig"),
    ],
)
def test_the_class_hides_nothing_that_its_module_uses(kind: str, name: str, defined: str) -> None:
    module = ast.parse(scaffold.files(kind, name)[f"{name.replace('-', '_')}/plugin.py"])
    assert [node.name for node in module.body if isinstance(node, ast.ClassDef)] == ["Config", defined]


def test_a_snapshotter_is_at_most_forty_lines_of_code() -> None:
    lines = scaffold.files("snapshotter", "acme-one")["acme_one/plugin.py"].splitlines()
    assert (
        len([line for line in lines if line.strip() and not line.strip().startswith(('"""', "#", "from", "import"))])
        <= 40
    )


def test_every_package_is_formatted_and_without_a_word_from_the_linter(tmp_path: Path) -> None:
    ruff = shutil.which("ruff", path=Path(sys.executable).parent)
    if ruff is None:
        pytest.skip("ruff is not installed here")
    folders = [tmp_path / f"acme-{kind}" for kind in KINDS]
    for kind, folder in zip(KINDS, folders, strict=True):
        scaffold.write(kind, folder.name, folder)
    for command in (["check", "--select=ASYNC,B,C4,E,F,I,N,PIE,PT,RET,SIM,UP,W"], ["format", "--check"]):
        for folder in folders:  # in its own folder, a package is what the linter takes for the author's own
            run = subprocess.run(
                [ruff, *command, "--isolated", "--no-cache", "--line-length=120", "."],
                cwd=folder, capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
            assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.root
@pytest.mark.timeout(180)
def test_every_package_installs_offline_and_passes_its_test(tmp_path: Path) -> None:
    folders = []
    for kind in KINDS:
        folders.append(tmp_path / kind)
        scaffold.write(kind, f"acme-{kind}", folders[-1])
    target = tmp_path / "target"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation",
           "--disable-pip-version-check", "--root-user-action=ignore", "--target", str(target)]  # fmt: skip
    subprocess.run([*pip, *map(str, folders)], check=True, timeout=120)
    env = {**os.environ, "PYTHONPATH": str(target)}
    pytest_command = [sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider",
                      "--import-mode=importlib", "-rN"]  # fmt: skip
    tests = [folder / "tests" for folder in folders]
    run = subprocess.run(
        [*pytest_command, *map(str, tests)],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " skipped" not in run.stdout


@pytest.mark.parametrize("command", [(actr, "plugins", "new"), (main, "new")], ids=["actr", "aiocontainerd-plugin"])
def test_both_programs_write_a_package(command: tuple[object, ...], tmp_path: Path) -> None:
    program, *words = command
    directory = tmp_path / "made"
    arguments = [*map(str, words), "verifier", "acme-names", "--directory", str(directory)]
    done = CliRunner().invoke(program, arguments)  # type: ignore[arg-type] # a click command
    assert done.exit_code == 0, done.output
    scripts = Path(sys.prefix) / "bin"
    shown = scripts.relative_to(Path.cwd()) if scripts.is_relative_to(Path.cwd()) else scripts
    assert f"  {shown}/pip install --no-build-isolation -e {directory}\n  {shown}/pytest {directory}\n" in done.output
    readme = (directory / "README.md").read_text()
    assert f"{scripts}/pip install --no-build-isolation -e .  " in readme
    assert "CONTAINERD_ADDRESS" in readme
    assert (directory / "acme_names" / "plugin.py").exists()
    again = CliRunner().invoke(program, arguments)  # type: ignore[arg-type] # as above
    assert again.exit_code == 1
    assert "is there already; choose another with --directory" in again.output


@pytest.mark.parametrize(
    ("kind", "name", "text"),
    [
        ("snapshoter", "acme", "no kind snapshoter; there are content, credentials, differ"),
        ("verifier", "Acme", "'Acme' cannot name a plugin; use small letters, digits and dashes"),
        ("verifier", "acme--x", "cannot name a plugin"),
        ("verifier", "class", "class cannot be a package: Python has something else by that name; try acme-class"),
        ("service", "json", "json cannot be a package"),
        ("event-sink", "aiocontainerd", "aiocontainerd cannot be a package"),
    ],
)
def test_a_name_or_kind_that_cannot_be_is_refused(kind: str, name: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(scaffold.ScaffoldError, match=text):
        scaffold.write(kind, name, tmp_path / "made")
    assert not (tmp_path / "made").exists()
