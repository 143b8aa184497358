"""Suggesting buckets: exact against brute force; the cost model's fit; the command."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsec.cli import main
from sparsec.errors import InputError
from sparsec.serving.buckets import DEFAULT, CostModel, evaluate, fit, measure, suggest
from tests.pipelines_support import make, word_piece

COSTS = st.builds(
    CostModel, st.floats(0, 5), st.floats(0.01, 1), st.floats(0, 0.01), st.just("made up")
)


@given(
    lengths=st.lists(st.integers(1, 100), min_size=1, max_size=40),
    count=st.integers(1, 5),
    limit=st.integers(1, 110),
    cost=COSTS,
)
def test_cheapest_of_all_sets(lengths: list[int], count: int, limit: int, cost: CostModel) -> None:
    found = suggest(lengths, count, cost, limit)
    longest = min(max(lengths), limit)
    top = min(-(-longest // 8) * 8, limit)
    choices = sorted({*range(8, top, 8), top})
    for size in range(1, count + 1):
        sets = itertools.combinations(choices[:-1], min(size, len(choices)) - 1)
        best = min(evaluate(lengths, [*chosen, top], cost).milliseconds for chosen in sets)
        got = found[min(size, len(found)) - 1]
        assert got.milliseconds == pytest.approx(best, rel=1e-9)
        assert len(got.buckets) <= size and got.buckets[-1] == top
    assert [s.milliseconds for s in found] == sorted((s.milliseconds for s in found), reverse=True)


def test_evaluate_by_hand() -> None:
    cost = CostModel(1.0, 0.5, 0.01, "by hand")
    got = evaluate([3, 16, 17, 50, 99], [16, 48], cost)
    one, three = 1 + 8 + 2.56, 1 + 24 + 23.04
    assert got.milliseconds == pytest.approx(2 * one + 3 * three)
    assert got.padding == pytest.approx(1 - (3 + 16 + 17 + 48 + 48) / (2 * 16 + 3 * 48))


@given(cost=COSTS)
def test_fit_finds_what_was_measured(cost: CostModel) -> None:
    lengths = (16, 64, 128, 256, 512)
    times = {n: cost(n) for n in lengths}
    got = fit(times, "x")
    for n in (16, 32, 300, 512):
        assert got(n) == pytest.approx(cost(n), rel=2e-2, abs=1e-6)
    assert min(got.call, got.token, got.pair) >= 0
    assert fit({64: 6.4}, "x").token == pytest.approx(0.1)


def test_default_is_what_was_measured() -> None:
    """Relative to 128 tokens, which is all that a choice of buckets depends on."""
    saved = Path(__file__).parents[1] / "benchmarks" / "results" / "growth-bert-base.json"
    lengths = json.loads(saved.read_text())["lengths"]
    rows = {int(name.split()[1]): s for name, s in lengths.items() if name.startswith("2 ")}
    assert len(rows) == 6
    for length, seconds in rows.items():
        assert DEFAULT(length) / DEFAULT(128) == pytest.approx(seconds / rows[128], rel=0.1)


def test_measure_calls_in_turns() -> None:
    calls: list[int] = []
    times = measure(calls.append, [16, 32], seconds=0)
    assert set(times) == {16, 32} and calls[:6] == [16, 32, 16, 32, 16, 32]


def test_nothing_to_suggest_for() -> None:
    with pytest.raises(InputError, match="no texts"):
        suggest([], 3, DEFAULT, 128)
    with pytest.raises(InputError, match="at least 1"):
        suggest([1], 0, DEFAULT, 128)


# ---- the command ---------------------------------------------------------------------------------


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join("mary " * n for n in (2, 2, 2, 3, 30, 40, 600)) + "\n\n")
    return path


def test_command(texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    word_piece(tmp_path / "tokenizer.json")
    command = ["buckets", str(texts), "--tokenizer", str(tmp_path), "-n", "2"]
    assert main([*command, "--max-length", "48"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(
        "7 texts of 4 to 602 tokens, half of them up to 5, 95% up to 602; 1 above"
    )
    assert "\n8,48 " in out and "padding left out" in out
    assert out.endswith("sparsec compile model.onnx --buckets 8,48\n")
    assert main([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["max_length"] == 512 and report["truncated"] == 1
    assert report["buckets"] == report["suggestions"][-1]["buckets"] == [48, 512]
    assert main([*command, "-n", "9", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["buckets"] == [8, 32, 48, 512]


def test_command_measures_a_model(
    texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "m", "token-classification")
    command = ["buckets", str(texts), "--model", str(tmp_path / "m"), "--num-cores", "1", "-n", "3"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "cost: m, measured at 16, 24, 64, 128 tokens, 1 cores" in out
    assert "1 above 128 are truncated" in out


def test_command_rejects(texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    word_piece(tmp_path / "tokenizer.json")
    (empty := tmp_path / "empty.txt").write_text("\n \n")
    (latin := tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    for command, message in (
        ([texts], "a tokenizer is needed"),
        ([empty, "--tokenizer", tmp_path], "has no text"),
        ([latin, "--tokenizer", tmp_path], "is not UTF-8"),
        ([tmp_path / "none.txt", "--tokenizer", tmp_path], "cannot read"),
        ([texts, "--tokenizer", tmp_path / "no"], "no tokenizer.json"),
    ):
        assert main(["buckets", *map(str, command)]) in (3, 8)
        assert message in capsys.readouterr().err


def test_plot(texts: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need it")
    word_piece(tmp_path / "tokenizer.json")
    out = tmp_path / "out.png"
    assert main(["buckets", str(texts), "--tokenizer", str(tmp_path), "--plot", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG") and out.stat().st_size > 5000
    bad = str(out / "out.png")  # a file is no folder
    assert main(["buckets", str(texts), "--tokenizer", str(tmp_path), "--plot", bad]) == 8
