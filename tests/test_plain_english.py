"""Docstrings of functions begin with neither a question nor an article, and no text is a riddle.

A docstring begins with the verb that says what the function does ("Return", "Raise", "Remove"). The check cannot tell a
verb from another word; it refuses the beginnings that were in use instead of one.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
NO_VERB = re.compile(r"(What|Whether|Which|Where|When|Who|Whose|How|Why|The|A|An|That|Those)\b")
RIDDLES = (
    "such a one", "what is none", "that is none", "which is none", "of that which", "for who ", "to who ", "of who ",
)  # fmt: skip
FOLDERS = ("aiocontainerd", "contrib", "integration", "plugins", "tests")
MODULES = [
    path
    for folder in FOLDERS
    for path in sorted((REPOSITORY / folder).rglob("*.py"))
    if not {"gen", "templates"} & set(path.parts)
]


def documented_functions(path: Path) -> Iterator[tuple[str, str]]:
    """Yield name and docstring of each function. A property is named by a noun, so it is left out."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            is_property = any("property" in ast.unparse(decorator) for decorator in node.decorator_list)
            docstring = ast.get_docstring(node)
            if docstring and not is_property:
                yield node.name, docstring


def riddles(text: str) -> list[str]:
    """Return the phrases of RIDDLES in a text, those that are broken over two lines included."""
    joined = re.sub(r"\s*\n[\s#]*", " ", text).lower()
    return [phrase for phrase in RIDDLES if phrase in joined]


def test_a_docstring_of_a_function_begins_with_no_question_and_no_article() -> None:
    guilty = [
        f"{path.relative_to(REPOSITORY)} {name}: {text.splitlines()[0]}"
        for path in MODULES
        for name, text in documented_functions(path)
        if NO_VERB.match(text)
    ]
    assert guilty == []


def test_no_text_is_a_riddle() -> None:
    texts = [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md"), *MODULES]
    found = {str(path.relative_to(REPOSITORY)): riddles(path.read_text()) for path in texts}
    del found[str(Path(__file__).relative_to(REPOSITORY))]
    assert {path: phrases for path, phrases in found.items() if phrases} == {}


def test_a_riddle_is_found_where_a_line_breaks_it() -> None:
    assert riddles("a plugin such\n    # a one") == ["such a one"]
