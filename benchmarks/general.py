"""Single ops on general kernels against ONNX Runtime, with as many threads.

    python benchmarks/general.py                    saves to benchmarks/results
    python benchmarks/general.py --only softmax     cases whose names hold a word; saves nothing

Each case is a model of one op at a shape that encoders or image models have.  Both engines run it
in one process, in turns, and their outputs are compared.  ONNX Runtime has all its optimizations
on.  At last, each general kernel of the compiler's table is timed on its case (``cases.py``), on
one thread.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parents[1]
if __package__ in (None, ""):  # run as a script
    sys.path[0] = str(ROOT)

import sparsec  # noqa: E402
from benchmarks.harness import kernels, machine, report  # noqa: E402
from sparsec import targets  # noqa: E402
from sparsec.compiler.codegen.table import GENERAL  # noqa: E402
from sparsec.runtime import cpu  # noqa: E402

F32 = np.float32
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """A model of one node.

    Attributes:
        name: the op and what distinguishes the case.
        op: ONNX op.
        inputs: operands at run time, in the node's order with `constants`; None: an absent one.
        constants: operands that the model holds; they follow the inputs.
        attrs: the node's attributes.
        outputs: how many results it has.
        near: difference from ONNX Runtime that rounding explains, relative for values above 1;
            of integers that are rounded to, 1.
    """

    name: str
    op: str
    inputs: Sequence[np.ndarray]
    constants: Sequence[np.ndarray | None] = ()
    attrs: Mapping[str, Any] = field(default_factory=dict)
    outputs: int = 1
    near: float = 1e-5

    def feeds(self) -> dict[str, np.ndarray]:
        """The inputs by name, and two that nobody reads (see :meth:`model`)."""
        given = {f"x{i}": a for i, a in enumerate(self.inputs)}
        return given | {f"anchor{k}": np.zeros((k, k), np.int32) for k in (1, 2)}

    def model(self) -> onnx.ModelProto:
        """The case as a model.

        Two inputs of other extents keep the leading extent from being taken for a batch.
        """
        feeds = self.feeds()
        given = [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in feeds.items()
        ]
        names = [n for n in feeds if n.startswith("x")]
        stored = [
            numpy_helper.from_array(a, f"c{i}")
            for i, a in enumerate(self.constants)
            if a is not None
        ]
        names += [f"c{i}" if a is not None else "" for i, a in enumerate(self.constants)]
        made = [f"y{i}" for i in range(self.outputs)]
        node = helper.make_node(self.op, names, made, **self.attrs)
        ends = [helper.make_empty_tensor_value_info(n) for n in made]
        graph = helper.make_graph([node], "general", given, ends, stored)
        opsets = [helper.make_opsetid("", 20)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
        return onnx.shape_inference.infer_shapes(model)


RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    """Standard normal float32."""
    return RNG.standard_normal(shape).astype(F32)


def whole(dtype: Any, *shape: int) -> np.ndarray:
    """Integers of the whole range of an 8-bit type, or below 100."""
    info = np.iinfo(dtype)
    low, high = (info.min, info.max + 1) if info.bits == 8 else (0, 100)
    return RNG.integers(low, high, shape).astype(dtype)


def ints(*values: int) -> np.ndarray:
    """An int64 parameter."""
    return np.array(values, np.int64)


def elementwise() -> Iterator[Case]:
    """Unary and binary ops at the widths of BERT's layers and on attention scores."""
    wide, scores = normal(128, 3072), normal(1, 12, 128, 128)
    unary = "Abs Neg Exp Erf Tanh Sigmoid Relu Gelu Sin Cos Sqrt Reciprocal Floor Round Sign"
    for op in unary.split():
        x = np.abs(wide) + F32(0.01) if op in ("Sqrt", "Reciprocal") else wide
        yield Case(f"{op} 128x3072", op, [x])
    yield Case("Gelu tanh 128x3072", "Gelu", [wide], attrs={"approximate": "tanh"})
    yield Case("Sin up to 1e30", "Sin", [(wide * F32(1e30))[:32]])
    yield Case("Log 128x3072", "Log", [np.abs(wide) + F32(0.01)])
    yield Case("Pow 2", "Pow", [wide], [np.array(2, F32)])
    yield Case("Pow 1.7", "Pow", [np.abs(wide)], [np.array(1.7, F32)], near=1e-4)
    yield Case("Add same shape", "Add", [wide, normal(128, 3072)])
    yield Case("Add row", "Add", [wide, normal(3072)])
    yield Case("Mul column", "Mul", [wide, normal(128, 1)])
    yield Case("Div number", "Div", [scores], [np.array(8, F32)])
    yield Case("Add mask to scores", "Add", [scores, normal(1, 1, 1, 128)])
    yield Case("Max", "Max", [wide, normal(3072)])
    yield Case("Mod int64", "Mod", [whole(np.int64, 128, 768), whole(np.int64, 768) + 1])
    yield Case("Clip", "Clip", [wide], [np.array(-1, F32), np.array(1, F32)])
    yield Case("Less", "Less", [wide, normal(3072)])
    yield Case("And", "And", [wide > 0, wide[:1] < 1])
    yield Case("Where on scores", "Where", [RNG.random((1, 1, 128, 128)) < 0.5, scores, normal(1)])
    yield Case(
        "Cast int64 to float", "Cast", [whole(np.int64, 128, 3072)], attrs={"to": TensorProto.FLOAT}
    )
    yield Case("Cast float to int64", "Cast", [wide * 50], attrs={"to": TensorProto.INT64})
    yield Case("Cast bool to float", "Cast", [wide > 0], attrs={"to": TensorProto.FLOAT})
    step, zero = np.array(0.02, F32), np.array(3, np.uint8)
    yield Case("QuantizeLinear", "QuantizeLinear", [wide], [step, zero], near=1)
    steps, zeros = np.abs(normal(3072)) + F32(0.01), np.zeros(3072, np.int8)
    along = {"axis": 1}
    yield Case("QuantizeLinear axis", "QuantizeLinear", [wide], [steps, zeros], along, near=1)
    yield Case("DequantizeLinear", "DequantizeLinear", [whole(np.uint8, 128, 3072)], [step, zero])
    yield Case("DynamicQuantizeLinear", "DynamicQuantizeLinear", [wide], outputs=3, near=1)


def reductions() -> Iterator[Case]:
    """Along each axis, softmax and normalization."""
    x, scores = normal(128, 768), normal(1, 12, 128, 128)
    image = normal(1, 64, 56, 56)
    for op in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceL2"):
        for axis in (0, 1):
            yield Case(f"{op} axis {axis} of 128x768", op, [x], [ints(axis)])
    yield Case("ReduceMean of images", "ReduceMean", [image], [ints(2, 3)])
    yield Case("ReduceSum axis 1 of images", "ReduceSum", [image], [ints(1)])
    yield Case("ReduceProd", "ReduceProd", [1 + x / 1000], [ints(1)])
    yield Case("Softmax scores 128", "Softmax", [scores], attrs={"axis": -1})
    yield Case("Softmax scores 384", "Softmax", [normal(1, 12, 384, 384)], attrs={"axis": -1})
    yield Case("Softmax middle axis", "Softmax", [scores], attrs={"axis": 2})
    yield Case("Softmax first axis", "Softmax", [x], attrs={"axis": 0})
    yield Case("Softmax vocabulary", "Softmax", [normal(16, 30522)], attrs={"axis": -1})
    yield Case("LogSoftmax", "LogSoftmax", [scores], attrs={"axis": -1})
    last = {"axis": -1}
    yield Case("LayerNorm 768", "LayerNormalization", [x, normal(768), normal(768)], attrs=last)
    yield Case("LayerNorm 384", "LayerNormalization", [normal(128, 384), normal(384)], attrs=last)
    yield Case("LpNormalization", "LpNormalization", [x], attrs={"axis": -1, "p": 2})
    yield Case("CumSum last axis", "CumSum", [x], [np.array(1, np.int64)], near=1e-3)
    yield Case("CumSum first axis", "CumSum", [x], [np.array(0, np.int64)], near=1e-3)
    yield Case("CumSum int64", "CumSum", [whole(np.int64, 16, 384)], [np.array(1, np.int64)])
    for axis in (0, 1):
        yield Case(f"ArgMax axis {axis}", "ArgMax", [x], attrs={"axis": axis})
    yield Case("TopK 10 of 768", "TopK", [x], [ints(10)], outputs=2)
    yield Case("TopK 100 of 30522", "TopK", [normal(8, 30522)], [ints(100)], outputs=2)


def layout() -> Iterator[Case]:
    """Copies: transposes, gathers, joins and cuts."""
    heads, back = normal(1, 128, 12, 64), normal(1, 12, 128, 64)
    shapes = {(0, 2, 1, 3): heads, (0, 2, 3, 1): heads, (0, 1, 3, 2): back}
    for perm, x in shapes.items():
        name = f"Transpose {''.join(map(str, perm))}"
        yield Case(name, "Transpose", [x], attrs={"perm": perm})
    yield Case("Transpose 10", "Transpose", [normal(768, 768)], attrs={"perm": (1, 0)})
    yield Case("Transpose int8", "Transpose", [whole(np.int8, 768, 768)], attrs={"perm": (1, 0)})
    nhwc = {"perm": (0, 2, 3, 1)}
    yield Case("Transpose images to NHWC", "Transpose", [normal(1, 64, 56, 56)], attrs=nhwc)
    x = normal(128, 768)
    yield Case("Gather embeddings", "Gather", [normal(3000, 768), RNG.integers(0, 3000, (1, 128))])
    yield Case("Gather elements of rows", "Gather", [x, whole(np.int64, 64)], attrs={"axis": 1})
    at = RNG.integers(0, 256, (12, 128, 128))
    yield Case("GatherElements", "GatherElements", [normal(12, 128, 256), at], attrs={"axis": 2})
    yield Case("GatherND", "GatherND", [x, RNG.integers(0, 128, (128, 1))])
    places = RNG.permutation(128)[:, None].astype(np.int64)
    yield Case("ScatterND", "ScatterND", [x, places, normal(128, 768)])
    yield Case("Concat last", "Concat", [normal(1, 12, 128, 32)] * 2, attrs={"axis": -1})
    yield Case("Concat middle", "Concat", [normal(1, 64, 768)] * 2, attrs={"axis": 1})
    yield Case("Split", "Split", [back], attrs={"axis": -1, "num_outputs": 2}, outputs=2)
    wide = normal(128, 3072)
    yield Case("Slice half", "Slice", [wide], [ints(0), ints(1536), ints(1), ints(1)])
    yield Case("Slice every other", "Slice", [wide], [ints(0), ints(3072), ints(1), ints(2)])
    yield Case("Expand", "Expand", [normal(1, 1, 128, 128)], [ints(1, 12, 128, 128)])
    yield Case("Tile", "Tile", [normal(64, 128)], [ints(3, 4)])
    yield Case("Pad images", "Pad", [normal(1, 64, 56, 56)], [ints(0, 0, 1, 1, 0, 0, 1, 1)])
    yield Case("Trilu", "Trilu", [normal(12, 128, 128)])
    values = np.array([0, 1], F32)
    yield Case("OneHot", "OneHot", [whole(np.int64, 12, 128)], [np.array(128), values])


def products() -> Iterator[Case]:
    """Matrix products of two run-time operands, float and 8-bit."""
    q, k, v = normal(1, 12, 128, 64), normal(1, 12, 64, 128), normal(1, 12, 128, 64)
    yield Case("MatMul scores", "MatMul", [q, k], near=1e-4)
    yield Case("MatMul scores times values", "MatMul", [normal(1, 12, 128, 128), v], near=1e-4)
    for m, depth, n in ((1, 768, 768), (16, 768, 768), (128, 768, 768), (128, 768, 3072)):
        operands = [normal(m, depth), normal(depth, n)]
        yield Case(f"MatMul {m}x{depth}x{n}", "MatMul", operands, near=1e-3)
    yield Case("MatMul 128x3072x768", "MatMul", [normal(128, 3072), normal(3072, 768)], near=1e-3)
    yield Case("MatMul vector", "MatMul", [normal(128, 768), normal(768)], near=1e-3)
    flipped = {"transB": 1}
    weights = [normal(768, 768), normal(768)]
    yield Case("Gemm transB constant", "Gemm", [normal(128, 768)], weights, flipped, near=1e-3)
    yield Case(
        "Gemm transB", "Gemm", [normal(128, 768), normal(768, 768)], attrs=flipped, near=1e-3
    )
    scores = {"equation": "bhid,bhjd->bhij"}
    yield Case("Einsum scores", "Einsum", [q, v], attrs=scores, near=1e-4)
    for m, depth, n in ((16, 768, 768), (128, 768, 768), (128, 768, 3072)):
        operands = [whole(np.uint8, m, depth), whole(np.int8, depth, n)]
        yield Case(f"MatMulInteger {m}x{depth}x{n}", "MatMulInteger", operands)
    zeros = [np.array(128, np.uint8), np.array(3, np.uint8)]
    operands = [whole(np.uint8, 128, 768), whole(np.uint8, 768, 768)]
    yield Case("MatMulInteger u8u8 zero points", "MatMulInteger", operands, zeros)
    heads = [whole(np.uint8, 1, 12, 128, 64), whole(np.int8, 1, 12, 64, 128)]
    yield Case("MatMulInteger scores", "MatMulInteger", heads)
    a, b = whole(np.uint8, 128, 768), whole(np.int8, 768, 768)
    one = [np.array(0.02, F32), np.array(128, np.uint8)]
    two = [np.array(0.01, F32), np.array(0, np.int8)]
    out = [np.array(4, F32), np.array(128, np.uint8)]
    yield Case("QLinearMatMul", "QLinearMatMul", [a, *one, b, *two, *out], near=1)


def convolutions() -> Iterator[Case]:
    """Patches of transformers, and the convolutions of image models."""

    def conv(name: str, x: Sequence[int], w: Sequence[int], **attrs: Any) -> Case:
        return Case(f"Conv {name}", "Conv", [normal(*x)], [normal(*w)], attrs, near=1e-3)

    same = {"pads": [1, 1, 1, 1]}
    yield conv("patches 16x16", (1, 3, 224, 224), (768, 3, 16, 16), strides=[16, 16])
    yield conv("3x3, 32 to 64 of 56x56", (1, 32, 56, 56), (64, 32, 3, 3), **same)
    yield conv("3x3, 256 to 256 of 14x14", (1, 256, 14, 14), (256, 256, 3, 3), **same)
    yield conv("3x3 stride 2", (1, 64, 56, 56), (128, 64, 3, 3), strides=[2, 2], **same)
    stem = {"strides": [2, 2], "pads": [3, 3, 3, 3]}
    yield conv("7x7 stride 2, stem", (1, 3, 224, 224), (64, 3, 7, 7), **stem)
    yield conv("1x1, 256 to 64 of 28x28", (1, 256, 28, 28), (64, 256, 1, 1))
    yield conv("1x1 stride 2", (1, 256, 56, 56), (128, 256, 1, 1), strides=[2, 2])
    yield conv("depthwise 3x3", (1, 64, 56, 56), (64, 1, 3, 3), group=64, **same)
    fast = {"strides": [2, 2], "group": 64}
    yield conv("depthwise 3x3 stride 2", (1, 64, 56, 56), (64, 1, 3, 3), **fast, **same)
    wide = {"pads": [3, 3, 3, 3], "group": 96}
    yield conv("depthwise 7x7", (1, 96, 28, 28), (96, 1, 7, 7), **wide)
    yield conv("32 groups", (1, 128, 28, 28), (128, 4, 3, 3), group=32, **same)
    yield conv("dilated", (1, 64, 28, 28), (64, 64, 3, 3), dilations=[2, 2], pads=[2, 2, 2, 2])
    yield conv("1-d, 3 wide", (1, 768, 128), (768, 768, 3), pads=[1, 1])
    grouped = {"pads": [64, 64], "group": 16}
    yield conv("1-d positions, 16 groups", (1, 768, 128), (768, 48, 128), **grouped)
    x, w = whole(np.uint8, 1, 64, 56, 56), whole(np.int8, 64, 64, 3, 3)
    zero = np.array(7, np.uint8)
    yield Case("ConvInteger 3x3", "ConvInteger", [x], [w, zero], same)
    scales = [np.array(0.02, F32), zero]
    out = [w, np.array(0.01, F32), np.array(0, np.int8), np.array(20, F32), zero]
    yield Case("QLinearConv 3x3", "QLinearConv", [x, *scales], out, same, near=1)
    out[0] = whole(np.int8, 64, 1, 3, 3)
    deep = {"group": 64, **same}
    yield Case("QLinearConv depthwise", "QLinearConv", [x, *scales], out, deep, near=1)


FAMILIES: dict[str, Callable[[], Iterator[Case]]] = {
    "elementwise": elementwise,
    "reductions": reductions,
    "layout": layout,
    "products": products,
    "convolutions": convolutions,
}


@dataclass(frozen=True)
class Result:
    """Medians of one case.

    Attributes:
        ours, theirs: microseconds.
        ratio: median over the rounds of ours / theirs.
        difference: largest difference of the outputs.
        agrees: it is what rounding explains.
    """

    name: str
    family: str
    ours: float
    theirs: float
    ratio: float
    difference: float
    agrees: bool


def slice_of(run: Callable[[], object], seconds: float) -> float:
    """Mean microseconds of as many calls as fit into the time, the first not counted."""
    run()
    start = time.perf_counter()
    run()
    calls = max(1, int(seconds / max(time.perf_counter() - start, 1e-6)))
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls * 1e6


def measure(
    case: Case, family: str, folder: Path, threads: int, target: str, rounds: int, seconds: float
) -> Result:
    """Compile a case, compare outputs, and time both engines in turns."""
    path = folder / "case.onnx"
    onnx.save(case.model(), path)
    artifact = sparsec.compile(path, target=target, output=folder / "case.sparsec", force=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feeds = case.feeds()
    read = {i.name: feeds[i.name] for i in session.get_inputs()}
    with sparsec.Engine(artifact.path, num_cores=threads) as engine:
        given = [feeds[n] for n in engine.input_names]
        difference, agrees = compare(engine.run(given), session.run(None, read), case.near)
        times = [
            (
                slice_of(lambda: engine.run(given), seconds),
                slice_of(lambda: session.run(None, read), seconds),
            )
            for _ in range(rounds)
        ]
    ours, theirs = (statistics.median(t) for t in zip(*times, strict=True))
    ratio = statistics.median(a / b for a, b in times)
    return Result(case.name, family, ours, theirs, ratio, difference, agrees)


def compare(got: Sequence[Any], wanted: Sequence[Any], near: float) -> tuple[float, bool]:
    """Largest difference of all outputs, and whether each is within `near`.

    Of floats above 1 that is relative; integers must be equal unless `near` is 1.
    """
    worst, agrees = 0.0, True
    for a, b in zip(got, wanted, strict=True):
        with np.errstate(invalid="ignore"):
            off = np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64))
        off = np.where(np.asarray(a == b), 0, off)
        worst = max(worst, float(off.max(initial=0)))
        floats = np.asarray(b).dtype.kind == "f"
        bound = near * np.maximum(1, np.abs(b)) if floats else np.floor(near)
        agrees = agrees and bool(np.all(off <= bound))
    return worst, agrees


def as_text(results: Sequence[Result], threads: int, target: str, about: dict[str, Any]) -> str:
    """Markdown: one table for each family of ops, and what is slower than twice."""
    slow = [r for r in results if r.ratio > 2]
    parts = [
        f"# Single ops, {target}, threads: {threads}; ONNX Runtime {onnxruntime.__version__}",
        report.machine_text(about),
        f"{len(results) - len(slow)} of {len(results)} cases take at most twice as long as ONNX "
        f"Runtime, {sum(r.ratio <= 1 for r in results)} of them no longer; the geometric mean is "
        f"{statistics.geometric_mean([r.ratio for r in results]):.2f} of its time.",
    ]
    for family in dict.fromkeys(r.family for r in results):
        rows = [
            [
                r.name,
                report.number(r.ours),
                report.number(r.theirs),
                f"{r.ratio:.2f}",
                f"{r.difference:.1g}{'' if r.agrees else ' !'}",
            ]
            for r in results
            if r.family == family
        ]
        head = ["case", "sparsec µs", "ONNX Runtime µs", "ratio", "difference"]
        parts += [f"## {family.capitalize()}", report.table(head, rows)]
    return "\n\n".join(parts) + "\n"


def measure_kernels(only: str, target: str, folder: Path, turns: int) -> list[kernels.Timed]:
    """Time the general kernels whose names hold a word, on one thread."""
    rows = [row for row in GENERAL if only.lower() in row.name]
    isa = targets.choose(target, cpu.detect())
    return kernels.measure(rows, isa, folder, kernels.FULL, turns, 0.02) if rows else []


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description="single ops against ONNX Runtime")
    parser.add_argument("--only", default="", metavar="WORD", help="cases whose names hold it")
    parser.add_argument("--family", choices=sorted(FAMILIES), help="cases of one family")
    parser.add_argument("--threads", type=int, default=1, help="of both engines (default: 1)")
    parser.add_argument("--target", default="auto", help="ISA target (default: the machine's best)")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each engine (default: 7)")
    parser.add_argument(
        "--results",
        default=ROOT / "benchmarks" / "results",
        metavar="DIR",
        help="where to save, unless --only or --family is given",
    )
    args = parser.parse_args(arguments)
    about = machine.describe()
    results = []
    with tempfile.TemporaryDirectory() as name:
        for family, cases in FAMILIES.items():
            for case in cases():
                if args.only.lower() not in case.name.lower() or args.family not in (None, family):
                    continue
                result = measure(
                    case, family, Path(name), args.threads, args.target, args.rounds, 0.02
                )
                results.append(result)
                print(
                    f"{result.ratio:6.2f}  {result.ours:9.1f} {result.theirs:9.1f}  {case.name}"
                    f"{'' if result.agrees else f'  DIFFERS by {result.difference:.3g}'}",
                    file=sys.stderr,
                    flush=True,
                )
        timed = []
        if args.family is None:
            timed = measure_kernels(args.only, args.target, Path(name) / "kernels", args.rounds)
    target = about["targets"][0] if args.target == "auto" else args.target
    text = as_text(results, args.threads, target, about) if results else ""
    text += kernels.section(timed, kernels.FULL)
    print(text)
    if not args.only and not args.family:
        content = {"machine": about, "target": target, "threads": args.threads, "cases": results}
        content["kernels"] = timed
        report.save(Path(args.results), "general", text, content)


if __name__ == "__main__":
    main()
