"""Train examples/models/embedding: half of MiniLM's layers learn the vectors of all of them.

As examples/training/train.py, but for what is learnt: not labels, but the directions of the whole
model's vectors, and the angles between those of a batch.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import onnxruntime
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from examples.embedding.data import TASK, held_out_lines
from examples.encoders import EncoderConfig, Weights
from examples.minilm.build import find_model, load_model
from examples.training.data import Batch, Example, Task, collate
from examples.training.model import Encoder
from examples.training.train import Trainer, run, tensors

# Of MiniLM's six layers, those that the model begins as.
TAKEN = (0, 2, 5)

# How much the angles between a batch's texts count beside those to the right vectors.
ANGLES = 10.0

# Nothing is pruned, and few texts show how to round.
ROUNDING_TEXTS = 500

LONGEST = 256  # tokens, as of all-MiniLM-L6-v2

# The files of sentence-transformers that say how a text's vector is made.
FILES = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {
            "idx": 1,
            "name": "1",
            "path": "1_Pooling",
            "type": "sentence_transformers.models.Pooling",
        },
        {
            "idx": 2,
            "name": "2",
            "path": "2_Normalize",
            "type": "sentence_transformers.models.Normalize",
        },
    ],
    "sentence_bert_config.json": {"max_seq_length": LONGEST, "do_lower_case": False},
    "1_Pooling/config.json": {
        "word_embedding_dimension": 384,
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": True,
    },
}


def vectors(states: Tensor, mask: Tensor) -> Tensor:
    """Means over tokens, of length 1: states [B, S, C], mask [B, S] -> [B, C]."""
    kept = mask[:, :, None].to(states.dtype)
    return functional.normalize((states * kept).sum(1) / kept.sum(1), dim=-1)


class Teacher:
    """All of MiniLM."""

    def __init__(self) -> None:
        folder = find_model()
        config, weights = load_model(folder)
        self.model = Encoder(config, weights).eval()
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()

    @torch.no_grad()
    def __call__(self, examples: list[Example]) -> np.ndarray:
        """float32 [texts, channels]."""
        ids, mask, types, _ = tensors(collate(TASK, self.tokenizer, examples))
        found: np.ndarray = vectors(self.model(ids, mask, types)[0], mask).numpy()
        return found


class Distiller(Trainer):
    """A trainer whose targets are vectors."""

    def __init__(self, task: Task, folder: Path) -> None:
        self.teacher = Teacher()
        super().__init__(task, folder)

    def layers(self, config: EncoderConfig, weights: Weights) -> Weights:
        """Begin with other layers than the first."""
        renamed = dict(weights)
        for new, old in enumerate(TAKEN):
            for name in config.parameter_shapes():
                if name.startswith(f"encoder.layer.{new}."):
                    tail = name.removeprefix(f"encoder.layer.{new}.")
                    renamed[name] = weights[f"encoder.layer.{old}.{tail}"]
        return renamed

    def collate(self, examples: list[Example]) -> Batch:
        made = super().collate(examples)
        return dataclasses.replace(made, targets=self.teacher(examples))

    def loss(self, batch: Batch) -> Tensor:
        self.model.eval()  # what is dropped would be noise in the vectors
        ids, mask, types, wanted = tensors(batch)
        found = vectors(self.model(ids, mask, types)[0], mask)
        angles = ((found @ found.T - wanted @ wanted.T) ** 2).mean()
        return (1 - (found * wanted).sum(-1)).mean() + ANGLES * angles

    def report(self, folder: Path, what: str) -> None:
        """Say how near a model's vectors come to the whole MiniLM's on texts it has not seen."""
        session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), providers=["CPUExecutionProvider"]
        )
        names = [i.name for i in session.get_inputs()]
        rows, wanted = [], []
        for text in held_out_lines():
            batch = super().collate([Example(text)])
            states = session.run(None, dict(zip(names, batch.inputs, strict=True)))[0]
            rows.append(vectors(torch.from_numpy(states), torch.from_numpy(batch.mask)))
            wanted.append(torch.from_numpy(self.teacher([Example(text)])))
        a, b = torch.cat(rows), torch.cat(wanted)
        cosine = (a * b).sum(-1).mean()
        pairs = torch.triu(torch.ones(len(a), len(a)), 1).bool()
        order = [(x @ x.T)[pairs].argsort().argsort().double() for x in (a, b)]
        spearman = torch.corrcoef(torch.stack(order))[0, 1]
        size = (folder / "model.onnx").stat().st_size / 1e6
        self.say(f"{what}: cosine {cosine:.3f}, Spearman {spearman:.3f}; {size:.1f} MB")

    def texts(self) -> list[dict[str, str]]:
        return super().texts()[:ROUNDING_TEXTS]

    def how(self) -> dict[str, Any]:
        return {"form": "int8"}

    def files(self) -> dict[str, str]:
        made = super().files()
        return {
            **made,
            **{name: json.dumps(value, indent=2) + "\n" for name, value in FILES.items()},
        }


if __name__ == "__main__":
    run(TASK, Distiller)
