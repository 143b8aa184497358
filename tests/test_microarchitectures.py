"""What is known of processors: which is which, what it changes, and the loops made for them."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

import sparsec
from sparsec import microarchitectures, targets
from sparsec.compiler import build, toolchain
from sparsec.compiler.codegen import emit_buckets
from sparsec.compiler.frontend import Signature, TensorSpec
from sparsec.compiler.interpreter import interpret
from sparsec.compiler.lowering.tiling import LayerClass, Tiling, Tilings
from sparsec.compiler.tune import ROWS, _graph
from sparsec.errors import InputError
from sparsec.runtime import cpu
from sparsec.targets import Loops, Target
from tests import lane_harness
from tests.lane_harness import compile_graph


@dataclass(frozen=True)
class Cpu:
    vendor: str
    family: int
    model: int


@pytest.mark.parametrize(
    ("vendor", "family", "model", "name"),
    [
        ("AuthenticAMD", 25, 0x11, "znver4"),
        ("AuthenticAMD", 25, 0x61, "znver4"),
        ("AuthenticAMD", 25, 0x21, "znver3"),
        ("AuthenticAMD", 26, 0x02, "znver5"),
        ("AuthenticAMD", 23, 0x31, "znver2"),
        ("AuthenticAMD", 23, 0x01, "generic"),
        ("GenuineIntel", 6, 143, "sapphirerapids"),
        ("GenuineIntel", 6, 207, "emeraldrapids"),
        ("GenuineIntel", 6, 106, "icelake-server"),
        ("GenuineIntel", 6, 0x3C, "haswell"),
        ("GenuineIntel", 15, 143, "generic"),
        ("", 0, 0, "generic"),
    ],
)
def test_which_is_which(vendor: str, family: int, model: int, name: str) -> None:
    assert microarchitectures.of(Cpu(vendor, family, model)) == name


def test_rows_are_whole() -> None:
    """No name and no processor twice; factors and loops are those of targets that there are."""
    assert len(set(microarchitectures.NAMES)) == len(microarchitectures.NAMES)
    named = [(row.vendor, row.family, m) for row in microarchitectures.TABLE for m in row.models]
    assert len(set(named)) == len(named)
    rest = [(row.vendor, row.family) for row in microarchitectures.TABLE if not row.models]
    assert len(set(rest)) == len(rest)
    for row in microarchitectures.TABLE:
        for name, costs in row.costs.items():
            own = targets.costs(targets.get(name))
            assert [len(x) for x in vars(costs).values()] == [len(x) for x in vars(own).values()]
        assert row.loops.keys() <= set(targets.NAMES)
        for name in targets.NAMES:
            tuned = microarchitectures.tuned(targets.get(name), row.name)
            assert tuned.tuned_for == row.name and tuned.features == targets.get(name).features


def test_who_code_is_tuned_for() -> None:
    """This machine's core where it was made for this machine; else the one that was named."""
    here = Cpu("GenuineIntel", 6, 207)
    isa = targets.get("avx512_vnni")

    def name(tune_for: str, target: str) -> str:
        return microarchitectures.choose(tune_for, target, isa, here).tuned_for

    assert name("auto", "auto") == name("native", "avx512_vnni") == "emeraldrapids"
    assert name("auto", "avx512_vnni") == name("generic", "auto") == "generic"
    assert name("znver5", "auto") == "znver5"
    with pytest.raises(InputError, match="no microarchitecture 'pentium'; choose auto, native or"):
        name("pentium", "auto")


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="Linux only")
def test_identity_is_the_kernels() -> None:
    found = cpu.detect()
    if found.arch != "x86_64":
        pytest.skip("CPUID is x86's")
    text = Path("/proc/cpuinfo").read_text()
    for field, value in (
        ("vendor_id", found.vendor), ("cpu family", found.family), ("model", found.model),
    ):  # fmt: skip
        assert re.search(rf"^{field}\s*: {re.escape(str(value))}$", text, re.MULTILINE)


def test_artifact_says_who_it_is_tuned_for(tiny_model: Path, tmp_path: Path) -> None:
    made = sparsec.compile(
        tiny_model, buckets=[8], output=tmp_path / "a", target="generic", tune_for="znver5"
    )
    assert made.target.tuned_for == "znver5"


# ---- loops -----------------------------------------------------------------------------------

INTEL = Loops(own=2, shared=4, offsets="load", chains=2)
FORMS = [INTEL, Loops(own=4, shared=1, offsets="cut", chains=2)]


def layer(density: float, n: int = 200, k: int = 288) -> np.ndarray:
    rng = np.random.default_rng(round(100 * density))
    w = rng.integers(1, 61, (n, k)).astype(np.int8)
    return w * np.repeat(rng.random((n, k // 4)) < density, 4, axis=1)


def layers(densities: tuple[float, ...]) -> dict[LayerClass, np.ndarray]:
    return {LayerClass.of("i8", 200, 288, d, d < 0.3): layer(d) for d in densities}


@pytest.mark.parametrize("loops", FORMS, ids=["mixed", "loads"])
@pytest.mark.parametrize("name", ["generic", "avx2"])
def test_forms_compute_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, loops: Loops
) -> None:
    """Every form of the loops, with one vector in a block (a second set of sums) and with more."""
    target = replace(targets.get(name), loops=loops)
    if target.missing(cpu.detect().features):
        pytest.skip("this CPU cannot run it")
    monkeypatch.setattr(lane_harness, "_target", lambda *_: target)
    graph = _graph(layers((0.05, 0.2, 0.45)))
    library = compile_graph(tmp_path, graph, name)
    rng = np.random.default_rng(0)
    inputs = [rng.integers(0, 256, (5, ROWS, 288)).astype(np.uint8) for _ in graph.inputs]
    for want, have in zip(interpret(graph, inputs), library.run(inputs), strict=True):
        np.testing.assert_array_equal(have, want)


def inner_loops(target: Target, tile: int, folder: Path) -> list[list[str]]:
    """The instructions of the loops of a sparse layer that have VPDPBUSD and no loop inside."""
    mine = layers((0.2,))
    graph = _graph(mine)
    tilings = Tilings({(of, ROWS): Tiling(True, 1, tile) for of in mine})

    def spec(name: str) -> TensorSpec:
        value = graph.values[name]
        rest = [d for d in value.shape[1:] if isinstance(d, int)]
        return TensorSpec(name, value.dtype, ("batch", *rest))

    sides = [tuple(map(spec, names)) for names in (graph.inputs, graph.outputs)]
    signature = Signature(inputs=sides[0], outputs=sides[1], mask_input=None)
    emission = emit_buckets([graph], signature, target, "loops", tilings=tilings)
    cc = toolchain.find("gcc")
    tree = build.write_tree(folder, emission, cc, target)
    ((_, _, units),) = tree.buckets
    command = [*cc.command, *cc.flags(target), f"-I{folder}", "-S", "-o", "x.s", units[0]]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    lines = (folder / "x.s").read_text().split("\n")
    labels = {line[:-1]: i for i, line in enumerate(lines) if re.match(r"\.L\d+:$", line)}
    found = []
    for i, line in enumerate(lines):
        jump = re.match(r"\tj\w+\t(\.L\d+)", line)
        if jump and labels.get(jump[1], i) < i:
            body = lines[labels[jump[1]] + 1 : i + 1]
            code = [b.strip() for b in body if re.match(r"\t[a-z]", b)]
            inside = any(re.match(r"j\w+\t", b) for b in code[:-1])
            if not inside and any("vpdpbusd" in b and "zmm" in b for b in code):
                found.append(code)
    return found


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_loops_for_golden_cove(tmp_path: Path) -> None:
    """How many instructions they are, and what brings weights in.

    Limits there are 6 instructions a cycle, and two ports that products and shuffles share.
    """
    target = microarchitectures.tuned(targets.get("avx512_vnni"), "emeraldrapids")
    found = {}
    for code in inner_loops(target, 4, tmp_path):
        products = [c for c in code if c.startswith("vpdpbusd")]
        memory = [c for c in products if "{1to16}" in c]
        # The signed operand is the pack of weights in memory: the first in AT&T's order.
        assert all(re.match(r"vpdpbusd\s-?\d*\(%\w+\)\{1to16\}, %zmm", c) for c in memory)
        shuffles, loads = (
            sum(c.startswith(op) for c in code) for op in ("vpshufd", "vpbroadcastd")
        )
        found[len(products), shuffles, loads, len(memory)] = len(code)
    most = {  # products, shuffles, loads to all lanes, products that load: instructions
        (32, 0, 8, 0): 72,
        (24, 0, 8, 0): 58,
        (16, 2, 2, 0): 47,
        (12, 2, 2, 0): 39,
        (16, 0, 8, 0): 44,
        (8, 2, 2, 0): 30,
        (8, 0, 0, 8): 24,
        (8, 4, 0, 4): 40,
    }
    assert found.keys() == most.keys()
    assert all(found[loop] <= most[loop] for loop in most), found
