"""Dense models for real tasks: all-MiniLM-L6-v2 as it is, and with a head fine-tuned on labels."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from examples.encoders import write_fp32
from examples.encoders.config import Head
from examples.minilm.build import find_model, load_model, write_dense

LONGEST = 128
IGNORE = -100


@dataclass(frozen=True)
class Labelled:
    """A text with what is right: words with a label each, or one label of the text."""

    text: str | tuple[str, ...]
    label: str | tuple[str, ...]

    def row(self) -> dict[str, Any]:
        """As JSON lines have it."""
        if isinstance(self.text, str):
            return {"text": self.text, "label": self.label}
        return {"tokens": list(self.text), "labels": list(self.label)}


def minilm(folder: Path) -> Path:
    """The sentence encoder as it is."""
    return write_dense(folder)


def fine_tuned(
    folder: Path, head: Head, data: Sequence[Labelled], steps: int, batch: int = 32,
    rate: float = 2e-4,
) -> Path:  # fmt: skip
    """MiniLM with a head, trained on labels; made once.

    Args:
        folder: to write; a state beside the model lets it go on where it was.
        data: what it is trained on; labels are those that it has.
    """
    import torch
    from torch.nn import functional

    from examples.training.model import Encoder, with_head

    if (folder / "model.onnx").exists():
        return folder
    labels = sorted({one for item in data for one in _labels(item)})
    source = find_model()
    base, weights = load_model(source)
    config = replace(base, head=head, num_labels=len(labels))
    encoder = Encoder(config, with_head(config, weights, seed=1))
    optimizer = torch.optim.AdamW(
        [p for p in encoder.parameters() if p.requires_grad], lr=rate, weight_decay=0.0
    )
    folder.mkdir(parents=True, exist_ok=True)
    state, done = folder / "state.pt", 0
    if state.exists():
        kept = torch.load(state)
        encoder.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        done = kept["step"]
    stream = _batches(source / "tokenizer.json", data, labels, batch)
    for step, (ids, mask, targets) in enumerate(stream):
        if step >= steps:
            break
        if step < done:
            continue
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / (0.06 * steps)) * (1 - step / steps)
        torch.manual_seed(step)
        inputs = [torch.from_numpy(x) for x in (ids, mask, np.zeros_like(ids))]
        scores, right = encoder(*inputs)[1], torch.from_numpy(targets)
        known = right != IGNORE
        loss = functional.cross_entropy(scores[known], right[known])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 49:
            print(f"step {step + 1} of {steps}: loss {float(loss.detach()):.3f}", flush=True)
            kept = {"model": encoder.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**kept, "step": step + 1}, state.with_suffix(".part"))
            state.with_suffix(".part").replace(state)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source / name, folder / name)
    raw = json.loads((source / "config.json").read_text("utf-8"))
    kind = {"token-classification": "Token", "sequence-classification": "Sequence"}[head]
    raw["architectures"] = [f"BertFor{kind}Classification"]
    raw["id2label"] = {str(i): label for i, label in enumerate(labels)}
    raw["label2id"] = {label: i for i, label in enumerate(labels)}
    (folder / "config.json").write_text(json.dumps(raw, indent=2) + "\n", "utf-8")
    part = write_fp32(folder / "model.onnx.part", config, encoder.export())
    part.replace(folder / "model.onnx")
    state.unlink(missing_ok=True)
    return folder


def _labels(item: Labelled) -> tuple[str, ...]:
    return (item.label,) if isinstance(item.label, str) else item.label


def _batches(
    tokenizer: Path, data: Sequence[Labelled], labels: Sequence[str], size: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Endless (ids, mask, targets), int64 [B, S] and [B, S] or [B, 1], of similar lengths."""
    from tokenizers import Tokenizer

    made = Tokenizer.from_file(str(tokenizer))
    made.no_padding()
    made.enable_truncation(LONGEST)
    number = {label: i for i, label in enumerate(labels)}
    words = not isinstance(data[0].text, str)
    encoded = made.encode_batch([item.text for item in data], is_pretokenized=words)
    rng = np.random.default_rng(1)
    while True:
        order = rng.permutation(len(data))
        for start in range(0, len(order), 50 * size):
            pool = sorted(order[start : start + 50 * size], key=lambda i: len(encoded[i].ids))
            groups = [pool[i : i + size] for i in range(0, len(pool), size)]
            for group in rng.permutation(len(groups)):
                chosen = groups[group]
                shape = len(chosen), max(len(encoded[i].ids) for i in chosen)
                ids, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
                targets = np.full(shape if words else (len(chosen), 1), IGNORE, np.int64)
                for row, i in enumerate(chosen):
                    encoding, item = encoded[i], data[i]
                    ids[row, : len(encoding.ids)] = encoding.ids
                    mask[row, : len(encoding.ids)] = 1
                    if isinstance(item.label, str):
                        targets[row, 0] = number[item.label]
                        continue
                    last = None
                    for at, word in enumerate(encoding.word_ids):
                        if word is not None and word != last:
                            targets[row, at] = number[item.label[word]]
                        last = word
                yield ids, mask, targets
