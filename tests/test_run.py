"""`sparsec run`: rows of files in, the same rows with answers out, whatever happens on the way."""

from __future__ import annotations

import csv
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import sparsec
from sparsec.cli import main
from sparsec.errors import InputError, NonFiniteError, TooLongError
from sparsec.serving.pipelines import Pipeline
from tests import pipelines_support, server_support
from tests.server_support import TextModels
from tests.test_interrupts import PATIENCE, heed_signals, wait_for

pa = pytest.importorskip("pyarrow", reason="the extra sparsec[run] is not installed")
pytest.importorskip("fsspec", reason="the extra sparsec[run] is not installed")
from pyarrow import parquet  # noqa: E402

WORDS = ["mary", "is", "flying", "from", "nairobi", "to", "york", ".", "good", "bad", "movie"]


def texts(count: int, seed: int = 0, most: int = 20) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(0, most))) for _ in range(count)]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def write_lines(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def sentiment(text_models: TextModels) -> Path:
    return text_models["text-classification"]


@pytest.fixture(scope="module")
def labels(sentiment: Path) -> Callable[[Sequence[str]], list[dict[str, Any]]]:
    """What the pipeline says of texts, each alone."""
    pipeline = Pipeline.create("text-classification", sentiment)

    def answers(given: Sequence[str]) -> list[dict[str, Any]]:
        found = [pipeline(text) for text in given]
        return [{"label": one.labels[0], "score": one.scores[0]} for one in found]

    return answers


def same(found: Sequence[dict[str, Any]], wanted: Sequence[dict[str, Any]]) -> bool:
    return len(found) == len(wanted) and all(
        one.keys() == two.keys()
        and all(
            one[k] == (pytest.approx(two[k], rel=1e-5) if isinstance(two[k], float) else two[k])
            for k in one
        )
        for one, two in zip(found, wanted, strict=True)
    )


# ---- formats -------------------------------------------------------------------------------------


def written(kind: str, folder: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as a file of a format."""
    path = folder / f"in.{kind}"
    if kind == "jsonl":
        return write_lines(path, rows)
    if kind == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=13)
    elif kind == "csv":
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(row["text"] + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        found: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
        return found
    if path.suffix == ".csv":
        with path.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        return [{k: float(v) if k == "score" else v for k, v in row.items()} for row in rows]
    return lines(path)


@pytest.mark.parametrize("before", ["parquet", "csv", "jsonl", "txt"])
@pytest.mark.parametrize("after", ["parquet", "csv", "jsonl"])
def test_every_format_to_every_format(
    before: str, after: str, sentiment: Path, labels: Any, tmp_path: Path
) -> None:
    """The input's columns stay, the answer's are added, and rows keep their order."""
    given = texts(40)
    rows = [{"id": i, "text": text, "mark": 'a,"b"\nü'} for i, text in enumerate(given)]
    if before == "txt":
        rows = [{"text": text} for text in given]
    path = written(before, tmp_path, rows)
    out = tmp_path / f"out.{after}"
    found = sparsec.run(path, out, task="text-classification", model=sentiment, part_rows=7)
    wanted = [{**row, **answer} for row, answer in zip(rows, labels(given), strict=True)]
    if "csv" in (before, after) and before != "txt":
        wanted = [{**row, "id": str(row["id"])} for row in wanted]
    assert same(read(out), wanted)
    assert (found.rows, found.bad, found.resumed) == (40, 0, 0)
    assert sorted(tmp_path.iterdir()) == sorted([path, out])


def test_types_of_parquet_stay(sentiment: Path, tmp_path: Path) -> None:
    schema = pa.schema(
        [
            ("text", pa.large_string()),
            ("when", pa.timestamp("ns")),
            ("kind", pa.dictionary(pa.int8(), pa.string())),
            ("parts", pa.list_(pa.int16())),
        ],
        metadata={b"made": b"by hand"},
    )
    table = pa.table(
        [["good movie"] * 3, [1, 2, None], ["a", "b", "a"], [[1], None, []]], schema=schema
    )
    parquet.write_table(table, tmp_path / "in.parquet")
    out = tmp_path / "out.parquet"
    sparsec.run(tmp_path / "in.parquet", out, task="sentiment", model=sentiment, part_rows=2)
    found = parquet.read_table(out)
    assert found.select(schema.names).equals(table)
    assert found.schema.metadata[b"made"] == b"by hand"
    assert found.schema.field("score").type == pa.float64()


def test_json_lines_keep_what_no_table_has(sentiment: Path, tmp_path: Path) -> None:
    rows = [
        {"text": "good", "n": 1 << 70, "x": [1, "a", {"b": None, "c": -(1 << 64), "d": 1e300}]},
        {"text": "bad", "n": "one"},
    ]
    path = write_lines(tmp_path / "in.jsonl", rows)
    sparsec.run(path, tmp_path / "out.jsonl", task="sentiment", model=sentiment)
    found = lines(tmp_path / "out.jsonl")
    assert [{k: row[k] for k in before} for row, before in zip(found, rows, strict=True)] == rows
    with pytest.raises(InputError, match=r"column n has values of several kinds.*jsonl"):
        sparsec.run(path, tmp_path / "out.parquet", task="sentiment", model=sentiment)


def test_columns_of_json_lines_that_come_late(sentiment: Path, tmp_path: Path) -> None:
    """A table's columns and types are those of all lines, not of the first."""
    rows = [{"text": "a"}, {"text": "b", "n": 1}, {"text": "c", "n": 2.5}, {"text": "d", "m": "x"}]
    path = write_lines(tmp_path / "in.jsonl", rows)
    for name in ("out.parquet", "out.csv"):
        sparsec.run(path, tmp_path / name, task="sentiment", model=sentiment, part_rows=1)
    found = read(tmp_path / "out.parquet")
    assert [row["n"] for row in found] == [None, 1.0, 2.5, None]
    assert [row["m"] for row in found] == [None, None, None, "x"]
    assert [row["m"] for row in read(tmp_path / "out.csv")] == ["", "", "", "x"]


def test_patterns_folders_urls_and_compression(
    sentiment: Path, labels: Any, tmp_path: Path
) -> None:
    given = texts(12)
    folder = tmp_path / "data"
    folder.mkdir()
    for k in range(3):
        data = "".join(text + "\n" for text in given[4 * k : 4 * k + 4]).encode()
        (folder / f"{k}.txt.gz").write_bytes(gzip.compress(data))
    (folder / "_SUCCESS").write_text("")
    wanted = [{"text": text, **answer} for text, answer in zip(given, labels(given), strict=True)]
    asked = [folder / "*.txt.gz", folder, f"file://{folder}/*.gz", f"{tmp_path}/**/?.txt.gz"]
    for k, inputs in enumerate(asked):
        out = tmp_path / f"out{k}.jsonl.gz"
        sparsec.run(inputs, out, task="sentiment", model=sentiment, part_rows=5)
        assert same([json.loads(x) for x in gzip.decompress(out.read_bytes()).splitlines()], wanted)


def test_other_file_systems(sentiment: Path, labels: Any) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    given = texts(9)
    memory.pipe("/in/a.txt", "".join(text + "\n" for text in given).encode())
    wanted = [{"text": text, **answer} for text, answer in zip(given, labels(given), strict=True)]
    for out, inside in (("memory://out.jsonl", ["/out.jsonl"]), ("memory://folder", [])):
        options = {"task": "sentiment", "model": sentiment, "part_rows": 4}
        sparsec.run("memory://in/*.txt", out, bad_rows="memory://bad/rows", force=True, **options)
        names = inside or sorted(memory.glob("/folder/part-*"))
        found = b"".join(memory.cat(name) for name in names)
        assert same([json.loads(line) for line in found.splitlines()], wanted)
        assert memory.cat("/bad/rows") == b""
    assert not memory.exists("/.out.jsonl.run")
    # Done is done: nothing is written again.
    made = memory.created("/folder/part-00000.jsonl")
    again = sparsec.run(
        "memory://in/*.txt", "memory://folder", bad_rows="memory://bad/rows", **options
    )
    assert (again.rows, again.resumed) == (9, 9)
    assert memory.created("/folder/part-00000.jsonl") == made


def test_a_folder_of_parts_is_a_data_set(sentiment: Path, labels: Any, tmp_path: Path) -> None:
    given = texts(10)
    path = written("jsonl", tmp_path, [{"text": text} for text in given])
    out = tmp_path / "answers"
    options = {"task": "sentiment", "model": sentiment, "output_format": "parquet"}
    sparsec.run(path, out, part_rows=4, **options)
    wanted = [{"text": text, **answer} for text, answer in zip(given, labels(given), strict=True)]
    assert same(parquet.read_table(out).to_pylist(), wanted)
    assert sorted(p.name for p in out.glob("part-*")) == [f"part-0000{k}.parquet" for k in range(3)]
    # An output is an input.
    with pytest.raises(InputError, match=r"column label, score already.*predicted_"):
        sparsec.run(out, tmp_path / "two.jsonl", task="sentiment", model=sentiment)
    sparsec.run(out, tmp_path / "two.jsonl", task="sentiment", model=sentiment, prefix="new_")
    assert [row["new_label"] for row in lines(tmp_path / "two.jsonl")] == [
        row["label"] for row in wanted
    ]


@pytest.mark.parametrize("rows", [0, 1, 7, 8])
@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl", "txt"])
def test_counts_at_the_ends_of_parts(rows: int, kind: str, sentiment: Path, tmp_path: Path) -> None:
    given = texts(rows, most=3)
    path = tmp_path / f"in.{kind}"
    if rows:
        written(kind, tmp_path, [{"text": text} for text in given])
    elif kind == "parquet":
        parquet.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    else:
        path.write_text("text\n" if kind == "csv" else "")
    for name in ("out.parquet", "out.csv", "out.jsonl"):
        out = tmp_path / name
        found = sparsec.run(path, out, task="sentiment", model=sentiment, part_rows=4)
        assert found.rows == rows
        if not (name == "out.jsonl" and not rows):
            assert [row["text"] for row in read(out)] == given


def test_lines_of_any_kind(sentiment: Path, tmp_path: Path) -> None:
    """Ends of lines, a byte order mark, separators that are no ends; the last line has no end."""
    path = tmp_path / "in.txt"
    path.write_bytes("\ufeffone\r\ntwo\u2028half\n\n \nlast".encode())
    sparsec.run(path, tmp_path / "o.jsonl", task="sentiment", model=sentiment, part_rows=1)
    assert [row["text"] for row in lines(tmp_path / "o.jsonl")] == [
        "one", "two\u2028half", "", " ", "last",
    ]  # fmt: skip


# ---- tasks ---------------------------------------------------------------------------------------

QUESTIONS = [
    {"question": "who flies ?", "context": "mary is flying to new york . " * n} for n in (1, 30, 2)
]
PAIRS = [{"text": text, "other": other} for text, other in zip(texts(9), texts(9, 1), strict=True)]
TASKS: dict[str, tuple[dict[str, Any], list[dict[str, Any]], Callable[[Any, Any], Any]]] = {
    "text-classification": (
        {"columns": {"text": "text", "pair": "other"}},
        PAIRS,
        lambda p, row: _label(p([[row["text"], row["other"]]])),
    ),
    "token-classification": (
        {"aggregation_strategy": "simple"},
        [{"text": text} for text in texts(9)],
        lambda p, row: {"entities": p(row["text"]).model_dump()["predictions"][0]},
    ),
    "question-answering": (
        {},
        QUESTIONS,
        lambda p, row: p(**row).model_dump(),
    ),
    "zero-shot-text-classification": (
        {"columns": {"labels": "kinds"}},
        [{"text": t, "kinds": ["sport", "news", "good movie"][: 1 + i % 3]}
         for i, t in enumerate(texts(9))],
        lambda p, row: p(row["text"], labels=row["kinds"]).model_dump(include={"labels", "scores"}),
    ),
    "embedding": (
        {"extraction_strategy": "per_token"},
        [{"text": text} for text in texts(9)],
        lambda p, row: {"embedding": [list(x) for x in p([row["text"]]).embeddings[0]]},
    ),
    "fill-mask": (
        {"top_k": 2},
        [{"text": text + " [MASK]"} for text in texts(9)],
        lambda p, row: {"predictions": p([row["text"]]).model_dump()["predictions"]},
    ),
}  # fmt: skip


def _label(found: Any) -> dict[str, Any]:
    return {"label": found.labels[0], "score": found.scores[0]}


def close(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(close(found[k], wanted[k]) for k in wanted)
    if isinstance(wanted, (list, tuple)):
        return len(found) == len(wanted) and all(map(close, found, wanted))
    if isinstance(wanted, float):
        return bool(found == pytest.approx(wanted, rel=1e-4, abs=1e-6))
    return bool(found == wanted)


@pytest.fixture(scope="module")
def onnx_models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Models that are not compiled: what is tested here does not depend on the engine."""
    root = tmp_path_factory.mktemp("onnx")

    def model(task: str) -> Path:
        folder = root / task
        if not folder.exists():
            head, settings = server_support.TASKS[task]
            pipelines_support.make(folder, head, **settings)
        return folder

    return model


ORT: dict[str, Any] = {"engine_type": "onnxruntime"}


def test_the_process_is_as_before(text_models: TextModels, tmp_path: Path) -> None:
    """However it ends: how threads take turns, and who has memory."""

    def settings() -> tuple[Any, ...]:
        pool = pa.default_memory_pool().backend_name
        return sys.getswitchinterval(), pool, os.environ.get("TOKENIZERS_PARALLELISM")

    during = []
    before = settings()
    model = text_models["text-classification"].parent
    for text in ("good", 7):
        path = write_lines(tmp_path / f"{text}.jsonl", [{"text": text}])
        try:
            sparsec.run(
                path, tmp_path / f"{text}.csv", task="text-classification", model=model,
                progress=lambda _: during.append(settings()), **ORT,
            )  # fmt: skip
        except InputError:
            assert text == 7
        assert settings() == before
    assert during and during[0] != before and during[0][0] < before[0]


@pytest.mark.parametrize("task", TASKS)
def test_tasks(task: str, onnx_models: Callable[[str], Path], tmp_path: Path) -> None:
    """Each row's answer is what the pipeline says of it alone, in both typed and untyped files."""
    options, rows, alone = TASKS[task]
    model, options = onnx_models(task), {**options, **ORT}
    of_pipeline = {k: v for k, v in options.items() if k != "columns"}
    with Pipeline.create(task, model, **of_pipeline) as pipeline:
        wanted = [{**row, **alone(pipeline, row)} for row in rows]
    path = write_lines(tmp_path / "in.jsonl", rows)
    for name in ("out.jsonl", "out.parquet"):
        sparsec.run(path, tmp_path / name, task=task, model=model, part_rows=4, **options)
        found = read(tmp_path / name)
        assert close(found, wanted), name


def test_rerank(onnx_models: Callable[[str], Path], tmp_path: Path) -> None:
    one_label = onnx_models("rerank")
    documents = texts(12, 3)
    rows = [{"query": "who is flying ?", "documents": documents[:k]} for k in (1, 5, 12)]
    with Pipeline.create("rerank", one_label, **ORT) as pipeline:
        wanted = [{**row, "ranking": pipeline(**row).model_dump()["ranking"]} for row in rows]
        scores = [pipeline(query="a", documents=[text]).ranking[0].score for text in documents]
    path = write_lines(tmp_path / "in.jsonl", rows)
    for name in ("out.jsonl", "out.parquet"):
        sparsec.run(path, tmp_path / name, task="rerank", model=one_label, **ORT)
        assert close(read(tmp_path / name), wanted)
    # A document a row.
    rows = [{"query": "a", "passage": text} for text in documents]
    path = write_lines(tmp_path / "flat.jsonl", rows)
    options: dict[str, Any] = {"columns": {"document": "passage"}, **ORT}
    sparsec.run(path, tmp_path / "flat.parquet", task="rerank", model=one_label, **options)
    assert close([row["score"] for row in read(tmp_path / "flat.parquet")], scores)


@pytest.mark.parametrize("task", ["sentence-embedding", "sparse-embedding"])
def test_vectors(task: str, onnx_models: Callable[[str], Path], tmp_path: Path) -> None:
    given, model = texts(9), onnx_models(task)
    path = written("txt", tmp_path, [{"text": text} for text in given])
    with Pipeline.create(task, model, **ORT) as pipeline:
        wanted = pipeline(given).model_dump()["embeddings"]
    for name in ("out.parquet", "out.jsonl"):
        sparsec.run(path, tmp_path / name, task=task, model=model, part_rows=4, **ORT)
        found = read(tmp_path / name)
        rows = [row["embedding"] if "embedding" in row else _without_text(row) for row in found]
        assert close(rows, wanted)
    if task == "sentence-embedding":
        kind_of = parquet.read_schema(tmp_path / "out.parquet").field("embedding").type
        assert kind_of == pa.list_(pa.float32(), len(wanted[0]))


def _without_text(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "text"}


def test_a_task_of_somebody_else(sentiment: Path, tmp_path: Path) -> None:
    """One that nothing is known of: what its schemas say."""
    from pydantic import BaseModel

    class Words(BaseModel):
        line: str

    class Count(BaseModel):
        words: int
        longest: str | None

    from sparsec.serving.pipelines import Job

    class Counting(Pipeline):
        task = "counting"
        input_schema = Words
        output_schema = Count

        def prepare(self, inputs: BaseModel) -> Job:
            job = Job()
            job.line = inputs.line  # type: ignore[attr-defined]
            job.items.append(self.text.features(self.text.fit(self.text.encode("a"), 16)))
            return job

        def finish(self, job: Job, outputs: Any) -> Count:
            words = job.line.split()  # type: ignore[attr-defined]
            return Count(words=len(words), longest=max(words, key=len, default=None))

    path = written("txt", tmp_path, [{"text": "a bcd"}, {"text": ""}])
    sparsec.run(path, tmp_path / "out.parquet", task=Counting, model=sentiment)
    assert read(tmp_path / "out.parquet") == [
        {"text": "a bcd", "words": 2, "longest": "bcd"},
        {"text": "", "words": 0, "longest": None},
    ]


# ---- bad rows ------------------------------------------------------------------------------------

LONG = "good " * 100


def test_bad_rows_go_aside(sentiment: Path, labels: Any, tmp_path: Path) -> None:
    rows: list[Any] = [{"text": text, "id": i} for i, text in enumerate(texts(30))]
    path = tmp_path / "in.jsonl"
    broken = {3: "{not json", 7: "[1]", 11: '{"text": 5}', 12: '{"other": 1}', 13: '{"text": null}'}
    broken[20] = json.dumps({"text": LONG})
    broken[21] = '{"text": "\\ud800"}'
    body = "".join(broken.get(i, json.dumps(row)) + "\n" for i, row in enumerate(rows))
    path.write_bytes(body.encode() + b'{"text": "\xff"}\n')
    out, bad = tmp_path / "out.jsonl", tmp_path / "bad.jsonl"
    found = sparsec.run(path, out, task="sentiment", model=sentiment, bad_rows=bad, part_rows=8)
    good = [row for i, row in enumerate(rows) if i not in broken]
    wanted = [{**row, **a} for row, a in zip(good, labels([r["text"] for r in good]), strict=True)]
    assert same(lines(out), wanted)
    said = lines(bad)
    assert [row["row"] for row in said] == [*(i + 1 for i in sorted(broken)), 31]
    assert {row["file"] for row in said} == {str(path)}
    reasons = [
        "not JSON",
        "no object",
        "text is 5",
        "empty",
        "empty",
        "102 tokens",
        "Unicode",
        "UTF-8",
    ]
    for row, reason in zip(said, reasons, strict=True):
        assert reason in row["error"], row
    assert said[0]["raw"] == "{not json" and said[5]["data"] == {"text": LONG}
    assert (found.rows, found.bad) == (23, 8)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_bad_rows_of_another_type(kind: str, sentiment: Path, tmp_path: Path) -> None:
    """They have no say in what the columns of a table are; other columns of CSV may be anything."""
    rows: list[Any] = [{"text": "good", "id": 1}, {"text": 5, "id": 2}, {"text": {"a": 1}, "id": 3}]
    rows.append({"text": "bad", "id": "4" if kind == "csv" else 4, "late": [1]})
    path = write_lines(tmp_path / "in.jsonl", rows)
    out, bad = tmp_path / f"out.{kind}", tmp_path / "bad.jsonl"
    found = sparsec.run(path, out, task="sentiment", model=sentiment, bad_rows=bad)
    assert (found.rows, found.bad) == (2, 2)
    said = read(out)
    assert [row["text"] for row in said] == ["good", "bad"]
    assert [str(row["id"]) for row in said] == ["1", "4"] and list(said[0])[:3] == [
        *("text", "id", "late")
    ]  # fmt: skip
    assert [row["data"]["id"] for row in lines(bad)] == [2, 3]
    write_lines(path, [*rows, {"text": "good", "id": [1]}])
    if kind == "parquet":
        with pytest.raises(InputError, match="the column id has values of several kinds"):
            sparsec.run(path, out, task="sentiment", model=sentiment, bad_rows=bad, force=True)
    with pytest.raises(InputError, match=r"in\.jsonl, row 2: text is 5"):
        sparsec.run(path, tmp_path / "x.jsonl", task="sentiment", model=sentiment)


def test_the_first_bad_row_stops(sentiment: Path, tmp_path: Path) -> None:
    rows = [{"text": "good"}] * 10 + [{"text": LONG}, {"text": 1}]
    path = write_lines(tmp_path / "in.jsonl", rows)
    options = {"task": "sentiment", "model": sentiment, "part_rows": 4}
    with pytest.raises(TooLongError, match=r"in\.jsonl, row 11: .*102 tokens.*bad_rows"):
        sparsec.run(path, tmp_path / "out.jsonl", **options)
    assert not (tmp_path / "out.jsonl").exists()
    # What was done stays done, and what was wrong may be said to be right.
    found = sparsec.run(path, tmp_path / "out.jsonl", bad_rows=tmp_path / "bad.jsonl", **options)
    assert (found.rows, found.bad, found.resumed) == (10, 2, 8)
    # Cut is another output.
    cut = sparsec.run(
        path, tmp_path / "cut.jsonl", truncate=True, bad_rows=tmp_path / "bad2.jsonl", **options
    )
    assert (cut.rows, cut.bad, cut.truncated) == (11, 1, 1)


def test_rows_of_csv_that_do_not_fit(sentiment: Path, tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text('id,text\n1,good\n2\n\n3,"a\nb"\n4,x,y\n5,bad\n')
    out = tmp_path / "out.csv"
    sparsec.run(
        path, out, task="sentiment", model=sentiment, bad_rows=tmp_path / "bad", part_rows=1
    )
    assert [(row["id"], row["text"]) for row in read(out)] == [
        ("1", "good"), ("3", "a\nb"), ("5", "bad"),
    ]  # fmt: skip
    assert [(row["row"], row["raw"]) for row in lines(tmp_path / "bad")] == [(3, "2"), (7, "4,x,y")]


def test_numbers_that_are_none(tmp_path: Path) -> None:
    pipelines_support.make(
        tmp_path / "m", "sequence-classification", labels=["a", "b"], poison={"bad": float("nan")}
    )
    path = written("txt", tmp_path, [{"text": t} for t in ("good", "bad", "good movie")])
    options = {"task": "sentiment", "model": tmp_path / "m", "on_nonfinite": "error", **ORT}
    with pytest.raises(NonFiniteError, match="row 2"):
        sparsec.run(path, tmp_path / "out.jsonl", **options)
    found = sparsec.run(path, tmp_path / "out.jsonl", bad_rows=tmp_path / "bad", **options)
    assert (found.rows, found.bad) == (2, 1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"inputs": "nothing.jsonl"}, "nothing.jsonl does not exist"),
        ({"inputs": "nothing*.jsonl"}, "no such file"),
        ({"inputs": []}, "no input"),
        ({"inputs": "in.jsonl", "output": "in.jsonl"}, "one of the inputs"),
        ({"inputs": "in.bin"}, r"input_format, one of parquet"),
        ({"inputs": ["in.jsonl", "in.txt"]}, "several formats"),
        ({"inputs": "array.json"}, "JSON array"),
        ({"inputs": "bad.parquet"}, "cannot read .*bad.parquet"),
        ({"inputs": "nowhere://x"}, "cannot open nowhere"),
        (
            {"inputs": "in.csv"},
            r"no column text for .*text: it has a, b; name it by columns={'text': 'COLUMN'}",
        ),
        ({"inputs": "in.csv", "columns": "c"}, "no column c"),
        ({"columns": {"question": "text"}}, "reads text, pair of a row, and not question"),
        ({"output": "out.txt"}, "parquet, csv, jsonl, not text"),
        ({"part_rows": 0}, "part_rows must be at least 1"),
        ({"input_format": "xml"}, "not 'xml'"),
        ({"prefix": "", "inputs": "label.csv"}, "column label already"),
        ({"inputs": "twice.csv"}, "several columns of one name"),
    ],
)
def test_what_is_refused(
    change: dict[str, Any], said: str, sentiment: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    write_lines(Path("in.jsonl"), [{"text": "good"}])
    for name, body in {
        "in.txt": "good\n", "in.bin": "good\n", "array.json": '[{"text": "a"}]',
        "bad.parquet": "PAR1", "in.csv": "a,b\n1,2\n", "label.csv": "text,label\na,b\n",
        "twice.csv": "text,text\na,b\n",
    }.items():  # fmt: skip
        Path(name).write_text(body)
    given = {"inputs": "in.jsonl", "output": "out.jsonl", **change}
    before = sorted(Path().iterdir())
    with pytest.raises(InputError, match=said):
        sparsec.run(
            given.pop("inputs"), given.pop("output"), task="sentiment", model=sentiment, **given
        )
    assert sorted(Path().iterdir()) == before


# ---- going on ------------------------------------------------------------------------------------


def test_what_is_there_is_not_replaced(sentiment: Path, tmp_path: Path) -> None:
    path = written("txt", tmp_path, [{"text": "good"}])
    other = tmp_path / "other.txt"
    other.write_text("bad\n")
    options = {"task": "sentiment", "model": sentiment}
    for name in ("out.jsonl", "folder"):
        out = tmp_path / name
        sparsec.run(path, out, **options)
        with pytest.raises(InputError, match="force=True"):
            sparsec.run(other, out, **options)
        sparsec.run(other, out, force=True, **options)
        file = out if out.is_file() else out / "part-00000.jsonl"
        assert [row["text"] for row in lines(file)] == ["bad"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary").write_text("")
    with pytest.raises(InputError, match="exists"):
        sparsec.run(path, tmp_path / "mine", **options)


def test_a_command_on_other_inputs_does_not_go_on(sentiment: Path, tmp_path: Path) -> None:
    rows = [{"text": "good"}] * 8 + [{"text": None}]
    path = write_lines(tmp_path / "in.jsonl", rows)
    options = {"task": "sentiment", "model": sentiment, "part_rows": 2}
    with pytest.raises(InputError, match="row 9"):
        sparsec.run(path, tmp_path / "out.jsonl", **options)
    write_lines(path, [{"text": "bad"}] * 9)
    with pytest.raises(InputError, match="work of another command"):
        sparsec.run(path, tmp_path / "out.jsonl", **options)
    found = sparsec.run(path, tmp_path / "out.jsonl", force=True, **options)
    assert (found.rows, found.resumed) == (9, 0)
    assert [row["text"] for row in lines(tmp_path / "out.jsonl")] == ["bad"] * 9


def command(model: Path, folder: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "sparsec", "run", "--task", "sentiment", "--model", str(model)),
        *(str(folder / "in.txt"), "--part-rows", "32", *more),
    ]


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("out.parquet", signal.SIGKILL),
        pytest.param("folder", signal.SIGINT, marks=SLOW),
        pytest.param("out.parquet", signal.SIGINT, marks=SLOW),
        pytest.param("folder", signal.SIGKILL, marks=SLOW),
    ],
)
def test_stopped_at_any_moment_the_same_command_goes_on(
    name: str, number: int, sentiment: Path, tmp_path: Path
) -> None:
    given = texts(3000, most=40)
    written("txt", tmp_path, [{"text": text} for text in given]).rename(tmp_path / "in.txt")
    out = tmp_path / name
    call = [*command(sentiment, tmp_path, "-o", str(out)), "--output-format", "parquet"]
    state = out / "_run" if name == "folder" else tmp_path / f".{name}.run"
    parts = out if name == "folder" else state
    stops, seen = 0, 0
    while True:
        process = subprocess.Popen(
            call, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            preexec_fn=heed_signals,
        )  # fmt: skip

        def more(process: subprocess.Popen[str] = process, seen: int = seen) -> bool:
            return process.poll() is not None or len(list(state.glob("*.done"))) > seen + 5

        if stops < 2:
            wait_for(more)
        if stops < 2 and process.poll() is None:
            time.sleep(random.Random(stops).random() * 0.05)
            process.send_signal(number)
        said, wrong = process.communicate(timeout=PATIENCE)
        if process.returncode == 0:
            break
        assert process.returncode == (130 if number == signal.SIGINT else -number), wrong
        assert "Traceback" not in wrong
        stops += 1
        done = len(list(state.glob("*.done")))
        assert done > seen
        seen = done
        # Parts are whole: each can be read.
        for part in parts.glob("part-*"):
            whole = part.suffix == ".parquet"
            table = parquet.read_table(part) if whole else pa.ipc.open_file(part).read_all()
            assert table.num_rows == 32 or part.stem == "part-00093"
        assert not (name != "folder" and out.exists())
    assert stops == 2
    assert "done before" in said
    table = parquet.read_table(out)
    assert table.column("text").to_pylist() == given
    once = tmp_path / "once.parquet"
    sparsec.run(tmp_path / "in.txt", once, task="sentiment", model=sentiment)
    assert table.column("label").equals(parquet.read_table(once).column("label"))
    left = {"folder"} if name == "folder" else {name}
    assert {p.name for p in tmp_path.iterdir()} == left | {"in.txt", "once.parquet"}


def test_two_processes_do_not_write_one_output(sentiment: Path, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("good\n" * 3000)
    call = command(sentiment, tmp_path, "-o", str(tmp_path / "out.jsonl"))
    process = subprocess.Popen(call, cwd=tmp_path, stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: (tmp_path / ".out.jsonl.run" / "settings.json").exists())
        os.kill(process.pid, signal.SIGSTOP)
        with pytest.raises(InputError, match="another process"):
            sparsec.run(
                tmp_path / "in.txt", tmp_path / "out.jsonl", task="sentiment", model=sentiment,
                part_rows=32, truncate=False,
                engine_type="sparsec", on_nonfinite="warn",
            )  # fmt: skip
    finally:
        os.kill(process.pid, signal.SIGCONT)
        assert process.wait(PATIENCE) == 0


# ---- the command ---------------------------------------------------------------------------------


def test_the_command(
    onnx_models: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("q.csv").write_text("q;p\nwho flies ?;mary is flying to new york .\n;empty\n")
    call = ["run", "--task", "qa", "--model", str(onnx_models("question-answering")), "q.csv"]
    call += ["--delimiter", ";", "--column", "question=q", "--column", "context=p", "-o", "a.jsonl"]
    call += [
        "--option",
        "max_answer_len=3",
        "--prefix",
        "best_",
        "--bad-rows",
        "bad.jsonl",
        "-e",
        "onnxruntime",
    ]
    assert main([*call, "-v"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("a.jsonl: 1 rows (1 bad) in ")
    assert "2 of 2 rows (100.0 %)" in printed.err
    (row,) = lines(Path("a.jsonl"))
    assert set(row) == {"q", "p", "best_score", "best_answer", "best_start", "best_end"}
    assert len(lines(Path("bad.jsonl"))) == 1
    assert main(call) == InputError.exit_code
    assert "--force" in capsys.readouterr().err


def test_task_or_model_alone(
    sentiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    path = written("txt", tmp_path, [{"text": "good"}])
    out = tmp_path / "out.jsonl"
    call = ["run", str(path), "-o", str(out)]
    assert main([*call, "--model", str(sentiment)]) == 0
    assert "the task is text-classification: " in capsys.readouterr().err
    sparsec.run(path, tmp_path / "python.jsonl", model=sentiment)
    assert out.read_bytes() == (tmp_path / "python.jsonl").read_bytes()
    assert main(call) == InputError.exit_code
    assert "say what answers: a model (--model), or a task" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"a model \(model\), or a task"):
        sparsec.run(path, out)
    # A task's own model is a folder of a package.
    monkeypatch.setattr("sparsec.serving.pipelines.base.default_model", lambda task: sentiment)
    assert main([*call, "--task", "sentiment", "--force"]) == 0
    assert out.read_bytes() == (tmp_path / "python.jsonl").read_bytes()


def test_too_long_has_its_exit_code(
    sentiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And names the flags that there are."""
    (tmp_path / "in.txt").write_text(LONG + "\n")
    call = command(sentiment, tmp_path, "-o", str(tmp_path / "o.jsonl"))
    assert main(call[3:]) == TooLongError.exit_code
    said = capsys.readouterr().err
    assert "in.txt, row 1: sequences: the text has 102 tokens and " in said
    assert ": --truncate cuts it" in said and "(--bad-rows puts such rows aside)" in said
    assert main([*call[3:], "--truncate", "--force"]) == 0


def test_labels_are_needed_once(onnx_models: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("good movie\n")
    model = onnx_models("zero-shot-text-classification")
    options: dict[str, Any] = {"task": "zero-shot", "model": model, **ORT}
    with pytest.raises(InputError, match="labels: give them once"):
        sparsec.run(tmp_path / "in.txt", tmp_path / "o.jsonl", **options)
    sparsec.run(tmp_path / "in.txt", tmp_path / "o.jsonl", labels="sport,news", **options)
    assert sorted(lines(tmp_path / "o.jsonl")[0]["labels"]) == ["news", "sport"]


def test_progress_knows_what_is_left() -> None:
    from sparsec.serving.bulk import Progress

    assert str(Progress(250, 1000, 100.0)) == "250 of 1,000 rows (25.0 %), 100 rows/s, 8 s left"
    assert str(Progress(0, 2_000_000, 0.5)).endswith("0.5 rows/s, 1111 h 6 min left")
    assert Progress(0, 0, 0.0).seconds_left is None
