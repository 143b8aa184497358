"""Mutated models end in a correct program or in a SparsecError: nothing else, and soon."""

from __future__ import annotations

import math
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import sparsec
from examples.encoders import FORMS, EncoderConfig, Form, write_random
from sparsec import targets
from sparsec.compiler import frontend, import_buckets
from sparsec.compiler.codegen import emit_buckets
from sparsec.compiler.interpreter import interpret
from sparsec.compiler.ir import Graph, bind_shape
from tests.fuzz.mutations import mutate

SECONDS = 60
CONFIG = EncoderConfig(layers=1, hidden=16, heads=2, intermediate=24, vocab=20, max_position=16)


@contextmanager
def time_limit() -> Iterator[None]:
    def late(*_: Any) -> None:
        raise TimeoutError(f"not done after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# All forms in the slow tests, the one with most kinds of nodes always.
OF_FORMS = [form if form == "qdq" else pytest.param(form, marks=pytest.mark.slow) for form in FORMS]


@pytest.fixture(scope="module", params=OF_FORMS)
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A tiny encoder in every form."""
    form: Form = request.param
    path = tmp_path_factory.mktemp("original") / "model.onnx"
    write_random(path, CONFIG, form, seed=1, sparsity=0.5)
    return path.read_bytes()


def inputs_for(graph: Graph, rng: np.random.Generator) -> list[np.ndarray]:
    arrays = []
    for name in graph.inputs:
        value = graph.values[name]
        shape = bind_shape(value.shape, 2)
        high = 2 if value.dtype.kind == "b" or "mask" in name or "type" in name else 16
        arrays.append(rng.integers(0, high, shape).astype(value.dtype))
    return arrays


def same(graph: Graph, optimized: Graph, rng: np.random.Generator) -> bool | None:
    """Whether the passes kept the meaning; None where the graph's own meaning is an error."""
    extents = [bind_shape(graph.values[name].shape, 2) for name in graph.inputs]
    if any(math.prod(shape) > 2**24 for shape in extents):
        return None  # an input that nobody reads may have any size
    given = inputs_for(graph, rng)
    with np.errstate(all="ignore", invalid="raise"):
        try:
            before = interpret(graph, given)
        except IndexError:
            return None  # a table that has become too short
        except FloatingPointError:
            return None  # infinity times 0, or NaN as a byte
    with np.errstate(all="ignore"):
        after = interpret(optimized, given)
    for a, b in zip(before, after, strict=True):
        if a.dtype.kind != "f":
            if not np.array_equal(a, b):
                return False
            continue
        live = np.isfinite(a) & np.isfinite(b)
        scale = max(1.0, float(np.max(np.abs(a[live]), initial=0)))
        if np.isnan(a).any() or np.isinf(a).any():
            continue  # what is added in which order decides between NaN and infinity
        if not np.all(np.abs(a - b) <= 2e-2 * scale):
            return False
    return True


def compile_mutant(path: Path, rng: np.random.Generator) -> str:
    """ "refused", "same" or "different"; any other exception is a defect."""
    try:
        model = frontend.load_model(path)
        signature = frontend.signature(model)
        lengths = [5] if signature.has_sequence and signature.fixed_length is None else []
        (optimized,) = import_buckets(model, signature, lengths)
        emit_buckets([optimized], signature, targets.get("generic"), "mutant")
    except sparsec.SparsecError as error:
        assert str(error)
        return "refused"
    raw = frontend.import_raw(model, optimized.length)
    return {True: "same", False: "different", None: "undefined"}[same(raw, optimized, rng)]


def mutants(original: bytes, folder: Path, seeds: range) -> Iterator[tuple[str, Path]]:
    for seed in seeds:
        rng = np.random.default_rng(seed)
        model = onnx.load_from_string(original)
        said = [mutate(model, rng) for _ in range(int(rng.integers(1, 4)))]
        path = folder / "mutant.onnx"
        path.write_bytes(model.SerializeToString())
        yield f"seed {seed}: {'; '.join(said)}", path


def outcomes(original: bytes, folder: Path, seeds: range) -> Counter[str]:
    found: Counter[str] = Counter()
    for said, path in mutants(original, folder, seeds):
        try:
            with time_limit():
                outcome = compile_mutant(path, np.random.default_rng(0))
        except Exception as error:
            raise AssertionError(said) from error
        assert outcome != "different", said
        found[outcome] += 1
    return found


def test_mutants(original: bytes, tmp_path: Path) -> None:
    found = outcomes(original, tmp_path, range(150))
    assert found["refused"] > 20 and found["same"] > 20


@pytest.mark.slow
def test_many_mutants(original: bytes, tmp_path: Path) -> None:
    outcomes(original, tmp_path, range(1000, 1800))


@pytest.mark.slow
def test_compiled_mutants(original: bytes, tmp_path: Path) -> None:
    """The C compiler takes all that is emitted, and the result is the interpreter's."""
    compiled = 0
    for said, path in mutants(original, tmp_path, range(5000, 5100)):
        rng = np.random.default_rng(0)
        if compile_mutant(path, rng) != "same":
            continue
        model = frontend.load_model(path)
        signature = frontend.signature(model)
        lengths = [5] if signature.has_sequence and signature.fixed_length is None else []
        artifact = sparsec.compile(path, buckets=lengths, output=tmp_path / "m", force=True)
        graph = frontend.import_raw(model, (lengths or [signature.fixed_length or 0])[0])
        given = inputs_for(graph, rng)
        with np.errstate(all="ignore"):
            wanted = interpret(graph, given)
        with sparsec.Engine(artifact.path) as engine:
            got = engine.run(given)
        for a, b in zip(wanted, got, strict=True):
            assert a.shape == b.shape, said
            if not np.isfinite(a).all():
                continue
            scale = max(1.0, float(np.max(np.abs(a), initial=0)))
            assert np.all(np.abs(a.astype(float) - b) <= 2e-2 * scale), said
        compiled += 1
    assert compiled > 20


def test_damaged_files(original: bytes, tmp_path: Path) -> None:
    """Cut short anywhere, or with some bits flipped."""
    rng = np.random.default_rng(3)
    path = tmp_path / "damaged.onnx"
    found: Counter[str] = Counter()
    for i in range(150):
        data = bytearray(original)
        if i % 3 == 0:
            del data[int(rng.integers(len(data))) :]
        for _ in range(int(rng.integers(1, 5)) if i % 3 else 0):
            # Most bytes are weights; names and sizes are at the ends.
            place = int(rng.integers(len(data)))
            place = place % 3000 if rng.integers(2) else place
            data[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        with time_limit():
            outcome = compile_mutant(path, rng)
        assert outcome != "different", i
        found[outcome] += 1
    assert found["refused"] > 30
