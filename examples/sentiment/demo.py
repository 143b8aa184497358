"""Tell praise from complaint: python examples/sentiment/demo.py ["a text" ...]"""

from __future__ import annotations

import argparse
from pathlib import Path

import sparsec

MODEL = Path(__file__).resolve().parents[1] / "models" / "sentiment"

TEXTS = [
    "The soup was cold and the waiter was rude.",
    "I did not expect much, but this book is wonderful.",
    "The hotel was not bad at all.",
    "Nobody would call this a good film.",
]


def main(argv: list[str] | None = None) -> int:
    """Compile the model, or take it from the cache, and judge some texts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("texts", nargs="*", default=TEXTS)
    args = parser.parse_args(argv)
    pipeline = sparsec.Pipeline.create("sentiment-analysis", MODEL, sequence_length=[16, 64])
    output = pipeline(args.texts)
    for text, label, score in zip(args.texts, output.labels, output.scores, strict=True):
        print(f"{label}  {score:.2f}  {text}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
