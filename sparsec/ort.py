"""Models run by ONNX Runtime, for comparison."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from sparsec.errors import InputError, ModelError
from sparsec.paths import find_onnx, input_path


def session(model: str | os.PathLike[str], threads: int) -> Any:
    """ONNX Runtime's session on a model, on the CPU.

    Args:
        model: an .onnx file, or a folder that has one.
        threads: how many it uses for one op; it runs one op at a time.

    Raises:
        InputError: ONNX Runtime is not installed.
        ModelError: the file is missing, or ONNX Runtime cannot load it.
    """
    try:
        import onnxruntime
    except ImportError:
        raise InputError(
            "ONNX Runtime is not installed: pip install 'sparsec[onnxruntime]'"
        ) from None

    def load(source: str | bytes, options: Any) -> Any:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    path = input_path(model)
    if path.is_dir():
        path = find_onnx(path)
    try:
        return load(str(path), onnxruntime.SessionOptions())
    except Exception as error:  # its exceptions share no base class
        refused = error
    # Some versions refuse external data behind any link, as in the Hugging Face hub's cache.  Where
    # the link is one that sparsec follows, they get the data itself.
    linked = _linked(path)
    if not linked:
        raise ModelError(f"ONNX Runtime cannot load {path}: {refused}") from refused
    data = [np.memmap(file, np.uint8, "r") for file in linked.values()]
    options = onnxruntime.SessionOptions()
    add = getattr(options, "add_external_initializers_from_files_in_memory", None)
    try:
        if add is None:  # before 1.24, the newest that there is for Python 3.10
            return load(_whole(path), options)
        add(list(linked), data, [part.size for part in data])
        return load(path.read_bytes(), options)
    except Exception as error:
        raise ModelError(f"ONNX Runtime cannot load {path}: {error}") from error


def _whole(path: Path) -> bytes:
    """The model as one file with all of its data."""
    from onnx import TensorProto, numpy_helper

    from sparsec.compiler.frontend import load_model

    model = load_model(path)
    for tensor in model.proto.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor.CopyFrom(numpy_helper.from_array(model.array(tensor), tensor.name))
    data: bytes = model.proto.SerializeToString()
    return data


def _linked(path: Path) -> dict[str, Path]:
    """The files of external data that are links, by the model's name for them, links followed."""
    from sparsec.compiler.frontend import load_model

    try:
        files = load_model(path).external_files()
    except ModelError:
        return {}
    folder = path.parent.resolve()
    return files if any(file != folder / name for name, file in files.items()) else {}
