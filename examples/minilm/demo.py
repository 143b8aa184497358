"""Compile the pruned MiniLM, run it, and compare it with the dense float32 model.

Needs the folder that build.py writes (default: `out` beside this file).
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import argparse
import os
import time
from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

import sparsec
from examples.minilm.text import DEFAULT_FOLDER, Run, embed, load_tokenizer, padded

BUCKETS = [16, 128]

# None of these are in calibration.txt.
DOCUMENTS = [
    "A man is strumming an acoustic guitar on a street corner.",
    "The orchestra rehearsed the symphony until late in the evening.",
    "Two kids are digging a moat around their sandcastle.",
    "Share prices tumbled after the company issued a profit warning.",
    "The central bank left its key rate unchanged.",
    "Drink plenty of water and rest if you have the flu.",
    "Doctors recommend half an hour of brisk walking every day.",
    "My laptop freezes every time I open the browser.",
    "Reinstalling the graphics driver fixed the black screen.",
    "Whisk the egg whites until they form stiff peaks.",
    "This soup needs more salt and a squeeze of lime.",
    "Heavy snow has closed the mountain pass to traffic.",
    "The night sky was so clear that we could see Jupiter's moons.",
    "A kitten fell asleep in the laundry basket.",
    "Our dog buries his toys at the bottom of the garden.",
    "The striker scored twice in the second half.",
]
QUERIES = [
    "someone making music outdoors",
    "why does my computer keep crashing?",
    "healthy habits",
    "the pet is taking a nap",
]
PARAGRAPH = (
    "The expedition set out before sunrise, carrying food for nine days, two tents and a radio "
    "that worked only when the wind was still. By noon the fog had swallowed the ridge, and the "
    "guide, who had crossed it a dozen times, admitted that he could no longer tell the path from "
    "the scree. They waited, melted snow for tea, argued about the map, and finally heard the "
    "bells of the hut below."
)


def best_time(run: Run, inputs: list[np.ndarray], seconds: float = 1.0) -> float:
    """Median milliseconds of one call."""
    for _ in range(3):
        run(inputs)
    times = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        start = time.perf_counter()
        run(inputs)
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times))


def dense_model(folder: Path, cores: int) -> tuple[str, Run]:
    """What computes the dense float32 model: ONNX Runtime, or sparsec where that is missing."""
    path = folder / "dense" / "model.onnx"
    try:
        import onnxruntime
    except ImportError:
        print("onnxruntime is not installed: sparsec runs the dense model as well.")
        print("(pip install onnxruntime, and the comparison is with that.)")
        artifact = sparsec.compile(
            path, buckets=BUCKETS, output=folder / "dense.sparsec", force=True
        )
        return "sparsec, dense fp32", sparsec.Engine(artifact, num_cores=cores).run
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    return (
        f"ONNX Runtime {onnxruntime.__version__}, dense fp32",
        lambda inputs: list(session.run(None, dict(zip(names, inputs, strict=True)))),
    )


def shorten(text: str, width: int) -> str:
    """At most `width` characters of a text."""
    return text if len(text) <= width else text[: width - 3] + "..."


def show_cosines(dense: np.ndarray, sparse: np.ndarray, texts: Sequence[str]) -> None:
    """One line for each text, and the mean."""
    cosines = (dense * sparse).sum(axis=1)
    print("\nCosine between the sparse int8 and the dense fp32 embedding:\n")
    for cosine, text in zip(cosines, texts, strict=True):
        print(f"  {cosine:.3f}  {shorten(text, 70)}")
    print(f"\n  {cosines.mean():.3f}  mean;  {cosines.min():.3f}  lowest")


def show_ranking(dense: tuple[np.ndarray, ...], sparse: tuple[np.ndarray, ...]) -> None:
    """The three nearest documents of each query by both models; arguments: (queries, documents)."""
    print("\nNearest neighbours:")
    for i, query in enumerate(QUERIES):
        print(f"\n  {query}")
        print(f"    {'dense fp32':<48}sparse int8")
        sides = []
        for queries, documents in (dense, sparse):
            scores = documents @ queries[i]
            top = np.argsort(-scores)[:3]
            sides.append([f"{scores[j]:.2f} {shorten(DOCUMENTS[j], 41)}" for j in top])
        for left, right in zip(*sides, strict=True):
            print(f"    {left:<48}{right}")


def show_times(tokenizer: Tokenizer, dense_name: str, dense: Run, sparse: Run, cores: int) -> None:
    """Latency of one short sentence and of one paragraph, by both models."""
    print(f"\nTime of one text, {cores} core{'s' if cores > 1 else ''} (median, ms):\n")
    print(f"  {'tokens':>6}  {dense_name:>34}  {'sparsec, sparse int8':>22}  ratio")
    for text in (DOCUMENTS[0], PARAGRAPH):
        inputs = padded(tokenizer, [text])
        a, b = best_time(dense, inputs), best_time(sparse, inputs)
        print(f"  {inputs[0].shape[1]:>6}  {a:>34.2f}  {b:>22.2f}  {a / b:.1f}x")


def main(argv: list[str] | None = None) -> int:
    """Compile, load, embed, compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", default=DEFAULT_FOLDER)
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args(argv)
    model = args.folder / "sparse" / "model.onnx"
    if not model.exists():
        raise SystemExit(f"{model} does not exist: run examples/minilm/build.py first")

    start = time.perf_counter()
    output = args.folder / "sparse.sparsec"
    artifact = sparsec.compile(
        model, buckets=BUCKETS, output=output, force=True, progress=lambda line: print(f"  {line}")
    )
    print(
        f"compiled sparse/model.onnx for buckets {BUCKETS} in {time.perf_counter() - start:.1f} s"
    )
    for file in sorted(output.iterdir()):
        print(f"  {file.stat().st_size / 1e6:8.2f} MB  {file.name}")

    tokenizer = load_tokenizer(args.folder / "sparse" / "tokenizer.json")
    dense_name, dense = dense_model(args.folder, args.cores)
    with sparsec.Engine(artifact, num_cores=args.cores) as engine:
        texts = [*DOCUMENTS, *QUERIES, PARAGRAPH]
        a, b = embed(dense, tokenizer, texts), embed(engine.run, tokenizer, texts)
        show_cosines(a, b, texts)
        n, m = len(DOCUMENTS), len(DOCUMENTS) + len(QUERIES)
        show_ranking((a[n:m], a[:n]), (b[n:m], b[:n]))
        show_times(tokenizer, dense_name, dense, engine.run, args.cores)
    return 0


if __name__ == "__main__":
    sys.exit(main())
