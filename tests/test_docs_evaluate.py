"""The guide of `sparsec evaluate` prints what it says, but for times and last digits."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sparsec.cli import all_parsers
from tests.docs_snippets import ROOT, prepare, rendered

for _package in ("onnxruntime", "sklearn", "scipy", "tokenizers"):
    pytest.importorskip(_package, reason="evaluation needs it")

from sparsec.pruning.evaluation.tasks import TASKS  # noqa: E402

PAGE = ROOT / "docs" / "evaluate.md"

_MEASURED = re.compile(r"^(?:ms a text|artifact|KL divergence)")


def _lasting(page: str) -> str:
    """The page without what differs from machine to machine."""
    lines = []
    for line in page.splitlines():
        if line.startswith("warning: the machine was busy"):
            continue
        if _MEASURED.match(line):
            line = re.sub(r"[\d.]+(?:e[+-]\d+)?", "#", line)
            line = " ".join(line.split())
        lines.append(line)
    return "\n".join(lines)


def test_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_cache: Path) -> None:
    for model in ("sentiment", "ner"):
        if not (ROOT / "examples" / "models" / model / "model.onnx").is_file():
            pytest.skip(f"examples/models/{model} is not there")
    text = PAGE.read_text(encoding="utf-8")
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert _lasting(rendered(text.replace(".jsonl\n", ".jsonl -t 0.2\n", 1))) == _lasting(
        text.replace(".jsonl\n", ".jsonl -t 0.2\n", 1)
    )


def test_every_task_metric_and_option_is_there() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for kind in TASKS:
        assert text.count(f"\n- `{kind.name}`: ") >= 1, kind.name
        for name in (*kind.agreement, *kind.scores):
            assert f"`{name}`" in text, (kind.name, name)
    parser = next(p for p in all_parsers() if p.prog == "sparsec evaluate")
    common = {"--help", "--verbose", "--quiet", "--tokenizer", "--num-cores", "--seed"}
    for action in parser._actions:
        names = {name for name in action.option_strings if "_" not in name}
        assert not names or names & common or any(name in text for name in names), names
