"""What is done to an exported float model: each quantizer and fuser in each of its forms."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx

from tests.zoo.fake_quantize import NEURAL_COMPRESSOR, NNCF, TORCH, Scheme, insert


class Network(Protocol):
    """What the tools are told about a model."""

    @property
    def heads(self) -> int:
        """Heads of an attention."""

    @property
    def width(self) -> int:
        """Channels of the hidden states."""

    @property
    def image(self) -> bool:
        """Whether it takes pixels instead of tokens."""

    def feed(
        self, batch: int, length: int, seed: int = 0, ragged: bool = True
    ) -> Mapping[str, np.ndarray]:
        """Random inputs by name."""


Maker = Callable[[Path, Path, Network, int], None]
"""Reads a float model, writes a new one: source, destination, network, length."""


def _float(source: Path, path: Path, network: Network, length: int) -> None:
    path.write_bytes(source.read_bytes())


def _half(source: Path, path: Path, network: Network, length: int) -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load(source)
    onnx.save(convert_float_to_float16(model, keep_io_types=True), path)


def _prepared(source: Path, path: Path) -> Path:
    """The model with shapes inferred, as the quantizers want it."""
    prepared = path.with_suffix(".prepared.onnx")
    model = onnx.load(source)
    with contextlib.suppress(onnx.shape_inference.InferenceError):
        model = onnx.shape_inference.infer_shapes(model)
    onnx.save(model, prepared)
    return prepared


def _dynamic(**options: Any) -> Maker:
    def make(source: Path, path: Path, network: Network, length: int) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        kind = getattr(QuantType, options.get("weights", "QInt8"))
        quantize_dynamic(
            _prepared(source, path),
            path,
            weight_type=kind,
            per_channel=options.get("per_channel", False),
            reduce_range=options.get("reduce_range", False),
            op_types_to_quantize=options.get("ops"),
            extra_options={
                "MatMulConstBOnly": options.get("constants_only", True),
                "DefaultTensorType": onnx.TensorProto.FLOAT,
            },
        )

    return make


def _static(**options: Any) -> Maker:
    def make(source: Path, path: Path, network: Network, length: int) -> None:
        from onnxruntime.quantization import (
            CalibrationDataReader,
            QuantFormat,
            QuantType,
            quantize_static,
        )

        class Reader(CalibrationDataReader):
            def __init__(self) -> None:
                self.feeds: Iterator[Mapping[str, np.ndarray]] = iter(
                    [network.feed(2, length, seed) for seed in range(4)]
                )

            def get_next(self) -> Any:
                return next(self.feeds, None)

        quantize_static(
            _prepared(source, path),
            path,
            Reader(),
            quant_format=getattr(QuantFormat, options.get("form", "QDQ")),
            activation_type=getattr(QuantType, options.get("activations", "QUInt8")),
            weight_type=getattr(QuantType, options.get("weights", "QInt8")),
            per_channel=options.get("per_channel", False),
            op_types_to_quantize=options.get("ops"),
            extra_options=options.get("extra", {}),
        )

    return make


def _inserted(scheme: Scheme) -> Maker:
    """What tools other than ONNX Runtime's write."""

    def make(source: Path, path: Path, network: Network, length: int) -> None:
        feeds = [network.feed(2, length, seed) for seed in range(4)]
        onnx.save(insert(onnx.load(source), scheme, feeds), path)

    return make


def _ort_saved(level: str, quantize: Maker | None = None) -> Maker:
    """The file that ONNX Runtime writes after its own optimization."""

    def make(source: Path, path: Path, network: Network, length: int) -> None:
        import onnxruntime as ort

        if quantize is not None:
            quantized = path.with_suffix(".quantized.onnx")
            quantize(source, quantized, network, length)
            source = quantized
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
        options.optimized_model_filepath = str(path)
        ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])

    return make


def _fused(fast_gelu: bool = False, quantize: Maker | None = None) -> Maker:
    """ONNX Runtime's transformer optimizer: Attention, SkipLayerNormalization, BiasGelu ..."""

    def make(source: Path, path: Path, network: Network, length: int) -> None:
        from onnxruntime.transformers import optimizer
        from onnxruntime.transformers.fusion_options import FusionOptions

        logging.getLogger("onnxruntime.transformers").setLevel(logging.ERROR)
        kind = "vit" if network.image else "bert"
        options = FusionOptions(kind)
        options.enable_gelu_approximation = fast_gelu
        model = optimizer.optimize_model(
            str(source),
            kind,
            num_heads=network.heads,
            hidden_size=network.width,
            optimization_options=options,
            opt_level=0,
        )
        if quantize is None:
            model.save_model_to_file(str(path))
            return
        fused = path.with_suffix(".fused.onnx")
        model.save_model_to_file(str(fused))
        quantize(fused, path, network, length)

    return make


DIALECTS: dict[str, Maker] = {
    "fp32": _float,
    "fp16": _half,
    "qdq-u8s8": _static(),
    "qdq-u8s8-channel": _static(per_channel=True),
    "qdq-s8s8": _static(activations="QInt8"),
    "qdq-s8s8-channel": _static(activations="QInt8", per_channel=True),
    "qdq-u8u8": _static(weights="QUInt8"),
    "qdq-matmul-only": _static(ops=["MatMul", "Gemm"]),
    "qdq-float-weights": _static(extra={"AddQDQPairToWeight": True}),
    "nncf": _inserted(NNCF),
    "torch-qat": _inserted(TORCH),
    "neural-compressor": _inserted(NEURAL_COMPRESSOR),
    "qoperator-u8s8": _static(form="QOperator"),
    "qoperator-u8u8": _static(form="QOperator", weights="QUInt8"),
    "qoperator-channel": _static(form="QOperator", per_channel=True),
    "dynamic-s8": _dynamic(),
    "dynamic-u8": _dynamic(weights="QUInt8"),
    "dynamic-channel": _dynamic(per_channel=True),
    "dynamic-channel-reduced": _dynamic(per_channel=True, reduce_range=True),
    "dynamic-all-products": _dynamic(constants_only=False),
    "ort-extended": _ort_saved("ORT_ENABLE_EXTENDED"),
    "ort-extended-dynamic": _ort_saved("ORT_ENABLE_EXTENDED", _dynamic()),
    "ort-extended-qdq": _ort_saved("ORT_ENABLE_EXTENDED", _static()),
    "fused": _fused(),
    "fused-fast-gelu": _fused(fast_gelu=True),
    "fused-dynamic": _fused(quantize=_dynamic()),
    "fused-qdq": _fused(quantize=_static()),
}
