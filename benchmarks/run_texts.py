"""How near `sparsec run` comes to the rate of the engine alone.

    python benchmarks/run_texts.py --texts 34000
    python benchmarks/run_texts.py --texts 1000000 --layers 2 --turns 1

Compiles an encoder of MiniLM's size (int8, four of five 4-blocks zero) with random weights and the
tokenizer of examples/models/sentiment, writes short texts (5 to 25 words) as JSON lines, and
measures in turns, before and behind each run: the engine alone, on the same texts (`--sample` of
them), tokenized, padded and in the batches of `sparsec run` before the clock starts, one call a
core at a time; and the command `sparsec run`, from the file to a file of Parquet with a vector for
each text, of which what it takes for one text is left out: starting Python, opening the model.
Rates are those of wall time, and of the time that the process has had on a core, which other
processes disturb less.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
if __package__ in (None, ""):  # run as a script
    sys.path[0] = str(ROOT)

import sparsec  # noqa: E402
from examples import encoders  # noqa: E402
from examples.encoders.config import EncoderConfig  # noqa: E402
from sparsec.runtime import cpu  # noqa: E402
from sparsec.serving.bulk.worker import _batches, serial_tokenizers  # noqa: E402
from sparsec.serving.pipelines import SentenceEmbeddingPipeline  # noqa: E402
from sparsec.serving.runner import EngineRunner, Features  # noqa: E402

TOKENIZER = ROOT / "examples" / "models" / "sentiment"
LAYERS = 6


def prepare(folder: Path, layers: int) -> Path:
    """The artifact, made once."""
    artifact = folder / f"encoder{layers}.sparsec"
    if not artifact.exists():
        source = folder / "model"
        source.mkdir(parents=True, exist_ok=True)
        words = json.loads((TOKENIZER / "config.json").read_text())["vocab_size"]
        config = EncoderConfig(
            layers=layers, hidden=384, heads=12, intermediate=1536, vocab=words, head="hidden"
        )
        encoders.write_random(source / "model.onnx", config, form="sparseml", sparsity=0.8)
        shutil.copy(TOKENIZER / "tokenizer.json", source)
        (source / "config.json").write_text(
            json.dumps({"vocab_size": words, "max_position_embeddings": 512})
        )
        sparsec.compile(source, buckets=[16, 64, 512], output=artifact, batch_size=32)
    return artifact


def write_texts(path: Path, count: int) -> list[str]:
    """Texts of 5 to 25 words that the tokenizer knows."""
    vocabulary = json.loads((TOKENIZER / "tokenizer.json").read_text())["model"]["vocab"]
    words = [word for word in vocabulary if word.isalpha()]
    rng = random.Random(0)
    texts = [" ".join(rng.choices(words, k=rng.randint(5, 25))) for _ in range(count)]
    with path.open("w", encoding="utf-8") as stream:
        for i, text in enumerate(texts):
            stream.write(json.dumps({"id": i, "text": text}) + "\n")
    return texts


def engine_alone(artifact: Path, texts: list[str], cores: int) -> Callable[[], None]:
    """A function that runs the model on all texts."""
    with serial_tokenizers():
        made = sparsec.Pipeline.create("sentence-embedding", artifact, num_cores=1)
    assert isinstance(made, SentenceEmbeddingPipeline)
    runner = made.runner
    assert isinstance(runner, EngineRunner)
    lengths = [len(text) for text in texts]
    order = sorted(range(len(texts)), key=lambda i: -lengths[i])
    calls: list[dict[str, np.ndarray]] = []
    keep = runner._call

    def noted(arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
        calls.append(arrays)
        shape = next(iter(arrays.values())).shape
        return [np.zeros((*shape, 384), np.float32) for _ in runner.output_names]

    runner._call = noted  # type: ignore[assignment,method-assign]
    for batch in _batches(order, lengths):
        items: list[Features] = made.prepare(made.parse([texts[i] for i in batch])).items
        runner.infer(items)
    runner._call = keep  # type: ignore[method-assign]
    engine = runner.engine
    pool = ThreadPoolExecutor(cores)

    def run() -> None:
        for _ in pool.map(engine.run, calls):
            pass

    return run


@dataclass(frozen=True)
class Taken:
    """What something has taken: seconds of wall time and of cores, bytes of memory at most."""

    wall: float
    cores: float
    memory: int = 0


def here(work: Callable[[], None]) -> Taken:
    """What a function takes."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    work()
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    return Taken(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def command(artifact: Path, texts: Path, output: Path, part_rows: int | None) -> Taken:
    """What `sparsec run` takes."""
    call = [sys.executable, "-m", "sparsec", "run", str(texts), "-o", str(output), "--force"]
    call += ["--task", "sentence-embedding", "--model", str(artifact)]
    call += [] if part_rows is None else ["--part-rows", str(part_rows)]
    start = time.perf_counter()
    process = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(call)} failed")
    wall = time.perf_counter() - start
    return Taken(wall, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)


def main() -> None:
    """Prepare, then measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--texts", type=int, default=20000)
    parser.add_argument("--sample", type=int, default=20000, help="texts for the engine alone")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--part-rows", type=int, help="as of `sparsec run`")
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "bench" / "run")
    parser.add_argument("--prepare", action="store_true", help="only compile")
    args = parser.parse_args()
    artifact = prepare(args.folder, args.layers)
    if args.prepare:
        return
    cores = cpu.usable_cores()[0]
    engine, run, peak = [], [], 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = write_texts(folder / "in.jsonl", args.texts)[: args.sample]
        write_texts(folder / "one.jsonl", 1)
        alone = engine_alone(artifact, texts, cores)
        for _ in range(args.turns):
            around = [here(alone)]
            start = command(artifact, folder / "one.jsonl", folder / "one.parquet", None)
            taken = command(artifact, folder / "in.jsonl", folder / "out.parquet", args.part_rows)
            # Before and behind: what else the machine does may change in a long run.
            around.append(here(alone))
            engine += [(len(texts) / one.wall, len(texts) / one.cores) for one in around]
            peak = max(peak, taken.memory)
            more = args.texts - 1
            run.append((more / (taken.wall - start.wall), more / (taken.cores - start.cores)))
    wall, core = (statistics.median(r[i] for r in run) for i in (0, 1))
    best, each = (statistics.median(r[i] for r in engine) for i in (0, 1))
    print(f"engine  {best:8.0f} texts/s {each:8.0f} texts per second of a core")
    print(f"run     {wall:8.0f} texts/s {core:8.0f} texts per second of a core")
    print(f"run / engine: {wall / best:.1%} of wall time, {core / each:.1%} of core time")
    print(f"a text costs {1e6 / core - 1e6 / each:.0f} us of a core beside the engine's")
    print(f"peak {peak / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
