"""The pages of documentation: lines that fit an editor, and links that lead somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 100

PAGES = sorted([
    *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md"),
])  # fmt: skip

# Written by a script: tables with a column for each dialect, or reason.
MATRICES = {"docs/coverage.md", "docs/operators.md"}


def names(pages: list[Path]) -> list[str]:
    return [page.relative_to(ROOT).as_posix() for page in pages]


def prose(text: str) -> Iterator[tuple[int, str]]:
    """(number, line) of all lines that are not in a block of code."""
    code = False
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("```"):
            code = not code
        elif not code:
            yield number, line


@pytest.mark.parametrize("page", names(PAGES))
def test_lines_have_100_columns_at_most(page: str) -> None:
    """Tables too: what does not fit is a list."""
    text = (ROOT / page).read_text(encoding="utf-8")
    long = [
        f"{page}:{number}: {len(line)}"
        for number, line in prose(text)
        if len(line) > WIDTH and not (page in MATRICES and line.startswith("|"))
    ]
    assert long == []


@pytest.mark.parametrize("page", names(PAGES))
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    folder = (ROOT / page).parent
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (folder / link).exists(), link


# A path of ours, in a span of code.
_PATH = re.compile(
    r"`((?:benchmarks|compiler|docs|examples|runtime|serving|sparsec|templates|tests)/[\w./-]+)`"
)


@pytest.mark.parametrize("page", ["docs/adding.md", "docs/architecture.md", "docs/glossary.md"])
def test_files_that_are_named_exist(page: str) -> None:
    named = set(_PATH.findall((ROOT / page).read_text(encoding="utf-8")))
    assert len(named) >= 15
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
