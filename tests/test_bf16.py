"""Products of bfloat16: rounding, layers, attention, models, against numpy and ONNX Runtime.

Portable C everywhere, and tiles by their emulation; on the instructions where this CPU has them.
"""

from __future__ import annotations

import ctypes
import json
import math
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sparsec
from examples.encoders import EncoderConfig, Export, Model, write_random
from sparsec import cache, targets
from sparsec.cli import main
from sparsec.compiler import frontend, toolchain
from sparsec.compiler.accuracy import of_bf16
from sparsec.compiler.interpreter import interpret
from sparsec.compiler.ir import BATCH, Graph
from sparsec.compiler.lowering.bfloat16 import from_bf16, round_bf16, to_bf16
from sparsec.compiler.templates import read_template
from sparsec.errors import HardwareError, InputError
from tests.lane_harness import _target, compile_graph, target_params
from tests.ort_reference import session as reference
from tests.test_lane_kernels import FULL, F, S, U, attention_graph, float_layers

#: Targets with such products that run here, or are emulated.
ABLE = [p for p in target_params() if targets.get(str(p.values[0])).bf16 is not None]

SPECIAL = np.array(
    [0.0, -0.0, 1e-45, -1e-40, 2.0**-126, -(2.0**-126), np.inf, -np.inf, np.nan, 3.4e38, -3.4e38],
    np.float32,
)


def nearest(x: float) -> float:
    """The bfloat16 nearest to a normal number, ties to even, by whole numbers."""
    fraction, exponent = math.frexp(x)
    scaled = fraction * 256  # 8 bits of significand
    return math.ldexp(float(np.rint(scaled)), exponent - 8)


@settings(max_examples=300, deadline=None)
@given(st.floats(width=32, allow_subnormal=False))
def test_rounding_is_to_the_nearest(x: float) -> None:
    (have,) = from_bf16(to_bf16(np.float32([x])))
    if math.isnan(x):
        assert math.isnan(have)
    elif abs(x) > 3.3961775e38:  # halfway from the largest to the next
        assert have == math.copysign(math.inf, x)
    else:
        assert have == nearest(x) and math.copysign(1, have) == math.copysign(1, x)


def test_rounding_of_special_numbers() -> None:
    """Below 2^-126 signed zeros; infinities and NaN stay, whatever the NaN's lower bits are."""
    have = round_bf16(SPECIAL)
    np.testing.assert_array_equal(have[:4], 0)
    assert list(np.signbit(have[:4])) == [False, True, False, True]
    np.testing.assert_array_equal(have[4:8], SPECIAL[4:8])
    hidden = np.array([0x7F800001, 0xFF800001], np.uint32).view(np.float32)
    assert np.isnan(have[8]) and np.isnan(round_bf16(hidden)).all()


HEADER_TEST = """
#include <math.h>
#include <string.h>
#include "rt.h"
#include "vec_isa.h"
#include "vec.h"
#include "bfloat16.h"
void pairs(const float *even, const float *odd, int32_t *to, long n)
{
    for (long i = 0; i < n; i += VL)
        vi_store(to + i, vi_pair_bf16(vf_load(even + i), vf_load(odd + i)));
}
void halves(const float *from, uint16_t *to, long n)
{
    for (long i = 0; i < n; i += VL)
        vf_store_bf16(to + i, vf_load(from + i));
}
void dots(float *acc, const int32_t *x, const int32_t *w, long n)
{
    for (long i = 0; i < n; i += VL)
        vf_store(acc + i, vf_dot2(vf_load(acc + i), vi_load(x + i), vi_load(w + i)));
}
"""


@pytest.mark.parametrize("target", ABLE)
def test_vectors_do_what_the_instructions_do(tmp_path: Path, target: str) -> None:
    isa = _target(target, "bf16")
    files = {"rt.h": "rt.h", "sparsec.h": "sparsec.h", "vec.h": "lanes/vec.h"}
    files |= {"vec_isa.h": f"lanes/{isa.vectors.header}", "bfloat16.h": "lanes/bfloat16.h"}
    for name, source in files.items():
        (tmp_path / name).write_text(read_template(source))
    (tmp_path / "t.c").write_text(HEADER_TEST)
    cc = toolchain.find()
    flags = [f for f in cc.flags(isa) if f != "-fvisibility=hidden"]
    command = [*cc.command, *flags, "-shared", "-o", "t.so", "t.c", "-lm"]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    library = ctypes.CDLL(str(tmp_path / "t.so"))

    def call(name: str, *arrays: np.ndarray) -> None:
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in arrays]
        getattr(library, name)(*pointers, ctypes.c_long(arrays[0].size))

    rng = np.random.default_rng(0)
    any_bits = rng.integers(0, 2**32, 4096, dtype=np.uint32).view(np.float32)
    even, odd = np.resize(SPECIAL, 4096), any_bits
    packed, half = np.zeros(4096, np.int32), np.zeros(4096, np.uint16)
    call("pairs", even, odd, packed)
    call("halves", odd, half)
    np.testing.assert_array_equal(packed.view(np.uint16)[0::2], to_bf16(even))
    np.testing.assert_array_equal(packed.view(np.uint16)[1::2], to_bf16(odd))
    np.testing.assert_array_equal(half, to_bf16(odd))
    # Whole numbers: sums are exact in any order.  Then sums that leave the normal numbers.
    x, w = (rng.integers(-128, 129, (4096, 2)).astype(np.float32) for _ in "xw")
    acc = rng.integers(-999, 999, 4096).astype(np.float32)
    want = acc + (x * w).sum(axis=1)
    call("dots", acc, to_bf16(x).view(np.int32), to_bf16(w).view(np.int32))
    np.testing.assert_array_equal(acc, want)
    tiny = np.full((16, 2), 2.0**-64, np.float32)
    acc = np.full(16, -(2.0**-126), np.float32)  # 2^-127 is left after the first product
    call("dots", acc, to_bf16(tiny).view(np.int32), to_bf16(tiny).view(np.int32))
    assert (acc == 0).all() or (np.abs(acc) >= 2.0**-126).all()


def rounded(graph: Graph, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """What numpy makes of a graph whose products are of bfloat16."""
    return interpret(graph, inputs, rounding=lambda node: round_bf16)


@pytest.mark.parametrize("target", ABLE)
@pytest.mark.parametrize("k", [1, 67, 700])
def test_layers(tmp_path: Path, target: str, k: int) -> None:
    """Every pattern of zeros, tails of inputs and channels: as close as float32's are."""
    rng = np.random.default_rng(k)
    graph = float_layers(rng, k)
    library = compile_graph(tmp_path, graph, target, precision="bf16")
    text = "".join(p.read_text() for p in tmp_path.glob("bucket_*/bucket.c"))
    assert "linear_bf16_" in text and "linear_f32_" not in text
    for batch in (1, 3, 9):
        a = rng.standard_normal((batch, 7, k)).astype(np.float32)
        for want, have in zip(rounded(graph, [a]), library.run([a]), strict=True):
            np.testing.assert_allclose(have, want, rtol=1e-5, atol=2e-6 * math.sqrt(k))


@pytest.mark.parametrize("target", ABLE)
@pytest.mark.parametrize(
    ("heads", "dim", "types", "zps"),
    [(3, 7, (F, F, F, F), (0, 0, 0, 0)), (2, 64, (F, F, F, F), (0, 0, 0, 0)),
     (2, 20, (F, F, U, U), (0, 0, 140, 0)), (1, 72, (U, S, F, F), (100, 3, 0, 0))],
)  # fmt: skip
def test_attention(
    tmp_path: Path,
    target: str,
    heads: int,
    dim: int,
    types: tuple[type, type, type, type],
    zps: tuple[int, int, int, int],
) -> None:
    """Ragged sequences, masks, and neighbours that are not numbers."""
    length = 21
    graph = attention_graph(length, heads, dim, types, zps, FULL)
    library = compile_graph(tmp_path, graph, target, precision="bf16")
    rng = np.random.default_rng(dim)
    lengths = [21, 3, 0, 16, 5, 20]
    shape = (len(lengths), length, heads * dim)
    inputs = [
        rng.standard_normal(shape).astype(np.float32)
        if t == F
        else rng.integers(np.iinfo(t).min, np.iinfo(t).max + 1, shape).astype(t)
        for t in types[:3]
    ]
    mask = np.where(rng.random((len(lengths), 1, 1, length)) < 0.3, -1e9, 0).astype(np.float32)
    (want,) = rounded(graph, [*inputs, mask])
    (have,) = library.run([*inputs, mask])
    compare(have, want)
    for row, real in zip(mask, lengths, strict=True):
        row[..., real:] = -np.inf
    (want,) = rounded(graph, [*inputs, mask])
    for array in inputs:
        if array.dtype == np.float32:
            for row, real in zip(array, lengths, strict=True):
                row[real:] = np.nan
    (have,) = library.run([*inputs, mask], lengths)
    for i, real in enumerate(lengths):
        if real:
            compare(have[i, :real], want[i, :real])


def compare(have: np.ndarray, want: np.ndarray) -> None:
    """Equal but for a probability here and there that rounds to the neighbour."""
    scale = np.abs(want).max()
    assert np.abs(have - want).max() <= 0.01 * scale
    assert np.abs(have - want).mean() <= 3e-4 * scale


# -- models


def encoder(folder: Path, sparsity: float = 0.0) -> Model:
    config = EncoderConfig(
        layers=2, hidden=72, heads=4, intermediate=202, vocab=50, max_position=64
    )
    return write_random(folder / "m.onnx", config, "fp32", Export(), seed=1, sparsity=sparsity)


@pytest.mark.parametrize("sparsity", [0.0, 0.8])
def test_models_agree_with_onnx_runtime(tmp_path: Path, sparsity: float) -> None:
    """Within 2 % of the largest output, 0.3 % on average: 8 bits of significand, two layers."""
    model = encoder(tmp_path, sparsity)
    artifact = sparsec.compile(model.path, buckets=[40], target="generic", precision="bf16")
    assert artifact.target.precision == "bf16"
    kernels = " ".join(k.kernel for b in artifact.manifest.buckets for k in b.kernels)
    assert "attention_bf16_bf16_" in kernels and "_f32_" not in kernels
    assert f"linear_bf16_{'sparse' if sparsity else 'dense'}_" in kernels
    ort = reference(model.path)
    names = [x.name for x in ort.get_inputs()]
    with sparsec.Engine(artifact) as engine:
        for batch, length in ((1, 40), (3, 17)):
            inputs = model.batch(batch, length, seed=2, ragged=True)
            want = ort.run(None, dict(zip(names, inputs, strict=True)))
            for w, have in zip(want, engine.run(inputs), strict=True):
                error = np.abs(have - w) / np.abs(w).max()
                assert 0 < error.max() < 0.02 and error.mean() < 0.003


def test_precision_is_recorded_and_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command line in another folder; in the manifest, the cache's key and `inspect`."""
    model = encoder(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    command = ["compile", "../m.onnx", "--buckets", "16", "--target", "generic"]
    assert main([*command, "--precision", "bf16", "-o", "b.sparsec"]) == 0
    manifest = json.loads((elsewhere / "b.sparsec" / "manifest.json").read_text())
    assert manifest["target"]["precision"] == "bf16"
    capsys.readouterr()
    assert main(["inspect", "b.sparsec"]) == 0
    assert "products of floats in bf16" in capsys.readouterr().out
    inspect = ["inspect", "../m.onnx", "--length", "16", "--target", "generic", "--json"]
    assert main([*inspect, "--precision", "bf16"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["precision"] == "bf16"
    (row,) = report["accuracy"]
    assert row["output"] == "last_hidden_state"
    assert 0 < row["mean"] < row["largest"] < 0.02 and row["cosine"] > 0.999
    assert main(inspect) == 0
    assert "accuracy" not in json.loads(capsys.readouterr().out)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    loaded = frontend.load_model(model.path)
    paths = {
        cache.compiled(loaded, buckets=[8], target="generic", precision=precision)
        for precision in targets.PRECISIONS
    }
    assert len(paths) == 2
    assert {sparsec.Artifact.load(p).target.precision for p in paths} == {"fp32", "bf16"}
    with pytest.raises(InputError, match="precision cannot be changed"):
        sparsec.Engine(elsewhere / "b.sparsec", precision="bf16")


def test_what_cannot_be_had_is_refused() -> None:
    with pytest.raises(InputError, match=r"target avx2 has no products of bfloat16.*generic"):
        targets.choose("avx2", machine(), "bf16")
    with pytest.raises(InputError, match="no precision 'fp16'; choose fp32 or bf16"):
        targets.choose("generic", machine(), "fp16")
    with pytest.raises(HardwareError, match="this CPU has no products of bfloat16"):
        targets.choose("auto", machine(*targets.AVX512_VNNI), "bf16")


def machine(*features: str) -> targets.Machine:
    return SimpleNamespace(arch="x86_64", features=features)  # type: ignore[return-value]


def test_auto_takes_what_has_the_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "refusal", lambda target: None)
    vectors = machine(*targets.AVX512_VNNI, "avx512bf16")
    chosen = targets.choose("auto", vectors, "bf16")
    assert chosen.name == "avx512_vnni" and "avx512bf16" in chosen.features
    assert targets.choose("auto", vectors).features == targets.AVX512_VNNI
    tiles = (*targets.get("amx").features, "avx512bf16")
    without = (feature for feature in tiles if feature != "amx_bf16")
    assert targets.choose("auto", machine(*without), "bf16").name == "avx512_vnni"
    chosen = targets.choose("auto", machine(*tiles), "bf16")
    assert chosen.name == "amx" and {"amx_bf16", "avx512bf16"} <= {*chosen.features}


def test_exact_models_deviate_by_nothing(tmp_path: Path) -> None:
    """Of a model whose weights and inputs are bfloat16 already, the first layer is unchanged."""
    from sparsec.compiler.editor import Editor

    e = Editor(name="m", length=4)
    x = e.input("x", np.float32, (BATCH, 4, 8))
    e.outputs.append(e.emit("linear", [x, e.constant(np.full((8, 8), 0.5, np.float32))]))
    graph = e.finish()
    rng = np.random.default_rng(0)
    a = round_bf16(rng.standard_normal((2, 4, 8)).astype(np.float32))
    (row,) = of_bf16(graph, [a], ["y"])
    assert row.output == "y" and row.largest == 0 and row.cosine == pytest.approx(1)
    (row,) = of_bf16(graph, [a + np.float32(1e-3)], ["y"])
    assert 0 < row.largest < 0.01
