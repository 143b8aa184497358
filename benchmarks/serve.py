"""The server under load, beside its own engine, DeepSparse's server and a plain one.

    python benchmarks/serve.py                        BERT-base at 128 tokens: about half an hour
    python benchmarks/serve.py --peers deepsparse,fastapi
    python benchmarks/serve.py --preset tiny --seconds 2 --requests 2000     a minute

Every server gets the same requests on loopback, from a client that shares the cores with it:

- throughput at 32 connections, as a share of what the engine does on its own with the same tokens
  in the batch size that suits it best, in turns;
- latency at half that rate, requests arriving evenly;
- many requests in a row (with a small model, so that HTTP is what is tested): errors, and how the
  workers' memory grows after the first tenth;
- twice the rate that it can do: what is answered, refused with 503, or late.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
if __package__ in (None, ""):  # run as a script
    sys.path[0] = str(ROOT)

from benchmarks.harness import machine, models, report  # noqa: E402
from benchmarks.harness.installs import Unavailable, add_peers, peer_pythons  # noqa: E402
from benchmarks.harness.load import CONNECTIONS, Client, wrk  # noqa: E402
from benchmarks.harness.models import Recipe  # noqa: E402
from benchmarks.harness.servers import Running, serving  # noqa: E402
from examples.encoders import FORMS, PRESETS  # noqa: E402

SETTLE = 4.0  # seconds: what wrk left behind is computed to its end
BATCHES = (1, 2, 4, 8, 16, 32)
TASK = "token-classification"
SERVERS = {"deepsparse": "deepsparse-server", "fastapi": "fastapi"}


# ---- the model -----------------------------------------------------------------------------------


def prepare(cache: Path, recipe: Recipe, length: int, batch: int) -> Path:
    """A folder with the model, a tokenizer of one word per token, and the artifact."""
    from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers import models as kinds

    import sparsec

    model, _ = models.pruned_model(cache, recipe)
    folder = cache / "serve" / f"{recipe.name}-{length}"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(model, folder / "model.onnx")
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [f"w{i}" for i in range(recipe.config.vocab - len(specials))]
    vocab = {word: i for i, word in enumerate([*specials, *words])}
    tokenizer = Tokenizer(kinds.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)  # transformers looks for it
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n")
    special = dict(zip(("pad", "unk", "cls", "sep", "mask"), specials, strict=True))
    settings: dict[str, Any] = {f"{key}_token": token for key, token in special.items()}
    settings |= {"tokenizer_class": "BertTokenizer", "do_lower_case": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    labels = ["O", *(f"B-{i}" for i in range(1, recipe.config.num_labels))]
    config = {
        "model_type": "bert",
        "architectures": ["BertForTokenClassification"],
        "vocab_size": recipe.config.vocab,
        "hidden_size": recipe.config.hidden,
        "num_hidden_layers": recipe.config.layers,
        "num_attention_heads": recipe.config.heads,
        "intermediate_size": recipe.config.intermediate,
        "max_position_embeddings": recipe.config.max_position,
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
    }
    (folder / "config.json").write_text(json.dumps(config))
    sparsec.compile(
        folder, buckets=[length], batch_size=batch, output=folder / "model.sparsec", force=True
    )
    return folder


def bodies(recipe: Recipe, length: int, count: int = 64, seed: int = 0) -> list[bytes]:
    """Requests of exactly `length` tokens."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, recipe.config.vocab - 5, (count, length - 2))
    texts = [" ".join(f"w{i}" for i in row) for row in rows]
    return [json.dumps({"inputs": text}).encode() for text in texts]


def engine_rates(
    artifact: Path, length: int, cores: int, seconds: float, batches: Sequence[int] = BATCHES
) -> dict[int, float]:
    """Sequences per second of the engine alone, by batch size."""
    import sparsec

    rates = {}
    with sparsec.Engine(artifact, num_cores=cores, skip_padding=True) as engine:
        for batch in batches:
            inputs = sparsec.generate_random_inputs(artifact, batch, length)
            for _ in range(3):
                engine.run(inputs)
            done, start = 0, time.perf_counter()
            while (now := time.perf_counter()) - start < seconds:
                engine.run(inputs)
                done += batch
            rates[batch] = done / (now - start)
    return rates


# ---- servers -------------------------------------------------------------------------------------


def ours(args: argparse.Namespace, folder: Path, port: int, *flags: str) -> list[str]:
    """Command line of `sparsec serve`."""
    return [
        sys.executable, "-m", "sparsec", "serve", "--task", TASK, "--port", str(port),
        "--model-path", str(folder / "model.sparsec"), "--num-cores", str(args.cores),
        "--num-workers", str(args.workers), *flags,
    ]  # fmt: skip


def theirs(name: str, python: str, args: argparse.Namespace, folder: Path, port: int) -> list[str]:
    """Command line of a peer's server."""
    if name == "deepsparse":
        config = folder / "deepsparse.yaml"
        copy = folder / "deepsparse" / "model.onnx"  # DeepSparse rewrites the file it is given
        copy.parent.mkdir(exist_ok=True)
        for file in ("tokenizer.json", "vocab.txt", "tokenizer_config.json", "config.json"):
            shutil.copyfile(folder / file, copy.parent / file)
        shutil.copyfile(folder / "model.onnx", copy)
        config.write_text(
            f"num_cores: {args.cores}\nnum_workers: {args.peer_workers}\nendpoints:\n"
            f"  - task: token_classification\n    route: /predict\n    model: {copy.parent}\n"
            f"    kwargs: {{sequence_length: {args.length}}}\n"
        )
        program = Path(python).with_name("deepsparse.server")
        return [str(program), "--config-file", str(config), "--port", str(port),
                "--host", "127.0.0.1"]  # fmt: skip
    plain = ROOT / "benchmarks" / "harness" / "plain_server.py"
    return [python, str(plain), str(folder), str(port), str(args.cores), str(args.length)]


PATHS = {
    "deepsparse": ("/v2/models/predict/infer", "/v2/health/ready"),
    "fastapi": ("/predict", "/health"),
}


# ---- what is measured ----------------------------------------------------------------------------


def throughput(server: Running, payloads: Sequence[bytes], seconds: float) -> dict[str, Any]:
    """At 32 connections, after a warm-up."""
    client = Client(server, payloads)
    client.keep_busy(CONNECTIONS, min(2.0, seconds))
    load = client.keep_busy(CONNECTIONS, seconds)
    result = {"client": load.to_json(), "wrk": wrk(server, payloads, seconds)}
    time.sleep(SETTLE)
    return result


def best_rate(result: dict[str, Any]) -> float:
    """Of the two clients: each takes its own share of the cores."""
    rates = [result["client"]["rate"]]
    if result["wrk"]:
        rates.append(result["wrk"]["rate"])
    return float(max(rates))


def soak(server: Running, payloads: Sequence[bytes], count: int) -> dict[str, Any]:
    """Many requests: errors, and memory after each tenth."""
    client = Client(server, payloads)
    statuses: Counter[int] = Counter()
    memory, seconds = [], 0.0
    for _ in range(10):
        load = client.keep_busy(CONNECTIONS, count=count // 10)
        statuses += load.statuses
        seconds += load.seconds
        memory.append(round(server.memory(), 2))
    return {
        "requests": sum(statuses.values()),
        "rate": round(sum(statuses.values()) / seconds, 1),
        "statuses": {str(status): number for status, number in sorted(statuses.items())},
        "memory_mib": memory,
        "growth": round(memory[-1] / memory[0] - 1, 5),
    }


def measure(args: argparse.Namespace, pythons: dict[str, str], skipped: dict[str, str]) -> Any:
    """Everything, as what is saved."""
    preset = PRESETS[args.preset]
    recipe = Recipe(dataclasses.replace(preset, head="token-classification"), args.form)
    tell(f"making {recipe.title}")
    folder = prepare(args.cache, recipe, args.length, args.batch)
    payloads = bodies(recipe, args.length)
    cpus = machine.pick_cpus(args.cores)
    os.sched_setaffinity(0, set(cpus))
    result: dict[str, Any] = {
        "machine": machine.describe(),
        "model": recipe.title,
        "length": args.length,
        "cores": args.cores,
        "workers": args.workers,
        "connections": CONNECTIONS,
    }
    tell("the engine alone")
    rates = engine_rates(folder / "model.sparsec", args.length, args.cores, args.seconds / 5)
    result["engine"] = {str(batch): round(rate, 2) for batch, rate in rates.items()}
    servers: dict[str, Any] = {}
    result["servers"] = servers
    flags = ["--max-batch", str(args.max_batch), "--queue-size", str(args.queue)]
    with serving(
        "sparsec", ours(args, folder, args.port, *flags), args.port, "/predict", "/ready"
    ) as server:
        # In turns with the engine: the machine's speed may change on the way.
        best = [max(rates, key=lambda batch: rates[batch])]
        rounds = []
        for number in range(args.rounds):
            alone = engine_rates(
                folder / "model.sparsec", args.length, args.cores, args.seconds / 5, best
            )[best[0]]
            tell(f"sparsec, round {number + 1}: 32 connections, then half the rate")
            load = throughput(server, payloads, args.seconds)
            half = Client(server, payloads).at_rate(best_rate(load) / 2, args.seconds)
            rounds.append(
                {
                    "engine": round(alone, 2),
                    "throughput": load,
                    "share_of_engine": round(best_rate(load) / alone, 4),
                    "half": half.to_json(),
                    "p99_to_median": round(half.percentile(99) / half.percentile(50), 3),
                }
            )
        tell("sparsec: twice the rate")
        rate = statistics.median(best_rate(one["throughput"]) for one in rounds)
        double = Client(server, payloads).at_rate(2 * rate, args.seconds)
        servers["sparsec"] = {"rounds": rounds, "double": double.to_json()}
    if args.requests:
        small = Recipe(dataclasses.replace(PRESETS["tiny"], head="token-classification"), args.form)
        small_folder = prepare(args.cache, small, 16, args.batch)
        with serving(
            "sparsec", ours(args, small_folder, args.port), args.port, "/predict", "/ready"
        ) as server:
            tell(f"sparsec: {args.requests} requests")
            result["soak"] = {
                "model": small.title,
                **soak(server, bodies(small, 16), args.requests),
            }
    for name, python in pythons.items():
        path, ready = PATHS[name]
        try:
            command = theirs(name, python, args, folder, args.port)
            with serving(name, command, args.port, path, ready) as server:
                tell(f"{name}: 32 connections, then half the rate")
                load = throughput(server, payloads, args.seconds)
                half = Client(server, payloads).at_rate(best_rate(load) / 2, args.seconds)
                servers[name] = {"rounds": [{"throughput": load, "half": half.to_json()}]}
        except Unavailable as reason:
            skipped[name] = str(reason)
    result["skipped"] = skipped
    return result


def markdown(result: dict[str, Any]) -> str:
    """Results for people."""
    rows = []
    for name, found in result["servers"].items():
        for one in found["rounds"]:
            client, half = one["throughput"]["client"], one["half"]
            rows.append(
                [
                    name,
                    f"{best_rate(one['throughput']):.1f}/s",
                    f"{one['share_of_engine']:.1%}" if "share_of_engine" in one else "",
                    f"{client['p50_ms']:.1f} / {client['p99_ms']:.1f} ms",
                    f"{half['p50_ms']:.2f} / {half['p99_ms']:.2f} ms",
                    f"{half['p99_ms'] / half['p50_ms']:.1f}",
                ]
            )
    header = ["server", "requests", "of our engine", "p50 / p99", "at half load", "p99 / p50"]
    best = max(result["engine"].values())
    batch = max(result["engine"], key=result["engine"].get)
    lines = [
        f"# Servers: {result['model']}",
        "",
        f"{result['length']} tokens a request, {result['connections']} connections, "
        f"{result['cores']} cores for server and client together, {result['workers']} worker(s). "
        f"The engine alone does {best:.1f}/s (batch {batch}) at first, and is measured again in "
        "every round.",
        "",
        report.table(header, rows),
        "",
    ]
    double = result["servers"]["sparsec"]["double"]
    lines += [
        f"Twice the rate: {double['statuses']} by status (0: no answer); 503s within "
        f"{double['p99_refused_ms']} ms (p99).",
        "",
    ]
    if "soak" in result:
        run = result["soak"]
        lines += [
            f"{run['requests']} requests to a small model ({run['model']}): {run['statuses']} by "
            f"status, {run['rate']}/s; memory grew by {run['growth']:.2%} after the first tenth "
            f"({run['memory_mib'][0]} to {run['memory_mib'][-1]} MiB).",
            "",
        ]
    lines += [f"Not measured: {name}: {why}\n" for name, why in result["skipped"].items()]
    return "\n".join(lines)


def tell(line: str) -> None:
    """Progress."""
    print(line, file=sys.stderr, flush=True)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--preset", choices=PRESETS, default="bert-base", help="size (default: %(default)s)")
    add("--form", choices=FORMS, default="sparseml", help="(default: %(default)s)")
    add("--length", type=int, default=128, help="tokens of a request (default: %(default)s)")
    add("--batch", type=int, default=16, help="to cut layers for (default: %(default)s)")
    add("--max-batch", type=int, default=32, help="of the server (default: %(default)s)")
    add("--queue", type=int, default=64, help="of the server (default: %(default)s)")
    add("--cores", type=int, default=2, help="of server and client (default: %(default)s)")
    add("--workers", type=int, default=1, help="of the server (default: %(default)s)")
    add("--peer-workers", type=int, default=1, help="of DeepSparse (default: %(default)s)")
    add("--seconds", type=float, default=20.0, help="of each load (default: %(default)s)")
    add("--rounds", type=int, default=3, help="of ours (default: %(default)s)")
    add("--requests", type=int, default=100_000, help="in a row; 0: none (default: %(default)s)")
    add_peers(parser, SERVERS)
    add("--port", type=int, default=5599, help="(default: %(default)s)")
    add("--cache", type=Path, default=ROOT / "build" / "bench", help="models and environments")
    add("--results", type=Path, default=ROOT / "benchmarks" / "results", help="where to save")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, save."""
    args = arguments(argv)
    peers = {name: SERVERS[name] for name in args.peers}
    pythons, skipped = peer_pythons(peers, args.cache, args.peer_python)
    result = measure(args, pythons, skipped)
    text = markdown(result)
    print(text)
    args.results.mkdir(parents=True, exist_ok=True)
    several = f"-{args.workers}-workers" if args.workers > 1 else ""
    stem = args.results / f"serve-{args.preset}-{args.length}{several}"
    stem.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    stem.with_suffix(".md").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
