"""Tiles: what their registers do, and linear layers on them, against sums by numpy.

All of it runs on the emulation, under AddressSanitizer and UBSan, and on the unit itself where
there is one.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import struct
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks import cost_model
from sparsec import targets
from sparsec.compiler import toolchain
from sparsec.compiler.lowering.tile_packing import (
    LEAST_INPUTS,
    PARTS,
    PRODUCTS,
    Listed,
    filled,
    list_tiles,
    mask_tiles,
    pack_floats,
    pack_tiles,
    tile_count,
)
from sparsec.compiler.lowering.tiling import candidates, estimate
from sparsec.compiler.templates import environment, read_template
from sparsec.runtime import cpu
from sparsec.targets import host_arch

HERE = Path(__file__).parent
Array = np.ndarray[Any, Any]

#: Whether programs here may use the unit.
UNIT = "amx" in cpu.detect().targets()

needs_unit = pytest.mark.skipif(not UNIT, reason="this CPU has no tiles")
needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")

#: Sums wrap here, as no model's do.
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fwrapv")

#: Compiler flags, vectors and tiles of each way to run the kernels.
FORMS = {
    "emulated": (("-O1", "-g", "-DEMULATED", *SANITIZERS), "vec_generic.h", 4, "tiles_emulated.h"),
    "amx": (
        (
            "-O2",
            *(f"-mavx512{x}" for x in ("f", "bw", "dq", "vl", "vnni", "vbmi2")),
            "-mfma",
            "-mbmi",
        ),
        "vec_avx512.h",
        16,
        "tiles_amx.h",
    ),
}


@dataclass(frozen=True)
class Shape:
    """A layer, and how it is cut: tiles of inputs in a chunk, blocks of rows in a sweep.

    Its tiles are "whole", or "listed", or made of masks of "packs" or of "bytes"; or its weights
    are "floats".
    """

    n: int
    k: int
    chunk: int
    sweep: int = 8
    tiles: str = "whole"

    @property
    def packs(self) -> int:
        return -(-self.k // 4)

    @property
    def quads(self) -> int:
        return -(-self.n // 4)

    @property
    def floats(self) -> bool:
        return self.tiles == "floats"

    @property
    def stride(self) -> int:
        """Bytes of activations in a block of rows."""
        return self.packs * (256 if self.floats else 64)

    @property
    def steps(self) -> int:
        return tile_count(self.k, "f32" if self.floats else "i8")

    @property
    def chunks(self) -> int:
        return -(-self.steps // self.chunk)

    @property
    def granule(self) -> int:
        return {"packs": 4, "bytes": 1}.get(self.tiles, 0)

    def pack(self, w: Array) -> Listed:
        """Weights as its kernel reads them."""
        if self.granule:
            return mask_tiles(w, self.chunk, (self.granule,))
        if self.tiles == "listed":
            return list_tiles(w, self.chunk)
        none = np.zeros(0, np.int32)
        pack = pack_floats if self.floats else pack_tiles
        return Listed(pack(w), none.astype(np.uint16), none, 0)


#: Whole tiles, and every tail; chunks of one length, and with a shorter last one.
SHAPES = (
    Shape(32, 64, 1),
    Shape(64, 61, 1),
    Shape(1, 65, 2),
    Shape(18, 200, 2),
    Shape(130, 312, 5),
    Shape(100, 448, 3, 4),
    Shape(33, 577, 4, 2),
    Shape(96, 1000, 7),
    Shape(37, 66, 1, 8, "listed"),
    Shape(130, 312, 5, 8, "listed"),
    Shape(48, 448, 3, 4, "listed"),
    Shape(64, 64, 1, 8, "packs"),
    Shape(100, 640, 3, 8, "packs"),
    Shape(1, 65, 2, 8, "bytes"),
    Shape(130, 577, 4, 2, "bytes"),
)

#: The same of floats, for inputs and outputs that are no multiples of anything.
FLOATS = (
    Shape(32, 32, 1, 4, "floats"),
    Shape(1, 1, 1, 8, "floats"),
    Shape(37, 31, 2, 8, "floats"),
    Shape(130, 77, 1, 4, "floats"),
    Shape(100, 450, 4, 2, "floats"),
    Shape(18, 1000, 24, 8, "floats"),
)

KERNELS = SHAPES + FLOATS

#: What kernels are given.
FIELDS = (
    "const char *x",
    "const int8_t *weights",
    "const uint16_t *offsets",
    "const int32_t *start",
    "const int32_t *bias",
    "int32_t *sums",
    "char *y",
)

#: Kernels have a type of their own for it.
CALL = """
static void call_@(const linear_args *a, const sparsec_rows *rows, int64_t b0, int64_t b1,
                   int32_t q0, int32_t q1, char *s)
{
    const linear_@_args own = {
        (const void *)a->x, a->weights, a->offsets, a->start, a->bias, (void *)a->sums, a->y};
    linear_@(NULL, rows, &own, b0, b1, q0, q1, s);
}
"""

KERNEL = """
typedef struct {
    void (*run)(const linear_args *, const sparsec_rows *, int64_t, int64_t, int32_t, int32_t,
                char *);
    size_t stride, quads, scratch;
} kernel;
static const kernel kernels[] = {
"""


def render(shape: Shape, name: str, lanes: int) -> str:
    """A kernel that stores its sums, and if they are whole numbers their low bytes as a panel."""
    out = f"a->sums + (blk * {shape.quads} * 4 + c) * 16 + s * VL"
    v = "vf" if shape.floats else "vi"
    fields = [f.replace("const char *x", "const float *x") if shape.floats else f for f in FIELDS]
    panel = {"y": "a->y", "pack": "vi_pack4", "zero": ""}
    return (
        environment()
        .get_template("lanes/linear_tiles.c.j2")
        .render(
            name=name,
            title=f"{shape.k} -> {shape.n}",
            args=SimpleNamespace(fields=[SimpleNamespace(declaration=f) for f in fields]),
            epilogue=[f"{v}_store({out}, acc);", *["*p0 = acc;"] * (not shape.floats)],
            ahead=[f"__builtin_prefetch({out}, 0, 2);"],
            panels=[] if shape.floats else [panel],
            kind="f32" if shape.floats else "i8",
            coded=None,
            k=shape.k,
            panel_bytes=panel_bytes(shape),
            products=PRODUCTS,
            parts=PARTS,
            seen=None,
            sub=16 // lanes,
            stride=shape.stride,
            packs=shape.packs,
            quads=shape.quads,
            steps=shape.steps,
            chunk=shape.chunk,
            chunks=shape.chunks,
            sweep=shape.sweep,
            listed=shape.tiles not in ("whole", "floats"),
            granule=shape.granule,
            sums_bytes=sums_bytes(shape),
        )
    )


def sums_bytes(shape: Shape) -> int:
    """Bytes that the sums of a layer need while they wait."""
    groups = -(-shape.n // 32) if shape.floats else 1
    return 4096 * (1 + (shape.sweep // 2 * groups if shape.chunk < shape.steps else 0))


def panel_bytes(shape: Shape) -> int:
    """Bytes of the parts of activations in a chunk, or all of those of two blocks."""
    tiles = max(shape.sweep * min(shape.chunk, shape.steps), 2 * shape.steps)
    return tiles * PARTS * 1024 if shape.floats else 0


def scratch(shape: Shape) -> int:
    """All of it, with tiles that are made of masks or floats."""
    parts = max(2 * shape.chunk, 3) * PARTS
    made = 2048 * (parts if shape.floats else shape.chunk * bool(shape.granule))
    return panel_bytes(shape) + sums_bytes(shape) + made


def write_tree(folder: Path, form: str) -> None:
    _, vectors, lanes, tiles = FORMS[form]
    for name, source in (
        ("rt.h", "rt.h"),
        ("sparsec.h", "sparsec.h"),
        ("vec_isa.h", f"lanes/{vectors}"),
        ("vec.h", "lanes/vec.h"),
        ("split.h", "lanes/split.h"),
        ("tiles.h", "lanes/tiles.h"),
        ("tiles_isa.h", f"lanes/{tiles}"),
    ):
        (folder / name).write_text(read_template(source))
    (folder / "lanes.h").write_text(environment().get_template("lanes/lanes.h.j2").render())
    text = "typedef struct {\n" + "".join(f"    {f};\n" for f in FIELDS) + "} linear_args;\n"
    for i, shape in enumerate(KERNELS):
        text += render(shape, f"linear_{i}", lanes) + CALL.replace("@", str(i))
    text += KERNEL
    for i, s in enumerate(KERNELS):
        text += f"    {{call_{i}, {s.stride}, {s.quads}, {scratch(s)}}},\n"
    (folder / "kernels.h").write_text(text + "};\n")


@dataclass
class Program:
    """The driver, waiting for cases."""

    process: subprocess.Popen[bytes]

    def answer(self, parts: Iterable[bytes | Array], size: int) -> bytes:
        """What it writes on one case."""
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None and stdout is not None
        for part in parts:
            stdin.write(part if isinstance(part, bytes) else part.tobytes())
        stdin.flush()
        data = stdout.read(size)
        assert len(data) == size, self.process.wait()
        return data

    def sums(
        self, shape: int, x: Array, w: Array, bias: Array, flat: Array, ranges: tuple[int, ...]
    ) -> tuple[Array, bytes]:
        """The sums, 4 bytes each ``[blocks, quads, 4, 16]``, that the kernel has stored, and its
        panel."""
        s = KERNELS[shape]
        b0, b1, q0, q1 = ranges
        padded = np.zeros(s.quads * 4, np.int32)
        padded[: s.n] = bias
        packed = s.pack(w)
        tables = (packed.weights, packed.offsets, packed.start)
        head = struct.pack("8i", shape, b0, b1, q0, q1, *(table.nbytes for table in tables))
        count = b1 * s.quads * 64
        data = self.answer((head, x, *tables, padded, flat), 5 * count)
        kind = np.float32 if s.floats else np.int32
        return np.frombuffer(data[: 4 * count], kind).reshape(b1, s.quads, 4, 16), data[4 * count :]

    def run(self, shape: int, x: Array, w: Array, bias: Array, ranges: tuple[int, ...]) -> Array:
        """The sums int32 ``[blocks, channels, 16]`` that the kernel has stored."""
        s = KERNELS[shape]
        b0, b1, q0, q1 = ranges
        flat = np.arange(16 * b1, dtype=np.int32)
        lanes, rest = self.sums(shape, panels(x), w, bias, flat, ranges)
        panel = np.frombuffer(rest, np.uint8).reshape(b1, s.quads, 16, 4)
        low = lanes.astype(np.uint8).transpose(0, 1, 3, 2)
        np.testing.assert_array_equal(panel[b0:, q0:q1], low[b0:, q0:q1])
        return lanes.reshape(b1, s.quads * 4, 16)


def panels(x: Array) -> Array:
    """Rows uint8 [16 * blocks, K] as panels [blocks, packs, 16, 4]; what pads K is noise."""
    rows, k = x.shape
    padded = np.full((rows, -(-k // 4) * 4), 0xA5, np.uint8)
    padded[:, :k] = x
    return np.ascontiguousarray(padded.reshape(rows // 16, 16, -1, 4).transpose(0, 2, 1, 3))


def build(folder: Path, source: str, form: str) -> Path:
    """A program of a file beside this one."""
    write_tree(folder, form)
    command = ["gcc", "-std=gnu11", *FORMS[form][0], "-Wall", "-Wextra", "-Werror", f"-I{folder}"]
    output = folder / Path(source).stem
    done = subprocess.run(
        [*command, str(HERE / source), "-o", str(output), "-lm"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return output


@contextlib.contextmanager
def running(path: Path) -> Iterator[Program]:
    with subprocess.Popen([str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield Program(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait() == 0


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("emulated", marks=needs_gcc),
        pytest.param("amx", marks=(needs_unit, needs_gcc)),
    ],
)
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def program(form: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    with running(build(tmp_path_factory.mktemp("tiles"), "tiles_driver.c", form)) as started:
        yield started


@pytest.fixture(scope="module")
def registers(form: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    with running(build(tmp_path_factory.mktemp("tiles"), "tiles_registers.c", form)) as started:
        yield started


def expected(x: Array, w: Array, bias: Array) -> Array:
    """Sums [blocks, N, 16], modulo 2^32."""
    sums = w.astype(np.int64) @ x.astype(np.int64).T + bias[:, None].astype(np.int64)
    wrapped = sums.astype(np.uint64).astype(np.uint32).view(np.int32)
    return wrapped.reshape(len(w), -1, 16).transpose(1, 0, 2)


VALUES = {
    "any": lambda rng, shape, lo, hi: rng.integers(lo, hi + 1, shape),
    "extremes": lambda rng, shape, lo, hi: rng.choice(np.array([lo, hi]), shape),
    "least": lambda rng, shape, lo, hi: np.full(shape, lo),
    "most": lambda rng, shape, lo, hi: np.full(shape, hi),
    "sparse": lambda rng, shape, lo, hi: (
        rng.integers(lo, hi + 1, shape) * (rng.random(shape) < 0.1)
    ),
    "holes": lambda rng, shape, lo, hi: rng.integers(lo, hi + 1, shape) * holes(rng, shape),
    "none": lambda rng, shape, lo, hi: np.zeros(shape, int),
}


def holes(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    """A mask whose zeros are parts of 16 x 64."""
    coarse = rng.random((-(-shape[0] // 16), -(-shape[1] // 64))) < 0.4
    return np.repeat(np.repeat(coarse, 16, 0), 64, 1)[: shape[0], : shape[1]]


def share(data: st.DataObject, shape: Shape) -> tuple[int, int, int, int]:
    """What a thread may get: from which block to which, from which quad to which."""
    b1 = data.draw(st.integers(1, 11), "blocks")
    b0 = data.draw(st.integers(0, b1 - 1), "first block")
    # Threads take slabs of 16 quads.
    slabs = -(-shape.quads // 16)
    first = data.draw(st.integers(0, slabs - 1), "first slab")
    last = data.draw(st.integers(first + 1, slabs), "last slab")
    return b0, b1, 16 * first, min(16 * last, shape.quads)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_linear_layers_are_exact(program: Program, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(SHAPES) - 1), "shape")
    s = SHAPES[index]
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), "seed"))
    b0, b1, q0, q1 = share(data, s)
    x = VALUES[data.draw(st.sampled_from(list(VALUES)), "x")](rng, (16 * b1, s.k), 0, 255)
    w = VALUES[data.draw(st.sampled_from(list(VALUES)), "w")](rng, (s.n, s.k), -128, 127)
    x, w = x.astype(np.uint8), w.astype(np.int8)
    zero_point = data.draw(st.sampled_from([0, 1, 128, 255]), "zero point")
    bias = -zero_point * w.astype(np.int64).sum(axis=1)
    bias += rng.integers(-(2**31), 2**31, s.n) if data.draw(st.booleans(), "wraps") else 0
    bias = bias.astype(np.uint64).astype(np.uint32).view(np.int32)
    found = program.run(index, x, w, bias, (b0, b1, q0, q1))
    want = expected(x, w, bias)
    np.testing.assert_array_equal(found[b0:, 4 * q0 : min(4 * q1, s.n)], want[b0:, 4 * q0 : 4 * q1])
    # What was not asked for is as it was.
    untouched = np.array(0xA5A5A5A5, np.uint32).astype(np.int32)
    assert (found[:b0] == untouched).all()
    assert (found[:, : 4 * q0] == untouched).all() and (found[:, 4 * q1 :] == untouched).all()


FLOAT_VALUES = {
    "any": lambda rng, shape: rng.standard_normal(shape),
    "scales": lambda rng, shape: rng.standard_normal(shape) * 10.0 ** rng.integers(-9, 9, shape),
    "whole": lambda rng, shape: rng.integers(-9, 9, shape),
    "full": lambda rng, shape: np.float32(1) - rng.integers(0, 2, shape) * np.float32(2**-24),
    "one": lambda rng, shape: (rng.random(shape) < 1 / shape[-1]) * rng.standard_normal(shape),
    "none": lambda rng, shape: np.zeros(shape),
}


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_linear_layers_of_floats_are_as_exact_as_floats(
    program: Program, data: st.DataObject
) -> None:
    """Sums of the parts of floats are within rounding of those of floats; where there is infinity
    or no number in a row, they are what they are for floats; what lies in padding does not
    matter."""
    index = data.draw(st.integers(len(SHAPES), len(KERNELS) - 1), "shape")
    s = KERNELS[index]
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), "seed"))
    b0, b1, q0, q1 = share(data, s)
    rows, inputs = data.draw(st.integers(16 * b1 - 15, 16 * b1), "rows"), -(-s.k // 4) * 4
    x = np.full((16 * b1, inputs), np.nan, np.float32)
    x[:, : s.k] = FLOAT_VALUES[data.draw(st.sampled_from(list(FLOAT_VALUES)), "x")](
        rng, (16 * b1, s.k)
    )
    w = FLOAT_VALUES[data.draw(st.sampled_from(list(FLOAT_VALUES)), "w")](rng, (s.n, s.k))
    w = w.astype(np.float32)
    odd = data.draw(st.sampled_from(["", "padding", "inf", "nan"]), "odd")
    if odd == "padding":
        x[rows:] = rng.choice(np.float32([np.inf, -np.inf, np.nan]), (16 * b1 - rows, inputs))
    elif odd:
        x[rng.integers(rows), rng.integers(s.k)] = np.float32(odd)
    flat = np.where(np.arange(16 * b1) < rows, np.arange(16 * b1), -1).astype(np.int32)
    lanes = np.ascontiguousarray(x.reshape(b1, 16, -1).transpose(0, 2, 1))
    lanes, _ = program.sums(index, lanes, w, np.zeros(s.n, np.int32), flat, (b0, b1, q0, q1))
    found = lanes.reshape(b1, -1, 16).transpose(0, 2, 1).reshape(16 * b1, -1)
    mine = slice(4 * q0, min(4 * q1, s.n))
    have, x = found[16 * b0 : rows, mine], x[16 * b0 : rows, : s.k].astype(np.float64)
    with np.errstate(invalid="ignore"):
        want = x @ w[mine].astype(np.float64).T
        near = 2.0**-20 * (np.abs(x) @ np.abs(w[mine].astype(np.float64)).T) + 1e-36
    sure = np.isfinite(want)
    np.testing.assert_array_less(np.abs(have[sure] - want[sure]), near[sure])
    np.testing.assert_array_equal(have[~sure], want[~sure].astype(np.float32))
    untouched = np.array(0xA5A5A5A5, np.uint32).view(np.float32)
    assert (found[: 16 * b0] == untouched).all()
    assert (found[:, : 4 * q0] == untouched).all() and (found[:, 4 * q1 :] == untouched).all()


def bf16(values: Array) -> Array:
    """Float32 as the upper half of its bits."""
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rows=st.integers(1, 16),
    packs=st.integers(1, 16),
    columns=st.integers(1, 16),
    extra=st.integers(0, 9),
    floats=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_products_of_any_shape(
    registers: Program, rows: int, packs: int, columns: int, extra: int, floats: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    stride = 4 * max(packs, columns) + extra
    w, x, sums = (np.full((count, stride), 0xA5, np.uint8) for count in (rows, packs, rows))
    if floats:
        # Sums of whole numbers below 2^24 are exact in any order.
        a, b = (
            rng.integers(-128, 129, shape) for shape in ((rows, 2 * packs), (2 * packs, columns))
        )
        start = rng.integers(-1000, 1000, (rows, columns)).astype(np.float32)
        want = (a @ b + start).astype(np.float32)
        w[:, : 4 * packs] = bf16(a).view(np.uint8)
        x[:, : 4 * columns] = (
            bf16(b).reshape(packs, 2, columns).transpose(0, 2, 1).reshape(packs, -1).view(np.uint8)
        )
    else:
        a = VALUES["extremes" if seed % 2 else "any"](rng, (rows, 4 * packs), -128, 127)
        b = VALUES["extremes" if seed % 3 else "any"](rng, (4 * packs, columns), 0, 255)
        start = rng.integers(-(2**31), 2**31, (rows, columns)).astype(np.int32)
        total = a.astype(np.int64) @ b.astype(np.int64) + start
        want = total.astype(np.uint64).astype(np.uint32).view(np.int32)
        w[:, : 4 * packs] = a.astype(np.int8).view(np.uint8)
        x[:, : 4 * columns] = b.reshape(packs, 4, columns).transpose(0, 2, 1).reshape(packs, -1)
    sums[:, : 4 * columns] = start.view(np.uint8)
    head = struct.pack("6i", rows, packs, columns, stride, floats, 0)
    found = np.frombuffer(registers.answer((head, w, x, sums), rows * stride), np.uint8)
    found = found.reshape(rows, stride)
    inside = np.ascontiguousarray(found[:, : 4 * columns]).view(want.dtype)
    np.testing.assert_array_equal(inside, want)
    assert (found[:, 4 * columns :] == 0xA5).all()


@needs_gcc
def test_misuse_ends_the_program(tmp_path: Path) -> None:
    """Where the unit would fault, the emulation says what is wrong."""
    path = build(tmp_path, "tiles_registers.c", "emulated")
    for number in range(11):
        done = subprocess.run([str(path), str(number)], capture_output=True, text=True)
        assert done.returncode == -signal.SIGABRT, number
        assert re.fullmatch(r"tiles: .* does not hold\n", done.stderr), done.stderr


COMPILERS = [
    pytest.param("gcc", marks=needs_gcc),
    pytest.param("zig", marks=pytest.mark.skipif(find_spec("ziglang") is None, reason="needs zig")),
]


@pytest.mark.parametrize("name", COMPILERS)
def test_instructions_are_those_meant(tmp_path: Path, name: str) -> None:
    """Operands in the order that Intel's manual encodes: sums, signed, unsigned."""
    write_tree(tmp_path, "amx")
    (tmp_path / "one.c").write_text(
        '#include "rt.h"\n#include "tiles.h"\n'
        "void f(const tile_config *c, void *p)\n{\n    tiles_configure(c);\n    TILE_ZERO(3);\n"
        "    TILE_LOAD(4, p, 64);\n    TILE_DOT(0, 4, 6);\n    TILE_DOT_BF16(1, 5, 7);\n"
        "    TILE_STORE(2, p, 64);\n    tiles_release();\n}\n"
    )
    if host_arch() != "x86_64":
        pytest.skip("the unit is x86's")
    cc = toolchain.find(name)
    command = [*cc.command, *cc.base_flags(), "-std=gnu11", "-O2", "-I.", "-c", "one.c"]
    subprocess.run([*command, "-o", "one.o"], cwd=tmp_path, check=True, capture_output=True)
    code = (tmp_path / "one.o").read_bytes()
    wanted = (
        "c4e2784907",  # ldtilecfg (%rdi)
        "c4e27b49d8",  # tilezero tmm3
        "c4e24a5ec4",  # tdpbsud tmm0, tmm4, tmm6
        "c4e2425ccd",  # tdpbf16ps tmm1, tmm5, tmm7
        "c4e27849c0",  # tilerelease
    )
    at = [code.find(bytes.fromhex(instruction)) for instruction in wanted]
    assert -1 not in at and at == sorted(at)


@settings(max_examples=100, deadline=None)
@given(n=st.integers(1, 70), k=st.integers(LEAST_INPUTS, 300), seed=st.integers(0, 2**32 - 1))
def test_tiles_hold_every_weight_once(n: int, k: int, seed: int) -> None:
    w = np.random.default_rng(seed).integers(-128, 128, (n, k)).astype(np.int8)
    tiles = pack_tiles(w)
    assert tiles.shape == (-(-n // 16), -(-k // 64), 16, 64)
    packs = -(-k // 4)
    sums = np.zeros((tiles.shape[0] * 16, packs * 4), np.int64)
    for c, row in enumerate(tiles):
        for i, tile in enumerate(row):
            first = min(64 * i, 4 * packs - 64)
            sums[16 * c : 16 * c + 16, first : first + 64] += tile
    np.testing.assert_array_equal(sums[:n, :k], w)
    assert not sums[n:].any() and not sums[:, k:].any()


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 70), k=st.integers(LEAST_INPUTS, 300), seed=st.integers(0, 2**32 - 1))
def test_lists_leave_out_empty_tiles_only(n: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    holes = VALUES["holes"](rng, (n, k), 1, 127)
    for dtype in (np.int8, np.uint16):  # bytes, bits of bfloat16
        w = holes.astype(dtype)
        tiles = pack_tiles(w)
        count = int(tiles.any(axis=(2, 3)).sum())
        assert count == int(filled(w).sum())
        for chunk in (1, 3):
            listed = list_tiles(w, chunk)
            assert listed.weights.size // 1024 == max(count, 1)
            values = listed.weights[: 1024 * count].view(dtype)
            np.testing.assert_array_equal(
                np.sort(values), np.sort(tiles[tiles.any((2, 3))].ravel())
            )
    w = holes.astype(np.int8)
    count = int(filled(w).sum())
    for chunk in (1, 3):
        masked = mask_tiles(w, chunk)
        assert masked.weights.size == 64 + int((w != 0).sum()) + 128 * max(count, 1) or (
            masked.granule == 4
        )


def test_fewer_inputs_than_a_tile_are_refused() -> None:
    pack_tiles(np.zeros((1, LEAST_INPUTS), np.int8))
    with pytest.raises(ValueError, match="60 input channels do not fill a tile"):
        pack_tiles(np.zeros((1, LEAST_INPUTS - 1), np.int8))


@needs_gcc
def test_the_probe_measures_everything() -> None:
    """On the emulation only that it does; on the unit, that a product takes its 16 cycles."""
    avx2, amx = targets.get("avx2"), targets.get("amx")
    assert amx.matrix is not None
    emulated = replace(avx2, matrix=replace(amx.matrix, header="tiles_emulated.h"))
    if not UNIT and "avx2" not in cpu.detect().targets():
        pytest.skip("needs AVX2")
    found = cost_model.probe(amx if UNIT else emulated, toolchain.find("gcc"), 2)
    assert len(found) == 30 and all(ns > 0 for ns, _ in found.values())
    if UNIT:
        assert 12 < found["product, 16 rows of weights"][1] < 40


def test_the_cost_model_is_fitted_to_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times that are made of known factors give these factors back."""
    target = targets.get("amx")
    costs = replace(targets.costs(target), matrix=(5.7, 2.5, 30.0, 2.47, 350.0, 4.0))
    target = replace(target, costs=costs)

    def measure(layers: Any, rows: Any, *_: Any, **__: Any) -> dict[Any, dict[int, float]]:
        return {
            (layer, tiling): {b: estimate(layer, tiling, b, target) * 1e-9 for b in rows}
            for layer in layers
            for tiling in candidates(layer, target)
        }

    monkeypatch.setattr(cost_model, "measure", measure)
    made = cost_model.fit("i8", target, quick=True)
    np.testing.assert_allclose(made.factors[True], costs.matrix, rtol=0.02)
    assert made.worst < 1e-6 and made.loss < 1e-9
