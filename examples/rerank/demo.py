"""Put documents in order: python examples/rerank/demo.py ["a query" "a document" ...]"""

from __future__ import annotations

import argparse
from pathlib import Path

import sparsec

MODEL = Path(__file__).resolve().parents[1] / "models" / "rerank"

QUERY = "Where is Mary flying to?"
DOCUMENTS = [
    "Mary has two brothers and lives with Samuel near Nairobi.",
    "Samuel is flying from Nairobi to Lisbon to visit a trade fair.",
    "Mary is flying from Nairobi to New York to attend a conference.",
    "The new airport in New York opened in 1948.",
]


def main(argv: list[str] | None = None) -> int:
    """Compile the model, or take it from the cache, and print the documents, the best first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("query", nargs="?", default=QUERY)
    parser.add_argument("documents", nargs="*", default=DOCUMENTS)
    args = parser.parse_args(argv)
    pipeline = sparsec.Pipeline.create("rerank", MODEL, sequence_length=[64, 128])
    print(args.query)
    for row in pipeline(query=args.query, documents=args.documents).ranking:
        print(f"  {row.score:.2f}  {args.documents[row.index]}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
