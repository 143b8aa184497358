"""How cost grows: with tokens, batch, cores, padding, masks; and what loading and a call cost.

    python benchmarks/growth.py             a few minutes; saves to benchmarks/results
    python benchmarks/growth.py --preset tiny

Everything is measured in turns in one process, medians of several rounds.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
if __package__ in (None, ""):  # run as a script
    sys.path[0] = str(ROOT)

import sparsec  # noqa: E402
from benchmarks.harness import machine, report  # noqa: E402
from benchmarks.harness.models import Recipe, artifact  # noqa: E402
from examples.encoders import PRESETS, EncoderConfig, write_random  # noqa: E402

BUCKETS = (16, 32, 64, 128, 256, 512)
#: Lengths of their own buckets, and those around them: one row more is no cliff.
LENGTHS = (1, 8, 15, 16, 17, 24, 31, 32, 33, 48, 63, 64, 65, 127, 128, 129, 255, 256, 257)
BATCHES = (1, 4, 16, 64)
SHORT, LONG, REAL = 32, 128, 20
Call = Callable[[], object]


def in_turns(calls: dict[str, Call], rounds: int, seconds: float = 0.1) -> dict[str, float]:
    """Median seconds of each call, measured in slices of at least `seconds`, in turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            call()
            end = time.perf_counter() + seconds
            while True:
                start = time.perf_counter()
                call()
                done = time.perf_counter()
                times[name].append(done - start)
                if done >= end:
                    break
    return {name: statistics.median(values) for name, values in times.items()}


def text(vocab: int, batch: int, length: int, real: int | None = None) -> list[np.ndarray]:
    """Ids, mask and types; with `real`, only so many tokens of each sequence are not padding."""
    rng = np.random.default_rng(length)
    ids = rng.integers(0, vocab, (batch, length))
    mask = np.ones_like(ids)
    if real is not None:
        mask[:, real:] = 0
    return [ids, mask, np.zeros_like(ids)]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--preset", choices=PRESETS, default="bert-base", help="(default: %(default)s)")
    add("--rounds", type=int, default=5, help="turns (default: %(default)s)")
    add("--cache", type=Path, default=ROOT / "build" / "bench", help="where the models are kept")
    add("--results", type=Path, default=ROOT / "benchmarks" / "results", help="where to save")
    args = parser.parse_args(argv)
    described = machine.describe()
    config = dataclasses.replace(PRESETS[args.preset], head="token-classification")
    recipe = Recipe(config)
    buckets = [n for n in BUCKETS if n <= config.max_position]
    path = artifact(args.cache, recipe, buckets)
    vocab = config.vocab

    def load() -> None:
        sparsec.Engine(path, num_cores=2).close()

    loading = in_turns({"load": load}, args.rounds)["load"]
    one, two = (sparsec.Engine(path, num_cores=n) for n in (1, 2))
    alone, skip = (sparsec.Engine(path, num_cores=n, skip_padding=True) for n in (1, 2))

    def run(engine: sparsec.Engine, inputs: list[np.ndarray]) -> Call:
        return lambda: engine.run(inputs)

    lengths = in_turns(
        {f"{e} {n}": run(engine, text(vocab, 1, n)) for e, engine in (("1", one), ("2", two))
         for n in buckets}, args.rounds,
    )  # fmt: skip
    rows = [
        [str(n), f"{lengths[f'1 {n}'] * 1e3:.2f} ms", f"{lengths[f'2 {n}'] * 1e3:.2f} ms",
         f"{lengths[f'1 {n}'] / lengths[f'2 {n}']:.2f}x", f"{lengths[f'2 {n}'] / n * 1e6:.0f} us"]
        for n in buckets
    ]  # fmt: skip
    parts = ["## Tokens, batch 1", report.table(
        ["tokens", "1 core", "2 cores", "gain", "a token, 2 cores"], rows)]  # fmt: skip
    near = [n for n in LENGTHS if n <= buckets[-1]]
    steps = in_turns(
        {f"{e} {n}": run(engine, text(vocab, 1, n)) for e, engine in (("1", alone), ("2", skip))
         for n in near}, args.rounds,
    )  # fmt: skip
    parts += [
        "## Lengths between, in the bucket of the next power of two, padding skipped",
        report.table(
            ["tokens", "1 core", "2 cores", "a token, 1 core"],
            [[str(n), f"{steps[f'1 {n}'] * 1e3:.2f} ms", f"{steps[f'2 {n}'] * 1e3:.2f} ms",
              f"{steps[f'1 {n}'] / n * 1e6:.0f} us"] for n in near],
        ),
    ]  # fmt: skip
    batches = in_turns({str(b): run(two, text(vocab, b, LONG)) for b in BATCHES}, args.rounds)
    parts += [
        f"## Batch, {LONG} tokens, 2 cores",
        report.table(
            ["batch", "time", "a sequence"],
            [[b, f"{s * 1e3:.1f} ms", f"{s / int(b) * 1e3:.2f} ms"] for b, s in batches.items()],
        ),
    ]
    padded = text(vocab, 1, LONG, REAL)
    padding = in_turns(
        {
            f"{REAL} tokens in the bucket of {LONG}, padding skipped": run(skip, padded),
            f"{REAL} tokens in the bucket of {LONG}, padding computed": run(two, padded),
            f"{SHORT} tokens in the bucket of {SHORT}": run(two, text(vocab, 1, SHORT)),
        },
        args.rounds,
    )
    parts += [
        "## Padding, 2 cores",
        report.table(["", "time"], [[n, f"{s * 1e3:.2f} ms"] for n, s in padding.items()]),
    ]
    masked: dict[str, Call] = {}
    as_float = artifact(args.cache, recipe.with_(form="fp32"), [LONG])
    with sparsec.Engine(as_float, num_cores=2) as floats:
        for name, engine in (("int8", two), ("float32", floats)):
            masked[f"{name}, no token masked"] = run(engine, text(vocab, 1, LONG))
            masked[f"{name}, half of them masked"] = run(engine, text(vocab, 1, LONG, LONG // 2))
        masks = in_turns(masked, args.rounds)
    parts += [
        f"## Masks, {LONG} tokens that are all computed, 2 cores",
        report.table(["", "time"], [[n, f"{s * 1e3:.2f} ms"] for n, s in masks.items()]),
    ]
    small = args.cache / "call" / "model.onnx"
    small.parent.mkdir(parents=True, exist_ok=True)
    tiny = EncoderConfig(layers=1, hidden=4, heads=1, intermediate=4, vocab=50, max_position=4)
    write_random(small, tiny, "fp32", seed=0)
    called = sparsec.compile(small, buckets=[1], force=True).path
    with sparsec.Engine(called, num_cores=1) as engine:
        call = in_turns({"call": run(engine, text(50, 1, 1))}, args.rounds)["call"]
    parts += [
        "## Loading and calling",
        f"Engine of {len(buckets)} buckets: loaded in {loading * 1e3:.1f} ms (checksums known from "
        f"the first time). A call of a model with almost no work: {call * 1e6:.1f} us.",
    ]
    document = "\n\n".join(
        [
            "# How cost grows",
            f"{recipe.title[0].upper()}{recipe.title[1:]}.",
            *parts,
            report.machine_text(described),
        ]
    )
    print(document)
    results = {
        "model": recipe, "machine": described, "load_average_after": machine.load_average(),
        "lengths": lengths, "steps": steps, "batches": batches, "padding": padding,
        "masks": masks, "load": loading, "call": call,
    }  # fmt: skip
    for file in report.save(args.results, f"growth-{args.preset}", document, results):
        print(f"wrote {file}", file=sys.stderr)
    for engine in (one, two, alone, skip):
        engine.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
