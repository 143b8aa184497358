"""Measure a built folder with ONNX Runtime on heldout.txt: embeddings against the dense ones."""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import argparse

import numpy as np
import onnxruntime

from examples.minilm.text import DEFAULT_FOLDER, HERE, Run, embed, load_tokenizer, read_lines


def load(path: Path) -> Run:
    """A model in ONNX Runtime."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    return lambda inputs: list(session.run(None, dict(zip(names, inputs, strict=True))))


def compare(dense: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """How alike two sets of unit embeddings [n, C] are.

    Returns:
        mean and lowest cosine; the rank correlation of all pairwise similarities; and the share of
        texts whose nearest neighbour is the same.
    """
    cosines = (dense * other).sum(axis=1)
    a, b = dense @ dense.T, other @ other.T
    pairs = np.triu_indices(len(a), 1)
    ranks = [np.argsort(np.argsort(s[pairs])) for s in (a, b)]
    np.fill_diagonal(a, -2)
    np.fill_diagonal(b, -2)
    return {
        "cosine": float(cosines.mean()),
        "lowest": float(cosines.min()),
        "rank correlation": float(np.corrcoef(ranks)[0, 1]),
        "same neighbour": float((a.argmax(1) == b.argmax(1)).mean()),
    }


def main(argv: list[str] | None = None) -> int:
    """Print a line for each of the two dialects."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=DEFAULT_FOLDER)
    args = parser.parse_args(argv)
    tokenizer = load_tokenizer(args.folder / "tokenizer.json")
    texts = read_lines(HERE / "heldout.txt")
    dense = embed(load(args.folder / "model-dense.onnx"), tokenizer, texts)
    for name in ("model.onnx", "model-qdq.onnx"):
        values = compare(dense, embed(load(args.folder / name), tokenizer, texts))
        print(f"{name:16}" + "".join(f"  {key} {v:.3f}" for key, v in values.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
