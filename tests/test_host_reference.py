"""Generated documents: written, compared, told when stale."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from aiocontainerd import filters, kinds, plugin, scaffold
from aiocontainerd.config import load
from aiocontainerd.host import doc_pages, reference
from aiocontainerd.interfaces import PROTOCOLS

ROOT = Path(__file__).parents[1]


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(reference, "REPOSITORY", tmp_path)
    (tmp_path / "docs").mkdir()
    return tmp_path


def test_the_committed_documents_are_not_stale() -> None:
    assert reference.main(["--check"]) == 0


def test_stale_and_missing_documents_are_named(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reference.main(["--check"]) == 1
    assert capsys.readouterr().err == (
        "stale: config.example.toml: run `make docs`\nstale: docs/hooks.md: run `make docs`\n"
        "stale: docs/plugins/reference.md: run `make docs`\n"
        "stale: docs/plugins/tools.md: run `make docs`\n"
    )
    assert reference.main([]) == 0
    assert reference.main(["--check"]) == 0
    (repository / "docs" / "hooks.md").write_text("old")
    assert reference.main(["--check"]) == 1


def test_the_example_config_loads_and_does_not_depend_on_its_writer(repository: Path) -> None:
    reference.main([])
    load(repository / "config.example.toml")
    text = (repository / "config.example.toml").read_text()
    assert "# uid: the daemon's own\n" in text
    assert "uid = " not in text


def test_every_timeout_and_first_party_table_is_in_the_example() -> None:
    text = reference.documents()[reference.REPOSITORY / "config.example.toml"]
    assert '"io.containerd.timeout.plugin.init" = "30s"' in text
    assert '[plugins."io.containerd.snapshotter.v1.overlayfs"]' in text


def test_every_kind_with_a_contract_has_its_prose_its_members_and_its_scaffold_on_the_page() -> None:
    page = reference.reference_page([])
    for kind, path in PROTOCOLS.items():
        assert f"## {kind}\n" in page
        assert f"### {path.partition(':')[2]}\n" in page
    for form in scaffold.FORMS:
        assert f"`actr plugins new {form} acme-{form}` begins with this" in page
    assert "| `async deliver(envelope: Envelope) -> None` | `work` |" in page


def test_the_page_has_what_the_context_gives() -> None:
    page = reference.reference_page([])
    assert "| `async ready() -> bool` | Wait until the daemon serves." in page
    assert "| `root: Path` | " in page


def test_the_page_says_which_kinds_nothing_calls_yet() -> None:
    sources = [*ROOT.glob("plugins/*/aiocontainerd_*/**/*.py"), *ROOT.glob("aiocontainerd/daemon/*.py")]
    assert sources
    names = {value: name for name, value in vars(kinds).items() if name.isupper()}
    for kind in doc_pages.NOT_CALLED:
        lookup = re.compile(rf"(get|get_all|get_single|watch)\(kinds\.{names[kind]}\b")
        assert [path for path in sources if lookup.search(path.read_text())] == []
    assert f"**{doc_pages.NOT_CALLED[kinds.IMAGE_VERIFIER]}**" in reference.reference_page([])


def test_every_hook_has_an_example_that_a_test_runs() -> None:
    examples = reference.hooks_page().count("An example, from `tests/test_host_hookspecs.py`")
    assert examples == len([*reference.hook_functions()])


def test_the_page_has_the_protocols_of_what_a_plugin_gives() -> None:
    page = reference.reference_page([])
    for name in ("Reader", "Writer", "Task", "NamespaceStore", "ContainerStore", "ImageStore", "LeaseStore"):
        assert page.count(f"### {name}\n") == 1, name


@pytest.mark.parametrize(
    "text",
    [
        "class Envelope(Struct):", "### EventBus", "| `marshal(message: betterproto2.Message) -> Any` |",
        "| `namespace() -> str` |", "### Reader", "### ContainerStore", "| `labels.tier` |", "| `async with running(",
        "### FakeMetadata", "| `needed_by(", "### Client", "### Tasks", "### Plugins",
        "| `async restart(plugin: str) -> int` |",
        "| `DataLoss` | Bytes are missing or damaged. |",
    ],
)  # fmt: skip
def test_the_page_of_tools_has_what_a_plugin_uses(text: str) -> None:
    assert text in reference.tools_page()


def test_every_name_of_an_author_is_told_in_a_sentence_on_the_page_of_tools() -> None:
    page = reference.tools_page()
    for name in plugin.__all__:
        assert re.search(rf"^\| `{name}` \| \S.*\|$", page, re.MULTILINE), name
    assert " at 0x" not in page


@pytest.mark.parametrize(
    ("selector", "chosen"),
    [
        ("labels.tier", {"web", "db"}),
        ("image==alpine", {"web"}),
        ("image!=alpine", {"db", "bare"}),
        ("topic~=^/tasks/", {"db"}),
        ("id==a,labels.tier==web", {"web"}),
        ('topic=="/tasks/exit"', {"db"}),
        ('labels."acme.io/tier"==web', {"bare"}),
    ],
)
def test_the_filters_on_the_page_of_tools_choose_what_it_says(selector: str, chosen: set[str]) -> None:
    assert f"| `{selector}` | " in reference.tools_page()
    objects: dict[str, tuple[dict[str, str], dict[str, str]]] = {
        "web": ({"id": "a", "image": "alpine"}, {"tier": "web"}),
        "db": ({"id": "b", "image": "busybox", "topic": "/tasks/exit"}, {"tier": "db"}),
        "bare": ({"id": "c"}, {"acme.io/tier": "web"}),
    }
    compiled = filters.compile_filters([selector])
    found = {
        name
        for name, (fields, labels) in objects.items()
        if compiled.matches(
            lambda path, fields=fields, labels=labels: (  # type: ignore[misc]
                filters.field(labels, path[1:]) if path[0] == "labels" else fields.get(path[0])
            )
        )
    }
    assert found == chosen
