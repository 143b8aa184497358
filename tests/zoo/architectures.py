"""The architectures: tiny random networks, from transformers' config classes but for one.

Widths keep the ratios that matter (head sizes of 16 to 80, widths that are no multiple of 64), and
everything else is as small as it can be.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

VOCAB = 120
LONGEST = 64

_SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": LONGEST,
}
_DEBERTA_V2: dict[str, Any] = {
    **_SMALL,
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "max_relative_positions": -1,
    "position_buckets": 16,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "position_biased_input": False,
    "type_vocab_size": 0,
}
_ROBERTA = {**_SMALL, "max_position_embeddings": LONGEST + 2, "type_vocab_size": 1}
_DISTIL = {
    "vocab_size": VOCAB,
    "dim": 64,
    "n_layers": 2,
    "n_heads": 2,
    "hidden_dim": 128,
    "max_position_embeddings": LONGEST,
}
_VIT = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "image_size": 32,
    "patch_size": 8,
}


@dataclass(frozen=True)
class Architecture:
    """One row of the zoo.

    Attributes:
        name: the row's name.
        config: the library's config class.
        model: the library's model class.
        options: arguments of the config.
        types: whether it takes token types.
        image: whether it takes pixels instead of tokens.
        pad: the id of the padding token.
        sdpa: whether transformers has it with ``sdpa``; else it is always ``eager``.
        sentence: "" for the model's own outputs; else how the graph pools and normalizes:
            ``mean`` or ``cls``.
        library: the module that has both.
        variant: of another row, with another head or width.
        gain: of the matrices; less than 1 where nothing is normalized, so that values do not grow
            from layer to layer until the last bit of a score decides.
    """

    name: str
    config: str
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    types: bool = False
    image: bool = False
    pad: int = 0
    sdpa: bool = True
    sentence: str = ""
    library: str = "transformers"
    variant: bool = False
    gain: float = 1.0

    @property
    def inputs(self) -> list[str]:
        """Names of the inputs, in order."""
        if self.image:
            return ["pixel_values"]
        names = ["input_ids", "attention_mask"]
        return [*names, "token_type_ids"] if self.types else names

    @property
    def heads(self) -> int:
        """Heads of an attention."""
        return int(self.options.get("num_attention_heads") or self.options["n_heads"])

    @property
    def width(self) -> int:
        """Channels of the hidden states."""
        return int(self.options.get("hidden_size") or self.options["dim"])

    def build(self, attention: str, seed: int = 0) -> Any:
        """The network as a torch module, ready for export; ``attention`` is eager or sdpa."""
        import torch

        library = importlib.import_module(self.library)
        torch.manual_seed(seed)
        config = getattr(library, self.config)(**self.options)
        config._attn_implementation = attention if self.sdpa else "eager"
        if not self.image:
            config.pad_token_id = self.pad
        network = getattr(library, self.model)(config).eval()
        _spread(network, self.gain)
        return _Wrapped.make(network, self)

    def feed(self, batch: int, length: int, seed: int = 0, ragged: bool = True) -> dict[str, Any]:
        """Random inputs; ``ragged`` sequences have different lengths, padded on the right."""
        rng = np.random.default_rng(seed)
        if self.image:
            return {"pixel_values": rng.standard_normal((batch, 3, 32, 32)).astype(np.float32)}
        ids = rng.integers(5, VOCAB, (batch, length))
        mask = np.ones((batch, length), np.int64)
        if ragged:
            for row, n in enumerate(rng.integers(2, length + 1, batch)):
                mask[row, n if row else length :] = 0
        ids = np.where(mask == 1, ids, self.pad)
        out = {"input_ids": ids, "attention_mask": mask}
        if self.types:
            out["token_type_ids"] = mask * (np.arange(length) > length // 2)
        return out


def _spread(network: Any, gain: float) -> None:
    """Weights large enough that attention and activations are not all alike, biases not zero."""
    import torch

    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in network.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim >= 2:
                size = gain / p[0].numel() ** 0.5
                p.copy_(noise * size if "embed" not in name else noise)
            elif "weight" in name:
                p.copy_(1 + 0.1 * noise)
            else:
                p.copy_(0.1 * noise)
        for module in network.modules():
            # As trained: the token of padding is nothing, whatever reads its neighbours.
            if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx] = 0


class _Wrapped:
    """Makes modules with positional inputs and a tuple of outputs."""

    @staticmethod
    def make(network: Any, architecture: Architecture) -> Any:
        import torch

        names = architecture.inputs

        class Export(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.network = network

            def forward(self, *given: torch.Tensor) -> Any:
                inputs = dict(zip(names, given, strict=True))
                out = self.network(**inputs)
                if not architecture.sentence:
                    return tuple(v for v in out.to_tuple() if isinstance(v, torch.Tensor))
                hidden = out[0]
                if architecture.sentence == "cls":
                    pooled = hidden[:, 0]
                else:
                    mask = inputs["attention_mask"].unsqueeze(-1).expand(hidden.size()).float()
                    pooled = (hidden * mask).sum(1) / torch.clamp(mask.sum(1), min=1e-9)
                return (torch.nn.functional.normalize(pooled, p=2, dim=1),)

        return Export().eval()


def _bert(name: str, model: str = "BertModel", **options: Any) -> Architecture:
    sentence = options.pop("sentence", "")
    widths = {**_SMALL, **options}
    variant = name.startswith("bert-")
    return Architecture(
        name, "BertConfig", model, widths, types=True, sentence=sentence, variant=variant
    )


ARCHITECTURES: tuple[Architecture, ...] = (
    _bert("bert"),
    _bert("bert-token-head", "BertForTokenClassification", num_labels=5),
    _bert("bert-sequence-head", "BertForSequenceClassification", num_labels=3),
    _bert("bert-qa-head", "BertForQuestionAnswering"),
    _bert("bert-mlm-head", "BertForMaskedLM"),
    _bert("bert-relu", hidden_act="relu"),
    _bert("bert-gelu-tanh", hidden_act="gelu_new"),
    _bert("bert-silu", hidden_act="silu"),
    _bert("bert-head-64", hidden_size=128),
    _bert("bert-head-80", hidden_size=160),
    _bert("bert-odd-widths", hidden_size=60, num_attention_heads=3, intermediate_size=100),
    _bert("all-minilm", sentence="mean"),
    _bert("bge", sentence="cls"),
    Architecture("distilbert", "DistilBertConfig", "DistilBertModel", _DISTIL),
    Architecture(
        "distilbert-sequence-head",
        "DistilBertConfig",
        "DistilBertForSequenceClassification",
        _DISTIL,
        variant=True,
    ),
    Architecture("roberta", "RobertaConfig", "RobertaModel", _ROBERTA, pad=1),
    Architecture(
        "roberta-token-head",
        "RobertaConfig",
        "RobertaForTokenClassification",
        _ROBERTA,
        pad=1,
        variant=True,
    ),
    Architecture("xlm-roberta", "XLMRobertaConfig", "XLMRobertaModel", _ROBERTA, pad=1),
    Architecture("e5", "XLMRobertaConfig", "XLMRobertaModel", _ROBERTA, pad=1, sentence="mean"),
    Architecture(
        "electra",
        "ElectraConfig",
        "ElectraModel",
        {**_SMALL, "embedding_size": 32},
        types=True,
        sdpa=False,
    ),
    Architecture("mpnet", "MPNetConfig", "MPNetModel", _ROBERTA, pad=1, sdpa=False),
    Architecture(
        "all-mpnet", "MPNetConfig", "MPNetModel", _ROBERTA, pad=1, sdpa=False, sentence="mean"
    ),
    Architecture(
        "albert",
        "AlbertConfig",
        "AlbertModel",
        {**_SMALL, "embedding_size": 32},
        types=True,
    ),
    Architecture(
        "mobilebert",
        "MobileBertConfig",
        "MobileBertModel",
        {**_SMALL, "embedding_size": 32, "intra_bottleneck_size": 32, "intermediate_size": 64},
        types=True,
        sdpa=False,
        gain=0.5,
    ),
    Architecture(
        "deberta-v2",
        "DebertaV2Config",
        "DebertaV2Model",
        _DEBERTA_V2,
        sdpa=False,
    ),
    Architecture(
        "deberta-v2-conv",
        "DebertaV2Config",
        "DebertaV2Model",
        {**_DEBERTA_V2, "conv_kernel_size": 3, "conv_act": "gelu"},
        sdpa=False,
    ),
    Architecture(
        "deberta",
        "DebertaConfig",
        "DebertaModel",
        {
            **_SMALL,
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "max_relative_positions": -1,
            "position_biased_input": False,
            "type_vocab_size": 0,
        },
        sdpa=False,
    ),
    Architecture(
        "modernbert",
        "ModernBertConfig",
        "ModernBertModel",
        {
            **_SMALL,
            "num_hidden_layers": 3,
            "local_attention": 8,
            "global_attn_every_n_layers": 3,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "cls_token_id": 1,
            "eos_token_id": 2,
            "sep_token_id": 2,
        },
    ),
    Architecture(
        "nomic-bert",
        "NomicBertConfig",
        "NomicBertModel",
        _SMALL,
        types=True,
        library="tests.zoo.nomic",
    ),
    Architecture("vit", "ViTConfig", "ViTModel", _VIT, image=True),
    Architecture("deit", "DeiTConfig", "DeiTModel", _VIT, image=True),
)

BY_NAME = {a.name: a for a in ARCHITECTURES}
