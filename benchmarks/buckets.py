"""Texts of real lengths: buckets against one bucket of the longest, padding computed or skipped.

    python benchmarks/buckets.py                    BERT-base
    python benchmarks/buckets.py --preset tiny      seconds

The experiment of DeepSparse's guide to bucketing, which reached 1.5 times the throughput.  The
texts of data/texts.txt have 3 to 75 tokens, in no order; a request is one text, or a batch of those
that come next, padded to the smallest bucket that holds its longest.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __package__ in (None, ""):  # run as a script
    sys.path[0] = str(ROOT)

import dataclasses  # noqa: E402

import numpy as np  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers  # noqa: E402

import sparsec  # noqa: E402
from benchmarks.harness import machine, report  # noqa: E402
from benchmarks.harness.comparison import compare  # noqa: E402
from benchmarks.harness.models import Recipe, artifact  # noqa: E402
from examples.encoders import FORMS, PRESETS  # noqa: E402

TEXTS = Path(__file__).parent / "data" / "texts.txt"
BUCKETS = [15, 35, 55, 75]

Request = list[np.ndarray]


def build_tokenizer(texts: Sequence[str], size: int) -> Tokenizer:
    """Whole words and punctuation of the texts, between [CLS] and [SEP].

    Args:
        size: of the vocabulary, at most; other words are [UNK].
    """
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(
        vocab_size=size, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    ids = [(token, tokenizer.token_to_id(token)) for token in special[2:]]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, ids)
    return tokenizer


def requests(rows: Sequence[Sequence[int]], batch: int, buckets: Sequence[int]) -> list[Request]:
    """[input_ids, attention_mask, token_type_ids] of each batch of rows, padded to a bucket."""
    result = []
    for start in range(0, len(rows), batch):
        group = rows[start : start + batch]
        longest = max(map(len, group))
        width = min(bucket for bucket in buckets if bucket >= longest)
        ids = np.zeros((len(group), width), np.int64)
        mask = np.zeros_like(ids)
        for i, row in enumerate(group):
            ids[i, : len(row)] = row
            mask[i, : len(row)] = 1
        result.append([ids, mask, np.zeros_like(ids)])
    return result


@dataclasses.dataclass
class Way:
    """One way to run the texts.

    Attributes:
        seconds: of each pass over all requests.
    """

    buckets: Sequence[int]
    skip: bool
    engine: sparsec.Engine
    requests: list[Request]
    seconds: list[float] = dataclasses.field(default_factory=list)

    def run(self) -> None:
        """One pass over all texts."""
        start = time.perf_counter()
        for request in self.requests:
            self.engine.run(request)
        self.seconds.append(time.perf_counter() - start)

    def outputs(self) -> np.ndarray:
        """What was computed for the real tokens: [tokens, labels]."""
        return np.concatenate([self.engine.run(r)[0][r[1] == 1] for r in self.requests])


def measure(
    engines: Sequence[tuple[Sequence[int], bool, sparsec.Engine]],
    rows: Sequence[Sequence[int]],
    batch: int,
    rounds: int,
) -> tuple[list[Way], float]:
    """All ways in turns; and how far outputs differ, in the mean, relative to their mean size."""
    ways = [Way(b, skip, engine, requests(rows, batch, b)) for b, skip, engine in engines]
    expected = ways[0].outputs()
    # numpy's maximum keeps the NaN of outputs that cannot be compared.
    difference = float(np.max([compare(way.outputs(), expected)[1] for way in ways]))
    for number in range(rounds):
        for way in ways[number % len(ways) :] + ways[: number % len(ways)]:
            way.run()
    return ways, difference


def row(way: Way, first: Way, texts: int) -> list[str]:
    """A row of the table; `first` is what the others are compared with."""
    seconds, base = float(np.median(way.seconds)), float(np.median(first.seconds))
    tokens = sum(r[1].sum() if way.skip else r[1].size for r in way.requests)
    return [
        ", ".join(map(str, way.buckets)),
        "skipped" if way.skip else "computed",
        f"{tokens / texts:.1f}",
        report.number(texts / seconds),
        f"{base / seconds:.2f}x",
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, save.  Returns 1 when the ways do not agree."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--preset", choices=PRESETS, default="bert-base", help="(default: %(default)s)")
    add("--form", choices=FORMS, default="sparseml", help="(default: %(default)s)")
    add("--sparsity", type=float, default=0.8, help="(default: %(default)s)")
    add("--block", type=int, default=4, help="input channels in a block (default: %(default)s)")
    add("--batches", default="1,16", help="texts in a request (default: %(default)s)")
    add("--cores", type=int, default=2, help="(default: %(default)s)")
    add("--rounds", type=int, default=5, help="passes over all texts (default: %(default)s)")
    add("--cache", type=Path, default=ROOT / "build" / "bench", help="where the models are kept")
    add("--results", type=Path, default=ROOT / "benchmarks" / "results", help="where to save")
    args = parser.parse_args(argv)

    described = machine.describe()
    config = dataclasses.replace(PRESETS[args.preset], head="token-classification")
    recipe = Recipe(config, args.form, args.sparsity, args.block)
    texts = TEXTS.read_text(encoding="utf-8").splitlines()
    tokenizer = build_tokenizer(texts, config.vocab)
    rows = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    lengths = np.array([len(ids) for ids in rows])

    engines = []
    for buckets in (BUCKETS[-1:], BUCKETS):
        path = artifact(args.cache, recipe, list(buckets))
        for skip in (False, True):
            engine = sparsec.Engine(path, num_cores=args.cores, skip_padding=skip)
            engines.append((buckets, skip, engine))
    parts, saved, agree = [], {}, True
    for batch in (int(size) for size in args.batches.split(",")):
        ways, difference = measure(engines, rows, batch, args.rounds)
        agree = agree and difference < 0.01
        header = ["buckets", "padding", "tokens a text", "texts/s", "ratio"]
        lines = [row(way, ways[0], len(texts)) for way in ways]
        parts += [
            f"## {batch} {'texts' if batch > 1 else 'text'} in a request",
            report.table(header, lines),
            f"Outputs for real tokens differ by {difference:.4%} in the mean, at most.",
        ]
        saved[str(batch)] = [
            {"buckets": way.buckets, "skip_padding": way.skip, "seconds": way.seconds}
            for way in ways
        ]
    low, *quartiles, high = (int(np.quantile(lengths, q)) for q in (0, 0.25, 0.5, 0.75, 1))
    text = "\n\n".join(
        [
            "# Buckets against one bucket",
            f"{recipe.title[0].upper()}{recipe.title[1:]}; {args.cores} threads. {len(texts)} "
            f"texts of {low} to {high} tokens, quartiles {', '.join(map(str, quartiles))}.",
            *parts,
            report.machine_text(described),
        ]
    )
    print(text)
    results = {
        "model": recipe,
        "machine": described,
        "load_average_after": machine.load_average(),
        "sparsec": sparsec.__version__,
        "threads": args.cores,
        "lengths": lengths.tolist(),
        "batches": saved,
    }
    for path in report.save(args.results, f"buckets-{recipe.name}", text, results):
        print(f"wrote {path}", file=sys.stderr)
    for _, _, engine in engines:
        engine.close()
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
