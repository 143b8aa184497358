"""Answer questions about a passage: python examples/qa/demo.py [passage question ...]"""

from __future__ import annotations

import argparse
from pathlib import Path

import sparsec

MODEL = Path(__file__).resolve().parents[1] / "models" / "qa"

PASSAGE = (
    "Mary is flying from Nairobi to New York to attend a conference. Her brother Samuel bought a "
    "bicycle for 80 euros in Lisbon. The old library in Oslo was designed by Astrid Larsen and "
    "opened in 1921."
)
QUESTIONS = [
    "Where is Mary flying to?",
    "Who is flying to New York?",
    "How much did Samuel pay?",
    "Who designed the library?",
    "When was the library opened?",
]


def main(argv: list[str] | None = None) -> int:
    """Compile the model, or take it from the cache, and answer some questions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("passage", nargs="?", default=PASSAGE)
    parser.add_argument("questions", nargs="*", default=QUESTIONS)
    args = parser.parse_args(argv)
    pipeline = sparsec.Pipeline.create("question-answering", MODEL, sequence_length=[64, 128])
    print(args.passage)
    for question in args.questions:
        found = pipeline(question=question, context=args.passage)
        print(f"  {question}  {found.answer}  ({found.score:.2f})")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
