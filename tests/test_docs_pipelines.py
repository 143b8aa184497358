"""The guides of pipelines and buckets print what they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sparsec.serving.pipelines import base
from tests.docs_snippets import ROOT, prepare, rendered
from tests.shipped_models import shipped

DOCS = ROOT / "docs"
PAGES = [
    *sorted((DOCS / "pipelines").glob("*.md")),
    DOCS / "buckets.md",
    DOCS / "run.md",
    DOCS / "migrating-from-deepsparse.md",
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_cache: Path
) -> None:
    text = page.read_text(encoding="utf-8")
    for model in sorted(set(re.findall(r"examples/models/(\w+)", text))):
        shipped(model)
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    try:
        assert rendered(text) == text
    finally:
        for name in ("token-count", "count"):
            base._tasks.pop(name, None)


def test_every_task_and_option_is_documented() -> None:
    index = (ROOT / "docs" / "pipelines" / "README.md").read_text(encoding="utf-8")
    for task, kind in base.tasks().items():
        link = re.search(rf"^- \[`{task}`\]\(([\w-]+\.md)\)", index, re.M)
        assert link, task
        page = (ROOT / "docs" / "pipelines" / link[1]).read_text(encoding="utf-8")
        for name in (*base.options_of(kind), *kind.aliases):
            assert f"`{name}`" in page, (task, name)
        for name in kind.output_schema.model_fields:
            assert f"`{name}`" in page, (task, name)
