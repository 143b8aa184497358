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
from sparsec import targets
from sparsec.compiler import frontend, passes, toolchain
from sparsec.compiler.interpreter import interpret
from sparsec.runtime import cpu
from tests.conformance import runner
from tests.conformance.cases import Case, feeds, merged
from tests.fuzz.graphs import grown, grown_tokens

HERE = Path(__file__).parent
TARGETS = runner.usable_targets()
RUNNABLE = [t.name for t in targets.TARGETS if not t.missing(cpu.detect().features)]
BATCH, LENGTH = 3, 11
TOLERANCE = 1e-3
"""Of values below 1000 after a few dozen roundings, some of them behind a division."""


needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")


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


@pytest.mark.optimized
@pytest.mark.parametrize("target", TARGETS)
def test_compiled_code_agrees(target: str) -> None:
    check([case(seed) for seed in range(40)], target)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_many_more(target: str) -> None:
    check([case(seed) for seed in range(40, 80)], target)
    check([case(seed, 40) for seed in range(1000, 1240)], target)


def token_cases(seeds: range, quantized: bool) -> list[Case]:
    """Random graphs over tokens as cases."""
    cases = []
    for seed in seeds:
        graph = grown_tokens(seed, 9, BATCH, LENGTH, quantized)
        model = graph.model()
        for value in (*model.graph.input, *model.graph.output):
            dims = value.type.tensor_type.shape.dim
            dims[0].dim_param, dims[1].dim_param = "batch", "sequence"
        inputs = tuple(v.array for v in graph.inputs)
        outputs = tuple(v.array for v in graph.expected())
        name = f"seed {seed}"
        cases.append(Case(name, "tokens", model, inputs, outputs, TOLERANCE, TOLERANCE))
    return cases


def judged(cases: list[Case], outputs: list[np.ndarray]) -> list[str]:
    rest = iter(outputs)
    found = {case.name: runner.judge(case, [next(rest) for _ in case.outputs]) for case in cases}
    return [f"{name}: {result.fault}" for name, result in found.items() if result.fault]


@pytest.mark.optimized
@pytest.mark.parametrize("target", RUNNABLE)
def test_graphs_of_tokens_agree(tmp_path: Path, target: str) -> None:
    cases = token_cases(range(20), quantized=False)
    path = tmp_path / "cases.onnx"
    onnx.save(merged(cases), path)
    artifact = sparsec.compile(path, buckets=[LENGTH], target=target)
    kinds = {k.kernel.split("_")[0] for b in artifact.manifest.buckets for k in b.kernels}
    assert {"attention", "linear", "map", "unpack"} <= kinds
    with sparsec.Engine(artifact.path, num_cores=2) as engine:
        assert not judged(cases, engine.run(feeds(cases, engine.input_names)))


def sanitized(
    folder: Path, cases: list[Case], target: str, buckets: list[int], batch: int
) -> list[np.ndarray]:
    """Outputs of the cases under AddressSanitizer and UBSan, with tensors of exact sizes."""
    path = folder / "cases.onnx"
    onnx.save(merged(cases), path)
    artifact = sparsec.compile(path, buckets=buckets, target=target, emit_c=folder / "c")
    program = folder / "driver"
    level = "-O1" if targets.get(target).features else "-O0"  # portable C takes a compiler long
    command = ["gcc", "-std=gnu11", level, "-g1", "-fsanitize=address,undefined"]
    command += ["-fno-sanitize-recover=all", *toolchain.SEMANTICS]
    command += toolchain.find("gcc").target_flags(targets.get(target))
    command += ["-include", str(HERE.parent / "generated_c_weights.h"), f"-I{folder / 'c'}"]
    sources = [*(folder / "c").glob("bucket_*/*.c"), HERE / "driver.c"]
    done = subprocess.run(
        [*command, *map(str, sources), "-o", str(program), "-lm"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[:4000]
    names = [spec.name for spec in artifact.manifest.inputs]
    data = [np.ascontiguousarray(a).tobytes() for a in feeds(cases, names)]
    (folder / "in").write_bytes(b"".join(struct.pack("<q", len(d)) + d for d in data))
    weights = folder / "c" / "weights.bin"
    done = subprocess.run(
        [str(program), str(weights), str(folder / "in"), str(folder / "out"), str(batch)],
        capture_output=True,
        text=True,
        env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"},
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[:6000]
    rest, outputs = (folder / "out").read_bytes(), []
    for want in (array for case in cases for array in case.outputs):
        outputs.append(np.frombuffer(rest[: want.nbytes], want.dtype).reshape(want.shape))
        rest = rest[want.nbytes :]
    return outputs


@needs_gcc
@pytest.mark.parametrize("target", RUNNABLE)
def test_sanitizers_find_nothing_over_tokens(tmp_path: Path, target: str) -> None:
    """Quantized ones too, whose results are for other tests."""
    exact = token_cases(range(100, 107), quantized=False)
    cases = exact + token_cases(range(200, 207), quantized=True)
    outputs = sanitized(tmp_path, cases, target, [LENGTH], BATCH)
    assert not judged(exact, outputs[: sum(len(case.outputs) for case in exact)])


@needs_gcc
@pytest.mark.parametrize("target", TARGETS)
def test_sanitizers_find_nothing(tmp_path: Path, target: str) -> None:
    cases = [case(seed) for seed in range(2000, 2012)]
    assert not judged(cases, sanitized(tmp_path, cases, target, [], 1))


@pytest.mark.slow
@needs_gcc
@pytest.mark.parametrize("target", TARGETS)
def test_sanitizers_find_nothing_in_many_more(tmp_path: Path, target: str) -> None:
    for start in (3000, 3040, 3080):
        cases = [case(seed) for seed in range(start, start + 40)]
        folder = tmp_path / str(start)
        folder.mkdir()
        assert not judged(cases, sanitized(folder, cases, target, [], 1))
