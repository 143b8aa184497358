"""The table of kernels: its rows against numpy, against what is emitted, and against the docs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2
import numpy as np
import pytest

from benchmarks.cases import CASES, Size, graph, inputs
from sparsec import targets
from sparsec.compiler.codegen import plan_bucket, table
from sparsec.compiler.codegen.plan import Plan
from sparsec.compiler.codegen.table import GENERAL, IN_LANES, KERNELS, InLanes, Kernel, Request
from sparsec.compiler.interpreter import interpret
from sparsec.compiler.lowering import row_major_products
from sparsec.compiler.lowering.linear import Plans
from sparsec.compiler.lowering.pool import WeightPool
from sparsec.compiler.lowering.tiling import LayerClass, candidates
from sparsec.targets import Target
from tests import docs_kernels, stand_ins
from tests.lane_harness import _target, compile_graph

ROOT = Path(__file__).resolve().parents[1]
SIZE = Size(tokens=21, channels=64)

#: What kernels are wrapped in, and what stands for any of them where there is nothing to do.
AROUND = {f"general/{name}.c.j2" for name in ("function", "nothing", "outside")}

#: Those with a unit for products of tiles last: others run what needs none.
RUNNING = sorted(
    filter(stand_ins.runs, map(_target, targets.NAMES)),
    key=lambda target: target.matrix is not None,
)

every_kernel = pytest.mark.parametrize("row", KERNELS.values(), ids=KERNELS)


def runs_on(row: Kernel, target: Target) -> bool:
    """Whether a target is the first that has the kernel and runs here."""
    first = next(filter(row.has, RUNNING), None)
    return first is not None and targets.at(first, row.precision) == target


def of_target(row: Kernel) -> Target:
    """The first target that has the kernel and runs here, at its precision."""
    for target in RUNNING:
        if row.has(target):
            return targets.at(target, row.precision)
    pytest.skip(f"no target here has {row.name}")


def planned(kernels: list[str], target: Target, size: Size = SIZE) -> Plan:
    made, _ = graph(kernels, size)
    made = row_major_products(made)
    return plan_bucket(made, target, WeightPool(), Plans(target, [size.tokens]))


@pytest.fixture(scope="module")
def results(tmp_path_factory: Any) -> Callable[[Target], dict[str, tuple[Any, Any]]]:
    """By target: kernel -> what numpy makes of its case, and what the compiled C does."""

    @cache
    def run(target: Target) -> dict[str, tuple[Any, Any]]:
        here = (row.name for row in KERNELS.values() if runs_on(row, target))
        names = [name for name in here if name in CASES]
        made, _ = graph(names, SIZE)
        library = compile_graph(
            tmp_path_factory.mktemp("kernels"), made, target.name, ["-O1"], target.precision
        )
        arrays = inputs(made, 2)
        pairs = zip(interpret(made, arrays), library.run(arrays), strict=True)
        return dict(zip(names, pairs, strict=True))

    return run


@every_kernel
def test_kernels_give_what_numpy_gives(row: Kernel, results: Any) -> None:
    target = of_target(row)
    want, have = results(target)[row.name]
    assert want.shape == have.shape and want.dtype == have.dtype and want.any()
    bound = CASES[row.name].near * np.abs(want).max()
    np.testing.assert_allclose(have.astype(float), want.astype(float), rtol=0, atol=bound)


@every_kernel
def test_cases_are_computed_by_their_kernels(row: Kernel, monkeypatch: Any) -> None:
    """By the kernel of this row, the only one that applies, from the template that it names."""
    rendered: set[str] = set()
    get_template, choose = jinja2.Environment.get_template, table.choose

    def get(self: Any, name: Any, *args: Any) -> Any:
        rendered.add(name)
        return get_template(self, name, *args)

    def chosen(request: Request) -> InLanes:
        rows = [r for r in IN_LANES if r.family == request.family and r.has(request.target)]
        assert [r for r in rows if not r.why_not(request)] == [choose(request)]
        return choose(request)

    monkeypatch.setattr(jinja2.Environment, "get_template", get)
    monkeypatch.setattr(table, "choose", chosen)
    size = dataclasses.replace(SIZE, tokens=max(SIZE.tokens, CASES[row.name].tokens))
    for target in row.targets:
        calls = planned([row.name], target, size).calls
        assert (row.name, row.family) in {
            (c.entry, c.family) for c in calls if row.name in c.source.split(", ")
        }
    assert row.templates[0] in rendered


def test_every_kernel_has_a_case_and_every_template_a_kernel() -> None:
    """Cases are what is tested above, and what benchmarks/layers.py and general.py time."""
    assert CASES.keys() == KERNELS.keys()
    files = {
        f"{folder}/{path.name}"
        for folder in ("general", "lanes")
        for path in (ROOT / "templates" / folder).glob("*.c.j2")
    }
    assert files == {name for row in KERNELS.values() for name in row.templates} | AROUND


def linear_rows() -> Iterator[Any]:
    for row in IN_LANES:
        for target in row.targets if row.packing else ():
            yield pytest.param(row, target, id=f"{row.name}-{target.name}")


@pytest.mark.parametrize(("row", "target"), list(linear_rows()))
def test_weights_are_packed_and_layers_tiled_as_the_table_says(
    row: InLanes, target: Target
) -> None:
    made, _ = graph([row.name], SIZE)
    (node,) = (node for node in made.nodes if row.name in node.source)
    plan = Plans(target, [SIZE.tokens]).get(node, made, False)
    assert row.packing is not None
    packed = row.packing.pack(made.constants[node.inputs[1]], plan.chunk_packs)
    assert (plan.words is None) == (packed.words is None)
    for want, have in ((plan, packed), (plan.words, packed.words)):
        for field in dataclasses.fields(have) if have is not None else ():
            a, b = getattr(want, field.name), getattr(have, field.name)
            if isinstance(b, np.ndarray):
                assert a.dtype == b.dtype
                np.testing.assert_array_equal(b, a)
    layer = LayerClass.of(plan.kind, plan.n, plan.k, 0.5, False)
    form = plan.sparse, plan.matrix
    tiles = {t.tile for t in candidates(layer, target) if (t.sparse, t.matrix) == form}
    # Where channels are in lanes, rows are cut into parts, not into tiles of blocks.
    assert set(row.tilings(target)) == (tiles if plan.tiles or plan.matrix else set())


def test_what_no_kernel_does_is_refused_with_every_reason() -> None:
    body = SimpleNamespace(group=SimpleNamespace(kind="linear", source="layer"))
    request = Request(body, targets.get("generic"), None)  # type: ignore[arg-type]
    request.__dict__["plan"] = SimpleNamespace(
        kind="f16", sparse=True, matrix=False, pairs=False, run=1, coded=None
    )
    with pytest.raises(
        ValueError, match=r"layer: no linear kernel does it: linear_i8_sparse: "
    ) as e:
        table.choose(request)
    assert "linear_f32_dense: its weights are f16" in str(e.value)
    assert "linear_i8_dense_pairs: the target does not have it" in str(e.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ops": ("nonsense",)}, "there is no op nonsense"),
        ({"templates": ()}, "has no template"),
        ({"templates": ("lanes/nonsense.c.j2",)}, "nonsense.c.j2"),
        ({"has": lambda target: False}, "no target has it"),
    ],
)
def test_rows_that_lack_a_part_cannot_be_made(change: dict[str, Any], reason: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=reason):
        dataclasses.replace(IN_LANES[0], **change)


def test_tables_are_complete() -> None:
    with pytest.raises(ValueError, match="one name"):
        table.table(IN_LANES[0], IN_LANES[0])
    for rows in (GENERAL[1:], (*GENERAL, GENERAL[0])):
        with pytest.raises(ValueError, match="no general kernel, or two"):
            table.by_op(rows)


def test_the_page_is_what_the_table_says() -> None:
    assert docs_kernels.PAGE.read_text(encoding="utf-8") == docs_kernels.page()
