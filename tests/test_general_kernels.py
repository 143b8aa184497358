"""The general kernels against the numpy references of their ops.

Hypothesis draws batches of cases; the kernels of a batch are compiled into one library and called
through ctypes in a child process, so that a trap or a fault is a failed test that names its case.
Every tensor ends at an unreadable page, in a second run begins at one, so a read or write outside
is a fault.  One build has the undefined-behaviour sanitizer, the other the vectors of this machine.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import multiprocessing
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sparsec import targets
from sparsec.compiler import toolchain
from sparsec.compiler.codegen import general, table
from sparsec.compiler.codegen.general import render
from sparsec.compiler.editor import Editor
from sparsec.compiler.interpreter import interpret
from sparsec.compiler.ir import BATCH, BatchDim, Graph, bind_shape
from sparsec.compiler.ops import OPS
from sparsec.compiler.templates import read_template
from sparsec.runtime import cpu
from tests import stand_ins


def compiler_flags(kind: str) -> list[str]:
    """The compiler of this machine, and how the kernels are built: for speed, or to trap on UB."""
    cc = toolchain.find()
    if kind == "sanitized":
        if isinstance(cc, toolchain.Zig):
            pytest.skip("zig cc does not let undefined behaviour trap")
        trap = ["-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"]
        return [*cc.command, *cc.base_flags(), "-O1", *trap]
    own = ["-Wno-aggressive-loop-optimizations"] if isinstance(cc, toolchain.Gcc) else []
    exported = [f for f in cc.flags(targets.choose("auto", cpu.detect())) if "visibility" not in f]
    return [*cc.command, *exported, *own]


BATCHED = settings(
    max_examples=2,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
DTYPES = (
    *("float32", "float64", "int64", "int32", "int16", "int8"),
    *("uint64", "uint32", "uint16", "uint8"),
)
FLOATS = ("float32", "float64")
BYTES = ("uint8", "int8")

PRELUDE = """
#include "rt.h"
#include "ops.h"
/* Two threads' worth of pieces, run in the wrong order. */
static void backwards(const sparsec_parallel *self, sparsec_task task, void *arg, int32_t count)
{
    (void)self;
    for (int32_t i = count - 1; i >= 0; i--)
        task(arg, i, i % 2);
}
static const sparsec_parallel TWO = {2, backwards};
static const sparsec_site SITE = {"table", "node", -1, 0, 0};
"""


@dataclass(repr=False)
class Case:
    """One kernel, its arguments, and what it must give."""

    graph: Graph
    inputs: list[np.ndarray]
    batch: int = 1
    ulps: float = 0
    scale: Callable[[list[np.ndarray], list[np.ndarray]], Any] | None = None
    group: bool = False
    outside: tuple[int, int, int] | None = None  # index, extent, position
    expected: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.outside is None:
            with np.errstate(all="ignore"):
                self.expected = interpret(self.graph, self.inputs)

    def __repr__(self) -> str:
        return f"Case({', '.join(node.op for node in self.graph.nodes)})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))

    def interface(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        if self.group:
            return general.group_interface(self.graph.nodes, self.graph)
        (node,) = self.graph.nodes
        return tuple(n for n in node.inputs if n), node.outputs

    def kernel(self, function: str) -> str:
        if self.group:
            call = general.group_call(self.graph.nodes, self.graph, function)
        else:
            (node,) = self.graph.nodes
            assert table.unsupported(node, self.graph) == ""
            call = render.Call.of(node, self.graph, function)
        return table.general(self.graph.nodes).emit(call)

    def caller(self, k: int) -> str:
        inputs, outputs = self.interface()
        args = [f"out[{i}]" for i in range(len(outputs))] + [f"in[{i}]" for i in range(len(inputs))]
        return (
            f"int call{k}(int64_t batch, int parallel, void **out, void **in, int64_t *at)\n{{\n"
            "    sparsec_fault fault = {0};\n"
            "    const sparsec_rt rt = {.batch = batch, .parallel = parallel ? &TWO : NULL,\n"
            "        .threads = 1 + parallel, .sites = &SITE, .fault = &fault,\n"
            "        .caller = SPARSEC_FLOAT_MODE};\n"
            f"    kernel{k}(&rt, {', '.join(args)});\n"
            "    at[0] = fault.error.index, at[1] = fault.error.extent;\n"
            "    at[2] = fault.error.position;\n"
            "    return fault.found;\n}\n"
        )


class Guarded:
    """A buffer of exactly some bytes with an unreadable page after (or before) it."""

    def __init__(self, array: np.ndarray, at_end: bool) -> None:
        page = mmap.PAGESIZE
        size = max(1, -(-array.nbytes // page)) * page
        self._map = mmap.mmap(-1, size + 2 * page)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        libc = ctypes.CDLL(None, use_errno=True)
        for bad in (base, base + page + size):
            assert libc.mprotect(ctypes.c_void_p(bad), page, 0) == 0
        self.address = base + page + (size - array.nbytes if at_end else 0)
        self.array = np.frombuffer(
            (ctypes.c_char * array.nbytes).from_address(self.address), array.dtype
        ).reshape(array.shape)
        self.array[...] = array


def check(case: Case, got: list[np.ndarray]) -> str | None:
    """What is wrong with the outputs, if anything."""
    for want, array in zip(case.expected, got, strict=True):
        if array.dtype.kind != "f":
            if not np.array_equal(array, want):
                return f"{array} is not {want}"
            continue
        with np.errstate(all="ignore"):
            same = (array == want) | (np.isnan(array) & np.isnan(want))
            size = np.abs(want) if case.scale is None else case.scale(case.inputs, case.expected)
            unit = np.spacing(np.maximum(size, np.finfo(want.dtype).tiny).astype(want.dtype))
            off = np.where(same, 0, np.abs(array.astype(np.float64) - want) / unit)
        if not np.all(off <= case.ulps):
            at = int(np.argmax(np.where(np.isnan(off), np.inf, off)))
            return f"{array.flat[at]!r} is not {want.flat[at]!r}, off by {off.flat[at]} ulp"
    return None


def _child(library: Path, cases: Sequence[Case], pipe: Any) -> None:
    lib = ctypes.CDLL(str(library))
    for k, case in enumerate(cases):
        names, outputs = case.interface()
        env = {**case.graph.constants, **dict(zip(case.graph.inputs, case.inputs, strict=True))}
        for at_end in (True, False):
            for parallel in (0, 1):
                pipe.send((k, None))
                ins = [Guarded(np.ascontiguousarray(env[n]), at_end) for n in names]
                shapes = [case.graph.values[n] for n in outputs]
                outs = [
                    Guarded(np.full(bind_shape(v.shape, case.batch), 85, v.dtype), at_end)
                    for v in shapes
                ]
                pointers = [
                    (ctypes.c_void_p * len(g))(*(b.address for b in g)) for g in (outs, ins)
                ]
                at = (ctypes.c_int64 * 3)()
                found = getattr(lib, f"call{k}")(
                    ctypes.c_int64(case.batch), parallel, *pointers, at
                )
                outside = tuple(at) if found else None
                if outside != case.outside:
                    pipe.send((k, f"index outside: {outside}, not {case.outside}"))
                made = dict(zip(outputs, (b.array for b in outs), strict=True))
                fault = check(case, [made[n] for n in case.graph.outputs])
                if fault:
                    pipe.send((k, f"{fault} (parallel={parallel})"))
    pipe.send((-1, None))


def write_headers(folder: Path) -> None:
    """What a kernel's C includes, beside it."""
    texts = {name: read_template(name) for name in ("sparsec.h", "rt.h")} | render.headers()
    for name, text in texts.items():
        (folder / name).write_text(text)


def run(cases: Sequence[Case], folder: Path, command: Sequence[str]) -> None:
    """Compile the kernels of all cases into one library and check every one.

    Args:
        command: the C compiler and its flags.
    """
    code = PRELUDE
    for k, case in enumerate(cases):
        code += case.kernel(f"kernel{k}") + case.caller(k)
    source, library = folder / "cases.c", folder / "cases.so"
    source.write_text(code)
    library.unlink(missing_ok=True)
    write_headers(folder)
    options = ["-std=gnu11", "-Wall", "-Werror", "-fPIC", "-shared", "-DOP_PARALLEL_STEPS=2"]
    # Kernels are right with denormal numbers as well, which processors without SSE keep.
    options.append("-DSPARSEC_FLOAT_MODE=0x1f80")
    done = subprocess.run(
        [*command, *options, "-o", library, source, "-lm"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[:3000]
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(False)
    child = context.Process(target=_child, args=(library, cases, sender))
    child.start()
    sender.close()
    last, faults = 0, []
    while last >= 0:
        try:
            last, fault = receiver.recv()
        except EOFError:
            break
        if fault:
            faults.append((last, fault))
    child.join()
    if last >= 0:
        faults.append((last, f"the kernel crashed (exit code {child.exitcode})"))
    messages = [f"{cases[k].graph.nodes[0].op}: {fault}" for k, fault in faults]
    assert not faults, "\n".join([*messages[:20], cases[faults[0][0]].kernel("kernel")])


@pytest.fixture(autouse=True, scope="module")
def _always_parallel() -> Any:
    """Emit every kernel with its task, whatever its size."""
    patch = pytest.MonkeyPatch()
    patch.setattr(render, "PARALLEL_STEPS", 2)
    yield
    patch.undo()


@pytest.fixture(params=["native", "sanitized"], scope="module")
def build(request: Any, tmp_path_factory: Any) -> Callable[[Sequence[Case]], None]:
    """A function that compiles and checks cases with one set of flags."""
    folder = tmp_path_factory.mktemp(request.param)
    return lambda cases: run(cases, folder, compiler_flags(request.param))


# ---- drawing tensors ----

SPECIALS = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    -0.5,
    1.5,
    2.5,
    -2.5,
    127.5,
    1e-40,
    3e38,
    89.0,
    -88.0,
    -104.0,
]
SPECIALS += [math.inf, -math.inf, math.nan, 0.62, 0.92, 4.0, 10.0, 2.0**31, -(2.0**31), 1e-8]


def numbers(
    rng: np.random.Generator, dtype: Any, shape: Sequence[int], special: bool = True
) -> Any:
    """Random numbers of a dtype, a third of them extreme ones if asked for."""
    dtype = np.dtype(dtype)
    shape = tuple(shape)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.kind == "f":
        plain = rng.normal(0, 3, shape)
        extreme = rng.choice(np.array(SPECIALS), shape)
    else:
        info = np.iinfo(dtype)
        plain = rng.integers(max(info.min, -100), min(info.max, 100), shape, dtype=dtype)
        edges = [
            info.min,
            info.max,
            info.min + 1,
            info.max - 1,
            0,
            1,
            2,
            1 if info.min == 0 else -1,
        ]
        extreme = rng.choice(np.array(edges, dtype), shape)
    if not special:
        return np.asarray(plain).astype(dtype)
    with np.errstate(all="ignore"):
        return np.where(rng.random(shape) < 0.35, extreme, plain).astype(dtype)


def random_generator(draw: Any) -> np.random.Generator:
    return np.random.default_rng(draw(st.integers(0, 2**32)))


DIM = st.sampled_from([1, 1, 2, 3, 4, 7, 16, 17, 33, 0])
LIVE_DIM = st.sampled_from([1, 2, 3, 5, 16, 17, 70])


def shapes(draw: Any, min_rank: int = 0, max_rank: int = 4, dim: Any = DIM) -> tuple[Any, ...]:
    """A shape, perhaps with a multiple of the batch size in it."""
    rank = draw(st.integers(min_rank, max_rank))
    shape = [draw(dim) for _ in range(rank)]
    if rank and draw(st.booleans()):
        shape[draw(st.integers(0, rank - 1))] = draw(st.sampled_from([BATCH, BatchDim(3)]))
    return tuple(shape)


def narrowed(draw: Any, shape: tuple[Any, ...]) -> tuple[Any, ...]:
    """A shape that broadcasts to `shape`."""
    keep = draw(st.integers(0, len(shape)))
    return tuple(1 if draw(st.integers(0, 3)) == 0 else d for d in shape[len(shape) - keep :])


def one_node(op: str, batch: int, arrays: Sequence[Any], **attrs: Any) -> Case:
    """A case of one node; each array is (array, symbolic shape) or None, or a constant array."""
    extra = {k: attrs.pop(k) for k in ("ulps", "scale", "outside", "expected") if k in attrs}
    edit = Editor(name="case", length=0)
    names, inputs = [], []
    for i, entry in enumerate(arrays):
        if entry is None:
            names.append("")
        elif isinstance(entry, tuple):
            names.append(edit.input(f"in{i}", entry[0].dtype, entry[1]))
            inputs.append(entry[0])
        else:
            names.append(edit.constant(entry))
    # An input that nobody reads, from which the interpreter learns the batch size in any case.
    inputs.append(np.zeros(batch, np.uint8))
    edit.input("batch", np.uint8, (BATCH,))
    edit.outputs = list(edit.emit_multi(op, names, source=f"/layer/{op} */", **attrs))
    return Case(edit.finish(), inputs, batch, **extra)


def tensor(draw: Any, dtype: Any, shape: tuple[Any, ...], batch: int, special: bool = True) -> Any:
    rng = random_generator(draw)
    return numbers(rng, dtype, bind_shape(shape, batch), special), shape


# ---- elementwise ----

# Ops by operand dtypes, with the largest distance from numpy in units of the last place.
BINARY = ["add", "sub", "mul", "div", "min", "max"]
COMPARE = ["equal", "less", "less_equal", "greater", "greater_equal"]
UNARY_FLOAT = {
    "sqrt": 0, "exp": 3, "log": 3, "sin": 3, "cos": 3, "erf": 4, "tanh": 5, "sigmoid": 6,
    "reciprocal": 0, "floor": 0, "ceil": 0, "round": 0, "neg": 0, "abs": 0, "sign": 0, "relu": 0,
    "isnan": 0,
}  # fmt: skip
SIGNED = ("float32", "float64", "int64", "int32", "int16", "int8")


@st.composite
def elementwise_case(draw: Any) -> Case:
    batch = draw(st.integers(1, 3))
    shape = shapes(draw)
    kind = draw(
        st.sampled_from(
            [
                "binary",
                "compare",
                "unary",
                "mod",
                "pow",
                "where",
                "cast",
                "logic",
                "gelu",
                "quantize",
            ]
        )
    )
    if kind == "binary" or kind == "compare":
        op = draw(st.sampled_from(BINARY if kind == "binary" else COMPARE))
        dtype = draw(st.sampled_from(DTYPES + (("bool",) if op == "equal" else ())))
        parts = [shape, narrowed(draw, shape)]
        parts = parts[:: draw(st.sampled_from([1, -1]))]
        return one_node(op, batch, [tensor(draw, dtype, p, batch) for p in parts])
    if kind == "unary":
        op = draw(st.sampled_from(sorted(UNARY_FLOAT)))
        choice = {"sign": DTYPES, "abs": DTYPES, "neg": SIGNED, "relu": SIGNED}.get(op, FLOATS)
        dtype = draw(st.sampled_from(choice))
        return one_node(op, batch, [tensor(draw, dtype, shape, batch)], ulps=UNARY_FLOAT[op])
    if kind == "mod":
        dtype = draw(st.sampled_from(DTYPES))
        parts = [tensor(draw, dtype, p, batch) for p in (shape, narrowed(draw, shape))]
        return one_node("mod", batch, parts, fmod=draw(st.booleans()))
    if kind == "pow":
        return power_case(draw, shape, batch)
    if kind == "where":
        dtype = draw(st.sampled_from(DTYPES))
        parts = [shape, narrowed(draw, shape), narrowed(draw, shape)]
        parts = draw(st.permutations(parts))
        kinds = ["bool", dtype, dtype]
        return one_node(
            "where", batch, [tensor(draw, d, p, batch) for d, p in zip(kinds, parts, strict=True)]
        )
    if kind == "cast":
        source, to = (
            draw(st.sampled_from((*DTYPES, "bool"))),
            draw(st.sampled_from((*DTYPES, "bool"))),
        )
        whole = np.dtype(source).kind == "f" and np.dtype(to).kind in "iu"
        array, symbolic = tensor(draw, source, shape, batch, special=not whole)
        array = np.abs(array) if np.dtype(to).kind == "u" and whole else array
        return one_node("cast", batch, [(array * 7 if whole else array, symbolic)], to=np.dtype(to))
    if kind == "logic":
        op = draw(st.sampled_from(["and", "or", "not"]))
        parts = [shape] if op == "not" else [shape, narrowed(draw, shape)]
        return one_node(op, batch, [tensor(draw, "bool", p, batch) for p in parts])
    if kind == "gelu":
        dtype = draw(st.sampled_from(FLOATS))
        x = tensor(draw, dtype, shape, batch)
        how = draw(st.sampled_from(["none", "tanh"]))
        # 1 + erf(x) cancels on the left, so the error is measured against x.
        return one_node(
            "gelu", batch, [x], approximate=how, ulps=8, scale=lambda i, _: np.abs(i[0])
        )
    return quantize_case(draw, batch)


def power_case(draw: Any, shape: tuple[Any, ...], batch: int) -> Case:
    base, exponent = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(DTYPES))
    x, _ = tensor(draw, base, shape, batch, special=np.dtype(base).kind == "f")
    rng = random_generator(draw)
    if np.dtype(base).kind == "f":
        x = np.where(x == -np.inf, 1, x).astype(base)  # numpy takes sqrt(-inf) for pow(-inf, 0.5)
        y = rng.choice(np.array([0, 1, 2, 3, 5, 0.5, 1.5, -1, -2]), ()).astype(exponent)
        y = y if np.dtype(exponent).kind != "u" or y < 10 else y * np.dtype(exponent).type(0)
        return one_node("pow", batch, [(x, shape), y], ulps=4)
    y = rng.integers(0, 4, ()).astype(exponent)
    x = x % 5 + (0 if np.dtype(exponent).kind != "f" else 1)
    return one_node("pow", batch, [(x.astype(base), shape), y])


def quantize_case(draw: Any, batch: int) -> Case:
    shape = shapes(draw, 1, 3)
    axis = draw(st.integers(0, len(shape) - 1))
    along = draw(st.booleans()) and not isinstance(shape[axis], BatchDim)
    parameters = (shape[axis],) if along else draw(st.sampled_from([(), (1,)]))
    target = draw(st.sampled_from(["uint8", "int8", "uint16", "int16", "int32"]))
    rng = random_generator(draw)
    scale = rng.choice(np.array([0.5, 0.1, 1.0, 1e-3, 0.0173]), parameters).astype(np.float32)
    zp = numbers(rng, target, parameters)
    attrs = {"axis": axis} if along or draw(st.booleans()) else {}
    pairs = [(np.asarray(scale), parameters), (np.asarray(zp), parameters)]
    if draw(st.booleans()):
        return one_node("quantize", batch, [tensor(draw, "float32", shape, batch), *pairs], **attrs)
    return one_node("dequantize", batch, [tensor(draw, target, shape, batch), *pairs], **attrs)


@BATCHED
@given(cases=st.lists(elementwise_case(), min_size=60, max_size=60))
def test_elementwise(build: Any, cases: list[Case]) -> None:
    build(cases)


def test_float_functions_over_all_magnitudes(build: Any) -> None:
    """Every 2**12-th float32, which meets all exponents, denormals, infinities and NaNs."""
    bits = np.arange(0, 2**32, 2**12 + 1, dtype=np.uint64).astype(np.uint32)
    x = bits.view(np.float32)
    cases = [one_node(op, 1, [(x, x.shape)], ulps=bound) for op, bound in UNARY_FLOAT.items()]
    x = x[~(np.abs(x) > 1e30)]  # x * x * x overflows in the reference too
    cases += [one_node("gelu", 1, [(x, x.shape)], ulps=3, scale=lambda i, _: np.abs(i[0]))]
    build(cases)


# Largest errors that op_math.h states, in units of the last place.
STATED = {"exp": 1.1, "log": 0.8, "sin": 1.5, "cos": 1.5, "erf": 1.2, "tanh": 1.4, "sigmoid": 2.4}


def test_float_functions_are_as_exact_as_stated(build: Any) -> None:
    """Against float64, rounded to float32: half a unit more."""
    bits = np.arange(0, 2**32, 2**12 + 3, dtype=np.uint64).astype(np.uint32)
    x = np.concatenate([bits.view(np.float32), np.arange(-800, 800, dtype=np.float32) * np.pi / 8])
    cases = []
    for op, bound in STATED.items():
        case = one_node(op, 1, [(x, x.shape)], ulps=bound + 0.5)
        with np.errstate(all="ignore"):
            exact = OPS[op].reference({}, x.astype(np.float64))[0].astype(np.float32)
        case.expected = [exact]
        cases.append(case)
    build(cases)


@st.composite
def group_case(draw: Any) -> Case:
    """A random chain of float nodes of one shape, with operands that broadcast and with casts."""
    batch = draw(st.integers(1, 3))
    shape = shapes(draw, 1, 4)
    edit = Editor(name="group", length=0)
    inputs: list[np.ndarray] = []

    def fresh(own: tuple[Any, ...]) -> str:
        array, _ = tensor(draw, "float32", own, batch)
        inputs.append(array)
        return edit.input(f"in{len(inputs)}", np.float32, own)

    values = [fresh(shape)]
    for _ in range(draw(st.integers(1, 7))):
        op = draw(st.sampled_from(["add", "mul", "where", "cast", "quantize", "max", "abs"]))
        x = draw(st.sampled_from(values))
        other = draw(st.sampled_from([*values, fresh(narrowed(draw, shape))]))
        if op == "where":
            test = edit.emit("less", [x, values[-1]])
            values.append(edit.emit(op, [test, x, values[-1]]))
        elif op == "cast":
            test = edit.emit("isnan", [x])
            values.append(edit.emit(op, [test], to=np.dtype(np.float32)))
        elif op == "quantize":
            scale, zp = edit.constant(np.float32(0.25)), edit.constant(np.uint8(128))
            q = edit.emit(op, [x, scale, zp])
            values.append(edit.emit("dequantize", [q, scale, zp]))
        elif op == "abs":
            values.append(edit.emit(op, [x]))
        else:
            node = edit.emit(op, [x, other])
            if edit.values[node].shape == shape:
                values.append(node)
    made = [v for v in values if v not in edit.inputs] or [edit.emit("neg", [values[0]])]
    edit.outputs = list(dict.fromkeys([made[-1], draw(st.sampled_from(made))]))
    return Case(edit.finish(), inputs, batch, group=True)


@BATCHED
@given(cases=st.lists(group_case(), min_size=25, max_size=25))
def test_groups(build: Any, cases: list[Case]) -> None:
    build(cases)


def test_partition_keeps_order_and_splits_by_shape() -> None:
    edit = Editor(name="g", length=0)
    x = edit.input("x", np.float32, (2, 3))
    y = edit.input("y", np.float32, (3,))
    a = edit.emit("add", [x, y])
    b = edit.emit("exp", [a])
    c = edit.emit("neg", [y])
    d = edit.emit("transpose", [b], perm=(1, 0))
    e = edit.emit("abs", [d])
    edit.outputs = [b, c, e]
    graph = edit.finish()
    groups = general.group_elementwise(graph, graph.nodes)
    assert [n for g in groups for n in g] == list(graph.nodes)
    assert [a, b] in [[n.output for n in g] for g in groups]
    assert all(len({graph.values[n.output].shape for n in g}) == 1 for g in groups)
    first = next(g for g in groups if len(g) == 2)
    assert general.group_interface(first, graph) == (("x", "y"), (b,))


# ---- layout ----


@st.composite
def layout_case(draw: Any) -> Case:
    batch = draw(st.integers(1, 3))
    dtype = draw(st.sampled_from((*DTYPES, "bool")))
    op = draw(
        st.sampled_from(
            ["reshape", "transpose", "transpose", "expand", "concat", "slice", "gather", "split"]
        )
    )
    shape = shapes(draw, 1, 5 if op == "transpose" else 4)
    x = tensor(draw, dtype, shape, batch)
    axis = draw(st.integers(0, len(shape) - 1))
    if op == "reshape":
        to = (*shape, 1) if draw(st.booleans()) else (1, *shape)
        return one_node(op, batch, [x], shape=to)
    if op == "transpose":
        return one_node(op, batch, [x], perm=tuple(draw(st.permutations(range(len(shape))))))
    if op == "expand":
        return one_node(op, batch, [tensor(draw, dtype, narrowed(draw, shape), batch)], shape=shape)
    if op == "concat":
        like = shape[axis]
        other = BatchDim(2) if isinstance(like, BatchDim) else draw(DIM)
        parts = [shape, (*shape[:axis], other, *shape[axis + 1 :])]
        return one_node(op, batch, [tensor(draw, dtype, p, batch) for p in parts], axis=axis)
    if op == "slice":
        return slice_case(draw, x, batch)
    if op == "gather":
        n = bind_shape(shape, batch)[axis]
        own = shapes(draw, 0, 2) if n else (0,)
        index = draw(st.sampled_from(["int64", "int32"]))
        rng = random_generator(draw)
        bound = 1 if isinstance(shape[axis], BatchDim) else max(n, 1)
        picks = rng.integers(-bound, bound, bind_shape(own, batch)).astype(index)
        return one_node(op, batch, [x, (picks, own)], axis=axis)
    total = shape[axis]
    if isinstance(total, BatchDim):
        axis = 0
        shape = (9, *shape)
        total = 9
        x = tensor(draw, dtype, shape, batch)
    first = draw(st.integers(0, total))
    return one_node(op, batch, [x], axis=axis, sizes=(first, 0, total - first))


def slice_case(draw: Any, x: Any, batch: int) -> Case:
    _, shape = x
    starts, ends, axes, steps = [], [], [], []
    for axis, dim in enumerate(shape):
        extent = dim.coef if isinstance(dim, BatchDim) else dim
        if extent and draw(st.booleans()):
            a, b = draw(st.integers(0, extent - 1)), draw(st.integers(0, extent - 1))
            step = draw(st.sampled_from([1, 1, 2, 3])) * (1 if a <= b else -1)
            starts.append(a)
            ends.append(b + (1 if a <= b else -1))
            axes.append(axis)
            steps.append(step)
    return one_node(
        "slice",
        batch,
        [x],
        starts=tuple(starts),
        ends=tuple(ends),
        axes=tuple(axes),
        steps=tuple(steps),
    )


@BATCHED
@given(cases=st.lists(layout_case(), min_size=50, max_size=50))
def test_layout(build: Any, cases: list[Case]) -> None:
    build(cases)


def test_large_transposes(build: Any) -> None:
    """Shapes of attention, longer than a block each way."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(2, 40, 3, 33)).astype(np.float32)
    perms = [(0, 2, 1, 3), (0, 2, 3, 1), (3, 2, 1, 0), (1, 0, 3, 2), (0, 1, 3, 2)]
    build([one_node("transpose", 2, [(x, (BATCH, 40, 3, 33))], perm=p) for p in perms])


@st.composite
def indexing_case(draw: Any) -> Case:
    batch = draw(st.integers(1, 3))
    ops = ["gather_elements", "gather_nd", "scatter_elements", "scatter_nd", "argmax", "topk"]
    op = draw(st.sampled_from([*ops, "argmin"]))
    dtype = draw(st.sampled_from(DTYPES))
    shape = shapes(draw, 1, 4, LIVE_DIM)
    axis = draw(st.integers(0, len(shape) - 1))
    rng = random_generator(draw)
    if op in ("argmax", "argmin", "topk") or isinstance(shape[axis], BatchDim):
        # Few different numbers, so that many are equal.
        values = numbers(rng, dtype, bind_shape(shape, batch))
        if draw(st.booleans()):
            values = rng.integers(0, 3, values.shape).astype(dtype)
        if op == "topk" and not isinstance(shape[axis], BatchDim):
            k = draw(st.sampled_from([0, 1, shape[axis] // 2, shape[axis]]))
            x = (values, shape)
            return one_node(op, batch, [x], axis=axis, k=k, largest=draw(st.booleans()))
        op = draw(st.sampled_from(["argmax", "argmin"]))
        attrs = {"keepdims": draw(st.booleans()), "last": draw(st.booleans())}
        return one_node(op, batch, [(values, shape)], axis=axis, **attrs)
    x = tensor(draw, dtype, shape, batch, False)
    index = draw(st.sampled_from(["int64", "int32"]))
    how = draw(st.sampled_from(["none", "add", "mul", "min", "max"]))
    extents = bind_shape(shape, batch)
    if op in ("gather_elements", "scatter_elements"):
        own = list(shape)
        own[axis] = draw(st.integers(1, 4))
        size = bind_shape(own, batch)
        picks = (rng.integers(-extents[axis], extents[axis], size).astype(index), tuple(own))
        if op == "gather_elements":
            return one_node(op, batch, [x, picks], axis=axis)
        updates = tensor(draw, dtype, tuple(own), batch, False)
        return one_node(op, batch, [x, picks, updates], axis=axis, reduction=how, ulps=8)
    depth = draw(st.integers(1, len(shape)))
    least = min(d if isinstance(d, int) else 1 for d in shape[:depth])
    rows = shapes(draw, 0, 2, st.sampled_from([1, 2, 5]))
    shared = 0
    if op == "gather_nd" and draw(st.booleans()):
        shape, shared = (BATCH, *shape), 1
        x = tensor(draw, dtype, shape, batch, False)
        rows = (BATCH, *(d for d in rows if isinstance(d, int)))
    own = (*rows, depth)
    picks = (rng.integers(-least, least, bind_shape(own, batch)).astype(index), own)
    if op == "gather_nd":
        return one_node(op, batch, [x, picks], batch_dims=shared)
    updates = tensor(draw, dtype, (*rows, *shape[depth:]), batch, False)
    return one_node(op, batch, [x, picks, updates], reduction=how, ulps=8)


@BATCHED
@given(cases=st.lists(indexing_case(), min_size=60, max_size=60))
def test_indexing(build: Any, cases: list[Case]) -> None:
    build(cases)


def outside_case(
    op: str, data: np.ndarray, indices: np.ndarray, expected: np.ndarray, fault: Any, **attrs: Any
) -> Case:
    """A case whose indices the reference refuses; `expected` is what nobody may rely on."""
    arrays = [data, indices]
    if op == "scatter_nd":
        arrays.append(np.ones((len(indices), *data.shape[indices.shape[1] :]), np.float32))
    elif op == "scatter_elements":
        arrays.append(np.ones(indices.shape, np.float32))
    return one_node(
        op, 1, [(a, a.shape) for a in arrays], outside=fault, expected=[expected], **attrs
    )


def test_an_index_outside_is_noticed_and_reads_inside(build: Any) -> None:
    """It is moved to the nearest element, and what is said of it is what was given."""
    data = np.arange(12, dtype=np.float32).reshape(4, 3)
    wild = np.array([3, 4, -5, 2**62, -(2**63), 100], np.int64)
    rows = [3, 3, 0, 3, 0, 3]
    pairs = np.array([[3, -3], [0, 3], [-5, 9], [2**62, -1], [4, 0], [2, 2]], np.int64)
    put = np.concatenate([np.ones((1, 3)), data[1:3], np.ones((1, 3))]).astype(np.float32)
    narrow = np.array([[0, -3], [1, -(2**31)]], np.int32)
    where = np.repeat(wild[:, None], 3, 1)[:4]
    late = (-(2**31), 3, 3)
    some = data[[[0], [1]], [[0, 0], [1, 0]]]
    both = data[[3, 0, 0, 3, 3, 2], [0, 2, 2, 2, 0, 2]]
    alone = {"reduction": "none"}
    build(
        [
            outside_case("gather", data, wild, data[rows], (4, 4, 1), axis=0),
            outside_case("gather", data, narrow, data[:, [[0, 0], [1, 0]]], late, axis=1),
            outside_case("gather_nd", data, pairs, both, (3, 3, 3), batch_dims=0),
            outside_case(
                "gather_elements", data, where, data[rows[:4], [[0], [1], [2]]].T, (4, 4, 3), axis=0
            ),
            outside_case("gather_elements", data, narrow, some, late, axis=1),
            outside_case("scatter_nd", data, wild[:, None], put, (4, 4, 1), **alone),
            outside_case("scatter_elements", data, where, put, (4, 4, 3), axis=0, **alone),
        ]
    )


def test_every_index_is_outside_an_empty_table(build: Any) -> None:
    empty = np.zeros((0, 3), np.float32)
    one = np.zeros((1, 1), np.int64)
    build(
        [
            outside_case("gather", empty, one, np.zeros((1, 1, 3), "f4"), (0, 0, 0), axis=0),
            outside_case("gather_nd", empty, one, np.zeros((1, 3), "f4"), (0, 0, 0), batch_dims=0),
            outside_case("gather_elements", empty, one, np.zeros((1, 1), "f4"), (0, 0, 0), axis=0),
            outside_case("scatter_nd", empty, one, empty, (0, 0, 0), reduction="none"),
            outside_case(
                "scatter_elements", empty, one, empty, (0, 0, 0), axis=0, reduction="none"
            ),
        ]
    )


# ---- reductions ----


@st.composite
def reduction_case(draw: Any) -> Case:
    batch = draw(st.integers(1, 3))
    op = draw(
        st.sampled_from(["sum", "mean", "prod", "max", "min", "softmax", "cumsum", "layernorm"])
    )
    floating = draw(st.booleans()) or op in ("softmax", "layernorm")
    dtype = draw(st.sampled_from(FLOATS if floating else DTYPES))
    if op in ("softmax", "cumsum"):
        shape = shapes(draw, 1, 4, LIVE_DIM)
        x = tensor(draw, dtype, shape, batch, special=draw(st.booleans()))
        axis = draw(st.integers(0, len(shape) - 1))
        if op == "softmax":
            # numpy adds the exponentials in float32, one after another along most axes.
            bound = 6 + bind_shape(shape, batch)[axis] / 4
            return one_node(op, batch, [x], axis=axis, ulps=bound)
        return one_node(
            op, batch, [x], axis=axis, exclusive=draw(st.booleans()), reverse=draw(st.booleans())
        )
    if op == "layernorm":
        shape = (*shapes(draw, 0, 3), draw(LIVE_DIM))
        parts = [tensor(draw, dtype, s, batch, False) for s in (shape, shape[-1:], shape[-1:])]

        def size(inputs: list[np.ndarray], _: Any) -> Any:
            top = np.max(np.abs(inputs[0]), axis=-1, keepdims=True, initial=0)
            spread = np.std(inputs[0], axis=-1, keepdims=True)
            return np.abs(inputs[1]) * (1 + top / np.maximum(spread, 1e-6)) + np.abs(inputs[2])

        return one_node(
            op, batch, parts, eps=draw(st.sampled_from([1e-5, 1e-12])), ulps=8, scale=size
        )
    shape = shapes(draw, 0, 4, LIVE_DIM if op == "mean" else DIM)
    axes = tuple(i for i in range(len(shape)) if draw(st.booleans()))
    # The reference divides integers in float64, so means of int64 are compared where that is exact.
    special = op in ("max", "min") or (
        np.dtype(dtype).kind != "f" and (op, dtype) not in (("mean", "int64"), ("mean", "uint64"))
    )
    x = tensor(draw, dtype, shape, batch, special)
    if op == "prod" and np.dtype(dtype).kind == "f":
        # Factors near 1, of which many can be multiplied; numpy does it in float32.
        x = (1 + x[0] / 100).astype(dtype), x[1]

    def magnitude(inputs: list[np.ndarray], expected: list[np.ndarray]) -> Any:
        f = np.sum if op == "sum" else np.mean
        return np.asarray(f(np.abs(inputs[0]), axis=axes)).reshape(expected[0].shape)

    if op == "prod":
        count = math.prod(bind_shape(shape, batch)[i] for i in axes)
        bound = count + 2 if np.dtype(dtype).kind == "f" else 0
        return one_node(
            "reduce_prod", batch, [x], axes=axes, keepdims=draw(st.booleans()), ulps=bound
        )
    return one_node(
        f"reduce_{op}", batch, [x], axes=axes, keepdims=draw(st.booleans()),
        ulps=16 if op in ("sum", "mean") else 0, scale=magnitude if op in ("sum", "mean") else None,
    )  # fmt: skip


@BATCHED
@given(cases=st.lists(reduction_case(), min_size=50, max_size=50))
def test_reductions(build: Any, cases: list[Case]) -> None:
    build(cases)


def test_softmax_of_nothing_but_minus_infinity(build: Any) -> None:
    """Such a row is NaN, as in ONNX; its neighbours are not."""
    x = np.array([[-np.inf] * 20, [0.0] * 19 + [-np.inf]], np.float32)
    build([one_node("softmax", 1, [(x, x.shape)], axis=a, ulps=2) for a in (0, 1)])


# ---- contractions ----


def dot_size(a: np.ndarray, b: np.ndarray) -> Any:
    """Sum of the absolute products: what float rounding of a dot product is relative to."""
    return np.matmul(np.abs(a).astype(np.float64), np.abs(b).astype(np.float64))


@st.composite
def contraction_case(draw: Any) -> Case:
    batch = draw(st.integers(1, 3))
    op = draw(st.sampled_from(["matmul", "matmul_integer", "matmul_integer", "linear", "qlinear"]))
    m = draw(st.sampled_from([1, 3, 4, 5, 17, 66, 0, BATCH]))
    k = draw(st.sampled_from([0, 1, 2, 3, 16, 33, 64, 513, 600]))
    n = draw(st.sampled_from([1, 2, 5, 8, 16, 31, 32, 33, 48, 70]))
    rng = random_generator(draw)
    if op in ("linear", "qlinear"):
        x_shape = (*shapes(draw, 0, 2, st.sampled_from([1, 2, 3])), m, k)
        if op == "linear":
            x = tensor(draw, "float32", x_shape, batch, False)
            w = numbers(rng, "float32", (n, k), False)
            return one_node(op, batch, [x, w], ulps=k + 2, scale=lambda i, _: dot_size(i[0], w.T))
        dtype = draw(st.sampled_from(BYTES))
        x = tensor(draw, dtype, x_shape, batch)
        zp = int(numbers(rng, dtype, ()))
        scale = rng.uniform(1e-4, 1e-2, draw(st.sampled_from([(), (n,)]))).astype(np.float32)
        parts = [x, numbers(rng, "int8", (n, k)), scale]
        parts += [numbers(rng, "int32", (n,), False) * 1000] if draw(st.booleans()) else []
        return one_node(op, batch, parts, x_zp=zp)
    front = shapes(draw, 0, 2, st.sampled_from([1, 2, 3]))
    a_shape, b_shape = (*front, m, k), (*narrowed(draw, front), k, n)
    if draw(st.booleans()):
        a_shape, b_shape = (*b_shape[:-2], m, k), (*front, k, n)
    if op == "matmul":
        if draw(st.integers(0, 4)) == 0:
            a_shape = (k,)
        elif draw(st.integers(0, 4)) == 0:
            b_shape = (k,)
        dtype = draw(st.sampled_from(FLOATS))
        parts = [tensor(draw, dtype, s, batch, False) for s in (a_shape, b_shape)]
        return one_node(op, batch, parts, ulps=k + 2, scale=lambda i, _: dot_size(i[0], i[1]))
    left, right = draw(st.sampled_from(BYTES)), draw(st.sampled_from(BYTES))
    rows, columns = [None, (), (1,)], [None, (), (1,), (n,), (1, n)]
    if not isinstance(m, BatchDim):
        rows += [(m,), (m, 1)] if m else []
    zeros = [draw(st.sampled_from(rows)), draw(st.sampled_from(columns))]
    parts = [tensor(draw, left, a_shape, batch), tensor(draw, right, b_shape, batch)]
    for dtype, shape in zip((left, right), zeros, strict=True):
        parts.append(None if shape is None else tensor(draw, dtype, shape, batch))
    return one_node(op, batch, parts)


@st.composite
def convolution_case(draw: Any) -> Case:
    batch = draw(st.integers(1, 2))
    rank = draw(st.sampled_from([1, 2, 2, 3]))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    depth, maps = draw(st.sampled_from([1, 1, 2, 5])), draw(st.sampled_from([1, 2, 7, 65]))
    kernel = [draw(st.sampled_from([1, 2, 3])) for _ in range(rank)]
    unit = draw(st.booleans())
    strides, dilations = (
        tuple(1 if unit else draw(st.sampled_from([1, 2, 3])) for _ in range(rank)) for _ in "sd"
    )
    sizes = [1, 2, 7, 33] if rank > 1 else [1, 5, 16, 31, 40, 64, 70, 100]
    size = [
        (k - 1) * d + draw(st.sampled_from(sizes)) for k, d in zip(kernel, dilations, strict=True)
    ]
    n = draw(st.sampled_from([BATCH, 1, 2]))
    x_shape, w_shape = (n, groups * depth, *size), (groups * maps, depth, *kernel)
    attrs = {"strides": strides, "dilations": dilations, "groups": groups}
    if draw(st.booleans()):
        dtype = draw(st.sampled_from(FLOATS))
        parts = [tensor(draw, dtype, s, batch, False) for s in (x_shape, w_shape)]
        terms = depth * math.prod(kernel)

        def size_of(inputs: list[np.ndarray], _: Any) -> Any:
            (total,) = OPS["conv"].reference(attrs, *(np.abs(a).astype("f8") for a in inputs[:2]))
            return total

        return one_node("conv", batch, parts, **attrs, ulps=terms + 2, scale=size_of)
    left, right = draw(st.sampled_from(BYTES)), draw(st.sampled_from(BYTES))
    parts = [tensor(draw, left, x_shape, batch), tensor(draw, right, w_shape, batch)]
    zeros = draw(st.sampled_from([None, ()])), draw(st.sampled_from([None, (), w_shape[:1]]))
    for dtype, shape in zip((left, right), zeros, strict=True):
        parts.append(None if shape is None else tensor(draw, dtype, shape, batch))
    return one_node("conv_integer", batch, parts, **attrs)


@BATCHED
@given(cases=st.lists(convolution_case(), min_size=40, max_size=40))
def test_convolutions(build: Any, cases: list[Case]) -> None:
    build(cases)


def test_deep_convolutions(build: Any) -> None:
    """Patches longer than what is copied at a time."""
    rng = np.random.default_rng(4)
    attrs = {"strides": (1, 1), "dilations": (1, 1), "groups": 1}
    x, w = (rng.integers(-9, 9, s).astype(np.float32) for s in ((2, 70, 9, 20), (67, 70, 3, 3)))
    narrow = x.astype(np.int8), w.astype(np.int8)
    apart = attrs | {"strides": (2, 3)}
    build(
        [
            one_node("conv", 2, [(x, (BATCH, *x.shape[1:])), (w, w.shape)], **a)
            for a in (attrs, apart)
        ]
        + [one_node("conv_integer", 1, [(a, a.shape) for a in narrow], **b) for b in (attrs, apart)]
    )


@BATCHED
@given(cases=st.lists(contraction_case(), min_size=40, max_size=40))
def test_contractions(build: Any, cases: list[Case]) -> None:
    build(cases)


@pytest.mark.parametrize("dtype", BYTES)
def test_integer_extremes(build: Any, dtype: str) -> None:
    """The largest sums that a BERT can make: every product is 255 * 255."""
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    a, b = np.full((5, 3072), high, dtype), np.full((3072, 33), low, dtype)
    za, zb = np.array(low, dtype), np.array(high, dtype)
    case = one_node("matmul_integer", 1, [(a, a.shape), b, za, zb])
    assert case.expected[0][0, 0] == -255 * 255 * 3072
    build([case])


@pytest.mark.parametrize("target", ["avx2", "avx_vnni", "avx512_vnni"])
@BATCHED
@given(
    cases=st.lists(
        st.one_of(contraction_case(), convolution_case(), reduction_case(), elementwise_case()),
        min_size=40,
        max_size=40,
    )
)
def test_other_vectors(target: str, cases: list[Case], tmp_path_factory: Any) -> None:
    """The instructions of other targets, which this machine has or emulates."""
    cc, row, found = toolchain.find(), stand_ins.here(target), cpu.detect()
    if isinstance(cc, toolchain.Zig) or not row.runs_on(found.arch, found.features):
        pytest.skip(f"cannot build or run {target} here")
    own = ["-Wno-aggressive-loop-optimizations"] if isinstance(cc, toolchain.Gcc) else []
    flags = [*toolchain.SEMANTICS, "-O2", *cc.target_flags(row), *own]
    run(cases, tmp_path_factory.mktemp(target), [*cc.command, *cc.base_flags(), *flags])


def test_compilers_keep_calls_that_write(tmp_path: Path) -> None:
    """Copies to where a pointer in memory points, from constants and an input: gcc 12 lost them."""
    rng = np.random.default_rng(0)
    shapes = [(9, 6, 2), (9, 6, 17), (9, 6, 1)]
    parts = [rng.normal(size=s).astype(np.float32) for s in shapes]
    case = one_node("concat", 1, [(p, p.shape) for p in parts], axis=2)
    code = f"""
        #include "rt.h"
        #include "ops.h"
        extern const unsigned char table[];
        {case.kernel("kernel")}
        static __attribute__((noinline)) void stage(const sparsec_rt *rt)
        {{
            kernel(rt, (void *)rt->buf[0], (const void *)(table + 64), (void *)rt->buf[1],
                   (const void *)(table + 1024));
        }}
        __attribute__((visibility("default"))) void run(float *y, const float *x)
        {{
            char *buf[] = {{(char *)y, (char *)x}};
            const sparsec_rt rt = {{.batch = 1, .buf = buf}};
            stage(&rt);
        }}
    """
    table = np.zeros(2048, np.uint8)
    for part, begin in ((parts[0], 64), (parts[2], 1024)):
        table[begin : begin + part.nbytes] = part.reshape(-1).view(np.uint8)
    (tmp_path / "run.c").write_text(code)
    numbers_in_c = ", ".join(map(str, table))
    (tmp_path / "table.c").write_text(f"const unsigned char table[] = {{{numbers_in_c}}};")
    cc = toolchain.find()
    write_headers(tmp_path)
    flags = [*cc.base_flags(), *cc.flags(targets.get("generic")), "-shared"]
    sources = [tmp_path / "run.c", tmp_path / "table.c"]
    subprocess.run([*cc.command, *flags, *sources, "-o", tmp_path / "run.so", "-lm"], check=True)
    y = np.zeros((9, 6, 20), np.float32)
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in (y, parts[1])]
    ctypes.CDLL(str(tmp_path / "run.so")).run(*pointers)
    assert np.array_equal(y, case.expected[0])


# ---- attention ----


def attention_case(
    rng: np.random.Generator, scores: str, result: str, length: int, depth: int, batch: int
) -> Case:
    """q, k, v float32 or 8-bit; a mask added to the scores; probabilities quantized with v."""
    heads, channels = 3, 3 * depth
    full, symbolic = (batch, heads, length, length), (BATCH, heads, length, length)
    mask_shape = (BATCH, 1, 1, length)
    score = Editor(name="score", length=0)
    s = score.input("s", np.float32, symbolic)
    mask = score.input("mask", np.float32, mask_shape)
    keep = score.input("keep", np.bool_, (1, 1, length, 1))
    scaled = score.emit("mul", [s, score.constant(np.float32(1 / math.sqrt(depth)))])
    table = score.constant(numbers(rng, "float32", (heads, 1, 1), False))
    shifted = score.emit("add", [score.emit("add", [scaled, mask]), table])
    score.outputs = [score.emit("where", [keep, shifted, score.constant(np.float32(-1.5))])]
    prob = Editor(name="prob", length=0)
    p = prob.input("p", np.float32, symbolic)
    if result == "float32":
        prob.outputs = [p]
    else:
        step, zp = (
            prob.constant(np.float32(1 / 255)),
            prob.constant(np.array(-3, "int8") if result == "int8" else np.uint8(0)),
        )
        prob.outputs = [prob.emit("quantize", [p, step, zp])]
    edit = Editor(name="attention", length=0)
    shape = (BATCH, length, channels)
    kinds = [scores, "int8" if scores == "uint8" else scores, result]
    arrays = [numbers(rng, d, bind_shape(shape, batch), special=d != "float32") for d in kinds]
    names = [edit.input(x, a.dtype, shape) for x, a in zip("qkv", arrays, strict=True)]
    names.append(edit.input("mask", np.float32, mask_shape))
    names.append(edit.input("keep", np.bool_, (1, 1, length, 1)))
    arrays += [rng.choice([0.0, -1e4], (batch, 1, 1, length)).astype(np.float32)]
    arrays += [rng.random((1, 1, length, 1)) < 0.9]
    out = edit.emit(
        "attention", names, heads=heads, q_zp=120 if scores == "uint8" else 3, k_zp=-7,
        v_zp=11, p_zp=-3 if result == "int8" else 0, qk_scale=1e-4, pv_scale=1 / 300,
        score=score.finish(), prob=prob.finish(),
    )  # fmt: skip
    edit.outputs = [out]
    assert full == bind_shape(symbolic, batch)
    # A probability that lies on a tie may be quantized to the next step, which moves a result by
    # less than 0.5; two of them are allowed for.  Floats differ by the rounding of sums.
    bound = 400.0 if result == "float32" else 1.0 / np.finfo(np.float32).eps
    return Case(edit.finish(), arrays, batch, ulps=bound, scale=lambda i, _: np.float64(1.0))


@pytest.mark.parametrize("scores", ["float32", "uint8", "int8"])
def test_attention(build: Any, scores: str) -> None:
    rng = np.random.default_rng(11)
    cases = [
        attention_case(rng, scores, result, length, depth, batch)
        for result in ("float32", "uint8", "int8")
        for length, depth, batch in ((1, 4, 1), (6, 5, 2), (19, 40, 1), (33, 64, 2))
    ]
    build(cases)


def test_attention_with_empty_nested_graphs(build: Any) -> None:
    """Scores go to the softmax as they are."""
    nested = []
    for name in ("score", "prob"):
        inner = Editor(name=name, length=0)
        inner.outputs = [inner.input("s", np.float32, (BATCH, 2, 7, 7))]
        nested.append(inner.finish())
    rng = np.random.default_rng(5)
    parts = [(numbers(rng, "float32", (3, 7, 6), False), (BATCH, 7, 6)) for _ in "qkv"]
    attrs = dict.fromkeys(("q_zp", "k_zp", "v_zp", "p_zp"), 0) | {"qk_scale": 1.0, "pv_scale": 1.0}
    case = one_node(
        "attention", 3, parts, heads=2, score=nested[0], prob=nested[1], ulps=100,
        scale=lambda i, _: np.float64(1.0), **attrs,
    )  # fmt: skip
    build([case])


# ---- what is refused ----


def test_other_element_types_are_named() -> None:
    edit = Editor(name="g", length=0)
    x = edit.input("x", np.float16, (2,))
    edit.outputs = [edit.emit("neg", [x])]
    graph = edit.finish()
    assert "float16" in table.unsupported(graph.nodes[0], graph)
