"""Find missing words: python examples/fill_mask/demo.py ["a text with [MASK]" ...]"""

from __future__ import annotations

import argparse
from pathlib import Path

import sparsec

MODEL = Path(__file__).resolve().parents[1] / "models" / "fill_mask"

TEXTS = [
    "Paris is the capital of [MASK].",
    "The opposite of hot is [MASK].",
    "An oak is a [MASK].",
    "I drink a cup of [MASK] every morning.",
]


def main(argv: list[str] | None = None) -> int:
    """Compile the model, or take it from the cache, and fill some gaps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("texts", nargs="*", default=TEXTS)
    args = parser.parse_args(argv)
    pipeline = sparsec.Pipeline.create("fill-mask", MODEL, sequence_length=[16, 64], top_k=3)
    for text in args.texts:
        (found,) = pipeline(text).predictions
        for words in found if isinstance(found[0], list) else [found]:
            print(text, " ".join(f"{word.token_str} ({word.score:.2f})" for word in words))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
