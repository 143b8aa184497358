"""One inference engine in a process of its own, told what to do line by line.

Started by `turns.Worker` with the Python of the engine's environment, so it imports nothing of the
project but what that engine needs.  Requests and answers are JSON objects, one a line::

    {"do": "load", "engine": "onnxruntime", "model": "m.onnx", "inputs": "x.npz", "threads": 2}
    {"do": "run", "runs": 10, "seconds": 0.5, "longest": 10.0}
    {"do": "outputs", "path": "y.npy", "rows": 4}
    {"do": "quantize", "model": "dense.onnx", "output": "int8.onnx"}

Every answer has ``ok``; where that is false, ``error`` says why.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

Run = Callable[[], "list[np.ndarray]"]

# What the engine is warmed up with before each slice of measured runs.
WARM_SECONDS = 0.05
WARM_RUNS = 3


def load_sparsec(model: str, inputs: list[np.ndarray], threads: int) -> tuple[str, Run]:
    """`model` is an artifact."""
    import sparsec

    engine = sparsec.Engine(model, num_cores=threads)
    return sparsec.__version__, lambda: engine.run(inputs)


def load_deepsparse(model: str, inputs: list[np.ndarray], threads: int) -> tuple[str, Run]:
    """`model` is copied, as DeepSparse rewrites the file it is given."""
    import deepsparse
    from deepsparse.utils import override_onnx_input_shapes

    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copy(model, Path(folder) / "model.onnx")
        with override_onnx_input_shapes(str(copy), [list(x.shape) for x in inputs]) as path:
            engine = deepsparse.Engine(path, inputs[0].shape[0], num_cores=threads)
    return deepsparse.__version__, lambda: engine.run(inputs)


def load_openvino(
    model: str, inputs: list[np.ndarray], threads: int, float32: bool = False
) -> tuple[str, Run]:
    """Static shapes, sparse weights decompression from 50 % zeros, tuned for latency.

    Args:
        float32: compute in float32 what is not int8; by default OpenVINO takes bfloat16 where the
            CPU has it, as no other engine does.
    """
    import openvino as ov
    import openvino.properties as properties
    import openvino.properties.hint as hint
    import openvino.properties.intel_cpu as intel_cpu

    core = ov.Core()
    loaded = core.read_model(model)
    loaded.reshape(
        {port.get_any_name(): list(x.shape) for port, x in zip(loaded.inputs, inputs, strict=True)}
    )
    options: dict[Any, Any] = {
        hint.performance_mode: hint.PerformanceMode.LATENCY,
        properties.inference_num_threads: threads,
        intel_cpu.sparse_weights_decompression_rate: 0.5,
    }
    if float32:
        options[hint.inference_precision] = ov.Type.f32
    compiled = core.compile_model(loaded, "CPU", options)
    request = compiled.create_infer_request()
    feed = dict(enumerate(inputs))

    def run() -> list[np.ndarray]:
        results = request.infer(feed, share_inputs=True, share_outputs=True)
        return [results[port] for port in compiled.outputs]

    return ov.__version__.split("-")[0], run


def load_onnxruntime(
    model: str, inputs: list[np.ndarray], threads: int, optimize: bool = True
) -> tuple[str, Run]:
    """All graph optimizations or none, one operator at a time on all threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {port.name: x for port, x in zip(session.get_inputs(), inputs, strict=True)}
    return onnxruntime.__version__, lambda: list(session.run(None, feed))


LOADERS: dict[str, Callable[[str, list[np.ndarray], int], tuple[str, Run]]] = {
    "sparsec": load_sparsec,
    "deepsparse": load_deepsparse,
    "openvino": load_openvino,
    "openvino-f32": partial(load_openvino, float32=True),
    "onnxruntime": load_onnxruntime,
    "onnxruntime-plain": partial(load_onnxruntime, optimize=False),
}


def measure(
    run: Run, runs: int, seconds: float, longest: float, last: float
) -> tuple[list[float], list[np.ndarray]]:
    """Seconds of each run, and what the last one computed.

    Args:
        runs, seconds: run at least as often, and as long in all.
        longest: stop after this time, however few runs there were.
        last: what the latest run took; a slow one is not warmed up again.
    """
    clock = time.perf_counter
    end = clock() + WARM_SECONDS
    for _ in range(WARM_RUNS if last < WARM_SECONDS * 10 else 0):
        run()
        if clock() > end:
            break
    times: list[float] = []
    begin = clock()
    while True:
        start = clock()
        results = run()
        now = clock()
        times.append(now - start)
        if now - begin >= longest or (len(times) >= runs and now - begin >= seconds):
            return times, results


class Server:
    """What was loaded, and the requests that can be made of it."""

    def __init__(self) -> None:
        self.run: Run | None = None
        self.results: list[np.ndarray] = []
        self.last = 0.0

    def do_load(self, request: dict[str, Any]) -> dict[str, Any]:
        """Load a model, and run it once."""
        with np.load(request["inputs"]) as archive:
            inputs = [np.ascontiguousarray(archive[name]) for name in archive.files]
        start = time.perf_counter()
        load = LOADERS[request["engine"]]
        version, self.run = load(request["model"], inputs, request["threads"])
        loaded = time.perf_counter()
        self.results = self.run()
        self.last = time.perf_counter() - loaded
        return {"version": version, "load_seconds": loaded - start}

    def do_run(self, request: dict[str, Any]) -> dict[str, Any]:
        """Latencies of one slice, in seconds."""
        assert self.run is not None
        limits = (request["runs"], request["seconds"], request["longest"])
        times, self.results = measure(self.run, *limits, self.last)
        self.last = times[-1]
        return {"latencies": times}

    def do_outputs(self, request: dict[str, Any]) -> dict[str, Any]:
        """Write the first rows of the first output of the latest run."""
        np.save(request["path"], np.asarray(self.results[0])[: request["rows"]])
        return {}

    def do_quantize(self, request: dict[str, Any]) -> dict[str, Any]:
        """ONNX Runtime's dynamic quantization of a float32 model."""
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(request["model"], request["output"], weight_type=QuantType.QInt8)
        return {}


def main() -> None:
    """Answer requests until stdin ends."""
    # Engines print banners: those go to stderr, and only answers to stdout.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    cpus = os.environ.get("BENCH_CPUS")
    if cpus and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(c) for c in cpus.split(",")})
    server = Server()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"ok": True, **getattr(server, f"do_{request['do']}")(request)}
        except Exception as error:
            message = f"{type(error).__name__}: {error}".strip().splitlines()
            answer = {"ok": False, "error": message[0][:300] if message else "unknown"}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
