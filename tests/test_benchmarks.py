"""The benchmarks' own arithmetic: limits, agreement, turns, tables.  Nothing is timed here."""

from __future__ import annotations

import argparse
import itertools
import re
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import general, layers, peers
from benchmarks.harness import kernels, machine, models, report, rows, samples
from benchmarks.harness.comparison import Agreement, Point, Timing, compare
from benchmarks.harness.installs import (
    PEERS,
    Unavailable,
    add_peers,
    peer_python,
    peer_pythons,
)
from benchmarks.harness.limit import Peak, limit_seconds
from benchmarks.harness.models import Recipe, Work
from benchmarks.harness.turns import Slice, Worker, WorkerError, take_turns
from examples.encoders import EncoderConfig
from sparsec import targets
from sparsec.compiler.codegen.table import KERNELS

PEAK = Peak(lanes=16, vnni=1e6, fma=1e6, read=1e12)
CONFIG = EncoderConfig(layers=2, hidden=64, heads=4, intermediate=256)


@pytest.mark.parametrize(
    ("batch", "length", "vectors", "attention"),
    [
        # Scores: length x 4 words x keys in vectors; mixing: 16 channels x words of keys x vectors.
        (1, 16, 1, 2 * 4 * (16 * 4 * 1 + 16 * 4 * 1)),
        (1, 17, 2, 2 * 4 * (17 * 4 * 2 + 16 * 5 * 2)),
        (3, 32, 6, 3 * 2 * 4 * (32 * 4 * 2 + 16 * 8 * 2)),
    ],
)
def test_limit_counts_instructions(batch: int, length: int, vectors: int, attention: int) -> None:
    work = Work("int8", words=1000, weights=2500)
    seconds = limit_seconds(PEAK, CONFIG, work, batch, length, cores=2)
    assert seconds == pytest.approx((1000 * vectors + attention) / 2e6)


def test_limit_of_floats_counts_weights() -> None:
    seconds = limit_seconds(PEAK, CONFIG, Work("fp32", 1000, 2500), 1, 16, cores=1)
    assert seconds == pytest.approx((2500 + 2 * 4 * 2 * 16 * 16) / 1e6)


def test_limit_is_reading_where_that_takes_longer() -> None:
    work = Work("int8", words=1000, weights=2500)
    assert limit_seconds(replace(PEAK, read=1e3), CONFIG, work, 1, 16, 2) == pytest.approx(4.0)
    assert limit_seconds(replace(PEAK, vnni=0.0), CONFIG, work, 1, 16, 2) is None


@pytest.mark.parametrize(("form", "kind"), [("sparseml", "int8"), ("fp32", "fp32")])
def test_models_are_made_once_and_their_work_is_counted(
    tmp_path: Path, form: Any, kind: str
) -> None:
    config = replace(CONFIG, layers=1, vocab=50, max_position=32, head="token-classification")
    recipe = Recipe(config, form, sparsity=0.75, block=4)
    path, work = models.pruned_model(tmp_path, recipe)
    encoder = 4 * 64 * 64 + 2 * 64 * 256
    head = config.num_labels * 64
    assert work.kind == kind
    # Rounding to int8 makes a few small weights zero, hardly ever a whole word.
    assert work.words == pytest.approx((encoder / 4 + head) / 4, rel=0.01)
    assert work.weights == pytest.approx(encoder / 4 + head, rel=0.05)
    before = path.stat().st_mtime_ns
    assert models.pruned_model(tmp_path, recipe) == (path, work)
    assert path.stat().st_mtime_ns == before


def test_compare() -> None:
    reference = np.array([1.0, -3.0, 2.0])
    assert compare(reference, reference) == (0.0, 0.0)
    assert compare(reference + np.array([0.3, 0, 0]), reference) == pytest.approx((0.1, 0.05))
    assert not Agreement("x", *compare(reference[:2], reference), 0.05).holds
    assert not Agreement("x", *compare(reference * np.nan, reference), 0.05).holds


class Fake:
    """Answers like a worker, and notes whose turn it was."""

    def __init__(self, name: str, turns: list[str], fails_at: int = -1) -> None:
        self.name, self.turns, self.fails_at = name, turns, fails_at

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        assert do == "run"
        if self.turns.count(self.name) == self.fails_at:
            raise WorkerError("broken")
        self.turns.append(self.name)
        return {"latencies": [1.0, 2.0]}


def test_turns_rotate_and_the_failed_drop_out() -> None:
    turns: list[str] = []
    workers: Any = {"a": Fake("a", turns), "b": Fake("b", turns, 1), "c": Fake("c", turns)}
    times, failed = take_turns(workers, Slice(rounds=3))
    assert "".join(turns) == "abc" + "ca" + "ca"
    assert times == {"a": [1.0, 2.0] * 3, "c": [1.0, 2.0] * 3}
    assert failed == {"b": "broken"}


def test_worker_reports_errors_and_goes_on(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", np.zeros((1, 4), np.int64))
    load = {"inputs": str(tmp_path / "x.npz"), "threads": 1}
    with Worker(sys.executable, tmp_path / "logs" / "w.log", [0], timeout=60) as worker:
        with pytest.raises(WorkerError, match="KeyError: 'nobody'"):
            worker.ask("load", engine="nobody", model="m", **load)
        with pytest.raises(WorkerError) as caught:
            worker.ask("load", engine="sparsec", model=str(tmp_path / "no.sparsec"), **load)
        assert "no.sparsec" in str(caught.value) and str(tmp_path) not in str(caught.value)
        worker.process.terminate()
        worker.process.wait()
        with pytest.raises(WorkerError, match="ended with -15"):
            worker.ask("run", runs=1, seconds=0, longest=1)


def test_worker_runs_onnxruntime(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    recipe = Recipe(replace(CONFIG, layers=1, vocab=50, max_position=32), "fp32")
    path, _ = models.pruned_model(tmp_path, recipe)
    ids = np.arange(24, dtype=np.int64).reshape(3, 8)
    np.savez(tmp_path / "x.npz", ids, np.ones_like(ids), np.zeros_like(ids))
    with Worker(sys.executable, tmp_path / "w.log", [0], timeout=60) as worker:
        worker.ask(
            "load", engine="onnxruntime", model=str(path), inputs=str(tmp_path / "x.npz"), threads=1
        )
        assert len(worker.ask("run", runs=3, seconds=0, longest=60)["latencies"]) == 3
        assert len(worker.ask("run", runs=3, seconds=0, longest=0)["latencies"]) == 1
        worker.ask("outputs", path=str(tmp_path / "y.npy"), rows=2)
    assert np.load(tmp_path / "y.npy").shape == (2, 8, 64)


def test_missing_peer_says_why(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="cannot start Python"):
        peer_python(PEERS["openvino"], tmp_path, {"openvino": str(tmp_path / "python")})


def test_tables() -> None:
    point = Point(1, 16, 0.8, 0.5)
    point.timings = {"sparsec": Timing(2.0, 1.9, 50, 0.1), "openvino": Timing(5.0, 4.8, 50, 0.1)}
    point.agreement = {"openvino": Agreement("x", 0.2, 0.2, 0.05)}
    large = replace(point, batch=64, timings={"sparsec": Timing(1000.0, 990.0, 3, 0.1)})
    speed = report.speed_table([point, large], ["sparsec", "openvino"])
    assert "2.00 ms | 5.00 ms! |" in speed
    assert "64.0/s |   failed |" in speed
    ratios = report.ratio_table([point, large], ["sparsec", "openvino"])
    assert "2.50x |          25% |" in ratios


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.01234, "0.0123"), (9.876, "9.88"), (98.76, "98.8"), (1234.5, "1234"), (0.0, "0.0")],
)
def test_three_digits(value: float, text: str) -> None:
    assert report.number(value) == text


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    args = peers.arguments(["--shapes", "1x8,4x32", "--peer-python", "openvino=py", "--layers=1"])
    assert args.shapes == [(1, 8), (4, 32)]
    assert args.peer_python == [("openvino", "py")]
    assert peers.recipe(args).config.layers == 1
    for wrong in (["--shapes", "16"], ["--peer-python", "sparsec=py"], ["--engines", "nobody"]):
        with pytest.raises(SystemExit):
            peers.arguments(wrong)
        capsys.readouterr()


def test_requests_are_padded_to_the_smallest_bucket() -> None:
    pytest.importorskip("tokenizers")
    from benchmarks.buckets import requests

    first, second = requests([[5, 6, 7], [8] * 15, [9] * 16], 2, [15, 35])
    assert first[0].shape == (2, 15) and second[0].shape == (1, 35)
    assert first[0][0, :4].tolist() == [5, 6, 7, 0]
    assert first[1].sum(1).tolist() == [3, 15] and second[1].sum() == 16


def test_texts_cover_all_buckets() -> None:
    pytest.importorskip("tokenizers")
    from benchmarks.buckets import BUCKETS, TEXTS, build_tokenizer

    texts = TEXTS.read_text(encoding="utf-8").splitlines()
    encodings = build_tokenizer(texts, 30522).encode_batch(texts)
    lengths = np.array([len(e.ids) for e in encodings])
    assert len(texts) >= 200 and lengths.min() == 3 and lengths.max() == 75
    assert np.histogram(lengths, [0, *(b + 1 for b in BUCKETS)])[0].min() >= 20


def test_load_client_counts_what_comes_back() -> None:
    import asyncio

    from benchmarks.harness.load import Client
    from benchmarks.harness.servers import Running

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Every fifth request is refused."""
        while await reader.readline():
            await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(2)
            status = b"503 Busy" if next(number) % 5 == 0 else b"200 OK"
            writer.write(b"HTTP/1.1 %s\r\nContent-Length: 2\r\n\r\nok" % status)

    number = itertools.count(1)
    ready: list[int] = []
    started, stop = threading.Event(), threading.Event()

    async def run() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        ready.append(server.sockets[0].getsockname()[1])
        started.set()
        await asyncio.get_running_loop().run_in_executor(None, stop.wait)
        server.close()

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    try:
        assert started.wait(20)
        process: Any = None
        client = Client(Running("x", ready[0], "/predict", process), [b"{}"])
        load = client.keep_busy(4, count=100)
        assert load.statuses == {200: 80, 503: 20}
        assert (len(load.latencies), len(load.refused)) == (80, 20)
        paced = client.at_rate(200, 0.2)
        assert sum(paced.statuses.values()) == 40 and paced.seconds >= 0.19
    finally:
        stop.set()
        thread.join()


def test_general_outputs_are_compared_by_size() -> None:
    inf = np.array([np.inf, 1.0])
    assert general.compare([inf], [inf.copy()], 1e-5) == (0.0, True)
    a, b = np.array([1000.0, 0.001]), np.array([1000.5, 0.001])
    assert general.compare([a], [b], 1e-3) == (0.5, True)
    assert general.compare([a], [b], 1e-4) == (0.5, False)
    assert general.compare([np.uint8(3)], [np.uint8(5)], 1) == (2.0, False)
    assert not general.compare([np.array([np.nan])], [np.array([0.0])], 1e-3)[1]


def test_general_cases_are_what_both_engines_take(tmp_path: Path) -> None:
    case = general.Case("sum", "Add", [np.ones((4, 3), np.float32)], [np.float32(2)])
    result = general.measure(case, "elementwise", tmp_path, 1, "generic", rounds=1, seconds=0.0)
    assert result.agrees and result.ratio == pytest.approx(result.ours / result.theirs)
    slow = replace(result, name="slow", ratio=3.0)
    about = {"load_average": [0.0], "cores": 1, "cpu": "", "arch": "x", "threads": 1, "commit": ""}
    about |= {
        "targets": ["generic"],
        "distribution": "",
        "system": "s",
        "compiler": "c",
        "python": "",
    }
    text = general.as_text([replace(result, ratio=0.5), slow], 1, "generic", about)
    assert "1 of 2 cases take at most twice as long" in text and "| slow " in text
    with pytest.raises(SystemExit):
        general.main(["--family", "nonsense"])


def test_kernels_of_the_table_are_timed_on_their_cases(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two that most targets have; that each has a case is tested with the table itself."""
    rows = [KERNELS["map_layernorm"], KERNELS["general_matmul_integer"]]
    timed = kernels.measure(rows, targets.get("generic"), tmp_path, kernels.QUICK, 1, 0.0)
    assert [(t.kernel, t.family) for t in timed] == [(row.name, row.family) for row in rows]
    assert all(t.seconds > 0 for t in timed)
    assert timed[1].rate * timed[1].seconds == pytest.approx(16 * 64 * 64 / 16)
    text = kernels.section(timed, kernels.QUICK)
    assert "16 rows of 64 channels" in text and "| map_layernorm " in text


def test_kernel_benchmarks_take_all_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str] = []

    def measure(rows: Any, *_: Any) -> list[Any]:
        taken.extend(row.name for row in rows)
        return []

    monkeypatch.setattr(kernels, "measure", measure)
    layers.measure_kernels(targets.get("generic"), tmp_path, quick=True)
    general.measure_kernels("", "generic", tmp_path, 1)
    assert taken == list(KERNELS)


def test_samples_add_up_over_calls(tmp_path: Path) -> None:
    """What one call measured, the next adds to; medians and fastest deciles are of all of it."""
    path = tmp_path / "samples.json"
    first = samples.Samples({"cpu": "x"})
    first.add("tiny int8 80% 1x16", {"sparsec": [0.001] * 5, "ort": [0.002] * 5}, 1)
    first.add("tiny int8 80% 4x16", {"sparsec": [0.004]}, 1)
    first.save(path)
    again = samples.Samples.load(path, {"cpu": "y"})
    again.add("tiny int8 80% 1x16", {"sparsec": [0.003] * 6, "ort": [0.012] * 6}, 2)
    assert again.machine == {"cpu": "y"} and again.rounds["tiny int8 80% 1x16"] == 3
    assert samples.quantiles(again.points["tiny int8 80% 1x16"]["sparsec"]) == (3.0, 1.0)
    speeds, ratios = samples.speeds(again), samples.ratios(again)
    assert re.search(r"1x16 .* 3.00 ms \| +12.0 ms \| +3 \|", speeds)
    assert re.search(r"4x16 .* 1000/s \| +- \|", speeds)
    assert re.search(r"1x16 .* 4.00 / 2.00 \|", ratios)


def test_rows_of_the_table_of_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model in every form; masks cover the ends; what a CPU lacks is a reason."""
    assert len({row.key for row in rows.ROWS}) == len(rows.ROWS) == 8 * len(rows.SHAPES)
    assert {row.model for row in rows.selected(rows.ROWS, "")} == {"bert-base", "minilm"}
    (dynamic,) = rows.selected(rows.ROWS, "tiny int8 dense, dyn")
    assert dynamic.files == dict.fromkeys(("sparsec", "openvino", "ort"), "dynamic")
    _, mask, _ = rows.inputs_of("tiny", 2, 16, 0.5)
    assert mask.tolist() == [[1] * 8 + [0] * 8] * 2
    (half,) = rows.selected(rows.ROWS, "tiny bf16")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert rows.why_not(half, frozenset())
    assert rows.why_not(dynamic, frozenset()) == ""


def test_peers_are_chosen_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_peers(parser, {"one": "onnxruntime", "two": "openvino"}, ["two"])
    assert parser.parse_args([]).peers == ["two"] and parser.parse_args(["--peers="]).peers == []
    args = parser.parse_args(["--peers", "one,two", "--peer-python", f"one={sys.executable}"])
    assert args.peer_python == [("one", sys.executable)]
    for wrong in (["--peers", "three"], ["--peer-python", "three=x"], ["--peer-python", "one"]):
        with pytest.raises(SystemExit):
            parser.parse_args(wrong)
        assert wrong[1] in capsys.readouterr().err
    # Both names of one peer have environments of their own.
    given = {"a": str(tmp_path / "none"), "b": sys.executable}
    pythons, skipped = peer_pythons(dict.fromkeys("ab", "onnxruntime"), tmp_path, given.items())
    assert pythons == {"b": sys.executable} and list(skipped) == ["a"]


def test_servers_of_embeddings(tmp_path: Path) -> None:
    from benchmarks import embedding_servers as bench

    assert len(bench.texts("short")) > len(bench.texts("long")) > bench.COMPARED
    args = bench.arguments(["--cache", str(tmp_path), "--peers", "infinity,fastembed"])
    (tmp_path / "model.sparsec").mkdir()  # as if it was compiled
    made = bench.servers(args, tmp_path / "model", {"infinity": "/a/python", "fastembed": "/b/py"})
    assert list(made) == ["sparsec", "infinity", "fastembed"]
    assert len({server.port for server in made.values()}) == 3
    assert made["infinity"].command[:2] == ["/a/infinity_emb", "v2"]
    assert "serve" in made["sparsec"].command and made["fastembed"].command[0] == "/b/py"
    load = {"rate": 10.0, "p50_ms": 1.0, "p99_ms": 2.0}
    loads = {f"{kind}-{n}": load for kind in bench.SENTENCES for n in bench.CLIENTS}
    faster = {name: {**load, "rate": 30.0} for name in loads}
    result = {
        "machine": machine.describe(), "cores": 2, "seconds": 1.0, "tokens": {"short": 15.0},
        "versions": {"sparsec": "1"},
        "agreement": {"sparsec": {"short": 1.0}, "infinity": {"short": 0.5}},
        "rounds": [{"sparsec": loads}, {"sparsec": faster, "infinity": loads}],
        "skipped": {"fastembed": "no wheel"},
    }  # fmt: skip
    text = bench.markdown(result)
    assert text.count("20/s, 1.0 / 2.0 ms") == 4 and text.count("10/s") == 4
    assert "0.5000" in text and "Not measured: fastembed: no wheel" in text
