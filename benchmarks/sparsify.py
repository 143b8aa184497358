"""What `sparsec sparsify` costs and gives, on real text that it has not seen.

    python benchmarks/sparsify.py                        all of it: many hours
    python benchmarks/sparsify.py minilm pos --minutes 30
    python benchmarks/sparsify.py --plots                plots of what is there

Piece by piece: what is done is in build/sparsify/results.json and is not done again; a run that
stops goes on where it was.  Texts are fetched into build/sparsify/corpora (harness/corpora.py);
nothing of them, and nothing that is trained on them, is to be committed.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __package__ in (None, ""):  # run as a script
    sys.path[0] = str(ROOT)

from benchmarks.harness import corpora, dense_models, machine, report  # noqa: E402
from benchmarks.harness.dense_models import Labelled  # noqa: E402
from sparsec.pruning.waiting import wait_briefly  # noqa: E402

WORK = ROOT / "build" / "sparsify"
TRAINING_TEXTS, HELD_OUT_TEXTS = 80_000, 1000
MAIL_CHARACTERS = 600


@dataclass(frozen=True)
class Run:
    """One call of sparsify.

    Attributes:
        name: of the row.
        method: what the plot calls it: int8, one shot, trained.
        options: of `sparsec.sparsify`.
        trained: whether --minutes applies.
    """

    name: str
    method: str
    options: dict[str, Any]
    trained: bool = False


RUNS = (
    Run("int8", "int8", {"form": "int8"}),
    *(Run(f"one shot {s:.0%}", "one shot", {"sparsity": s}) for s in (0.5, 0.8, 0.9)),
    *(Run(f"trained {s:.0%}", "trained", {"sparsity": s}, True) for s in (0.5, 0.8, 0.9)),
    *(Run(f"speedup {x}", "for a speedup", {"speedup": float(x)}, True) for x in (2, 3)),
)


@dataclass(frozen=True)
class Subject:
    """A dense model, the texts to prune it with, and those to judge by."""

    dense: Path
    texts: Path
    held_out: Path
    more: Path | None = None


def lines(path: Path, rows: Iterable[Any]) -> Path:
    """Rows as JSON lines; written once."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        with part.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        part.replace(path)
    return path


def minilm() -> Subject:
    """all-MiniLM-L6-v2 on sentences of the Brown corpus and definitions of WordNet."""
    cache, folder = WORK / "corpora", WORK / "minilm"

    def texts(measuring: bool, count: int) -> list[dict[str, str]]:
        sentences = [corpora.as_text(s) for s in corpora.brown(cache, measuring)]
        half = count // 2
        found = corpora.spread(sentences, half)
        return [
            {"text": t} for t in found + corpora.spread(corpora.glosses(cache, measuring), half)
        ]

    return Subject(
        dense_models.minilm(folder / "dense"),
        lines(folder / "texts.jsonl", texts(False, TRAINING_TEXTS)),
        lines(folder / "held-out.jsonl", texts(True, HELD_OUT_TEXTS)),
        ROOT / "benchmarks" / "data" / "texts.txt",
    )


def pos() -> Subject:
    """Parts of speech in the Brown corpus."""
    cache, folder = WORK / "corpora", WORK / "pos"

    def rows(measuring: bool) -> list[Labelled]:
        found = corpora.brown(cache, measuring)
        return [Labelled(*map(tuple, zip(*sentence, strict=True))) for sentence in found]

    known = {tag for item in rows(False) for tag in item.label}
    held = [item for item in rows(True) if known.issuperset(item.label)]
    dense = dense_models.fine_tuned(folder / "dense", "token-classification", rows(False), 1000)
    return Subject(
        dense,
        lines(folder / "texts.jsonl", (r.row() for r in rows(False)[:TRAINING_TEXTS])),
        lines(folder / "held-out.jsonl", (r.row() for r in held[:: len(held) // HELD_OUT_TEXTS])),
    )


def spam() -> Subject:
    """Mail that is wanted, or not."""
    cache, folder = WORK / "corpora", WORK / "spam"

    def rows(measuring: bool) -> list[Labelled]:
        found = corpora.mails(cache, measuring)
        return [Labelled(m.text[:MAIL_CHARACTERS], "spam" if m.spam else "ham") for m in found]

    dense = dense_models.fine_tuned(folder / "dense", "sequence-classification", rows(False), 200)
    held = rows(True)  # wanted mail first
    step = -(-len(held) // HELD_OUT_TEXTS)
    return Subject(
        dense,
        lines(folder / "texts.jsonl", (r.row() for r in rows(False))),
        lines(folder / "held-out.jsonl", (r.row() for r in held[::step])),
    )


SUBJECTS = {"minilm": minilm, "pos": pos, "spam": spam}


class Results:
    """What is done, by subject and run; written after each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, dict[str, Any]] = (
            json.loads(path.read_text("utf-8")) if path.exists() else {}
        )

    def put(self, key: str, row: dict[str, Any]) -> None:
        """Keep a row, whole or not at all."""
        self.rows[key] = row
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.rows, indent=1) + "\n", "utf-8")
        part.replace(self.path)


def one(
    subject_name: str, subject: Subject, run: Run, minutes: float, target: str
) -> dict[str, Any]:
    """Sparsify, and judge by texts that were never seen."""
    import sparsec

    output = WORK / subject_name / run.name.replace(" ", "-").replace("%", "")
    began = time.monotonic()
    made = sparsec.sparsify(
        subject.dense,
        texts=subject.texts,
        output=output,
        minutes=minutes if run.trained else 0,
        target=target,
        force=True,
        progress=lambda line: print(f"  {line}", flush=True),
        **run.options,
    )
    row: dict[str, Any] = {
        "method": run.method,
        "sparsity": made.sparsity,
        "speedup": made.speedup,
        "target": target,
        "minutes": (time.monotonic() - began) / 60,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "curve": [[point.minutes, point.sparsity, point.agreement] for point in made.curve],
        "machine": machine.describe(),
        "load": machine.load_average(),
    }
    for name, texts in (("held_out", subject.held_out), ("more", subject.more)):
        if texts is not None:
            found = sparsec.evaluate(output, against=subject.dense, texts=texts, seconds=0)
            row[name] = {
                "agreement": dict(found.agreement),
                "scores": dict(found.candidate.scores),
                "dense": dict(found.reference.scores),
            }
    return row


def bert_base() -> dict[str, Any]:
    """One shot at BERT-base's size with random weights: time and memory only."""
    code = (
        "from examples.encoders import PRESETS, write_random; import sys; from pathlib import Path;"
        "write_random(Path(sys.argv[1]), PRESETS['bert-base'], 'fp32')"
    )
    folder = WORK / "bert-base"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "model.onnx").exists():
        subprocess.run(
            [sys.executable, "-c", code, str(folder / "model.onnx")], check=True, cwd=ROOT
        )
        dense_models.minilm(WORK / "minilm" / "dense")
        words = WORK / "minilm" / "dense" / "tokenizer.json"
        (folder / "tokenizer.json").write_bytes(words.read_bytes())
    texts = minilm().texts
    command = [
        *(sys.executable, "-m", "sparsec", "sparsify", str(folder), "--texts", str(texts)),
        *("--limit", "2000", "--sparsity", "0.8", "-t", "0", "--force", "-o"),
    ]
    began = time.monotonic()
    subprocess.run([*command, str(folder / "sparse")], check=True, cwd=ROOT)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "method": "one shot",
        "minutes": (time.monotonic() - began) / 60,
        "peak_gib": used.ru_maxrss / 2**20,
        "machine": machine.describe(),
        "load": machine.load_average(),
    }


def show(rows: dict[str, dict[str, Any]]) -> str:
    """What is done, as a table."""
    lines = []
    for key, row in rows.items():
        held = row.get("held_out", {})
        first = next(iter(held.get("agreement", {}).items()), ("", float("nan")))
        score = next(iter(held.get("scores", {}).items()), None)
        dense = next(iter(held.get("dense", {}).values()), None)
        lines.append([
            key,
            f"{row['sparsity']:.0%}" if "sparsity" in row else "-",
            f"{row['speedup']:.2f}" if row.get("speedup") else "-",
            f"{first[1]:.4f}" if first[0] else "-",
            f"{score[1]:.4f} of {dense:.4f}" if score and dense else "-",
            f"{row['minutes']:.0f}",
            f"{row['peak_gib']:.1f}",
        ])  # fmt: skip
    header = ["", "pruned", "speedup", "agreement", "score", "minutes", "GiB"]
    return report.table(header, lines)


def plots(rows: dict[str, dict[str, Any]], folder: Path) -> list[Path]:
    """Agreement against speed, a plot for each subject with at least two rows."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    written = []
    marks = dict(zip(("int8", "one shot", "trained", "for a speedup"), "osD^", strict=True))
    for subject in SUBJECTS:
        seen = [r for key, r in rows.items() if key.startswith(f"{subject}: ") and r.get("speedup")]
        if len(seen) < 2:
            continue
        figure, axes = pyplot.subplots(figsize=(7.2, 4.8), layout="constrained")
        for method, mark in marks.items():
            points = sorted(
                (r["speedup"], next(iter(r["held_out"]["agreement"].values())))
                for r in seen
                if r["method"] == method
            )
            if points:
                axes.plot(*zip(*points, strict=True), marker=mark, label=method)
        metric = next(iter(seen[0]["held_out"]["agreement"]))
        axes.set_xlabel("times as fast as the dense model in int8")
        axes.set_ylabel(f"{metric}, on texts never seen")
        axes.set_title(subject)
        axes.grid(alpha=0.3)
        axes.legend()
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"sparsify-{subject}.png"
        figure.savefig(path, dpi=120)
        pyplot.close(figure)
        written.append(path)
    return written


def curves(rows: dict[str, dict[str, Any]], folder: Path) -> list[Path]:
    """Agreement over the time of training, a plot for each subject that was trained."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    written = []
    for subject in SUBJECTS:
        trained = {
            key.removeprefix(f"{subject}: "): row["curve"]
            for key, row in rows.items()
            if key.startswith(f"{subject}: ") and len(row.get("curve", ())) > 4
        }
        if not trained:
            continue
        figure, (upper, lower) = pyplot.subplots(
            2, 1, figsize=(7.2, 5.4), sharex=True, height_ratios=(3, 1), layout="constrained"
        )
        for name, curve in trained.items():
            minutes, sparsity, agreement = zip(*curve, strict=True)
            upper.plot(minutes, agreement, marker=".", label=name)
            lower.plot(minutes, sparsity)
        upper.set_ylabel("agreement, texts held out")
        upper.set_title(subject)
        lower.set_ylabel("blocks pruned")
        lower.set_xlabel("minutes of training")
        for axes in (upper, lower):
            axes.grid(alpha=0.3)
        upper.legend()
        path = folder / f"sparsify-{subject}-training.png"
        figure.savefig(path, dpi=120)
        pyplot.close(figure)
        written.append(path)
    return written


def main(argv: Sequence[str] | None = None) -> int:
    """Do what is not done yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("subjects", nargs="*", choices=[*SUBJECTS, "bert-base", []], help="default: all")
    add("--runs", help="only rows whose name has this in it")
    add("--minutes", type=float, default=120.0, help="of training, where there is any")
    add("--target", default="auto", help="ISA target whose costs decide")
    add("--plots", action="store_true", help="draw what is there, and do nothing else")
    add("--results", type=Path, default=WORK / "results.json")
    args = parser.parse_args(argv)
    wait_briefly()
    results = Results(args.results)
    if not args.plots:
        _all(args, results)
    print(show(results.rows))
    folder = ROOT / "benchmarks" / "results"
    for path in (*plots(results.rows, folder), *curves(results.rows, folder)):
        print(f"wrote {path}")
    return 0


def _all(args: argparse.Namespace, results: Results) -> None:
    wanted = args.subjects or [*SUBJECTS, "bert-base"]
    for name in wanted:
        if name == "bert-base":
            if name not in results.rows:
                results.put(name, bert_base())
            continue
        missing = [
            run
            for run in RUNS
            if f"{name}: {run.name}" not in results.rows and (args.runs or "") in run.name
        ]
        if not missing:
            continue
        subject = SUBJECTS[name]()
        for run in missing:
            key = f"{name}: {run.name}"
            print(key, flush=True)
            results.put(key, one(name, subject, run, args.minutes, args.target))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except corpora.Missing as missing:
        sys.exit(str(missing))
