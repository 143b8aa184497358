"""How a text model counts positions, judged by its config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Positions of these count the tokens that are not padding, from the one behind the padding token's
# id, and padding has that id for its position.
_BEHIND_PADDING = frozenset([
    "altclip_text_model", "bridgetower_text_model", "camembert", "clap_text_model",
    "data2vec-text", "esm", "ibert", "layoutlmv3", "lilt", "longformer", "luke", "markuplm",
    "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
])  # fmt: skip

# These have two positions more than they say, and do not use the first two.
_FROM_TWO = frozenset(["mra", "nystromformer", "yoso"])

# Relative or rotary positions, which a model computes for any number of tokens; those whose
# config.json says so itself need not be here.
_ANY_LENGTH = frozenset([
    "bloom", "byt5", "eurobert", "funnel", "longt5", "modernbert", "mpt", "mt5", "neobert",
    "nomic_bert", "switch_transformers", "t5", "transfo-xl", "umt5", "xlnet",
])  # fmt: skip

# What BERT's kind may have for position_embedding_type that ends at max_position_embeddings.
_WITH_TABLE = ("absolute", "relative_key", "relative_key_query", "sine", "sinusoidal")


@dataclass(frozen=True)
class Positions:
    """How a model counts positions.

    Attributes:
        first: the position of the first token.
        padding: id of the padding token where positions count the other tokens only, and where
            this id is the position of padding; None where each token counts.
        longest: tokens that there are positions for; None: any number, or not known.
        configured: what the configuration says; not a limit where `longest` is None.
    """

    first: int = 0
    padding: int | None = None
    longest: int | None = None
    configured: int | None = None

    def of(self, ids: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Positions of token ids ``[..., length]``."""
        if self.padding is None:
            count = np.arange(ids.shape[-1], dtype=np.int64) + self.first
            return np.array(np.broadcast_to(count, ids.shape))
        real = (ids != self.padding).astype(np.int64)
        counted: NDArray[np.int64] = np.cumsum(real, axis=-1) * real + self.padding
        return counted

    def why(self) -> str:
        """Why `longest` is what it is, for a message."""
        known = f"the model has positions for {self.longest} tokens"
        if self.padding is None:
            return known
        return (
            f"{known}: of the {self.configured} in its table the first {self.first} are padding's"
        )


def positions(config: Mapping[str, Any], model_max_length: Any = None) -> Positions:
    """How the model with this config.json counts positions.

    Args:
        config: contents of config.json; may be empty.
        model_max_length: that of tokenizer_config.json, which shows how positions are counted where
            config.json does not name a known kind of model.
    """
    kind = str(config.get("model_type", "")).lower()
    size = _number(config, "max_position_embeddings") or _number(config, "n_positions")
    if _any_length(kind, config):
        return Positions(configured=size)
    padding = config.get("pad_token_id")
    behind = padding if type(padding) is int and padding >= 0 else 1
    if kind == "mpnet":
        behind = 1  # whatever its padding token is
    if kind in _BEHIND_PADDING or (
        not kind and size is not None and behind > 0 and model_max_length == size - behind - 1
    ):
        longest = None if size is None else max(size - behind - 1, 1)
        return Positions(behind + 1, behind, longest, size)
    if kind in _FROM_TWO:
        return Positions(2, None, size, size)
    return Positions(0, None, size, size)


def read_positions(folder: Path) -> Positions:
    """The same of the config.json in a folder, if there is one that can be read."""

    def read(name: str) -> dict[str, Any]:
        try:
            value = json.loads((folder / name).read_bytes())
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}

    return positions(read("config.json"), read("tokenizer_config.json").get("model_max_length"))


def _any_length(kind: str, config: Mapping[str, Any]) -> bool:
    """Whether no table of positions ends anywhere."""
    if kind in _ANY_LENGTH or config.get("position_biased_input") is False:
        return True
    how = config.get("position_embedding_type")
    if how is not None and how not in _WITH_TABLE:
        return True
    return config.get("alibi") is True or any(
        value and ("rope" in key.split("_") or key.startswith("rotary_emb_"))
        for key, value in config.items()
    )


def _number(config: Mapping[str, Any], key: str) -> int | None:
    value = config.get(key)
    return value if type(value) is int and value > 0 else None
