"""Random graphs: compiled code, the interpreter of the IR and ONNX's reference agree."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest

import sparsec
from sparsec.compiler import frontend, passes, targets, toolchain
from sparsec.compiler.ir import interpret
from tests.conformance import runner
from tests.conformance.cases import Case, feeds, merged
from tests.fuzz.graphs import grown

HERE = Path(__file__).parent
TARGETS = runner.usable_targets()
TOLERANCE = 1e-3
"""Of values below 1000 after a few dozen roundings, some of them behind a division."""


def case(seed: int, count: int = 25) -> Case:
    """A random graph as a case to compile, with ONNX's own results."""
    graph = grown(seed, count)
    inputs = tuple(v.array for v in graph.inputs)
    outputs = tuple(v.array for v in graph.expected())
    return Case(f"seed {seed}", "random", graph.model(), inputs, outputs, TOLERANCE, TOLERANCE)


def check(cases: list[Case], target: str) -> None:
    for start in range(0, len(cases), 40):
        some = cases[start : start + 40]
        results = runner.run(some, target)
        faults = [f"{name}: {result.fault}" for name, result in results.items() if result.fault]
        assert not faults, "\n".join(faults)


def test_the_interpreter_agrees(tmp_path: Path) -> None:
    """Before and after the passes."""
    for seed in range(60):
        drawn = case(seed)
        path = tmp_path / "random.onnx"
        onnx.save(merged([drawn]), path)
        graph = frontend.import_raw(frontend.load_model(path), 0)
        given = feeds([drawn], graph.inputs)
        for form in (graph, passes.run(frontend.canonicalize(graph))):
            judged = runner.judge(drawn, interpret(form, given))
            assert judged.fault is None, (drawn.name, judged.fault)


@pytest.mark.parametrize("target", TARGETS)
def test_compiled_code_agrees(target: str) -> None:
    check([case(seed) for seed in range(80)], target)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_many_more(target: str) -> None:
    check([case(seed, 40) for seed in range(1000, 1240)], target)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
@pytest.mark.parametrize("target", TARGETS)
def test_sanitizers_find_nothing(tmp_path: Path, target: str) -> None:
    """AddressSanitizer and UBSan around tensors of exact sizes, and the same results."""
    cases = [case(seed) for seed in range(2000, 2025)]
    path = tmp_path / "cases.onnx"
    onnx.save(merged(cases), path)
    artifact = sparsec.compile(path, target=target, emit_c=tmp_path / "c")
    program = tmp_path / "driver"
    command = ["gcc", "-std=gnu11", "-O1", "-g1", "-fsanitize=address,undefined"]
    command += ["-fno-sanitize-recover=all", *toolchain.SEMANTICS]
    command += toolchain.find("gcc").target_flags(targets.get(target))
    command += ["-include", str(HERE.parent / "generated_c_weights.h"), f"-I{tmp_path / 'c'}"]
    sources = [*(tmp_path / "c").glob("bucket_*/*.c"), HERE / "driver.c"]
    done = subprocess.run(
        [*command, *map(str, sources), "-o", str(program), "-lm"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[:4000]
    names = [spec.name for spec in artifact.manifest.inputs]
    data = [np.ascontiguousarray(a).tobytes() for a in feeds(cases, names)]
    (tmp_path / "in").write_bytes(b"".join(struct.pack("<q", len(d)) + d for d in data))
    weights = tmp_path / "c" / "weights.bin"
    done = subprocess.run(
        [str(program), str(weights), str(tmp_path / "in"), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"},
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[:6000]
    rest = (tmp_path / "out").read_bytes()
    for drawn in cases:
        got = []
        for want in drawn.outputs:
            got.append(np.frombuffer(rest[: want.nbytes], want.dtype).reshape(want.shape))
            rest = rest[want.nbytes :]
        fault = runner.judge(drawn, got).fault
        assert fault is None, (drawn.name, fault)
