"""Train a task's model in float, then let `sparsec.sparsify` prune and round it.

The float model is trained on the task's examples; the pruned one learns from it, on more texts of
the same kind, without what is right.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from tokenizers import Tokenizer
from torch.nn import functional

import sparsec
from examples.encoders import EncoderConfig, Weights, write_fp32
from examples.minilm.build import find_model, load_model
from examples.training.data import IGNORE, Batch, Example, Task, as_row, batches, collate, score
from examples.training.model import Encoder, with_head
from examples.training.tables import round_tables
from examples.training.vocabulary import trim

SEED = 1
CHUNK = 16  # batches that are made at once
HELD_OUT_BATCHES = 20
TEXTS = 6000  # that the pruned model learns from
SAVE_EVERY = 50  # steps
AGAIN = 3  # exit status: the time was up, run again

STATE = "state.pt"


def make_config(task: Task, source: EncoderConfig, vocabulary: int) -> EncoderConfig:
    """The first layers of `source` with a task's head and another vocabulary."""
    return dataclasses.replace(
        source,
        layers=task.layers,
        vocab=vocabulary,
        head=task.head,
        num_labels=len(task.labels),
    )


def tensors(batch: Batch) -> tuple[torch.Tensor, ...]:
    """ids, mask, types and targets."""
    return tuple(torch.from_numpy(a) for a in (*batch.inputs, batch.targets))


def loss_of(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross entropy of rows that have a target."""
    counted = targets != IGNORE
    return functional.cross_entropy(scores[counted].float(), targets[counted])


class Trainer:
    """Training that can stop at any step and go on later from what it saved."""

    def __init__(self, task: Task, folder: Path) -> None:
        self.task = task
        self.folder = folder
        self.tokenizer, self.config, weights = self.start()
        self.model = Encoder(self.config, weights)
        self.step = 0
        values = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(values, lr=task.learning_rate, weight_decay=0.0)
        can = torch.cpu.get_capabilities()
        self.bfloat16 = bool(can.get("avx512_bf16") or can.get("amx_bf16"))

    def start(self) -> tuple[Tokenizer, EncoderConfig, Weights]:
        """MiniLM with a smaller vocabulary and a head that knows nothing yet."""
        folder = find_model()
        text, ids = trim(folder / "tokenizer.json", self.task.pieces, self.task.words)
        source, weights = load_model(folder)
        config = make_config(self.task, source, len(ids))
        words = "embeddings.word_embeddings.weight"
        weights[words] = weights[words][ids]
        weights = self.layers(config, weights)
        return Tokenizer.from_str(text), config, with_head(config, weights, SEED)

    def layers(self, config: EncoderConfig, weights: Weights) -> Weights:
        """The weights that training begins with, by the names of the smaller model."""
        return weights

    def say(self, text: str) -> None:
        print(f"[{self.task.folder.name} {self.step:>4}/{self.task.steps}] {text}", flush=True)

    def save(self) -> None:
        """Write everything that `load` needs."""
        state: dict[str, Any] = {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f"{STATE}.part"
        torch.save(state, partial)
        partial.replace(self.folder / STATE)

    def load(self) -> None:
        """Go on from what was saved, if anything was."""
        path = self.folder / STATE
        if not path.exists():
            return
        state = torch.load(path)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        self.say("goes on")

    def steps(self) -> Iterator[Batch]:
        """The batches from the current step on."""
        while self.step < self.task.steps:
            chunk = batches(self.task, (SEED, self.step // CHUNK), CHUNK)
            for examples in chunk[self.step % CHUNK :]:
                yield self.collate(examples)

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Examples as a batch, with what is right."""
        return collate(self.task, self.tokenizer, examples)

    def train(self, seconds: float) -> bool:
        """Train for some time; returns whether all steps are done."""
        end = time.monotonic() + seconds
        for batch in self.steps():
            if self.step >= self.task.steps:
                break
            if time.monotonic() > end:
                self.save()
                return False
            self.one(batch)
            if self.step % SAVE_EVERY == 0:
                self.save()
        self.save()
        return True

    def one(self, batch: Batch) -> None:
        """One step."""
        steps = self.task.steps
        rate = self.task.learning_rate * min(1.0, (self.step + 1) / (0.05 * steps))
        for group in self.optimizer.param_groups:
            group["lr"] = rate * (1 - self.step / steps)
        torch.manual_seed(self.step)
        self.model.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            loss = self.loss(batch)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        if self.step % 25 == 0:
            self.say(f"loss {loss.item():.4f}")

    def loss(self, batch: Batch) -> torch.Tensor:
        """What a step makes smaller."""
        ids, mask, types, targets = tensors(batch)
        return loss_of(self.model(ids, mask, types)[1], targets)

    def held_out(self) -> list[Batch]:
        """Examples of templates and names that training never sees."""
        made = batches(self.task, (SEED, 999_999), HELD_OUT_BATCHES, True)
        return [self.collate(examples) for examples in made]

    def report(self, folder: Path, what: str) -> None:
        """Say how a model does on held-out examples."""
        data = self.held_out()
        found = run_onnx(folder / "model.onnx", self.task, data)
        rows, whole = score(found, [b.targets for b in data])
        size = (folder / "model.onnx").stat().st_size / 1e6
        self.say(
            f"{what}: {100 * rows:.2f} % of decisions, {100 * whole:.2f} % of examples right; "
            f"{size:.1f} MB"
        )

    def write_dense(self) -> Path:
        """The float model as a folder."""
        folder = self.folder / "dense"
        folder.mkdir(parents=True, exist_ok=True)
        write_fp32(folder / "model.onnx", self.config, self.model.export())
        for name, text in self.files().items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        return folder

    def files(self) -> dict[str, str]:
        """What lies beside the model."""
        config = json.dumps(hf_config(self.task, self.config), indent=2)
        return {"tokenizer.json": self.tokenizer.to_str(), "config.json": config + "\n"}

    def texts(self) -> list[dict[str, str]]:
        """What the pruned model learns from."""
        rng = np.random.default_rng([SEED, 1])
        made = (self.task.sample(rng, False) for _ in range(TEXTS))
        return [as_row(self.task, self.tokenizer, example) for example in made]

    def how(self) -> dict[str, Any]:
        """What is asked of `sparsec.sparsify`."""
        return {"sparsity": self.task.sparsity, "minutes": self.task.minutes}

    def sparsify(self) -> None:
        """Prune and round the float model, and write the task's folder."""
        dense = self.write_dense()
        self.report(dense, "float")
        made = self.folder / "sparse"
        sparsec.sparsify(
            dense,
            texts=self.texts(),
            output=made,
            dialect="sparseml",
            **self.how(),
            seed=SEED,
            seconds=0,
            force=True,
            progress=self.say,
        )
        self.task.folder.mkdir(parents=True, exist_ok=True)
        path = Path(shutil.copyfile(made / "model.onnx", self.task.folder / "model.onnx"))
        round_tables(path, [f"{name}.weight" for name in self.config.tables()])
        for name in self.files():
            (self.task.folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(dense / name, self.task.folder / name)
        self.report(self.task.folder, "int8")


def run_onnx(path: Path, task: Task, data: list[Batch]) -> list[np.ndarray]:
    """What a model in ONNX Runtime decides: classes [B, rows] of each batch."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    found = []
    for batch in data:
        outputs = session.run(None, dict(zip(names, batch.inputs, strict=True)))
        if task.head == "question-answering":
            real = np.where(batch.mask, 0, -np.inf)
            found.append(np.stack([(o + real).argmax(-1) for o in outputs], axis=1))
        else:
            scores = outputs[0] if outputs[0].ndim == 3 else outputs[0][:, None]
            found.append(scores.argmax(-1))
    return found


ARCHITECTURES = {
    "token-classification": "BertForTokenClassification",
    "sequence-classification": "BertForSequenceClassification",
    "question-answering": "BertForQuestionAnswering",
    "masked-lm": "BertForMaskedLM",
    "hidden": "BertModel",
}


def hf_config(task: Task, config: EncoderConfig) -> dict[str, Any]:
    """config.json in Hugging Face's format."""
    labels = {
        "id2label": {str(i): label for i, label in enumerate(task.labels)},
        "label2id": {label: i for i, label in enumerate(task.labels)},
    }
    return {
        "architectures": [ARCHITECTURES[config.head]],
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_size": config.hidden,
        "intermediate_size": config.intermediate,
        "layer_norm_eps": config.eps,
        "max_position_embeddings": config.max_position,
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "pad_token_id": 0,
        "position_embedding_type": "absolute",
        "type_vocab_size": config.type_vocab,
        "vocab_size": config.vocab,
        **(labels if task.labels else {}),
    }


def main(task: Task, argv: list[str] | None = None, kind: type[Trainer] = Trainer) -> int:
    """Train a task from the command line."""
    parser = argparse.ArgumentParser(
        description=f"Train {task.folder.name}, prune it, and write {task.folder}.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--state", type=Path, required=True, help="folder for what it needs to go on later")
    add("--output", type=Path, default=task.folder, help="folder to write the model to")
    add("--steps", type=int, default=task.steps, help="of training in float")
    add("--minutes", type=float, default=task.minutes, help="of training while it is pruned")
    add("--seconds", type=float, default=float("inf"), help="stop after this time, to go on later")
    add("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    task = dataclasses.replace(task, folder=args.output, steps=args.steps, minutes=args.minutes)
    trainer = kind(task, args.state)
    trainer.load()
    if not trainer.train(args.seconds):
        trainer.say("the time is up; run again to go on")
        return AGAIN
    trainer.sparsify()
    return 0


def run(task: Task, kind: type[Trainer] = Trainer) -> None:
    """`main` as a script."""
    sys.exit(main(task, kind=kind))
