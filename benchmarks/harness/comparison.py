"""One point of the comparison: all engines on one shape, in turns, with their outputs compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.harness import models
from benchmarks.harness.limit import Peak, limit_seconds
from benchmarks.harness.models import Recipe
from benchmarks.harness.turns import Slice, Worker, WorkerError, take_turns
from examples.encoders import random_batch

# In a deep quantized model one rounding that falls the other way grows to percents of the output:
# ONNX Runtime with and without its optimizations differs as much from itself.  There the bounds
# catch only gross errors.  sparsec is held to this one on a single layer, where nothing can grow.
TIGHT = 0.01

# The first sequences of a batch, whose outputs are compared: sequences do not see each other.
CHECKED_ROWS = 4


@dataclass(frozen=True)
class Contender:
    """An engine in its best form.

    Attributes:
        engine: whose environment it needs.
        loader: which loader of worker.py runs it.
        label: for tables and plots.
        bound: by how much its outputs may differ from the reference, in the mean, relative to the
            reference's mean size.
        against: what the reference is.
    """

    name: str
    engine: str
    loader: str
    label: str
    bound: float
    against: str


SAME_FILE = "ONNX Runtime on the same file"

CONTENDERS = {
    c.name: c
    for c in (
        Contender("sparsec", "sparsec", "sparsec", "sparsec", 0.05, SAME_FILE),
        Contender("deepsparse", "deepsparse", "deepsparse", "DeepSparse", 0.05, SAME_FILE),
        Contender("openvino", "openvino", "openvino", "OpenVINO", 0.05, SAME_FILE),
        Contender("openvino-f32", "openvino", "openvino-f32", "OpenVINO f32", 0.05, SAME_FILE),
        Contender(
            "ort-int8", "onnxruntime", "onnxruntime", "ORT int8", 0.2, "ORT fp32, unquantized"
        ),
        Contender("ort-fp32", "onnxruntime", "onnxruntime", "ORT fp32", 0.05, SAME_FILE),
    )
}


@dataclass
class Timing:
    """Latencies of one engine at one point, in milliseconds."""

    median_ms: float
    min_ms: float
    runs: int
    load_seconds: float


@dataclass
class Agreement:
    """How far outputs are from the reference's, relative to its largest and its mean size."""

    against: str
    max: float
    mean: float
    bound: float

    @property
    def holds(self) -> bool:
        """Whether the mean is within the bound; not for NaN."""
        return self.mean <= self.bound


@dataclass
class Point:
    """What was measured at one shape of one model.

    Attributes:
        spread: how far ONNX Runtime without optimizations is from itself with them, on the pruned
            model: (max, mean), as in Agreement.
    """

    batch: int
    length: int
    sparsity: float
    limit_ms: float | None
    timings: dict[str, Timing] = field(default_factory=dict)
    agreement: dict[str, Agreement] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    spread: tuple[float, float] | None = None


def compare(result: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Largest and mean absolute difference, relative to the reference's largest and mean size."""
    if result.shape != reference.shape:
        return float("nan"), float("nan")
    difference = np.abs(result.astype(np.float64) - reference)
    size = np.abs(reference).astype(np.float64)
    tiny = np.finfo(np.float32).tiny
    return (
        float(difference.max() / max(size.max(), tiny)),
        float(difference.mean() / max(size.mean(), tiny)),
    )


@dataclass
class Comparison:
    """Engines, machine and options that all points share.

    Attributes:
        cache: models, artifacts and logs.
        cpus: where every worker runs, one thread each.
        pythons: the interpreter of each engine that is here.
        names: the contenders that are here, in the order of the table.
        versions: filled by the workers.
    """

    cache: Path
    cpus: Sequence[int]
    pythons: Mapping[str, str]
    names: Sequence[str]
    turn: Slice
    versions: dict[str, str] = field(default_factory=dict)

    def quantize(self, source: Path, destination: Path) -> None:
        """ONNX Runtime's dynamic quantization, in its own environment."""
        with self._worker("onnxruntime", "quantize") as worker:
            worker.ask("quantize", model=str(source), output=str(destination))

    def model_of(self, name: str, recipe: Recipe, artifact: Path) -> tuple[Path, Path]:
        """The file that a contender runs, and the file that its reference runs."""
        pruned, _ = models.pruned_model(self.cache, recipe)
        if CONTENDERS[name].engine == "openvino" and recipe.form != "fp32":
            pruned, _ = models.pruned_model(self.cache, recipe.with_(form="qdq"))
        if name == "ort-fp32":
            dense = models.dense_model(self.cache, recipe)
            return dense, dense
        if name == "ort-int8":
            dense = models.dense_model(self.cache, recipe)
            return models.dense_int8_model(self.cache, recipe, self.quantize), dense
        return (artifact if name == "sparsec" else pruned), pruned

    def measure(self, recipe: Recipe, batch: int, length: int, artifact: Path, peak: Peak) -> Point:
        """All contenders on inputs of [batch, length], every token real."""
        _, work = models.pruned_model(self.cache, recipe)
        limit = limit_seconds(peak, recipe.config, work, batch, length, len(self.cpus))
        point = Point(batch, length, recipe.sparsity, limit and 1e3 * limit)
        inputs = random_batch(recipe.config, batch, length, recipe.seed, ragged=False)
        files = {}
        for name in self.names:
            try:
                files[name] = self.model_of(name, recipe, artifact)
            except WorkerError as error:
                point.failed[name] = str(error)
        with TemporaryDirectory() as folder, ExitStack() as stack:
            box = Path(folder)
            _save(box / "inputs.npz", inputs)
            _save(box / "rows.npz", [x[:CHECKED_ROWS] for x in inputs])
            workers, loading = {}, {}
            for name, (model, _) in files.items():
                worker = self._worker(CONTENDERS[name].engine, f"{name}-{batch}x{length}")
                workers[name] = stack.enter_context(worker)
                try:
                    loading[name] = self._load(workers[name], name, model, box / "inputs.npz")
                except WorkerError as error:
                    point.failed[name] = str(error)
                    workers.pop(name).close()
            times, failed = take_turns(workers, self.turn)
            point.failed |= failed
            for name, latencies in times.items():
                milliseconds = 1e3 * np.asarray(latencies)
                point.timings[name] = Timing(
                    round(float(np.median(milliseconds)), 4),
                    round(float(milliseconds.min()), 4),
                    len(latencies),
                    round(loading[name], 3),
                )
                workers[name].ask("outputs", path=str(box / f"{name}.npy"), rows=CHECKED_ROWS)
            stack.close()  # the references want the memory
            references = {name: files[name][1] for name in times}
            self._check(point, references, recipe.config.layers, box)
        return point

    def _worker(self, engine: str, log: str) -> Worker:
        return Worker(self.pythons[engine], self.cache / "logs" / f"{log}.log", self.cpus)

    def _load(self, worker: Worker, name: str, model: Path, inputs: Path) -> float:
        contender = CONTENDERS[name]
        answer = worker.ask(
            "load",
            engine=contender.loader,
            model=str(model),
            inputs=str(inputs),
            threads=len(self.cpus),
        )
        self.versions[contender.engine] = answer["version"]
        seconds: float = answer["load_seconds"]
        return seconds

    def _check(self, point: Point, references: Mapping[str, Path], layers: int, box: Path) -> None:
        """Compare what each contender computed with ONNX Runtime's result for its reference."""
        if "onnxruntime" not in self.pythons:
            return
        for number, model in enumerate(sorted(set(references.values()))):
            expected = self._reference("onnxruntime", model, box / f"reference-{number}.npy")
            if model == references.get("sparsec"):
                plain = self._reference("onnxruntime-plain", model, box / f"plain-{number}.npy")
                most, mean = compare(plain, expected)
                point.spread = round(most, 6), round(mean, 6)
            for name in (name for name, file in references.items() if file == model):
                most, mean = compare(np.load(box / f"{name}.npy"), expected)
                contender = CONTENDERS[name]
                bound = TIGHT if name == "sparsec" and layers == 1 else contender.bound
                point.agreement[name] = Agreement(
                    contender.against, round(most, 6), round(mean, 6), bound
                )

    def _reference(self, loader: str, model: Path, path: Path) -> Any:
        with self._worker("onnxruntime", f"reference-{model.stem}") as worker:
            worker.ask(
                "load",
                engine=loader,
                model=str(model),
                inputs=str(path.with_name("rows.npz")),
                threads=len(self.cpus),
            )
            worker.ask("outputs", path=str(path), rows=CHECKED_ROWS)
        return np.load(path)


def _save(path: Path, inputs: Sequence[Any]) -> None:
    names = [f"{number:02}" for number in range(len(inputs))]
    np.savez(path, **dict(zip(names, inputs, strict=True)))
