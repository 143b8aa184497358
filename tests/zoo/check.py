"""A model against ONNX Runtime: its compiled artifact, or, much quicker, its optimized graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

import sparsec
from sparsec.compiler import frontend, import_buckets, targets
from sparsec.compiler.codegen import emit_buckets
from sparsec.compiler.ir import interpret
from sparsec.errors import UnsupportedError
from sparsec.runtime import cpu
from tests.ort_reference import session
from tests.zoo.dialects import Network

BUCKET = 16
RUNS = ((1, BUCKET), (3, BUCKET), (2, 9), (2, 3))
"""Batch sizes and lengths to compare; the bucket's length is the longest.

None is 1, nor is any sequence: ONNX Runtime's QLinearSoftmax (1.31) lets a probability of 1, which
is 256 in steps of 1/256, wrap to 0; here it saturates.
"""


@dataclass(frozen=True)
class Outcome:
    """What became of one model.

    Attributes:
        problem: why it did not compile, or "".
        error: root mean square of the difference to ONNX Runtime over that of ONNX Runtime's
            results; the largest over outputs and runs.
        noise: the same for ONNX Runtime on this model and on the float model it was made from.
        kernels: how often each kind of kernel is called.
        compiled: whether the artifact was run, or only the optimized graph interpreted.
        share: how much of the noise the error may be.
    """

    problem: str = ""
    error: float = 0.0
    noise: float = 0.0
    kernels: tuple[tuple[str, int], ...] = ()
    compiled: bool = False
    share: float = 0.3

    @property
    def passes(self) -> bool:
        """Compiled, and equal up to rounding.

        Rounding to bytes makes large differences of small ones, the more the coarser: they must
        stay well below what it costs in accuracy.
        """
        return not self.problem and self.error <= max(2e-5, self.share * self.noise)


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
    path: Path, source: Path, network: Network, fixed: bool, padded: bool
) -> tuple[Compared, float]:
    """Inputs and what ONNX Runtime makes of them, and how far that is from the float model.

    Args:
        padded: run it on sequences as long as the bucket, as an artifact does; where ranges are
            taken at run time, results depend on that.
    """
    reference, floating = session(path), session(source)
    names = [given.name for given in reference.get_inputs()]
    compared = []
    noise = 0.0
    for batch, length in RUNS[: 1 if fixed else None]:
        feed = network.feed(batch, length, seed=batch * 100 + length)
        given = {name: feed[name] for name in names}
        want = reference.run(None, given)
        if path != source:
            noise = max(noise, _relative(want, floating.run(None, given)))
        if padded and not network.image and length < BUCKET:
            long = {name: np.pad(a, ((0, 0), (0, BUCKET - length))) for name, a in given.items()}
            whole = reference.run(None, long)
            want = [p[tuple(map(slice, w.shape))] for p, w in zip(whole, want, strict=True)]
        compared.append((given, want))
    return compared, noise


def check(
    path: Path,
    source: Path,
    network: Network,
    folder: Path,
    fixed: bool = False,
    target: str = "auto",
    compiled: bool = True,
) -> Outcome:
    """Compile a model, run it, and compare.

    Args:
        source: the float model it was made from.
        folder: where the artifact goes.
        fixed: whether it takes a batch of one sequence of the bucket's length only.
        compiled: False interprets the graphs that would have been compiled.
    """
    try:
        compared, noise = _expected(path, source, network, fixed, padded=compiled)
    except Exception as error:  # whatever ONNX Runtime raises
        return Outcome(problem=f"tool: ONNX Runtime: {error}"[:300])
    sequence = not network.image
    try:
        if compiled:
            error, kernels = _compiled(path, sequence and not fixed, folder, target, compared)
        else:
            error, kernels = _interpreted(path, sequence, target, compared)
    except UnsupportedError as problem:
        return Outcome(problem=str(problem))
    calls = Counter(map(kind, kernels))
    return Outcome("", error, noise, tuple(sorted(calls.items())), compiled, _share(path))


def _share(path: Path) -> float:
    """How much of the noise the error may be.

    More where ONNX Runtime computes otherwise: in half precision (here it is float32, and all that
    rounding to halves costs remains), and in QLinearSoftmax, whose probabilities come from a table
    and are a step off for up to a third of all scores.
    """
    graph = onnx.load(path, load_external_data=False).graph
    if any(t.data_type == onnx.TensorProto.FLOAT16 for t in graph.initializer):
        return 1.2
    return 0.8 if any(n.op_type == "QLinearSoftmax" for n in graph.node) else 0.3


def _compiled(
    path: Path, bucketed: bool, folder: Path, target: str, compared: Compared
) -> tuple[float, list[str]]:
    """The largest difference of what the artifact computes, and its kernels."""
    buckets = [BUCKET] if bucketed else []
    artifact = sparsec.compile(path, buckets=buckets, output=folder / "a.sparsec", target=target)
    with sparsec.Engine(artifact.path, num_cores=1) as engine:
        errors = [
            _relative(list(engine.run(list(given.values()))), want) for given, want in compared
        ]
    return max(errors), [row.kernel for b in artifact.manifest.buckets for row in b.kernels]


def _interpreted(
    path: Path, sequence: bool, target: str, compared: Compared
) -> tuple[float, list[str]]:
    """The same for the optimized graphs, each for the length of its inputs."""
    model = frontend.load_model(path)
    signature = frontend.signature(model)
    isa = targets.choose(target, cpu.detect())
    kernels: list[str] = []
    errors = []
    for given, want in compared:
        lengths = [next(iter(given.values())).shape[1]] if sequence else []
        (graph,) = import_buckets(model, signature, lengths)
        if not kernels:
            (bucket,) = emit_buckets([graph], signature, isa, model.name).buckets
            kernels = [str(row["kernel"]) for row in bucket.kernels]
        errors.append(_relative(interpret(graph, list(given.values())), want))
    return max(errors), kernels
