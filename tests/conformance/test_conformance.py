"""What is published about the node tests holds."""

from __future__ import annotations

import pytest

from sparsec.compiler.frontend.importer import IMPORTERS
from tests.conformance import published, runner
from tests.conformance.cases import Case, load

pytestmark = pytest.mark.optimized

TARGETS = runner.usable_targets()


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    """The cases that are published as passing; another version of onnx may lack some."""
    passing = published.read().passing
    found = [case for case in load()[0] if case.name in passing]
    assert len(found) > 0.9 * len(passing)
    return found


def run(cases: list[Case], target: str) -> None:
    faults = [
        f"{name}: {result.fault}"
        for group in runner.groups(cases)
        for name, result in runner.run(group, target).items()
        if result.fault
    ]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("target", TARGETS)
def test_one_case_of_every_op(cases: list[Case], target: str) -> None:
    first = {case.op: case for case in reversed(cases)}
    assert len(first) > 100
    run(list(first.values()), target)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_every_case(cases: list[Case], target: str) -> None:
    run(cases, target)


def test_documentation_is_what_the_results_make() -> None:
    assert published.DOCS.read_text(encoding="utf-8") == published.page(published.read())


def test_every_importer_is_listed() -> None:
    text = published.DOCS.read_text(encoding="utf-8")
    missing = [op for domain, op in IMPORTERS if not domain and f"| {op} |" not in text]
    assert not missing, f"run python -m tests.conformance --write: {missing}"
