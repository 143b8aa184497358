"""ONNX Runtime as the reference of tests."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort


def session(path: Path, optimize: bool = False) -> ort.InferenceSession:
    """A session on one thread that computes what the file says, unless it may `optimize`."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
