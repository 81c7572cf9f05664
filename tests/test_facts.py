"""Every citation of a facts page (`facts/core 4, 11`) names a section that the page has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = {path.stem: path.read_text() for path in (REPOSITORY / "docs/containerd").glob("*.md")}
ITEM = r'(?:"[^"]+"|\d{4}-\d{4,6}|\d+(?:\.\d+)*)'
CITATION = re.compile(rf"facts/(?P<page>[a-z]+)(?P<sections>(?:,? {ITEM}(?:(?:-| to ){ITEM})?)*)")
RANGE = re.compile(rf"({ITEM})(?:(?:-| to )({ITEM}))?")


class Citation(NamedTuple):
    page: str
    sections: str


def citations(text: str) -> Iterator[Citation]:
    """Yield the citations of a text, those that are broken over two lines included."""
    for found in CITATION.finditer(re.sub(r"\s*\n[\s#]*", " ", text)):
        yield Citation(found["page"], found["sections"].strip(", "))


def headings(page: str) -> dict[str, str]:
    """Return the text of each numbered section of a page, that of its subsections included."""
    found = list(re.finditer(r"(?m)^#+ (\d+(?:\.\d+)*)\.? .*$", page))
    texts = {}
    for heading in found:
        later = [other for other in found if other.start() > heading.start()]
        end = next((other.start() for other in later if not other[1].startswith(f"{heading[1]}.")), len(page))
        texts[heading[1]] = page[heading.start() : end]
    return texts


def between(first: str, last: str) -> list[str]:
    """Return the section numbers of a range: `3.1` and `3.4` give 3.1, 3.2, 3.3 and 3.4."""
    parent, _, low = first.rpartition(".")
    high = int(last.rpartition(".")[2])
    return [f"{parent}.{number}".lstrip(".") for number in range(int(low), high + 1)]


def missing(citation: Citation) -> list[str]:
    """Return the parts of a citation that its page does not have."""
    if citation.page not in PAGES:
        return [f"no page {citation.page}"]
    page = PAGES[citation.page]
    sections = headings(page)
    absent = [] if citation.sections else ["no section is named"]
    passage = page
    for first, last in RANGE.findall(citation.sections):
        if first.startswith('"'):
            if not re.search(rf"(?m)^[-#* ]*{re.escape(first[1:-1])}\b", passage):
                absent.append(first)
        elif re.fullmatch(r"\d{4}-\d{4,6}", first):
            if not re.search(rf"\b{first}\b", page):
                absent.append(first)
        else:
            numbers = between(first, last) if last else [first]
            absent += [number for number in numbers if number not in sections]
            passage = sections.get(first, "")
    return absent


def cited() -> dict[str, list[Citation]]:
    """Return the citations of every file in the repository but of the pages themselves and of this test."""
    folders = ("aiocontainerd", "contrib", "docs", "integration", "plugins", "tests")
    paths = [*REPOSITORY.glob("*.*"), *(path for folder in folders for path in (REPOSITORY / folder).rglob("*.*"))]
    own = {Path(__file__).resolve(), *(REPOSITORY / "docs/containerd").iterdir()}
    return {
        str(path.relative_to(REPOSITORY)): list(citations(path.read_text()))
        for path in sorted(set(paths) - own)
        if path.suffix in (".md", ".proto", ".py", ".service", ".sh", ".toml")
    }


def test_every_citation_names_a_section_of_its_page() -> None:
    found = cited()
    assert sum(map(len, found.values())) > 200
    wrong = {
        f"{name}: facts/{citation.page} {citation.sections}": absent
        for name, file in found.items()
        for citation in file
        if (absent := missing(citation))
    }
    assert wrong == {}


def test_a_page_cites_only_sections_that_it_has() -> None:
    wrong = [
        f"{name}: {section}"
        for name, page in PAGES.items()
        for document, section in re.findall(r"([a-z]+\.md )?§(\d+(?:\.\d+)*)", page)
        if section not in headings(PAGES[document.removesuffix(".md ") or name])
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(facts/core 4, 11).", []),
        ("(facts/runtime 3.1-3.4)", []),
        ("(facts/core 11 to 13)", []),
        ('(facts/core 13, "Import naming")', []),
        ("(facts/core\n    # 4, and more)", []),
        ("(facts/security 2021-41190, 2.4)", []),
        ("(facts/core 99)", ["99"]),
        ("(facts/runtime 3.6-3.8)", ["3.8"]),
        ("(facts/core 4, 77)", ["77"]),
        ('(facts/core 4, "Import naming")', ['"Import naming"']),
        ("(facts/security 1999-00001)", ["1999-00001"]),
        ("(facts/nothing 1)", ["no page nothing"]),
        ("(facts/core)", ["no section is named"]),
    ],
)
def test_a_citation_is_read_with_its_lists_ranges_and_titles(text: str, expected: list[str]) -> None:
    assert [missing(citation) for citation in citations(text)] == [expected]
