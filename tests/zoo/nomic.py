"""Nomic's BERT (arXiv 2402.01613), which transformers has had since version 5.

BERT with rotary positions, SwiGLU and no biases; normalization is behind the residual sums.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class NomicBertConfig:
    """Sizes, by transformers' names."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    pad_token_id: int = 0
    rotary_base: float = 10000.0
    _attn_implementation: str = "eager"


@dataclass
class _Output:
    hidden: torch.Tensor

    def to_tuple(self) -> tuple[torch.Tensor]:
        return (self.hidden,)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.to_tuple()[index]


class _Layer(nn.Module):
    def __init__(self, config: NomicBertConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.heads = config.num_attention_heads
        self.sdpa = config._attn_implementation == "sdpa"
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.gate = nn.Linear(width, inner, bias=False)
        self.up = nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(
        self, x: torch.Tensor, bias: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        batch, length, width = x.shape
        apart = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = apart.unbind(0)
        q, k = (t * cos + _turned(t) * sin for t in (q, k))
        if self.sdpa:
            o = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        else:
            scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + bias
            o = torch.softmax(scores, -1) @ v
        o = self.out(o.transpose(1, 2).reshape(batch, length, width))
        x = self.norm1(x + o)
        mlp = self.down(self.up(x) * nn.functional.silu(self.gate(x)))
        return self.norm2(x + mlp)


def _turned(x: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat((-b, a), -1)


class NomicBertModel(nn.Module):
    """Token ids, mask and types [B, S] -> hidden states [B, S, C]."""

    def __init__(self, config: NomicBertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, width, config.pad_token_id)
        self.type_embeddings = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))
        self.size = width // config.num_attention_heads
        self.base = config.rotary_base

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> _Output:
        x = self.norm(self.word_embeddings(input_ids) + self.type_embeddings(token_type_ids))
        bias = (1.0 - attention_mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
        # ONNX Runtime's Attention does not broadcast a mask along the queries.
        bias = bias.expand(-1, 1, input_ids.shape[1], -1)
        powers = torch.arange(0, self.size, 2).float() / self.size
        places = torch.arange(input_ids.shape[1], device=input_ids.device).float()
        angles = places[:, None] * self.base**-powers
        angles = torch.cat((angles, angles), -1)
        for layer in self.layers:
            x = layer(x, bias, angles.cos(), angles.sin())
        return _Output(x)
