"""A BERT encoder in torch, for training in float.

Parameters have the names and shapes of `EncoderConfig.parameter_shapes`: what is trained here is
written by examples.encoders.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from examples.encoders import EncoderConfig, Weights
from examples.encoders.config import DECODER, PREDICTIONS, WORDS

DROPOUT = 0.1  # of what layers add to the residual, while training


class Encoder(nn.Module):
    """An `EncoderConfig` as a torch module."""

    def __init__(self, config: EncoderConfig, weights: Weights) -> None:
        super().__init__()
        self.config = config
        # torch allows no dots in names of parameters.
        self.values = nn.ParameterDict(
            {
                name.replace(".", "/"): nn.Parameter(torch.tensor(weights[name]))
                for name in config.parameter_shapes()
            }
        )
        frozen = config.tables()  # new names must look like the ones that were trained on
        if config.head == "masked-lm":
            frozen.append(DECODER)  # the same table
        for name in frozen:
            self.parameter(f"{name}.weight").requires_grad = False

    def parameter(self, name: str) -> nn.Parameter:
        """A parameter by its Hugging Face name."""
        value = self.values[name.replace(".", "/")]
        assert isinstance(value, nn.Parameter)
        return value

    def export(self) -> Weights:
        """All parameters as float32 arrays."""
        names = self.config.parameter_shapes()
        return {name: self.parameter(name).detach().numpy().copy() for name in names}

    def linear(self, name: str, x: Tensor) -> Tensor:
        """x [..., K] -> [..., N]."""
        weight, bias = self.parameter(f"{name}.weight"), self.parameter(f"{name}.bias")
        return functional.linear(x, weight, bias)

    def dropout(self, x: Tensor) -> Tensor:
        """x with some elements zero, in training."""
        return functional.dropout(x, DROPOUT, self.training)

    def norm(self, name: str, x: Tensor) -> Tensor:
        """The LayerNorm called `name`."""
        gain, offset = self.parameter(f"{name}.weight"), self.parameter(f"{name}.bias")
        return functional.layer_norm(x, (self.config.hidden,), gain, offset, self.config.eps)

    def attend(self, layer: str, x: Tensor, mask: Tensor) -> Tensor:
        """Self-attention up to the merged heads, before the output projection."""
        batch, length, hidden = x.shape

        def heads(part: str) -> Tensor:
            y = self.linear(f"{layer}.attention.self.{part}", x)
            return y.view(batch, length, self.config.heads, self.config.head_size).transpose(1, 2)

        scores = heads("query") @ heads("key").transpose(2, 3)
        scores = scores / self.config.head_size**0.5 + mask
        context = scores.softmax(-1) @ heads("value")
        return context.transpose(1, 2).reshape(batch, length, hidden)

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids, mask and types, integers [B, S] -> (last hidden state, scores).

        Scores are the state where there is no head; else [B, rows, classes], each row a choice
        between classes: tokens between labels or between words of the vocabulary, the whole text
        between labels (one row), or for question answering start and end (two rows) between tokens.
        """
        rows = [functional.embedding(ids, self.parameter("embeddings.word_embeddings.weight"))]
        rows.append(self.parameter("embeddings.token_type_embeddings.weight")[types])
        rows.append(self.parameter("embeddings.position_embeddings.weight")[: ids.shape[1]][None])
        x = self.norm("embeddings.LayerNorm", rows[0] + rows[1] + rows[2])
        hidden = (1 - mask[:, None, None, :].to(x.dtype)) * self.config.mask_value
        for i in range(self.config.layers):
            layer = f"encoder.layer.{i}"
            y = self.linear(f"{layer}.attention.output.dense", self.attend(layer, x, hidden))
            x = self.norm(f"{layer}.attention.output.LayerNorm", x + self.dropout(y))
            y = functional.gelu(self.linear(f"{layer}.intermediate.dense", x))
            y = self.linear(f"{layer}.output.dense", y)
            x = self.norm(f"{layer}.output.LayerNorm", x + self.dropout(y))
        if self.config.head == "hidden":
            return x, x
        if self.config.head == "token-classification":
            return x, self.linear("classifier", x)
        if self.config.head == "question-answering":
            scores = self.linear("qa_outputs", x).transpose(1, 2)
            return x, scores + hidden[:, 0]
        if self.config.head == "masked-lm":
            y = functional.gelu(self.linear(f"{PREDICTIONS}.transform.dense", x))
            return x, self.linear(DECODER, self.norm(f"{PREDICTIONS}.transform.LayerNorm", y))
        pooled = torch.tanh(self.linear("pooler.dense", x[:, 0]))
        return x, self.linear("classifier", pooled)[:, None]


def with_head(config: EncoderConfig, weights: Weights, seed: int) -> Weights:
    """The parameters of `config`: those that `weights` has, and small random ones for the rest."""
    rng = np.random.default_rng(seed)
    result: Weights = {}
    for name, shape in config.parameter_shapes().items():
        if name in weights:
            result[name] = weights[name]
        elif name.endswith("LayerNorm.weight"):
            result[name] = np.ones(shape, np.float32)
        elif name == f"{DECODER}.weight":
            result[name] = result[f"{WORDS}.weight"]
        elif name.endswith("bias"):
            result[name] = np.zeros(shape, np.float32)
        else:
            result[name] = (0.02 * rng.standard_normal(shape)).astype(np.float32)
    return result
