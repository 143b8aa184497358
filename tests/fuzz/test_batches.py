"""Random graphs with a batch: right for every batch size, or refused."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

import sparsec
from sparsec.compiler import frontend, import_buckets
from sparsec.compiler.codegen.schedule import CHUNK_ROWS
from sparsec.compiler.interpreter import interpret
from sparsec.compiler.ir import Graph
from tests.conformance import runner
from tests.conformance.cases import Case
from tests.fuzz.graphs import grown
from tests.fuzz.test_random_graphs import TOLERANCE

BATCH = 3


def drawn(seed: int) -> tuple[onnx.ModelProto, list[np.ndarray]]:
    """A graph whose inputs of leading extent BATCH have any leading extent, and their arrays."""
    graph = grown(seed, 5, BATCH)
    model = graph.model()
    for value in model.graph.input:
        shape = value.type.tensor_type.shape.dim
        if shape and shape[0].dim_value == BATCH:
            shape[0].dim_param = "batch"
    for value in model.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()
    return model, [v.array for v in graph.inputs]


def resized(model: onnx.ModelProto, arrays: list[np.ndarray], batch: int) -> list[np.ndarray]:
    """The arrays with another batch size."""
    rows = np.arange(batch) % BATCH
    batched = [
        bool(v.type.tensor_type.shape.dim) and v.type.tensor_type.shape.dim[0].dim_param == "batch"
        for v in model.graph.input
    ]
    return [a[rows] if moves else a for a, moves in zip(arrays, batched, strict=True)]


def reference(model: onnx.ModelProto, given: list[np.ndarray]) -> tuple[np.ndarray, ...] | None:
    """What ONNX's reference gives; None where the graph is not meant for this batch size."""
    names = [v.name for v in model.graph.input]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            outputs: Any = ReferenceEvaluator(model).run(None, dict(zip(names, given, strict=True)))
        except Exception:  # whatever numpy raises
            return None
    made = tuple(np.asarray(a) for a in outputs)
    tame = all(a.dtype.kind != "f" or np.all(np.abs(a) < 1e3) for a in made)
    return made if tame else None


def accepted(folder: Path, seeds: range) -> Iterator[tuple[int, onnx.ModelProto, Any, Graph]]:
    for seed in seeds:
        model, arrays = drawn(seed)
        path = folder / "model.onnx"
        onnx.save(model, path)
        try:
            loaded = frontend.load_model(path)
            signature = frontend.signature(loaded)
            if signature.has_sequence:
                continue
            (graph,) = import_buckets(loaded, signature, [])
        except sparsec.SparsecError:
            continue
        yield seed, model, arrays, graph


def fault(
    seed: int, model: onnx.ModelProto, given: list[np.ndarray], got: list[np.ndarray]
) -> str | None:
    wanted = reference(model, given)
    if wanted is None:
        return None
    case = Case(f"seed {seed}", "random", model, (), wanted, TOLERANCE, TOLERANCE)
    return runner.judge(case, got).fault


def test_any_batch_size(tmp_path: Path) -> None:
    count = 0
    for seed, model, arrays, graph in accepted(tmp_path, range(400)):
        for batch in (1, BATCH, 5):
            given = resized(model, arrays, batch)
            try:
                got = interpret(graph, given)
            except IndexError:
                continue  # an index of the batch itself
            wrong = fault(seed, model, given, got)
            assert wrong is None, f"seed {seed}, batch {batch}: {wrong}"
        count += 1
    assert count > 50


@pytest.mark.slow
def test_compiled_for_any_batch_size(tmp_path: Path) -> None:
    """Among them one that is computed piece by piece, where samples do not depend on each other."""
    for seed, model, arrays, graph in accepted(tmp_path, range(1000, 1400)):
        artifact = sparsec.compile(tmp_path / "model.onnx", output=tmp_path / "m", force=True)
        with sparsec.Engine(artifact.path) as engine:
            for batch in (1, BATCH, CHUNK_ROWS + 70):
                given = resized(model, arrays, batch)
                try:
                    got = list(engine.run(given))
                except sparsec.InputError as error:
                    assert "outside the table" in str(error)
                    with pytest.raises(IndexError):  # an index of the batch itself
                        interpret(graph, given)
                    continue
                wrong = fault(seed, model, given, got)
                assert wrong is None, f"seed {seed}, batch {batch}: {wrong}"
