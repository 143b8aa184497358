"""Train a task's model: float -> pruned and rounded with distillation -> model folder.

The float model is trained on the task's examples.  Then a copy of it loses three quarters of its
blocks of four weights, a few at a time, and learns to compute with 8 bits, while it is taught by
the float model: by the probabilities of its labels and by its last hidden state.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from tokenizers import Tokenizer
from torch.nn import functional

from examples.encoders import (
    EncoderConfig,
    Weights,
    measured_sparsity,
    quantize_model,
    write_sparseml,
)
from examples.encoders.quantization import asymmetric
from examples.encoders.weights import block_norms, expand_blocks
from examples.minilm.build import find_model, load_model
from examples.training.data import IGNORE, Batch, Task, batches, score
from examples.training.model import Encoder, with_head
from examples.training.vocabulary import trim

SEED = 1
BLOCK = 4
CHUNK = 16  # batches that are made at once
HELD_OUT_BATCHES = 20
PRUNING_EVERY = 10
PRUNED_AT, OBSERVED_AT, QUANTIZED_AT = 0.5, 0.55, 0.6  # shares of the sparse phase
TEMPERATURE = 2.0
HIDDEN_WEIGHT = 1.0
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


def start(task: Task) -> tuple[Tokenizer, EncoderConfig, Weights]:
    """MiniLM with a smaller vocabulary and a head that knows nothing yet."""
    folder = find_model()
    text, ids = trim(folder / "tokenizer.json", task.pieces, task.words)
    source, weights = load_model(folder)
    config = make_config(task, source, len(ids))
    words = "embeddings.word_embeddings.weight"
    weights[words] = weights[words][ids]
    return Tokenizer.from_str(text), config, with_head(config, weights, SEED)


def update_masks(model: Encoder, sparsity: float) -> None:
    """Keep the blocks whose weights, times the size of their inputs, are largest."""
    for name in model.config.encoder_linears():
        weight = model.parameter(f"{name}.weight").detach()
        size = (weight * model.energy[name].sqrt()).numpy()
        norms = block_norms(size, BLOCK)
        drop = round(sparsity * norms.size)
        keep = np.ones(norms.size, bool)
        keep[np.argsort(norms.reshape(-1), kind="stable")[:drop]] = False
        mask = expand_blocks(keep.reshape(norms.shape), BLOCK, weight.shape[1])
        model.masks[name] = torch.from_numpy(mask.copy())


def tensors(batch: Batch) -> tuple[torch.Tensor, ...]:
    """ids, mask, types and targets."""
    return tuple(torch.from_numpy(a) for a in (*batch.inputs, batch.targets))


def loss_of(
    scores: torch.Tensor,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    mask: torch.Tensor,
    teacher: tuple[torch.Tensor, torch.Tensor] | None,
) -> torch.Tensor:
    """Cross entropy; with a teacher's (hidden, scores) also the distance to both."""
    counted = targets != IGNORE
    scores = scores[counted].float()
    loss = functional.cross_entropy(scores, targets[counted])
    if teacher is None:
        return loss
    ours = (scores / TEMPERATURE).log_softmax(-1)
    theirs = (teacher[1].float()[counted] / TEMPERATURE).log_softmax(-1)
    near = functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)
    real = mask.bool()
    far = functional.mse_loss(hidden.float()[real], teacher[0].float()[real])
    return 0.5 * loss + TEMPERATURE**2 * near + HIDDEN_WEIGHT * far


class Trainer:
    """Training that can stop at any step and go on later from what it saved."""

    def __init__(self, task: Task, folder: Path) -> None:
        self.task = task
        self.folder = folder
        self.tokenizer, self.config, weights = start(task)
        self.model = Encoder(self.config, weights)
        self.teacher: Encoder | None = None
        self.step = 0
        self.optimizer = self.new_optimizer()
        can = torch.cpu.get_capabilities()
        self.bfloat16 = bool(can.get("avx512_bf16") or can.get("amx_bf16"))

    def new_optimizer(self) -> torch.optim.Optimizer:
        """AdamW over what is trained."""
        values = [p for p in self.model.parameters() if p.requires_grad]
        return torch.optim.AdamW(values, lr=self.task.learning_rate, weight_decay=0.0)

    @property
    def total(self) -> int:
        """Steps of both phases."""
        return self.task.steps + self.task.sparse_steps

    def say(self, text: str) -> None:
        print(f"[{self.task.folder.name} {self.step:>4}/{self.total}] {text}", flush=True)

    def save(self) -> None:
        """Write everything that `load` needs."""
        state: dict[str, Any] = {
            "step": self.step,
            "model": self.model.state_dict(),
            "masks": self.model.masks,
            "ranges": self.model.ranges,
            "optimizer": self.optimizer.state_dict(),
            "teacher": self.teacher.state_dict() if self.teacher else None,
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
        if state["teacher"] is not None:
            self.begin_sparse()
            assert self.teacher is not None
            self.teacher.load_state_dict(state["teacher"])
        self.model.load_state_dict(state["model"])
        self.model.masks, self.model.ranges = state["masks"], state["ranges"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        self.say("goes on")

    def begin_sparse(self) -> None:
        """The trained model becomes the teacher of a copy with rounded embeddings."""
        weights = self.model.export()
        self.teacher = Encoder(self.config, weights).eval()
        for name in self.config.tables():
            table = weights[f"{name}.weight"]
            params = asymmetric(float(table.min()), float(table.max()))
            weights[f"{name}.weight"] = params.dequantize(params.quantize(table))
        self.model = Encoder(self.config, weights)
        self.optimizer = self.new_optimizer()

    def steps(self) -> Iterator[Batch]:
        """The batches from the current step on."""
        while self.step < self.total:
            chunk = batches(self.task, self.tokenizer, (SEED, self.step // CHUNK), CHUNK)
            yield from chunk[self.step % CHUNK :]

    def train(self, seconds: float) -> bool:
        """Train for some time; returns whether all steps are done."""
        end = time.monotonic() + seconds
        for batch in self.steps():
            if self.step >= self.total:
                break
            if time.monotonic() > end:
                self.save()
                return False
            if self.step == self.task.steps and self.teacher is None:
                self.report()
                self.begin_sparse()
            self.one(batch)
        self.save()
        return True

    def one(self, batch: Batch) -> None:
        """One step."""
        ids, mask, types, targets = tensors(batch)
        sparse = self.teacher is not None
        began = self.task.steps if sparse else 0
        steps = self.task.sparse_steps if sparse else self.task.steps
        done = (self.step - began) / steps
        rate = self.task.learning_rate * min(1.0, (self.step - began + 1) / (0.05 * steps))
        for group in self.optimizer.param_groups:
            group["lr"] = rate * (1 - done)
        model = self.model
        due = (self.step - began) % PRUNING_EVERY == 0
        pruning = sparse and due and done < PRUNED_AT + PRUNING_EVERY / steps
        torch.manual_seed(self.step)
        model.train(not sparse)  # the copy learns from the teacher, without noise
        model.measuring = pruning
        model.observing = sparse and done >= OBSERVED_AT
        model.quantizing = sparse and done >= QUANTIZED_AT
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            if pruning:
                with torch.no_grad():
                    model(ids, mask, types)
                # Many at first, when there is most to choose from.
                share = 1 - (1 - min(1.0, done / PRUNED_AT)) ** 3
                update_masks(model, self.task.sparsity * share)
                model.measuring = False
            told = None
            if self.teacher is not None:
                with torch.no_grad():
                    told = self.teacher(ids, mask, types)
            hidden, scores = model(ids, mask, types)
            loss = loss_of(scores, hidden, targets, mask, told)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        if self.step % 25 == 0:
            self.say(f"loss {loss.item():.4f}")

    def held_out(self) -> list[Batch]:
        """Examples of templates and names that training never sees."""
        return batches(self.task, self.tokenizer, (SEED, 999_999), HELD_OUT_BATCHES, True)

    def report(self) -> None:
        """Say how the float model does on held-out examples."""
        model, found = self.model, []
        model.eval()
        data = self.held_out()
        with torch.no_grad():
            for batch in data:
                found.append(model(*tensors(batch)[:3])[1].argmax(-1).numpy())
        rows, whole = score(found, [b.targets for b in data])
        self.say(f"float: {100 * rows:.2f} % of decisions, {100 * whole:.2f} % of examples right")

    def write(self) -> None:
        """Write model.onnx, tokenizer.json and config.json, and say how good they are."""
        folder = self.task.folder
        folder.mkdir(parents=True, exist_ok=True)
        weights = self.model.export()
        quantized = quantize_model(
            self.config, weights, self.model.ranges, "sparseml", per_channel=True
        )
        path = write_sparseml(folder / "model.onnx", self.config, weights, quantized)
        (folder / "tokenizer.json").write_text(self.tokenizer.to_str(), encoding="utf-8")
        text = json.dumps(hf_config(self.task, self.config), indent=2)
        (folder / "config.json").write_text(text + "\n", encoding="utf-8")
        zeros = np.concatenate(
            [quantized.linears[n].weight.reshape(-1, BLOCK) for n in self.config.encoder_linears()]
        )
        zero = measured_sparsity(zeros.astype(np.float32), BLOCK)
        size = path.stat().st_size / 1e6
        self.say(f"wrote {folder}: {size:.1f} MB, {100 * zero:.1f} % of blocks zero")
        data = self.held_out()
        rows, whole = score(run_onnx(path, self.task, data), [b.targets for b in data])
        self.say(f"int8: {100 * rows:.2f} % of decisions, {100 * whole:.2f} % of examples right")


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


def main(task: Task, argv: list[str] | None = None) -> int:
    """Train a task from the command line."""
    parser = argparse.ArgumentParser(
        description=f"Train {task.folder.name}, prune it, and write {task.folder}.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--state", type=Path, required=True, help="folder for what it needs to go on later")
    add("--output", type=Path, default=task.folder, help="folder to write the model to")
    add("--steps", type=int, default=task.steps, help="of training in float")
    add("--sparse-steps", type=int, default=task.sparse_steps, help="of pruning and rounding")
    add("--seconds", type=float, default=float("inf"), help="stop after this time, to go on later")
    add("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    task = dataclasses.replace(
        task, folder=args.output, steps=args.steps, sparse_steps=args.sparse_steps
    )
    trainer = Trainer(task, args.state)
    trainer.load()
    if not trainer.train(args.seconds):
        trainer.say("the time is up; run again to go on")
        return AGAIN
    trainer.write()
    return 0


def run(task: Task) -> None:
    """`main` as a script."""
    sys.exit(main(task))
