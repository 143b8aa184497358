"""How near `sparsec run` comes to the rate of the engine alone.

    python benchmarks/run_texts.py --texts 20000

Compiles an encoder of MiniLM's size (int8, four of five 4-blocks zero) with random weights and the
tokenizer of examples/models/sentiment, writes short texts (5 to 25 words) as JSON lines, and
measures in turns: the engine alone, on the same texts, tokenized, padded and in the batches of
`sparsec run` before the clock starts, one call a core at a time; and `sparsec run`, from the file
to a file of Parquet with a vector for each text.  Rates are those of wall time, and of the time
that the process has had on a core, which other processes disturb less.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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


def cpu_seconds() -> float:
    """What this process has had."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Prepare, then measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--texts", type=int, default=20000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--part-rows", type=int, default=2048, help="as of `sparsec run`")
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "bench" / "run")
    parser.add_argument("--prepare", action="store_true", help="only compile")
    args = parser.parse_args()
    artifact = prepare(args.folder, args.layers)
    if args.prepare:
        return
    cores = cpu.usable_cores()[0]
    rates: dict[str, list[tuple[float, float]]] = {"engine": [], "run": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = write_texts(folder / "in.jsonl", args.texts)
        alone = engine_alone(artifact, texts, cores)
        for turn in range(args.turns):
            start, used = time.perf_counter(), cpu_seconds()
            alone()
            seconds, work = time.perf_counter() - start, cpu_seconds() - used
            rates["engine"].append((len(texts) / seconds, len(texts) / work))
            used = cpu_seconds()
            sparsec.Pipeline.create("sentence-embedding", artifact, num_cores=1).close()
            opened = cpu_seconds() - used
            used += opened  # a run opens the model as well, which is no work on texts
            done = sparsec.run(
                folder / "in.jsonl", folder / f"{turn}.parquet",
                task="sentence-embedding", model=artifact, part_rows=args.part_rows,
            )  # fmt: skip
            work = cpu_seconds() - used - opened
            rates["run"].append((len(texts) / done.seconds, len(texts) / work))
    median = {
        name: [statistics.median(rate[i] for rate in rows) for i in (0, 1)]
        for name, rows in rates.items()
    }
    for name, (wall, core) in median.items():
        print(f"{name:8}{wall:10.0f} texts/s{core:10.0f} texts per second of a core")
    wall, core = (median["run"][i] / median["engine"][i] for i in (0, 1))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"run / engine: {wall:.1%} of wall time, {core:.1%} of core time; peak {peak:.0f} MiB")


if __name__ == "__main__":
    main()
