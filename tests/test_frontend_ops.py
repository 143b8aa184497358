"""Every ONNX op's importer against the standard's own test cases, and the differences of opsets."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sparsec.compiler.frontend import canonicalize, import_graph, load_model, signature
from sparsec.compiler.frontend.importer import IMPORTERS, InputShape, import_nodes
from sparsec.compiler.frontend.load import Model
from sparsec.compiler.interpreter import interpret
from sparsec.errors import UnsupportedError
from tests.frontend_support import FLOAT, INT64, check, node, ops, save, session

# Ops whose cases ONNX does not have, or has only in forms that are not supported here.
NOT_IN_CASES = {"If", "Not"}


def standard_cases() -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.loader import load_model_tests

        return [t for t in load_model_tests(kind="node") if t.model is not None]


def as_array(value: Any) -> np.ndarray:
    """A case's input or output as an array."""
    stored = isinstance(value, onnx.TensorProto)
    return np.asarray(numpy_helper.to_array(value) if stored else value)


def run_case(proto: onnx.ModelProto, arrays: list[np.ndarray], known: int) -> list[np.ndarray]:
    """Import and interpret a one-node model whose inputs from `known` on are initializers."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    inputs = list(copy.graph.input)
    for value, array in zip(inputs[known:], arrays[known:], strict=True):
        copy.graph.initializer.append(numpy_helper.from_array(array, value.name))
    opsets = {o.domain: o.version for o in copy.opset_import}
    model = Model(copy, Path("case.onnx"), "case", Path(), None, "", opsets.get("", 0), opsets)
    shapes = [
        InputShape(v.name, v.type.tensor_type.elem_type, tuple(a.shape))
        for v, a in zip(inputs[:known], arrays[:known], strict=True)
    ]
    graph = canonicalize(import_nodes(model, shapes, 0))
    given = [
        a.astype(graph.values[n].dtype) for a, n in zip(arrays[:known], graph.inputs, strict=True)
    ]
    return interpret(graph, given)


def test_the_standards_own_cases() -> None:
    """With all inputs as constants, all but the first, and none."""
    passed: Counter[str] = Counter()
    for case in standard_cases():
        proto = case.model
        types = {n.op_type for n in proto.graph.node}
        opset = max([o.version for o in proto.opset_import if o.domain == ""], default=0)
        if len(types) != 1 or opset < 7:
            continue
        (op,) = types
        if ("", op) not in IMPORTERS:
            continue
        for given, wanted in case.data_sets:
            if any(isinstance(a, (list, dict)) or a is None for a in (*given, *wanted)):
                continue  # sequences, maps and optionals
            arrays = [as_array(a) for a in given]
            if len(arrays) != len(proto.graph.input):
                continue
            for known in sorted({0, min(1, len(arrays)), len(arrays)}):
                try:
                    got = run_case(proto, arrays, known)
                except UnsupportedError as error:
                    assert "malformed" not in str(error), (case.name, str(error))
                    continue
                for a, b in zip(got, wanted, strict=True):
                    b = as_array(b)
                    half = b.dtype.name in ("float16", "bfloat16")
                    np.testing.assert_allclose(
                        a.astype(np.float64),
                        b.astype(np.float64),
                        rtol=2e-2 if half else max(1e-3, case.rtol),
                        atol=2e-2 if half else 1e-5,
                        err_msg=case.name,
                    )
                    assert a.shape == b.shape, case.name
                passed[op] += 1
    untested = {op for domain, op in IMPORTERS if not domain} - set(passed) - NOT_IN_CASES
    assert not untested
    assert sum(passed.values()) > 1000


def test_function_bodies_of_the_standard(tmp_path: Path) -> None:
    """Ops without an importer come through their ONNX function bodies, with their attributes."""
    x = ("x", FLOAT, ["batch", 6])
    for op, attrs in [("Elu", {"alpha": 0.5}), ("HardSwish", {}), ("Softplus", {}), ("Mish", {}),
                      ("MeanVarianceNormalization", {"axes": [1]}),
                      ("ThresholdedRelu", {"alpha": 0.3}), ("Selu", {})]:  # fmt: skip
        assert ("", op) not in IMPORTERS
        model = save(tmp_path, [node(op, "x", "y", **attrs)], [x], [("y", FLOAT, [0, 0])], opset=18)
        check(model, lengths=(0,), tolerance=2e-6)
    bad = save(
        tmp_path,
        [helper.make_node("GroupNormalization", ["x", "s", "s"], ["y"], name="g", num_groups=2)],
        [("x", FLOAT, ["batch", 4, "sequence"])],
        [("y", FLOAT, [0, 0, 0])],
        {"s": np.ones(4, np.float32)},
        opset=21,
    )
    check(bad, tolerance=1e-5)


TOKENS = ("x", FLOAT, ["batch", "sequence", 6])
OUT = ("y", FLOAT, [0, 0, 0])


@pytest.mark.parametrize(
    ("opset", "nodes", "constants"),
    [
        (11, [node("Softmax", "x", "y", axis=1)], {}),
        (12, [node("LogSoftmax", "x", "y", axis=2)], {}),
        (13, [node("Softmax", "x", "y", axis=1)], {}),
        (13, [node("LogSoftmax", "x", "y")], {}),
        (10, [node("Clip", "x", "y", min=-0.5, max=0.25)], {}),
        (11, [node("Clip", "x _ h", "y")], {"h": np.float32(0.25)}),
        (11, [node("ReduceSum", "x", "y", axes=[-1])], {}),
        (13, [node("ReduceSum", "x a", "y")], {"a": [-1]}),
        (13, [node("ReduceSum", "x _", "y", noop_with_empty_axes=1)], {}),
        (17, [node("ReduceMean", "x", "y", axes=[1, 2])], {}),
        (18, [node("ReduceMean", "x a", "y")], {"a": [1, 2]}),
        (17, [node("ReduceL2", "x", "y", axes=[2])], {}),
        (11, [node("Unsqueeze", "x", "u", axes=[0, -1]),
              node("Squeeze", "u", "y", axes=[0, 4])], {}),
        (13, [node("Unsqueeze", "x a", "u"), node("Squeeze", "u b", "y")], {"a": [1], "b": [1]}),
        (9, [node("Slice", "x", "y", starts=[1], ends=[2**31 - 1], axes=[2])], {}),
        (11, [node("Slice", "x a b c d", "y")], {"a": [-1], "b": [-(2**63)], "c": [2], "d": [-2]}),
        (11, [node("Split", "x", "p q", axis=2, split=[2, 4]),
              node("Concat", "q p", "y", axis=-1)], {}),
        (13, [node("Split", "x s", "p q", axis=2),
              node("Concat", "q p", "y", axis=-1)], {"s": [1, 5]}),
        (18, [node("Split", "x", "p q r", axis=2, num_outputs=3),
              node("Concat", "r p", "y", axis=-1)], {}),
        (10, [node("Pad", "x", "y", pads=[0, 0, 2, 0, 0, -3], value=1.5)], {}),
        (18, [node("Pad", "x p v a", "y")], {"p": [2, 1], "v": np.float32(3), "a": [-1]}),
        (17, [node("LayerNormalization", "x g", "y", axis=-1)], {"g": np.arange(6, dtype="f4")}),
        (17, [node("LayerNormalization", "x g b", "y", epsilon=1e-3)],
             {"g": np.arange(6, dtype="f4"), "b": np.ones(6, "f4")}),
        (20, [node("Gelu", "x", "y", approximate="tanh")], {}),
        (12, [node("Dropout", "x", "y")], {}),
        (17, [node("Trilu", "x k", "y", upper=0)], {"k": np.array(-1)}),
        (17, [node("Tile", "x r", "y")], {"r": [1, 1, 3]}),
        (17, [node("Tile", "c r", "d"), node("Add", "x d", "y")],
             {"c": np.float32([[[1, 2]]]), "r": [1, 1, 3]}),
        (17, [node("Gather", "x i", "y", axis=2)], {"i": [-1, 0, 0]}),
        (17, [node("Gather", "x i", "u", axis=1), node("Unsqueeze", "u a", "y")],
             {"i": np.array(-1), "a": [1]}),
        (17, [node("CumSum", "x a", "y", reverse=1, exclusive=1)], {"a": np.array(1)}),
        (17, [node("Transpose", "x", "y", perm=[2, 0, 1])], {}),
        (17, [node("Sum", "x x c", "y")], {"c": np.float32([1] * 6)}),
        (17, [node("Mean", "x c", "y")], {"c": np.float32([1] * 6)}),
        (17, [node("LeakyRelu", "x", "y", alpha=0.2)], {}),
        (17, [node("PRelu", "x s", "y")], {"s": np.float32([0.1] * 6)}),
        (17, [node("Abs", "x", "a"), node("PRelu", "a s", "y")],
             {"s": np.float32([np.inf, -np.inf, np.nan, -1, 0, 3e38])}),
        (17, [node("HardSigmoid", "x", "y", alpha=0.7)], {}),
        (17, [node("Cos", "c", "d"), node("Mul", "x d", "y")], {"c": np.arange(6, dtype="f4")}),
        (17, [node("Pow", "x e", "y")], {"e": np.array(3)}),
        (17, [node("Flatten", "x", "f", axis=2), node("Softmax", "f", "g"),
              node("Shape", "x", "s"), node("Reshape", "g s", "y")], {}),
        (17, [node("Size", "x", "n"), node("Shape", "x", "s"),
              node("ReduceProd", "s", "p", keepdims=0),
              node("Equal", "n p", "e"), node("Where", "e x c", "y")], {"c": np.float32(0)}),
        (17, [node("Greater", "x c", "g"), node("IsNaN", "x", "i"), node("Xor", "g i", "z"),
              node("Where", "z x c", "y")], {"c": np.float32(0.5)}),
        (17, [node("Div", "x c", "d"), node("IsInf", "d", "i", detect_negative=0),
              node("Where", "i c x", "y")], {"c": np.float32(0)}),
        (17, [node("Div", "x c", "d"),
              node("IsInf", "d", "i", detect_negative=0, detect_positive=0),
              node("Where", "i c x", "y")], {"c": np.float32(0)}),
    ],
)  # fmt: skip
def test_opset_differences(
    tmp_path: Path, opset: int, nodes: list[onnx.NodeProto], constants: dict[str, Any]
) -> None:
    check(save(tmp_path, nodes, [TOKENS], [OUT], constants, opset=opset), tolerance=2e-6)


def test_equal_parts_before_opset_18(tmp_path: Path) -> None:
    """What ONNX Runtime refuses, too."""
    model = save(tmp_path, [node("Split", "x", "p q r y", axis=2)], [TOKENS], [OUT], opset=13)
    with pytest.raises(UnsupportedError, match="6 elements of axis 2 cannot be split into 4 equal"):
        import_graph(model, 4)


def test_gemm(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((6, 3)).astype(np.float32)
    for attrs, weight, bias in [
        ({}, w, [3]),
        ({"transB": 1, "alpha": 0.5}, w.T, [1, 3]),
        ({"transB": 1, "beta": 2.0}, w.T, [1]),
    ]:
        constants = {"w": weight, "b": rng.standard_normal(bias).astype(np.float32)}
        nodes = [node("Gemm", "x w b", "y", **attrs)]
        model = save(
            tmp_path, nodes, [("x", FLOAT, ["batch", 6])], [("y", FLOAT, [0, 0])], constants
        )
        assert ops(check(model, lengths=(0,)))["linear"] == 1


def test_if_with_a_known_condition(tmp_path: Path) -> None:
    def branch(op: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(f"{op}_out", FLOAT, None)
        return helper.make_graph([node(op, "x", f"{op}_out")], op, [], [out])

    pick = [
        node("Shape", "x", "s"),
        node("Gather", "s two", "k"),
        node("Equal", "k six", "c"),
        helper.make_node("If", ["c"], ["y"], then_branch=branch("Relu"), else_branch=branch("Neg")),
    ]
    model = save(tmp_path, pick, [TOKENS], [OUT], {"two": np.array(2), "six": np.array(6)})
    assert ops(check(model)) == {"relu": 1}


def test_if_with_a_condition_at_run_time(tmp_path: Path) -> None:
    def branch(op: str, **attrs: Any) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(f"{op}_out", FLOAT, None)
        return helper.make_graph([node(op, "x", f"{op}_out", **attrs)], op, [], [out])

    def graph(otherwise: onnx.GraphProto) -> list[onnx.NodeProto]:
        pick = helper.make_node("If", ["c"], ["y"], then_branch=branch("Relu"))
        pick.attribute.append(helper.make_attribute("else_branch", otherwise))
        return [node("ReduceSum", "x", "r", keepdims=0), node("Greater", "r zero", "c"), pick]

    constants = {"zero": np.float32(0)}
    model = save(tmp_path, graph(branch("Neg")), [TOKENS], [OUT], constants)
    assert ops(check(model))["where"] == 1
    turned = branch("Transpose", perm=[0, 2, 1])
    model = save(tmp_path, graph(turned), [TOKENS], [OUT], constants)
    with pytest.raises(UnsupportedError, match=r"If.*branches give"):
        import_graph(model, 3)


def test_contrib_ops(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    f4 = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    ms = {"domain": "com.microsoft"}
    constants = {"g": f4(6), "b": f4(6), "w": f4(6, 5), "c": f4(5), "skip": f4(1, 1, 6)}
    chain = [
        node("Add", "x skip", "x2"),
        node("SkipLayerNormalization", "x x2 g b", "n _ _ t", epsilon=1e-5, **ms),
        node("Add", "n t", "u"),
        node("BiasGelu", "u b", "v", **ms),
        node("FusedMatMul", "v v", "z", transB=1, alpha=0.25, **ms),
        node("FastGelu", "z", "y", **ms),
    ]
    check(save(tmp_path, chain, [TOKENS], [OUT], constants), tolerance=1e-5)
    integer = {
        "w8": rng.integers(-127, 128, (6, 5)).astype(np.int8),
        "ws": np.float32(0.01),
        "wz": np.int8(0),
        "xs": np.float32(0.02),
        "xz": np.uint8(120),
        "bias": f4(5),
    }
    for nodes in (
        [node("DynamicQuantizeMatMul", "x w8 ws wz bias", "y", **ms)],
        [
            node("QuantizeLinear", "x xs xz", "q"),
            node("MatMulIntegerToFloat", "q w8 xs ws xz wz bias", "y", **ms),
        ],
    ):
        check(save(tmp_path, nodes, [TOKENS], [OUT], integer), tolerance=1e-5)


def test_half_floats_are_widened(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    half = rng.standard_normal((6, 5)).astype(np.float16)
    nodes = [
        node("Cast", "x", "h", to=10),
        node("MatMul", "h w", "m"),
        node("Cast", "m", "y", to=1),
    ]
    model = save(tmp_path, nodes, [TOKENS], [OUT], {"w": half})
    graph = import_graph(model, 4)
    assert ops(graph) == {"linear": 1}
    x = rng.standard_normal((2, 4, 6)).astype(np.float32)
    np.testing.assert_allclose(interpret(graph, [x])[0], x @ half.astype(np.float32), rtol=1e-5)


def test_nothing_is_left_of_identities(tmp_path: Path) -> None:
    nodes = [
        node("Identity", "x", "a"),
        node("Dropout", "a", "b"),
        node("Cast", "b", "c", to=1),
        node("Shape", "c", "s"),
        node("Reshape", "c s", "d"),
        node("Expand", "d s", "e"),
        node("Transpose", "e", "f", perm=[0, 1, 2]),
        node("Slice", "f zero big two", "g"),
        node("Concat", "g", "h", axis=1),
        node("Relu", "h", "y"),
    ]
    constants = {"zero": [0], "big": [2**63 - 1], "two": [2]}
    assert ops(check(save(tmp_path, nodes, [TOKENS], [OUT], constants))) == {"relu": 1}


def test_sources_are_onnx_names(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["hidden"], name="/layer.0/act"),
        node("Tanh", "hidden", "y"),
    ]
    graph = import_graph(save(tmp_path, nodes, [TOKENS], [OUT]), 3)
    assert [n.source for n in graph.nodes] == ["/layer.0/act", "Tanh_1"]
    assert graph.nodes[0].output == "hidden"
    assert graph.output_names == ("y",)
    assert load_model(tmp_path).opsets == {"": 17, "com.microsoft": 1}


def test_outputs_may_be_inputs_and_constants(tmp_path: Path) -> None:
    nodes = [node("Shape", "x", "s"), node("Gather", "s two", "k"), node("Identity", "x", "same")]
    outputs = [("k", INT64, []), ("same", FLOAT, [0, 0, 0])]
    check(save(tmp_path, nodes, [TOKENS], outputs, {"two": np.array(2)}), tolerance=0)


GRID = np.random.default_rng(5).standard_normal((1, 6, 4, 4)).astype(np.float32)
CHANNELS = {
    name: np.random.default_rng(i).uniform(0.5, 2, 6).astype(np.float32)
    for i, name in enumerate(("gamma", "beta", "mean", "variance"))
}


@pytest.mark.parametrize(
    "nodes",
    [
        [node("Resize", "grid _ scales", "c", mode="nearest")],
        [node("Resize", "grid _ scales", "c", mode="linear")],
        [node("Resize", "grid _ _ sizes", "c", mode="cubic", cubic_coeff_a=-0.5)],
        [node("ConvTranspose", "grid kernel", "c")],
        [node("BatchNormalization", "grid gamma beta mean variance", "n"),
         node("MaxPool", "n", "p", kernel_shape=[2, 2], strides=[2, 2]),
         node("GlobalAveragePool", "p", "c")],
        [node("EyeLike", "square", "c"), ],
        [node("Shape", "x", "s", start=1), node("Cast", "s", "u", to=TensorProto.UINT32),
         node("BitShift", "u one", "b", direction="RIGHT"), node("Cast", "b", "v", to=INT64),
         node("Unique", "v", "w"),
         node("Cast", "w", "f", to=FLOAT), node("ReduceSum", "f", "c", keepdims=0)],
        [node("If", "true", "c", then_branch=helper.make_graph(
            [node("Atan", "one_f", "t")], "then", [],
            [helper.make_tensor_value_info("t", FLOAT, [1])]),
          else_branch=helper.make_graph(
            [node("Neg", "one_f", "e")], "else", [],
            [helper.make_tensor_value_info("e", FLOAT, [1])]))],
    ],
)  # fmt: skip
def test_ops_of_constants_are_computed_by_the_reference(
    tmp_path: Path, nodes: list[onnx.NodeProto]
) -> None:
    constants = {
        "grid": GRID,
        "scales": np.array([1, 1, 1.25, 1.25], np.float32),
        "sizes": np.array([1, 6, 5, 5]),
        "kernel": np.random.default_rng(1).standard_normal((6, 6, 2, 2)).astype(np.float32),
        "square": np.zeros((5, 5), np.float32),
        "one": np.array([1], np.uint32),
        "one_f": np.ones(1, np.float32),
        "true": np.array(True),
        **CHANNELS,
    }
    x, y = ("x", FLOAT, ["batch", 6, 5, 5]), ("y", FLOAT, [0] * 4)
    model = save(tmp_path, [*nodes, node("Add", "x c", "y")], [x], [y], constants)
    assert ops(check(model, lengths=(0,))) == {"add": 1}
    assert signature(load_model(model.path)).outputs[0].shape == ("batch", 6, 5, 5)


@pytest.mark.parametrize(
    "nodes",
    [
        [node("RandomNormalLike", "square", "c")],
        [node("Bernoulli", "square", "c")],
        [helper.make_node("RandomUniform", [], ["c"], shape=[5, 5])],
        [node("Resize", "grid _ huge", "r", mode="nearest"), node("ReduceMax", "r", "c")],
        [node("ConvTranspose", "grid square", "c")],
        [node("Shape", "x", "s"), node("Cast", "s", "u", to=TensorProto.UINT32),
         node("BitShift", "u one", "v", direction="RIGHT"), node("ReduceSum", "v", "w", keepdims=0),
         node("Cast", "w", "c", to=FLOAT)],
    ],
)  # fmt: skip
def test_what_the_reference_is_not_asked_for(tmp_path: Path, nodes: list[onnx.NodeProto]) -> None:
    """Random numbers, gigantic or impossible results, and what depends on the batch."""
    constants = {
        "grid": GRID,
        "square": np.full((5, 5), 0.5, np.float32),
        "huge": np.array([1, 1, 1e6, 1e6], np.float32),
        "one": np.array([1], np.uint32),
    }
    x, y = ("x", FLOAT, ["batch", 6, 5, 5]), ("y", FLOAT, [0] * 4)
    model = save(tmp_path, [*nodes, node("Add", "x c", "y")], [x], [y], constants)
    with pytest.raises(UnsupportedError):
        signature(model)


@pytest.mark.parametrize("attrs", [{}, {"epsilon": 0.5}])
def test_batch_normalization(tmp_path: Path, attrs: dict[str, Any]) -> None:
    for shape in (["batch", 6], ["batch", 6, "sequence"], ["batch", 6, 3, 2]):
        x, y = ("x", FLOAT, shape), ("y", FLOAT, shape)
        norm = node("BatchNormalization", "x gamma beta mean variance", "y", **attrs)
        model = save(tmp_path, [norm], [x], [y], CHANNELS)
        assert ops(check(model, lengths=(7,) if "sequence" in shape else (0,))) == {
            "mul": 1,
            "add": 1,
        }
    training = node("BatchNormalization", "x gamma beta mean variance", "y m v", training_mode=1)
    with pytest.raises(UnsupportedError, match="eval mode"):
        signature(save(tmp_path, [training], [x], [y], CHANNELS))


FAR = (10**9, -(10**9), 2**31 - 1, -(2**31), 2**63 - 1, -(2**63))


@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_slices_from_and_to_far_away(tmp_path: Path, kind: Any) -> None:
    """All in one model: starts, ends and steps beyond any extent, forwards and backwards."""
    far = [n for n in FAR if np.iinfo(kind).min <= n <= np.iinfo(kind).max]
    cuts = [(s, e, t) for s in (0, 2, -1, *far) for e in (0, -1, *far) for t in (1, 2, -1, -2)]
    cuts += [(s, e, t) for s, e in ((0, 5), (-1, far[-1])) for t in far]
    constants = {"axis": np.array([1], kind), "first": np.array([0], kind)}
    nodes = []
    for i, cut in enumerate(cuts):
        constants |= {f"{n}{i}": np.array([v], kind) for n, v in zip("set", cut, strict=True)}
        nodes.append(node("Slice", f"x s{i} e{i} axis t{i}", f"y{i}"))
    # The batch: from the beginning, or before it, to the end, or behind it.
    for i, n in enumerate(far):
        constants[f"f{i}"] = np.array([min(n, 0)], kind)
        constants[f"l{i}"] = np.array([max(n, 10**9)], kind)
        nodes.append(node("Slice", f"x f{i} l{i} first", f"z{i}"))
    made = [name for n in nodes for name in n.output]
    model = save(
        tmp_path, nodes, [("x", FLOAT, ["batch", 5])], [(n, FLOAT, [0, 0]) for n in made], constants
    )
    graph = import_graph(model, 0)
    for batch in (1, 3):
        x = np.random.default_rng(batch).standard_normal((batch, 5)).astype(np.float32)
        wanted = session(model.path).run(None, {"x": x})
        for name, got, want in zip(made, interpret(graph, [x]), wanted, strict=True):
            assert got.shape == want.shape and np.array_equal(got, want), name


def test_triangles_from_far_away(tmp_path: Path) -> None:
    for k in (2**63 - 1, -(2**63), 10**9):
        model = save(
            tmp_path,
            [node("Trilu", "x k", "y")],
            [("x", FLOAT, ["batch", 3, 4])],
            [("y", FLOAT, [0] * 3)],
            {"k": np.array(k)},
        )
        (y,) = interpret(import_graph(model, 0), [np.ones((2, 3, 4), np.float32)])
        assert np.all(y == (k < 0))
