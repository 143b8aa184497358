"""What a generated encoder looks like, and how its ONNX file is written."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

Head = Literal[
    "hidden",
    "pooler",
    "token-classification",
    "question-answering",
    "sequence-classification",
    "masked-lm",
]
Form = Literal["fp32", "sparseml", "qdq"]

HEADS: tuple[Head, ...] = (
    "hidden",
    "pooler",
    "token-classification",
    "question-answering",
    "sequence-classification",
    "masked-lm",
)
FORMS: tuple[Form, ...] = ("fp32", "sparseml", "qdq")

# The head of a masked language model; its decoder's weights are those of the word embeddings.
PREDICTIONS = "cls.predictions"
DECODER = f"{PREDICTIONS}.decoder"
WORDS = "embeddings.word_embeddings"


@dataclass(frozen=True)
class EncoderConfig:
    """A BERT-shaped encoder.

    Attributes:
        layers, hidden, heads, intermediate: the encoder's size; `heads` divides `hidden`.
        vocab, max_position, type_vocab: rows of the embedding tables; ``type_vocab=0`` has no token
            types at all (DistilBERT).
        eps: of every LayerNorm.
        head: what the model computes from the last hidden state.
        num_labels: outputs of the classification heads (2 for question answering).
        attention: where the scores are scaled and how they are masked: ``eager`` divides the scores
            by sqrt(d) and adds a mask; ``sdpa`` multiplies both q and k by d**-0.25 and adds a mask
            of 0 and -inf made from booleans; ``distilbert`` divides q by sqrt(d) and selects.
        mask_value: what ``eager`` adds at padded positions (-10000 or the lowest float32).
    """

    layers: int = 2
    hidden: int = 64
    heads: int = 4
    intermediate: int = 256
    vocab: int = 500
    max_position: int = 512
    type_vocab: int = 2
    eps: float = 1e-12
    head: Head = "hidden"
    num_labels: int = 3
    attention: Literal["eager", "sdpa", "distilbert"] = "eager"
    mask_value: float = -10000.0

    def __post_init__(self) -> None:
        if self.hidden % self.heads:
            raise ValueError(f"hidden={self.hidden} is no multiple of heads={self.heads}")
        if self.head not in HEADS:
            raise ValueError(f"head={self.head!r} is none of {', '.join(HEADS)}")
        if self.attention not in ("eager", "sdpa", "distilbert"):
            raise ValueError(f"attention={self.attention!r} is none of eager, sdpa, distilbert")

    @property
    def head_size(self) -> int:
        """Channels of one attention head."""
        return self.hidden // self.heads

    @property
    def has_pooler(self) -> bool:
        """Whether the first token goes through a dense layer and tanh."""
        return self.head in ("pooler", "sequence-classification")

    def encoder_linears(self) -> list[str]:
        """Names of the linear layers of the encoder, in the order they run."""
        parts = (
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
            "attention.output.dense",
            "intermediate.dense",
            "output.dense",
        )
        return [f"encoder.layer.{i}.{p}" for i in range(self.layers) for p in parts]

    def linears(self) -> list[str]:
        """Names of all linear layers: the encoder's and the head's."""
        names = self.encoder_linears()
        if self.has_pooler:
            names.append("pooler.dense")
        if self.head in ("token-classification", "sequence-classification"):
            names.append("classifier")
        if self.head == "question-answering":
            names.append("qa_outputs")
        if self.head == "masked-lm":
            names += [f"{PREDICTIONS}.transform.dense", DECODER]
        return names

    def tables(self) -> list[str]:
        """Names of the embedding tables."""
        names = ["word", "position"] + (["token_type"] if self.type_vocab else [])
        return [f"embeddings.{n}_embeddings" for n in names]

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter, by its Hugging Face BERT name (weights are [out, in])."""
        h, m = self.hidden, self.intermediate
        rows = {"word": self.vocab, "position": self.max_position, "token_type": self.type_vocab}
        shapes: dict[str, tuple[int, ...]] = {
            f"{name}.weight": (rows[name.split(".")[1].removesuffix("_embeddings")], h)
            for name in self.tables()
        }
        norms = ["embeddings.LayerNorm"]
        norms += [
            f"encoder.layer.{i}.{p}.LayerNorm"
            for i in range(self.layers)
            for p in ("attention.output", "output")
        ]
        if self.head == "masked-lm":
            norms.append(f"{PREDICTIONS}.transform.LayerNorm")
        for name in norms:
            shapes |= {f"{name}.weight": (h,), f"{name}.bias": (h,)}
        labels = 2 if self.head == "question-answering" else self.num_labels
        for name in self.linears():
            n, k = h, h
            if name in ("classifier", "qa_outputs"):
                n = labels
            elif name == DECODER:
                n = self.vocab
            elif name.endswith("intermediate.dense"):
                n = m
            elif name.endswith("output.dense") and "attention" not in name:
                k = m
            shapes |= {f"{name}.weight": (n, k), f"{name}.bias": (n,)}
        return shapes


@dataclass(frozen=True)
class Export:
    """How the graph is written down; none of it changes what the graph means.

    Attributes:
        opset: 11 to 21.
        fused: LayerNormalization (opset >= 17) and Gelu (opset >= 20) as single nodes; otherwise
            primitive ops, as the TorchScript exporter writes them.
        length: None for a dynamic sequence axis, or the fixed number of tokens.
        fixed_batch: None for a dynamic batch axis, or the batch size.
        token_type_input: False leaves `token_type_ids` out of the inputs and reads zeros from an
            expanded buffer, as exporters do when the caller does not pass them.
        matmul_attention: (sparseml) ``integer`` writes MatMulInteger -> Cast -> Mul -> Q -> DQ,
            ``qlinear`` the older QLinearMatMul -> ... -> DQ.
        share_inputs: (sparseml) Q, K and V read one QuantizeLinear; False gives each its own.
        linear: (fp32, qdq) ``matmul`` has weights [in, out], ``gemm`` has transB=1 and [out, in].
        int32_bias: (qdq) biases are DequantizeLinear(int32).
        quantize_weight_nodes: (qdq) weights are float -> QuantizeLinear -> DequantizeLinear.
        external_data: weights go to a file `<name>.data` beside the model.
    """

    opset: int = 14
    fused: bool = False
    length: int | None = None
    fixed_batch: int | None = None
    token_type_input: bool = True
    matmul_attention: Literal["integer", "qlinear"] = "integer"
    share_inputs: bool = True
    linear: Literal["matmul", "gemm"] = "matmul"
    int32_bias: bool = False
    quantize_weight_nodes: bool = False
    external_data: bool = False

    def __post_init__(self) -> None:
        if not 11 <= self.opset <= 21:
            raise ValueError(f"opset={self.opset} is not in 11..21")
        if self.fused and self.opset < 17:
            raise ValueError(f"fused=True needs opset 17 or newer, not {self.opset}")

    def with_(self, **changes: Any) -> Export:
        """A copy with some fields changed."""
        return replace(self, **changes)


PRESETS: dict[str, EncoderConfig] = {
    "tiny": EncoderConfig(),
    "minilm": EncoderConfig(
        layers=6, hidden=384, heads=12, intermediate=1536, vocab=30522, max_position=512
    ),
    "bert-base": EncoderConfig(
        layers=12, hidden=768, heads=12, intermediate=3072, vocab=30522, max_position=512
    ),
    "bert-large": EncoderConfig(
        layers=24, hidden=1024, heads=16, intermediate=4096, vocab=30522, max_position=512
    ),
}
