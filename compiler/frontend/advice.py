"""What to do about ops that have no importer."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from sparsec.compiler.frontend.tensor import Tensor

_MICROSOFT = "com.microsoft"

_LOOPS = "; export without loops over tokens or layers: torch.onnx.export unrolls Python's"
_SEQUENCES = (
    "; lists of tensors come from loops and splits: export with dynamo=True, or unroll them"
)
_RECURRENT = "; recurrent networks are not compiled"
_GENERATES = "; it is of a model that generates text: export the encoder alone"
_BEFORE_OPTIMIZER = "; give sparsec the model as it was before ONNX Runtime's optimizer"
_BEFORE_QUANTIZER = "; give sparsec the model as it was before it was quantized"

_ADVICE = {
    **dict.fromkeys(("Loop", "Scan"), _LOOPS),
    **dict.fromkeys(
        ("SequenceConstruct", "SequenceAt", "SequenceInsert", "SplitToSequence", "SequenceEmpty"),
        _SEQUENCES,
    ),
    **dict.fromkeys(
        ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial"),
        "; export the model in eval mode, without random numbers",
    ),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _RECURRENT),
}

_ONNX_RUNTIME_ADVICE = {
    **dict.fromkeys(("AttnLSTM", "DynamicQuantizeLSTM", "QuantizedLSTM"), _RECURRENT),
    **dict.fromkeys(
        (
            "BeamSearch",
            "DecoderAttention",
            "DecoderMaskedMultiHeadAttention",
            "DecoderMaskedSelfAttention",
            "GreedySearch",
            "GroupQueryAttention",
            "NGramRepeatBlock",
            "PagedAttention",
            "Sampling",
            "SparseAttention",
            "WhisperBeamSearch",
        ),
        _GENERATES,
    ),
    # What each of these was made from is compiled.
    **dict.fromkeys(
        (
            "BiasAdd",
            "BiasDropout",
            "BiasSoftmax",
            "BiasSplitGelu",
            "BitmaskBiasDropout",
            "BitmaskDropout",
            "FusedConv",
            "FusedMatMulActivation",
            "GatedRelativePositionBias",
            "GemmFastGelu",
            "NhwcConv",
            "NhwcFusedConv",
            "PackedAttention",
            "RelativePositionBias",
            "PackedMultiHeadAttention",
            "RemovePadding",
            "RestorePadding",
            "RotaryEmbedding",
            "SkipSimplifiedLayerNormalization",
            "TransposeMatMul",
        ),
        _BEFORE_OPTIMIZER,
    ),
    **dict.fromkeys(
        (
            "MatMulBnb4",
            "MatMulFpQ4",
            "QLinearReduceMean",
            "QOrderedAttention",
            "QOrderedGelu",
            "QOrderedLayerNormalization",
            "QOrderedMatMul",
        ),
        _BEFORE_QUANTIZER,
    ),
}

# What vision and detection heads end with, and what gives as much as the data says.
_HEADS = frozenset(
    (
        "AveragePool",
        "Col2Im",
        "Compress",
        "ConvTranspose",
        "DeformConv",
        "GridSample",
        "InstanceNormalization",
        "LpPool",
        "MaxPool",
        "MaxRoiPool",
        "MaxUnpool",
        "NonMaxSuppression",
        "NonZero",
        "Resize",
        "RoiAlign",
        "Unique",
        "Upsample",
    )
)


def advice_on(proto: onnx.NodeProto, domain: str) -> str:
    """What to do about an op that has no importer, as the end of a sentence, or ""."""
    if domain.startswith(("com.microsoft.", "com.ms.")):
        return _BEFORE_OPTIMIZER
    if domain == _MICROSOFT:
        own = "; it is an op of ONNX Runtime alone"
        return _ONNX_RUNTIME_ADVICE.get(proto.op_type, own)
    if domain:
        return f"; it is of the domain {domain}, which nothing in the file defines"
    return _ADVICE.get(proto.op_type, "")


def cut_before(proto: onnx.NodeProto, scope: Mapping[str, Tensor | None]) -> str:
    """How to compile what comes before an op of a head, as the end of a sentence, or ""."""
    read = [name for name in proto.input if name and (t := scope[name]) and not t.known]
    if proto.op_type not in _HEADS or not read:
        return ""
    return (
        f"; if what follows is only the head, end the model before it: make {read[0]!r} the output "
        "instead (onnx.ValueInfoProto(name=...) is enough) and compute the head from that"
    )
