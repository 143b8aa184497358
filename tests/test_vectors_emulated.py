"""Emulated instructions: each against numpy, and the instruction itself where this CPU has it.

What each does is as in Intel's Intrinsics Guide and Software Developer's Manual, volume 2.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsec.compiler import toolchain
from sparsec.compiler.lowering.bfloat16 import from_bf16, to_bf16
from sparsec.compiler.templates import read_template
from sparsec.runtime import cpu
from tests.stand_ins import EMULATED, FLAGS

ROOT = Path(__file__).resolve().parents[1]
Array = np.ndarray[Any, Any]

#: Rows of 64 bytes in every operand, and what results are filled with before.
ROWS, FILL = 256, 0xA5

IMMEDIATES = (0x00, 0x55, 0xAA, 0xFF, 0x44, 0xEE, 0x88, 0xDD, 0x1B, 0x72)


def quads(x: Array) -> Array:
    """By quarter of a vector: [rows, 4, ...]."""
    return x.reshape(len(x), 4, -1)


def saturated(dtype: str) -> Callable[[Array, Array], Array]:
    """Numbers of a and b in turns of a quarter, saturated to a narrower type."""

    def run(a: Array, b: Array) -> Array:
        info = np.iinfo(dtype)
        return np.concatenate([quads(a), quads(b)], 2).clip(info.min, info.max).astype(dtype)

    return run


def unpacked(half: int) -> Callable[[Array, Array], Array]:
    def run(a: Array, b: Array) -> Array:
        size = a.shape[1] // 8
        part = slice(half * size, (half + 1) * size)
        return np.stack([quads(a)[:, :, part], quads(b)[:, :, part]], 3)

    return run


def fma(a: Array, b: Array, c: Array) -> Array:
    """a * b + c of float32 in one rounding: the sum of doubles, rounded to odd, has 53 bits."""
    product, c = a.astype(np.float64) * b, c.astype(np.float64)
    total = product + c
    back = total - product
    error = (product - (total - back)) + (c - back)
    even = total.view(np.int64) % 2 == 0
    odd = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
    inexact = np.isfinite(total) & (error != 0) & even
    return np.where(inexact, odd, total).astype(np.float32)


def fma_pd(a: Array, b: Array, c: Array) -> Array:
    def one(x: float, y: float, z: float) -> float:
        if not np.isfinite([x, y, z]).all():
            return float(np.float64(x) * y + z)
        exact = Fraction(x) * Fraction(y) + Fraction(z)
        try:
            return float(exact) if exact else x * y + z
        except OverflowError:
            return float(np.inf if exact > 0 else -np.inf)

    return np.vectorize(one, otypes=[np.float64])(a, b, c)


def dot4(acc: Array, x: Array, w: Array) -> Array:
    products = x.view(np.uint8).astype(np.int64) * w.view(np.int8)
    return (acc + products.reshape(len(acc), 16, 4).sum(2)).astype(np.uint32)


def flush(x: Array) -> Array:
    bits = x.astype(np.float32).view(np.uint32)
    return np.where(bits & 0x7F800000, bits, bits & 0x80000000).astype(np.uint32).view(np.float32)


def dot2_bf16(acc: Array, x: Array, w: Array) -> Array:
    for half in (1, 0):
        u, v = (flush(from_bf16(y.view(np.uint16)[:, half::2])) for y in (x, w))
        acc = flush(fma(u, v, flush(acc)))
    return acc


def bits(k: Array, count: int) -> Array:
    """The first bits of each row."""
    return np.unpackbits(k.view(np.uint8), axis=1, bitorder="little")[:, :count].astype(bool)


def mask_of(found: Array) -> Array:
    packed = np.packbits(found, axis=1, bitorder="little")
    return np.pad(packed, ((0, 0), (0, 64 - packed.shape[1])), constant_values=FILL)


def expand(a: Array, k: Array) -> Array:
    keep = bits(k, a.shape[1])
    index = (np.cumsum(keep, 1) - 1).clip(0)
    return np.where(keep, np.take_along_axis(a, index, 1), 0).astype(a.dtype)


def to_int(rounding: Callable[[Array], Array]) -> Callable[[Array], Array]:
    def run(a: Array) -> Array:
        whole = rounding(a.astype(np.float64))
        inside = (whole >= -(2.0**31)) & (whole < 2.0**31)
        return np.where(inside, whole, -(2.0**31)).astype(np.int32)

    return run


def scale(a: Array, b: Array) -> Array:
    n = np.floor(b.astype(np.float64))
    factor = np.where(np.isfinite(n), np.exp2(n.clip(-400, 400)), np.exp2(n))
    # By Intel's manual a quiet NaN gives way to an infinite exponent.
    quiet = np.isnan(a) & (a.view(np.uint32) & 0x400000 != 0) & np.isinf(b)
    return np.where(quiet, factor, a.astype(np.float64) * factor).astype(np.float32)


def shuffled(a: Array, b: Array, which: int) -> Array:
    """Two elements of a and two of b in each quarter."""
    index = [which >> 2 * i & 3 for i in range(4)]
    return np.concatenate([quads(a)[:, :, index[:2]], quads(b)[:, :, index[2:]]], 2)


def shuffled_quarters(a: Array, b: Array, which: int) -> Array:
    index = [which >> 2 * i & 3 for i in range(4)]
    return np.concatenate([quads(a)[:, index[:2]], quads(b)[:, index[2:]]], 1)


def shuffled_bytes(a: Array, k: Array) -> Array:
    chosen = np.take_along_axis(quads(a), (quads(k) & 15).astype(np.intp), 2)
    return np.where(quads(k) & 128, 0, chosen).astype(np.uint8)


def bytes_filled(x: Array) -> Array:
    """Bytes of results that fill no vector."""
    x = x.reshape(len(x), -1).view(np.uint8)
    return np.pad(x, ((0, 0), (0, 64 - x.shape[1])), constant_values=FILL)


def first(a: Array) -> Array:
    return np.repeat(a[:, :1], a.shape[1], 1)


#: Loads of operands and stores of results, by the letter of the type.
LOADS = {
    "ps": "_mm512_loadu_ps({})", "si": "_mm512_loadu_si512({})",
    "pd": "(__m512d)_mm512_loadu_si512({})", "m128": "_mm_loadu_ps((const float *){})",
    "m128i": "_mm_loadu_si128((const __m128i *){})", "k16": "*(const uint16_t *){}",
    "k64": "*(const uint64_t *){}", "f32": "*(const float *){}", "i32": "*(const int32_t *){}",
    "i16": "*(const int16_t *){}", "i8": "*(const int8_t *){}",
    "bh": "(__m512bh)_mm512_loadu_si512({})",
    "vi": "(vi)_mm512_loadu_si512({})", "vf": "_mm512_loadu_ps({})", "p": "(const void *){}",
    "m256i": "_mm256_loadu_si256((const __m256i *){})",
}  # fmt: skip
STORES = {
    "ps": "_mm512_storeu_ps(to, {})", "si": "_mm512_storeu_si512(to, {})",
    "pd": "_mm512_storeu_si512(to, (__m512i){})", "bh": "_mm512_storeu_si512(to, (__m512i){})",
    "vi": "_mm512_storeu_si512(to, (__m512i){})", "m128i": "_mm_storeu_si128((__m128i *)to, {})",
    "m256i": "_mm256_storeu_si256((__m256i *)to, (__m256i){})", "k16": "*(uint16_t *)to = {}",
    "k64": "*(uint64_t *)to = {}", "none": "{}",
}  # fmt: skip

#: Number types of references' operands.
NUMBERS = {
    "ps": "f4", "pd": "f8", "m128": "f4", "f32": "f4", "vf": "f4", "i32": "i4", "i16": "i2",
    "i8": "i1", "vi": "i4",
}  # fmt: skip


class Case:
    """What is computed.

    Attributes:
        call: the intrinsic, or a call of it with {0}, {1} and {2} for operands.
        result: how it is stored.
        operands: types of the operands.
        numbers: number type of what the reference gets, where types do not tell.
        reference: of arrays [rows, numbers]; results are compared by bytes, NaN as NaN.
    """

    def __init__(
        self,
        call: str,
        result: str,
        operands: str,
        reference: Callable[..., Array],
        numbers: str = "",
    ) -> None:
        self.call = call
        self.result = result
        self.operands = operands.split()
        given = numbers.split() * (1 if " " in numbers else len(self.operands))
        self.numbers = given or [NUMBERS.get(t, "u1") for t in self.operands]
        self.reference = reference

    def source(self, number: int) -> str:
        given = [LOADS[t].format(f"({v} + i)") for t, v in zip(self.operands, "abc", strict=False)]
        call = self.call.format(*given) if "(" in self.call else f"{self.call}({', '.join(given)})"
        return f"""
void case_{number}(const char *a, const char *b, const char *c, char *out)
{{
    for (long i = 0; i < 64 * {ROWS}; i += 64) {{
        char *const to = out + i;
        {STORES[self.result].format(call)};
    }}
    (void)a, (void)b, (void)c;
}}
"""

    def expected(self, *operands: Array) -> Array:
        views = [x.view(n) for x, n in zip(operands, self.numbers, strict=False)]
        with np.errstate(all="ignore"):
            return self.reference(*views)


# fmt: off
def cases() -> dict[str, list[Case]]:
    """By intrinsic, or function of vec_avx512.h that is made of assembler."""
    found: dict[str, list[Case]] = {}

    def add(name: str, *rest: Any, **named: Any) -> None:
        found.setdefault(name.split("(")[0], []).append(Case(name, *rest, **named))

    add("_mm512_loadu_ps", "ps", "p", lambda a: a)
    add("_mm512_loadu_si512", "si", "p", lambda a: a)
    add("_mm512_storeu_ps(to, {0})", "none", "ps", lambda a: a)
    add("_mm512_storeu_si512(to, {0})", "none", "si", lambda a: a)
    add("_mm512_store_si512(to, {0})", "none", "si", lambda a: a)
    for name, kind in (("ps", "f32"), ("epi32", "i32"), ("epi16", "i16"), ("epi8", "i8")):
        add(f"_mm512_set1_{name}", "ps" if name == "ps" else "si", kind, first)
    add("_mm512_setzero_si512()", "si", "", lambda: np.zeros((ROWS, 64), np.uint8))
    add("_mm512_set4_epi32({0}, 3, {1}, 5)", "si", "i32 i32",
        lambda a, b: np.tile(np.stack([0 * a[:, 0] + 5, b[:, 0], 0 * a[:, 0] + 3, a[:, 0]], 1), 4))
    numbers = [7, -1, 2**31 - 1, -(2**31), *range(12)]
    literal = ", ".join(f"(int32_t){n}LL" for n in numbers)
    add(f"_mm512_setr_epi32({literal})", "si", "", lambda: np.tile(np.int32(numbers), (ROWS, 1)))
    add("_mm512_broadcast_f32x4", "ps", "m128", lambda a: np.tile(a[:, :4], 4))
    add("_mm512_broadcast_i32x4", "si", "m128i", lambda a: np.tile(a[:, :16], 4))

    add("_mm512_add_epi32", "si", "si si", lambda a, b: a + b, "u4")
    add("_mm512_sub_epi8", "si", "si si", lambda a, b: a - b)
    add("_mm512_mullo_epi32", "si", "si si", lambda a, b: a * b, "u4")
    add("_mm512_and_si512", "si", "si si", lambda a, b: a & b)
    add("_mm512_adds_epi16", "si", "si si",
        lambda a, b: (a.astype(int) + b).clip(-(2**15), 2**15 - 1).astype(np.int16), "i2")
    add("_mm512_min_epi32", "si", "si si", np.minimum, "i4")
    add("_mm512_max_epi32", "si", "si si", np.maximum, "i4")
    add("_mm512_max_epu8", "si", "si si", np.maximum)
    add("_mm512_packs_epi32", "si", "si si", saturated("i2"), "i4")
    add("_mm512_packs_epi16", "si", "si si", saturated("i1"), "i2")
    add("_mm512_packus_epi16", "si", "si si", saturated("u1"), "i2")
    for i, half in enumerate(("lo", "hi")):
        add(f"_mm512_unpack{half}_epi32", "si", "si si", unpacked(i), "u4")
        add(f"_mm512_unpack{half}_epi64", "si", "si si", unpacked(i), "u8")
        add(f"_mm512_unpack{half}_ps", "ps", "ps ps", unpacked(i), "u4")
    for by in (1, 3, 15):
        add(f"_mm512_slli_epi16({{0}}, {by})", "si", "si", lambda a, by=by: a << by, "u2")
        add(f"_mm512_srli_epi32({{0}}, {by})", "si", "si", lambda a, by=by: a >> by, "u4")
    add("_mm512_dpbusd_epi32", "si", "si si si", dot4, "u4")
    add("vi_dot4_at", "vi", "vi vi p",
        lambda acc, x, w: dot4(acc, x, first(w)), "u4")
    add("_mm256_dpbusd_avx_epi32", "m256i", "m256i m256i m256i",
        lambda acc, x, w: bytes_filled(dot4(acc, x, w)[:, :8].copy()), "u4")

    add("_mm512_sqrt_ps", "ps", "ps", np.sqrt)
    add("_mm512_min_ps", "ps", "ps ps", lambda a, b: np.where(a < b, a, b))
    add("_mm512_max_ps", "ps", "ps ps", lambda a, b: np.where(a > b, a, b))
    add("_mm512_fmadd_ps", "ps", "ps ps ps", fma)
    add("_mm512_fnmadd_ps", "ps", "ps ps ps", lambda a, b, c: fma(-a, b, c))
    add("_mm512_fmadd_pd", "pd", "pd pd pd", fma_pd)
    add("_mm512_cvtepi32_ps", "ps", "si", lambda a: a.astype(np.float32), "i4")
    add("_mm512_cvtps_epi32", "si", "ps", to_int(np.rint))
    add("_mm512_cvttps_epi32", "si", "ps", to_int(np.trunc))
    add("_mm512_cvtepu8_epi32", "si", "m128i", lambda a: a[:, :16].astype(np.int32))
    add("_mm512_cvtepi8_epi32", "si", "m128i", lambda a: a[:, :16].astype(np.int32), "i1")
    add("_mm512_cvtepi32_epi8", "m128i", "si", lambda a: bytes_filled(a.astype(np.uint8)), "u4")
    for mode, rounded in (("NEAREST_INT", np.rint), ("NEG_INF", np.floor), ("POS_INF", np.ceil)):
        add(f"_mm512_roundscale_ps({{0}}, _MM_FROUND_TO_{mode} | _MM_FROUND_NO_EXC)", "ps", "ps",
            rounded)
    add("_mm512_scalef_ps", "ps", "ps ps", scale)

    add("_mm512_cmp_ps_mask({0}, {1}, _CMP_LT_OQ)", "k16", "ps ps", lambda a, b: mask_of(a < b))
    add("_mm512_mask_cmp_ps_mask({2}, {0}, {1}, _CMP_LT_OQ)", "k16", "ps ps k16",
        lambda a, b, k: mask_of((a < b) & bits(k, 16)))
    add("_mm512_movepi8_mask", "k64", "si", lambda a: mask_of(a >= 128))
    add("_mm512_mask_blend_epi8({2}, {0}, {1})", "si", "si si k64",
        lambda a, b, k: np.where(bits(k, 64), b, a))
    add("_mm512_mask_storeu_epi32(to, {1}, {0})", "none", "si k16",
        lambda a, k: np.where(np.repeat(bits(k, 16), 4, 1), a, FILL).astype(np.uint8))
    add("_mm512_mask_cvtepi32_storeu_epi8(to, {1}, {0})", "none", "si k16",
        lambda a, k: bytes_filled(np.where(bits(k, 16), a[:, ::4], FILL).astype(np.uint8)))
    add("_mm512_maskz_expand_epi8({1}, {0})", "si", "si k64", expand)
    add("_mm512_maskz_expand_epi32({1}, {0})", "si", "si k16", expand, "u4 u4")

    add("_mm512_shuffle_epi8", "si", "si si", shuffled_bytes)
    for imm in IMMEDIATES:
        add(f"_mm512_shuffle_ps({{0}}, {{1}}, {imm})", "ps", "ps ps",
            lambda a, b, imm=imm: shuffled(a, b, imm), "u4")
        add(f"_mm512_shuffle_epi32({{0}}, {imm})", "si", "si",
            lambda a, imm=imm: shuffled(a, a, imm), "u4")
        for kind, operands in (("f32x4", "ps ps"), ("i32x4", "si si")):
            add(f"_mm512_shuffle_{kind}({{0}}, {{1}}, {imm})", operands[:2], operands,
                lambda a, b, imm=imm: shuffled_quarters(a, b, imm))
    add("_mm512_permutexvar_ps", "ps", "si ps",
        lambda k, a: np.take_along_axis(a, (k & 15).astype(int), 1), "u4")
    add("_mm512_permutexvar_epi16", "si", "si si",
        lambda k, a: np.take_along_axis(a, (k & 31).astype(int), 1), "u2")

    add("_mm512_cvtneps_pbh", "m256i", "ps", lambda a: bytes_filled(to_bf16(a)))
    add("_mm512_cvtne2ps_pbh", "bh", "ps ps", lambda a, b: np.hstack([to_bf16(b), to_bf16(a)]))
    add("_mm512_dpbf16_ps", "ps", "ps bh bh", dot2_bf16, "f4")
    return found
# fmt: on


CASES = cases()
FLOATS = re.compile(r"_ps\b|_pd\b")


def operands(seed: int) -> list[Array]:
    """Any bytes, numbers of moderate size, and extremes of every kind, in all combinations."""
    rng = np.random.default_rng(seed)
    extremes = np.array(
        [0.0, -0.0, 0.5, -0.5, 1.5, 2.5, np.inf, -np.inf, np.nan, 1e-45, -1e-40, 2.0**-126,
         3.4028235e38, 2.0**31, -(2.0**31), 2147483520.0, 127.0, -150.0, 0.99999994], np.float32,
    )  # fmt: skip
    shorts = np.array([0, 1, -1, 127, 128, -128, -129, 255, 256, 2**15 - 1, -(2**15)], np.int16)
    found = []
    for _ in range(3):
        kinds = [
            rng.integers(0, 256, (64, 64)).astype(np.uint8),
            rng.normal(0, 30, (64, 16)).astype(np.float32).view(np.uint8),
            rng.choice(extremes, (64, 16)).view(np.uint8),
            rng.choice(shorts, (64, 32)).view(np.uint8),
        ]
        rows = np.concatenate(kinds)
        found.append(rows[rng.permutation(len(rows))])
    return found


def build(folder: Path, flags: tuple[str, ...], names: list[str]) -> ctypes.CDLL:
    text = ["#include <immintrin.h>", "#include <stdint.h>"]
    text += ["#define SPARSEC_INLINE static inline __attribute__((always_inline))"]
    if any(name.startswith(("_mm512", "vi")) for name in names):
        text.append('#include "vec_avx512.h"')
        (folder / "vec_avx512.h").write_text(read_template("lanes/vec_avx512.h"))
    every = [case for name in names for case in CASES[name]]
    text += [case.source(i) for i, case in enumerate(every)]
    (folder / "cases.c").write_text("\n".join(text))
    base = ["gcc", "-std=gnu11", "-O1", "-Wno-psabi", *toolchain.SEMANTICS, "-shared", "-fPIC"]
    command = [*base, *flags, "-o", "cases.so", "cases.c", "-lm"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:4000]
    return ctypes.CDLL(str(folder / "cases.so"))


def check(library: ctypes.CDLL, names: list[str]) -> None:
    every = [case for name in names for case in CASES[name]]
    for seed in (1, 2):
        given = operands(seed)
        for i, case in enumerate(every):
            raw = np.full(64 * ROWS + 64, FILL, np.uint8)
            start = -raw.ctypes.data % 64
            have = raw[start : start + 64 * ROWS].reshape(ROWS, 64)
            pointers = [ctypes.c_void_p(x.ctypes.data) for x in (*given, have)]
            getattr(library, f"case_{i}")(*pointers)
            want = np.ascontiguousarray(case.expected(*given))
            if want.dtype.kind == "f":  # one NaN is as good as another
                got = have.view(want.dtype).reshape(want.shape)
                same = np.isnan(want) & np.isnan(got)
                want = np.where(same, got, want)
            want = want.reshape(ROWS, -1).view(np.uint8)
            np.testing.assert_array_equal(have, want, err_msg=case.call)


GROUPS = {
    "EMULATED_AVX512": [name for name in CASES if not name.startswith("_mm256")],
    "EMULATED_AVXVNNI": [name for name in CASES if name.startswith("_mm256")],
}


def able(features: set[str]) -> Any:
    missing = sorted(features - {*cpu.detect().features})
    return pytest.mark.skipif(bool(missing), reason=f"this CPU lacks {', '.join(missing)}")


needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")


@needs_gcc
@pytest.mark.parametrize(
    ("group", "flags"),
    [
        *(
            pytest.param(macro, FLAGS[macro], marks=able({"avx2", "fma"}), id=macro)
            for macro in GROUPS
        ),
        *(
            pytest.param(
                macro,
                ("-mfma", *(f"-m{f}" for f in sorted(EMULATED[macro]))),
                marks=able({"fma", *EMULATED[macro]}),
                id=macro.replace("EMULATED", "REAL"),
            )
            for macro in GROUPS
        ),
    ],
)
def test_intrinsics_do_what_numpy_does(tmp_path: Path, group: str, flags: tuple[str, ...]) -> None:
    check(build(tmp_path, flags, GROUPS[group]), GROUPS[group])


def test_what_templates_use_is_emulated_and_tested() -> None:
    """All of it, and nothing else."""
    used: set[str] = set()
    for path in (ROOT / "templates").rglob("*"):
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            used |= {*re.findall(r"_mm512_\w+|_mm256_dpbusd\w+", text)}
    assert used == {name for name in CASES if name.startswith("_mm")}
