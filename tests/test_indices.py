"""Indices outside a table are errors, whatever looks them up: in C, the Engine, the compiler."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import sparsec
from sparsec import targets
from sparsec.compiler import frontend, passes
from sparsec.compiler.interpreter import interpret
from sparsec.runtime import cpu
from tests import ort_reference
from tests.frontend_support import node

LENGTH = 8
RUNNABLE = [t.name for t in targets.TARGETS if not t.missing(cpu.detect().features)]
RNG = np.random.default_rng(3)


def numbers(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


@dataclass(frozen=True)
class Kind:
    """A way to look up, in the model below: the input with the indices, and its table."""

    input: str
    table: str
    extent: int
    node: str
    dtype: type = np.int64


KINDS = [
    Kind("words", "word_table", 50, "lookup_words"),
    Kind("types", "type_table", 3, "lookup_types", np.int32),
    Kind("rows", "row_table", 20, "lookup_rows"),
    Kind("columns", "x", 4, "gather_columns"),
    Kind("elements", "x", 3, "gather_elements", np.int32),
    Kind("pairs", "pair_table", 5, "gather_pairs"),
    Kind("places", "place_table", 6, "scatter_places"),
    Kind("spots", "x", 3, "scatter_spots"),
]


def model() -> onnx.ModelProto:
    """A lookup of every kind: two end in kernels with rows in lanes, the others are row-major."""
    nodes = [
        node("Gather", "word_table words", "w", name="lookup_words"),
        node("Gather", "type_table types", "t", name="lookup_types"),
        node("Add", "w t", "sum"),
        node("LayerNormalization", "sum gamma beta", "normal"),
        node("MatMul", "normal weights", "hidden"),
        node("Gather", "row_table rows", "looked_up", name="lookup_rows"),
        node("Gather", "x columns", "some", name="gather_columns", axis=1),
        node("GatherElements", "x elements", "few", name="gather_elements", axis=2),
        node("GatherND", "pair_table pairs", "paired", name="gather_pairs"),
        node("ScatterND", "place_table places updates", "placed", name="scatter_places"),
        node("ScatterElements", "x spots marks", "marked", name="scatter_spots", axis=2),
    ]
    ids = ["batch", "sequence"]
    inputs = {
        "words": (TensorProto.INT64, ids),
        "types": (TensorProto.INT32, ids),
        "rows": (TensorProto.INT64, ids),
        "x": (TensorProto.FLOAT, ["batch", 4, 3]),
        "columns": (TensorProto.INT64, [2]),
        "elements": (TensorProto.INT32, ["batch", 4, 2]),
        "pairs": (TensorProto.INT64, ["batch", 2]),
        "places": (TensorProto.INT64, [2, 1]),
        "updates": (TensorProto.FLOAT, [2, 3]),
        "spots": (TensorProto.INT64, ["batch", 4, 1]),
        "marks": (TensorProto.FLOAT, ["batch", 4, 1]),
    }
    constants = {
        "word_table": numbers(50, 16),
        "type_table": numbers(3, 16),
        "row_table": numbers(20, 5),
        "pair_table": numbers(5, 5),
        "place_table": numbers(6, 3),
        "gamma": numbers(16),
        "beta": numbers(16),
        "weights": numbers(16, 16),
    }
    outputs = ["hidden", "looked_up", "some", "few", "paired", "placed", "marked"]
    return build(nodes, inputs, outputs, constants)


def build(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, tuple[int, Sequence[Any]]],
    outputs: Sequence[str],
    constants: dict[str, np.ndarray],
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "indices",
        [helper.make_tensor_value_info(n, kind, shape) for n, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def arrays(batch: int, length: int) -> dict[str, np.ndarray]:
    """Indices of which some are the first and the last that are inside."""

    def drawn(extent: int, *shape: int, dtype: Any = np.int64) -> np.ndarray:
        made = RNG.integers(-extent, extent, shape).astype(dtype)
        made.flat[0], made.flat[-1] = extent - 1, -extent
        return made

    return {
        "words": drawn(50, batch, length),
        "types": drawn(3, batch, length, dtype=np.int32),
        "rows": drawn(20, batch, length),
        "x": numbers(batch, 4, 3),
        "columns": drawn(4, 2),
        "elements": drawn(3, batch, 4, 2, dtype=np.int32),
        "pairs": drawn(5, batch, 2),
        "places": np.array([[5], [-5]], np.int64),
        "updates": numbers(2, 3),
        "spots": drawn(3, batch, 4, 1),
        "marks": numbers(batch, 4, 1),
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("indices") / "model.onnx"
    onnx.save(model(), path)
    return path


@pytest.fixture(scope="module", params=RUNNABLE)
def artifact(
    request: pytest.FixtureRequest, source: Path, tmp_path_factory: pytest.TempPathFactory
) -> sparsec.Artifact:
    output = tmp_path_factory.mktemp("artifact") / "m.sparsec"
    return sparsec.compile(source, buckets=[LENGTH], target=request.param, output=output)


def outside(kind: Kind) -> list[int]:
    """Indices just outside, and those that would be inside if their upper bits were lost."""
    far = [kind.extent, -kind.extent - 1, 2**31 - 1, -(2**31)]
    return (
        far if kind.dtype == np.int32 else [*far, 2**32, 2**32 + 1, -(2**32), 2**63 - 1, -(2**63)]
    )


def places(array: np.ndarray) -> list[tuple[int, ...]]:
    """The first element, the last, and one between."""
    flat = sorted({0, array.size // 2, array.size - 1})
    return [tuple(int(i) for i in np.unravel_index(p, array.shape)) for p in flat]


def test_indices_inside_are_what_onnx_runtime_makes_of_them(
    artifact: sparsec.Artifact, source: Path
) -> None:
    session = ort_reference.session(source)
    with sparsec.Engine(artifact.path, num_cores=2) as engine:
        for batch, length in ((1, LENGTH), (3, LENGTH), (70, LENGTH), (3, 5)):
            given = arrays(batch, length)
            for got, want in zip(engine.run(given), session.run(None, given), strict=True):
                np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.node)
def test_the_engine_says_what_is_outside(artifact: sparsec.Artifact, kind: Kind) -> None:
    with sparsec.Engine(artifact.path, num_cores=2) as engine:
        for batch, length in ((3, LENGTH), (3, 5), (70, LENGTH)):
            given = arrays(batch, length)
            for index in outside(kind):
                for place in places(given[kind.input]):
                    wrong = {**given, kind.input: given[kind.input].copy()}
                    wrong[kind.input][place] = index
                    said = (
                        f"input {kind.input!r} has {index} at {list(place)}, outside the table "
                        f"{kind.table!r} of {kind.extent} (node {kind.node!r}): "
                        f"valid are {-kind.extent} to {kind.extent - 1}."
                    )
                    with pytest.raises(sparsec.InputError, match=re.escape(said)):
                        engine.run(wrong)
            engine.run(given)


class IndexFault(ctypes.Structure):
    """sparsec_index_error."""

    _fields_ = (
        ("index", ctypes.c_int64),
        ("extent", ctypes.c_int64),
        ("table", ctypes.c_char_p),
        ("node", ctypes.c_char_p),
        ("input", ctypes.c_int32),
        ("position", ctypes.c_int64),
    )


class Bucket:
    """A bucket through its C interface."""

    def __init__(self, artifact: sparsec.Artifact) -> None:
        self.specs = artifact.manifest.inputs
        self.library = ctypes.CDLL(str(artifact.library(LENGTH)))
        self.library.sparsec_workspace_size.restype = ctypes.c_size_t

    def run(self, given: dict[str, np.ndarray], lengths: Sequence[int] | None = None) -> int:
        batch = len(given["words"])
        size = self.library.sparsec_workspace_size(ctypes.c_int64(batch), 1)
        self.memory = np.full(size + 64, 0xA5, np.uint8)
        self.workspace = ctypes.c_void_p(self.memory.ctypes.data + -self.memory.ctypes.data % 64)
        held = [np.ascontiguousarray(given[spec.name]) for spec in self.specs]
        outputs = [np.zeros(batch * LENGTH * 16 + 100, np.float32) for _ in range(7)]
        counts = None if lengths is None else (ctypes.c_int32 * batch)(*lengths)
        code = self.library.sparsec_run(
            (ctypes.c_void_p * len(held))(*[a.ctypes.data for a in held]),
            (ctypes.c_void_p * len(outputs))(*[a.ctypes.data for a in outputs]),
            ctypes.c_int64(batch), counts, self.workspace, None,
        )  # fmt: skip
        return int(code)

    def fault(self) -> IndexFault | None:
        error = IndexFault()
        code = self.library.sparsec_bad_index(self.workspace, ctypes.byref(error))
        assert code in (0, 1)
        return None if code else error


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.node)
def test_the_c_interface_says_what_is_outside(artifact: sparsec.Artifact, kind: Kind) -> None:
    bucket = Bucket(artifact)
    names = [spec.name for spec in bucket.specs]
    given = arrays(3, LENGTH)
    assert bucket.run(given) == 0 and bucket.fault() is None
    for index in outside(kind):
        for place in places(given[kind.input]):
            wrong = {**given, kind.input: given[kind.input].copy()}
            wrong[kind.input][place] = index
            assert bucket.run(wrong) == 2
            error = bucket.fault()
            assert error is not None
            assert (error.index, error.extent) == (index, kind.extent)
            assert (error.table, error.node) == (kind.table.encode(), kind.node.encode())
            assert error.input == names.index(kind.input)
            assert error.position == np.ravel_multi_index(place, given[kind.input].shape)
    library = bucket.library
    assert library.sparsec_bad_index(None, ctypes.byref(IndexFault())) == 1
    assert library.sparsec_bad_index(bucket.workspace, None) == 1


@pytest.mark.parametrize("kind", KINDS[:3], ids=lambda kind: kind.node)
def test_padding_may_hold_any_index(artifact: sparsec.Artifact, kind: Kind) -> None:
    """In lanes, where it is not computed, and row-major, where it is."""
    bucket = Bucket(artifact)
    given = arrays(3, LENGTH)
    given[kind.input][0] = given[kind.input][1, 2:] = given[kind.input][2, 7] = kind.extent
    assert bucket.run(given, [0, 2, 7]) == 0
    assert bucket.run(given, [0, 3, 7]) == 2
    error = bucket.fault()
    assert error is not None and error.position == LENGTH + 2


def test_the_first_of_several_is_named(artifact: sparsec.Artifact) -> None:
    """However many threads there are."""
    given = arrays(70, LENGTH)
    for place in ((69, 7), (40, 1), (3, 5)):
        given["words"][place] = 50 + place[0]
    for cores in (1, 2, 3):
        said = pytest.raises(sparsec.InputError, match=r"'words' has 53 at \[3, 5\]")
        with sparsec.Engine(artifact.path, num_cores=cores) as engine, said:
            engine.run(given)


def test_the_interpreter_raises_index_error(source: Path) -> None:
    loaded = frontend.load_model(source)
    graph = frontend.import_graph(loaded, LENGTH)
    for form in (graph, passes.run(graph)):
        for kind in KINDS:
            given = arrays(2, LENGTH)
            interpret(form, [given[name] for name in form.inputs])
            given[kind.input].flat[0] = kind.extent
            with pytest.raises(IndexError, match=str(kind.extent)):
                interpret(form, [given[name] for name in form.inputs])


def roberta(positions: int) -> onnx.ModelProto:
    """Words and positions that count the tokens that are no padding (1), as in RoBERTa."""
    nodes = [
        node("Equal", "input_ids pad", "is_pad"),
        node("Not", "is_pad", "is_word"),
        node("Cast", "is_word", "ones", to=TensorProto.INT64),
        node("CumSum", "ones axis", "counted"),
        node("Mul", "counted ones", "kept"),
        node("Add", "kept pad", "positions"),
        node("Gather", "words input_ids", "w"),
        node("Gather", "places positions", "p", name="/embeddings/position_embeddings/Gather"),
        node("Add", "w p", "sum"),
        node("LayerNormalization", "sum gamma beta", "normal"),
        node("Unsqueeze", "attention_mask last", "column"),
        node("Cast", "column", "weight", to=TensorProto.FLOAT),
        node("MatMul", "normal weights", "hidden"),
        node("Mul", "hidden weight", "y"),
    ]
    ids = (TensorProto.INT64, ["batch", "sequence"])
    constants = {
        "pad": np.array(1, np.int64),
        "axis": np.array(1, np.int64),
        "last": np.array([2], np.int64),
        "words": numbers(30, 16),
        "places": numbers(positions, 16),
        "gamma": numbers(16),
        "beta": numbers(16),
        "weights": numbers(16, 16),
    }
    return build(nodes, {"input_ids": ids, "attention_mask": ids}, ["y"], constants)


def test_the_engines_own_padding_is_never_outside(tmp_path: Path) -> None:
    """The bucket has more tokens than there are positions; what is padded is no error, text is."""
    path = tmp_path / "model.onnx"
    onnx.save(roberta(8), path)
    artifact = sparsec.compile(path, buckets=[16])
    session = ort_reference.session(path)
    with sparsec.Engine(artifact.path, num_cores=1) as engine:
        for length in range(1, 7):
            ids = RNG.integers(2, 30, (3, length))
            given = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
            np.testing.assert_allclose(
                engine.run(given)[0], session.run(None, given)[0], rtol=0, atol=1e-4
            )
        ids = RNG.integers(2, 30, (3, 7))
        given = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        said = r"looks up index 8, outside the table 'places' of 8 \(node '/embeddings/.*'\)"
        with pytest.raises(sparsec.InputError, match=said):
            engine.run(given)


CONSTANT = {
    "Gather": ("Gather", "x i", {"i": np.array([0, 4])}, {"axis": 1}),
    "GatherElements": ("GatherElements", "r i", {"i": np.full((1, 3), -5)}, {"axis": 0}),
    "folded": ("GatherElements", "c i", {"i": np.full((4, 3), 4), "c": numbers(4, 3)}, {}),
    "GatherND": ("GatherND", "r i", {"i": np.array([[3, 0], [0, 3]])}, {}),
    "ScatterND": ("ScatterND", "r i u", {"i": np.array([[-5]]), "u": numbers(1, 3)}, {}),
    "ScatterElements": ("ScatterElements", "r i u", {"i": np.array([[4]]), "u": numbers(1, 1)}, {}),
}


@pytest.mark.parametrize("case", CONSTANT.values(), ids=CONSTANT)
def test_constants_outside_are_refused_by_the_compiler(tmp_path: Path, case: Any) -> None:
    op, reads, constants, attrs = case
    nodes = [
        node("ReduceMax", "x first", "r", keepdims=0),
        node(op, reads, "y", name="the_node", **attrs),
        node("Identity", "r", "z"),
    ]
    constants = {"first": np.array([0], np.int64), **constants}
    x = (TensorProto.FLOAT, ["batch", 4, 3])
    path = tmp_path / "model.onnx"
    onnx.save(build(nodes, {"x": x}, ["y", "z"], constants), path)
    with pytest.raises(sparsec.UnsupportedError, match=r"the_node .*index -?\d is outside the"):
        sparsec.compile(path)
