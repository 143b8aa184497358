"""A model against ONNX Runtime: its compiled artifact, or, much quicker, its optimized graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
import pytest

import sparsec
from sparsec import targets
from sparsec.compiler import frontend, optimize, settle_buckets, toolchain
from sparsec.compiler.codegen import emit_buckets
from sparsec.compiler.interpreter import interpret
from sparsec.errors import SparsecError
from sparsec.runtime import cpu
from tests.ort_reference import session
from tests.zoo.dialects import Network

BUCKET = 16
RUNS = ((1, BUCKET), (3, BUCKET), (2, 9), (2, 3))
"""Batch sizes and lengths to compare; the bucket's length is the longest.

None is 1, nor is any sequence: ONNX Runtime's QLinearSoftmax (1.31) lets a probability of 1, which
is 256 in steps of 1/256, wrap to 0; here it saturates.
"""

#: The C compiler takes most of a model's time: a sixth with this.
QUICK = "-O0"


@dataclass(frozen=True)
class Outcome:
    """What became of one model.

    Attributes:
        problem: why it did not compile, or "".
        error: root mean square of the difference to ONNX Runtime over that of ONNX Runtime's
            results; the largest over outputs and runs.
        least: the smallest over runs.
        noise: `error` for ONNX Runtime on this model and on the float model it was made from.
        kernels: how often each kind of kernel is called.
        compiled: whether the artifact was run, or only the optimized graph interpreted.
        alike: whether ONNX Runtime computes what the file says.
    """

    problem: str = ""
    error: float = 0.0
    least: float = 0.0
    noise: float = 0.0
    kernels: tuple[tuple[str, int], ...] = ()
    compiled: bool = False
    alike: bool = True

    @property
    def passes(self) -> bool:
        """Compiled, and equal up to rounding.

        Between two quantizations, a last bit now and then rounds a byte the other way; that changes
        some twenty bytes behind the next quantization, and so on, until the difference is as large
        as what quantization costs.  It happens in some runs, not in all.
        """
        if self.problem or self.error > max(2e-5, 1.2 * self.noise):
            return False
        return not self.alike or self.least <= max(2e-5, 0.02 * self.noise)


def _relative(got: Sequence[np.ndarray], want: Sequence[np.ndarray]) -> float:
    worst = 0.0
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
        size = float(np.sqrt(np.mean(np.square(b, dtype=np.float64)))) or 1.0
        worst = max(worst, float(np.sqrt(np.mean(np.square(difference)))) / size)
    return worst if np.isfinite(worst) else float("inf")


def kind(kernel: str) -> str:
    """``linear_i8_sparse_64x64_0123abcd`` -> ``linear i8``, and the like."""
    words = kernel.split("_")
    if words[0] == "general":
        return " ".join(words)
    if words[0] == "map":
        return "layernorm" if words[1] == "layernorm" else "map"
    return " ".join(words[:2] if words[0] == "linear" else words[:1])


Compared = Sequence[tuple[Mapping[str, np.ndarray], Sequence[np.ndarray]]]


def _expected(
    path: Path, source: Path, network: Network, batch: int | None
) -> tuple[Compared, float]:
    """Inputs and what ONNX Runtime makes of them, and how far that is from the float model.

    Args:
        batch: the only batch size that ONNX Runtime takes; sparsec takes any.
    """
    reference, floating = session(path), session(source)
    names = [given.name for given in reference.get_inputs()]
    compared: list[tuple[Mapping[str, np.ndarray], Sequence[np.ndarray]]] = []
    noise = 0.0
    for size, length in [(batch, BUCKET)] * 2 if batch else RUNS:
        feed = network.feed(size, length, seed=size * 100 + length + len(compared))
        given = {name: feed[name] for name in names}
        want = reference.run(None, given)
        if path != source:
            noise = max(noise, _relative(want, floating.run(None, given)))
        compared.append((given, want))
    if batch:
        (one, first), (two, second) = compared
        together = {name: np.concatenate([one[name], two[name]]) for name in names}
        want = [np.concatenate(pair) for pair in zip(first, second, strict=True)]
        compared.append((together, want))
    return compared, noise


def check(
    path: Path,
    source: Path,
    network: Network,
    folder: Path,
    batch: int | None = None,
    target: str = "auto",
    compiled: bool = True,
) -> Outcome:
    """Compile a model, run it, and compare.

    Args:
        source: the float model it was made from.
        folder: where the artifact goes.
        batch: the batch size of an export without dynamic axes, of the bucket's length.
        compiled: False interprets the graphs that would have been compiled.
    """
    try:
        compared, noise = _expected(path, source, network, batch)
    except Exception as error:  # whatever ONNX Runtime raises
        return Outcome(problem=f"tool: ONNX Runtime: {error}"[:300])
    sequence = not network.image
    try:
        if compiled:
            errors, kernels = _compiled(path, sequence and not batch, folder, target, compared)
        else:
            errors, kernels = _interpreted(path, sequence, target, compared)
    except SparsecError as problem:
        return Outcome(problem=str(problem))
    calls = tuple(sorted(Counter(map(kind, kernels)).items()))
    return Outcome("", max(errors), min(errors), noise, calls, compiled, _alike(path))


def _alike(path: Path) -> bool:
    """Whether ONNX Runtime computes what the file says, but for the order of sums.

    It computes half precision in half precision (here it is float32), and takes the probabilities
    of QLinearSoftmax from a table, which makes up to a third of them a step off.
    """
    graph = onnx.load(path, load_external_data=False).graph
    half = any(t.data_type == onnx.TensorProto.FLOAT16 for t in graph.initializer)
    return not half and not any(n.op_type == "QLinearSoftmax" for n in graph.node)


def _compiled(
    path: Path, bucketed: bool, folder: Path, target: str, compared: Compared
) -> tuple[list[float], list[str]]:
    """How far what the artifact computes is off, by run, and its kernels."""
    buckets = [BUCKET] if bucketed else []
    with mock.patch.object(toolchain, "COMPILE", (*toolchain.COMPILE, QUICK)):
        artifact = sparsec.compile(
            path, buckets=buckets, output=folder / "a.sparsec", target=target, jobs=1
        )
    with sparsec.Engine(artifact.path, num_cores=1) as engine:
        errors = []
        for given, want in compared:
            arrays = list(given.values())
            if bucketed and refused(artifact.manifest.padding.kind, arrays):
                with pytest.raises(sparsec.InputError, match="would change"):
                    engine.run(arrays)
                continue
            errors.append(_relative(engine.run(arrays), want))
    return errors, [row.kernel for b in artifact.manifest.buckets for row in b.kernels]


def refused(kind: str, arrays: Sequence[np.ndarray]) -> bool:
    """Whether sequences that are shorter than the bucket are refused (DeBERTa's first version with
    ranges at run time: those of its table of positions depend on the length)."""
    return kind == "exact" and arrays[0].shape[1] < BUCKET


def _interpreted(
    path: Path, sequence: bool, target: str, compared: Compared
) -> tuple[list[float], list[str]]:
    """The same for the optimized graph of the bucket, on padded inputs as the engine makes them."""
    model = frontend.load_model(path)
    signature = frontend.signature(model)
    isa = targets.choose(target, cpu.detect())
    settled = settle_buckets(model, signature, [BUCKET] if sequence else [])
    (graph,) = optimize(settled)
    (bucket,) = emit_buckets([graph], signature, isa, model.name).buckets
    errors = []
    for given, want in compared:
        arrays, lengths = list(given.values()), None
        if sequence and refused(settled.kind, arrays):
            continue
        if sequence:
            length = arrays[0].shape[1]
            lengths = [length] * len(arrays[0])
            arrays = [np.pad(a, ((0, 0), (0, BUCKET - length))) for a in arrays]
        made = interpret(graph, arrays, lengths)
        cut = [m[tuple(map(slice, w.shape))] for m, w in zip(made, want, strict=True)]
        errors.append(_relative(cut, want))
    return errors, [str(row["kernel"]) for row in bucket.kernels]
