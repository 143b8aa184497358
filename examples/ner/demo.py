"""Find people, places and organizations: python examples/ner/demo.py ["a text" ...]"""

from __future__ import annotations

import argparse
from pathlib import Path

import sparsec

MODEL = Path(__file__).resolve().parents[1] / "models" / "ner"

TEXTS = [
    "Mary is flying from Nairobi to New York to attend a conference",
    "Professor Achebe told reporters in Geneva that Siemens would close its office in Brazil.",
    "My aunt Ingrid sold her old piano to a baker from Glasgow.",
    "In May the apples in our garden were ripe.",
]


def main(argv: list[str] | None = None) -> int:
    """Compile the model, or take it from the cache, and mark the names in some texts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("texts", nargs="*", default=TEXTS)
    args = parser.parse_args(argv)
    pipeline = sparsec.Pipeline.create(
        "token-classification", MODEL, sequence_length=[16, 64], aggregation_strategy="simple"
    )
    for text, found in zip(args.texts, pipeline(args.texts).predictions, strict=True):
        print(text)
        for entity in found:
            print(f"  {entity.entity}  {entity.score:.2f}  {text[entity.start : entity.end]}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
