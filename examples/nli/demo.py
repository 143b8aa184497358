"""Say what texts are about: python examples/nli/demo.py ["a text" ...] [--labels "one, two"]"""

from __future__ import annotations

import argparse
from pathlib import Path

import sparsec

MODEL = Path(__file__).resolve().parents[1] / "models" / "nli"

TEXTS = [
    "Who are you voting for?",
    "What a match! She won after three sets.",
    "My flight to Madrid was cancelled.",
    "Add two eggs and a cup of flour, then bake for an hour.",
]
LABELS = "politics, sport, travel, cooking"


def main(argv: list[str] | None = None) -> int:
    """Compile the model, or take it from the cache, and find the topic of some texts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("texts", nargs="*", default=TEXTS)
    parser.add_argument("--labels", default=LABELS, help="topics, with commas between them")
    args = parser.parse_args(argv)
    pipeline = sparsec.Pipeline.create("zero-shot", MODEL, sequence_length=[32, 64])
    output = pipeline(args.texts, labels=args.labels)
    for text, labels, scores in zip(args.texts, output.labels, output.scores, strict=True):
        print(f"{labels[0]:12s}  {scores[0]:.2f}  {text}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
