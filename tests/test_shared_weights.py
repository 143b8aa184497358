"""One weight in several places, in several forms, is one weight in the artifact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import sparsec
from tests.frontend_support import FLOAT, model_proto, node
from tests.ort_reference import session

WIDTH = 96
X = ("x", FLOAT, ["batch", "sequence", WIDTH])
Y = ("y", FLOAT, [0, 0, 0])

#: Each multiplies by the same matrix; all weights but the first are made of what is stored.
USES = {
    "the same node again": [node("MatMul", "a w", "b")],
    "a copy under another name": [node("MatMul", "a copy", "b")],
    "stored transposed": [node("Transpose", "turned", "back"), node("MatMul", "a back", "b")],
    "a Gemm of the transposed": [
        node("Reshape", "a rows", "flat"),
        node("Gemm", "flat turned", "made", transB=1),
        node("Shape", "a", "cube"),
        node("Reshape", "made cube", "b"),
    ],
    "stored sparse": [node("MatMul", "a coordinates", "b")],
    "reshaped": [node("Reshape", "long square", "w2"), node("MatMul", "a w2", "b")],
}


def weight() -> np.ndarray:
    rng = np.random.default_rng(2)
    w = rng.standard_normal((WIDTH, WIDTH)).astype(np.float32) / WIDTH
    return np.where(rng.random(w.shape) < 0.5, w, np.float32(0))


def model(use: str | None, path: Path) -> None:
    w = weight()
    first = node("MatMul", "x w", "a")
    nodes = [first, *USES[use], node("Relu", "b", "y")] if use else [first, node("Relu", "a", "y")]
    stored = {
        "w": w,
        "copy": w,
        "turned": w.T.copy(),
        "long": w.reshape(-1),
        "rows": np.array([-1, WIDTH]),
        "square": np.array([WIDTH, WIDTH]),
    }
    read = {name for n in nodes for name in n.input}
    proto = model_proto(nodes, [X], [Y], {k: v for k, v in stored.items() if k in read})
    if "coordinates" in read:
        where = np.flatnonzero(w)
        values = numpy_helper.from_array(w.reshape(-1)[where], "coordinates")
        sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(where), w.shape)
        proto.graph.sparse_initializer.append(sparse)
    onnx.save(proto, path)


def size_of_weights(artifact: sparsec.Artifact) -> int:
    return sum(p.stat().st_size for p in artifact.path.glob("weights-*.so"))


@pytest.fixture(scope="module")
def one_use(tmp_path_factory: pytest.TempPathFactory) -> int:
    """Bytes of the weights of a model that has the weight once."""
    path = tmp_path_factory.mktemp("once") / "model.onnx"
    model(None, path)
    return size_of_weights(sparsec.compile(path, buckets=[8]))


@pytest.mark.parametrize("use", USES)
def test_a_weight_is_stored_once(use: str, one_use: int, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    model(use, path)
    artifact = sparsec.compile(path, buckets=[8])
    assert size_of_weights(artifact) <= one_use + 4096
    x = np.random.default_rng(1).standard_normal((2, 8, WIDTH)).astype(np.float32)
    with sparsec.Engine(artifact.path) as engine:
        (got,) = engine.run([x])
    want = np.maximum(x @ weight() @ weight(), 0)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    if use != "stored sparse":  # which ONNX Runtime reads for some ops only
        (ort,) = session(path).run(None, {"x": x})
        np.testing.assert_allclose(got, ort, rtol=1e-4, atol=1e-5)


def test_a_sparse_constant_node(tmp_path: Path) -> None:
    w = weight()
    where = np.argwhere(w)
    values = numpy_helper.from_array(w[tuple(where.T)], "values")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(where), w.shape)
    nodes = [
        helper.make_node("Constant", [], ["w"], sparse_value=sparse),
        node("MatMul", "x w", "y"),
    ]
    path = tmp_path / "model.onnx"
    onnx.save(model_proto(nodes, [X], [Y]), path)
    x = np.random.default_rng(1).standard_normal((1, 8, WIDTH)).astype(np.float32)
    with sparsec.Engine(sparsec.compile(path, buckets=[8]).path) as engine:
        (got,) = engine.run([x])
    np.testing.assert_allclose(got, x @ w, rtol=1e-4, atol=1e-5)


def test_a_sparse_initializer_of_strings_is_listed(tmp_path: Path) -> None:
    nodes = [node("Cast", "words", "w", to=TensorProto.FLOAT), node("Add", "x w", "y")]
    proto = model_proto(nodes, [X], [Y])
    values = helper.make_tensor("words", TensorProto.STRING, [1], [b"a"])
    indices = numpy_helper.from_array(np.array([0]))
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(sparsec.ModelError, match="string"):
        sparsec.compile(path, buckets=[8])
