"""The documents name only files that exist, and the answers of the architecture page are where it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
FOLDERS = [REPOSITORY, REPOSITORY / "aiocontainerd", *REPOSITORY.glob("plugins/*/aiocontainerd_*")]
FILE = re.compile(r"`((?:[a-z0-9_.-]+/)+(?:[A-Za-z0-9_.-]+\.(?:py|md|toml|proto|service))?)`")
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
QUESTION = re.compile(r"(?m)^\| (.+?) \| `([^`]+\.py)` \| `(\w+)` \|$")


def named(document: Path) -> list[str]:
    """Return the paths of a document that begin with a folder of the repository, of the core or of a plugin."""
    paths = FILE.findall(document.read_text())
    return [path for path in paths if any((folder / path.split("/")[0]).is_dir() for folder in FOLDERS)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_a_file_that_a_document_names_exists(document: Path) -> None:
    missing = [path for path in named(document) if not any((folder / path).exists() for folder in FOLDERS)]
    assert missing == []


def test_the_architecture_page_has_every_room() -> None:
    page = (REPOSITORY / "docs/architecture.md").read_text()
    rooms = [path for path in (REPOSITORY / "aiocontainerd").iterdir() if not path.name.startswith(("_", "."))]
    names = [f"`{path.name}/`" if path.is_dir() else f"`{path.name}`" for path in rooms if path.suffix in ("", ".py")]
    assert [name for name in names if name not in page] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_a_link_of_a_document_leads_somewhere(document: Path) -> None:
    links = LINK.findall(document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_the_answers_of_the_architecture_page_are_where_it_says() -> None:
    questions = QUESTION.findall((REPOSITORY / "docs/architecture.md").read_text())
    assert len(questions) == 7
    wrong = [
        f"{question}: {path} defines no {name}"
        for question, path, name in questions
        if not re.search(rf"(?m)^ *(?:class|def|async def) {name}\b", (REPOSITORY / path).read_text())
    ]
    assert wrong == []
