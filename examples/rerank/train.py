"""Train examples/models/rerank: a cross encoder that says whether a document answers a query.

As examples/training/train.py, but for what is learnt: one number for a pair of texts.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import onnxruntime
from torch import Tensor
from torch.nn import functional

from examples.rerank.data import KINDS, SHARES, TASK, query
from examples.training.data import Batch, Example
from examples.training.train import SEED, Trainer, run, tensors

# Nothing is pruned, and few texts show how to round.
ROUNDING_TEXTS = 500

# What it is judged by: so many queries of each kind, with so many documents that are wrong.
QUERIES = 100
WRONG = 9

GROUP = 3  # documents of a query in training, one of them right


class Reranker(Trainer):
    """A trainer whose batches are queries, each with documents of which one is right.

    What a shallow model learns first is which of two documents fits a query better; whether a
    single one does is learnt beside that, so that scores mean something.
    """

    def steps(self) -> Iterator[Batch]:
        kinds = list(KINDS)
        while self.step < self.task.steps:
            rng = np.random.default_rng([SEED, self.step])
            examples = []
            for kind in rng.choice(kinds, self.task.batch // GROUP, p=SHARES):
                made = query(rng, False, str(kind), GROUP - 1)
                examples.append(Example(made.text, made.right, label=1))
                examples += [Example(made.text, wrong) for wrong in made.wrong]
            yield self.collate(examples)

    def loss(self, batch: Batch) -> Tensor:
        ids, mask, types, targets = tensors(batch)
        scores = self.model(ids, mask, types)[1][:, 0, 0].float()
        ranked = functional.log_softmax(scores.view(-1, GROUP), dim=1)[:, 0]
        right = functional.binary_cross_entropy_with_logits(scores, targets[:, 0].float())
        return right - ranked.mean()

    def report(self, folder: Path, what: str) -> None:
        """Say how often the right one of ten documents comes first, for held-out queries."""
        session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), providers=["CPUExecutionProvider"]
        )
        names = [i.name for i in session.get_inputs()]
        rng = np.random.default_rng([SEED, 2])
        shares = []
        for kind in KINDS:
            first = 0
            for _ in range(QUERIES):
                made = query(rng, True, kind, WRONG)
                batch = self.collate([Example(made.text, d) for d in (made.right, *made.wrong)])
                logits = session.run(None, dict(zip(names, batch.inputs, strict=True)))[0]
                first += int(logits[:, 0].argmax() == 0)
            shares.append(f"{kind} {100 * first / QUERIES:.0f} %")
        size = (folder / "model.onnx").stat().st_size / 1e6
        self.say(f"{what}: first of {WRONG + 1}: {', '.join(shares)}; {size:.1f} MB")

    def texts(self) -> list[dict[str, str]]:
        return super().texts()[:ROUNDING_TEXTS]

    def how(self) -> dict[str, Any]:
        return {"form": "int8"}


if __name__ == "__main__":
    run(TASK, Reranker)
