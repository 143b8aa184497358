"""``sparsec evaluate``: how far a model is from the one it is to replace, and what it buys."""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsec.cli.common import HelpFormatter, output_file, positive, progress
from sparsec.console import say
from sparsec.errors import InputError
from sparsec.paths import user_path

if TYPE_CHECKING:
    from sparsec.pruning.evaluation import Evaluation

ENGINES = ("sparsec", "onnxruntime")

MISSED = 1
"""Exit code when a gate is missed."""

Gate = tuple[str, float]


def register(commands: Any, common: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the command's parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "evaluate",
        parents=[common],
        help="compare a model with the one that it is to replace",
        description="compare a model with the one that it is to replace: how much their answers "
        "agree, how good they are where there are labels, how fast and how large the models are",
        epilog="Example: sparsec evaluate fast --against model --texts held-out.txt --at-least "
        "agreement=0.98. Exit code 1: a gate (--at-least, --at-most) is missed.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "candidate",
        help="the model to judge: a folder with model.onnx and tokenizer.json, an .onnx file, an "
        "artifact, or hf:org/name; with no tokenizer of its own it has the reference's",
    )
    parser.add_argument(
        "--against", required=True, metavar="REFERENCE",
        help="the model to compare with, in the same forms",
    )  # fmt: skip
    parser.add_argument(
        "--texts", required=True, metavar="FILE",
        help="lines, JSON lines (text, a pair such as sentence1 and sentence2, question and "
        "context, tokens; label) or Parquet; - for standard input; 64 texts or more are wanted",
    )  # fmt: skip
    parser.add_argument(
        "--labels", metavar="FILE",
        help="a label for each text, a line each (default: the texts' own, if they have any)",
    )  # fmt: skip
    parser.add_argument(
        "--task", metavar="TASK",
        help="embeddings, text-classification, multi-label-classification, regression, "
        "token-classification, question-answering, fill-mask, or outputs for numbers as they are "
        "(default: what the reference's config.json or outputs say)",
    )  # fmt: skip
    parser.add_argument(
        "-e", "--engine", choices=ENGINES, default="sparsec", help="what runs the candidate"
    )
    parser.add_argument(
        "--reference-engine", "--reference_engine", choices=ENGINES, default="sparsec",
        help="what runs the reference",
    )  # fmt: skip
    _add_details(parser)
    out = parser.add_argument_group("output")
    out.add_argument("--json", action="store_true", help="print JSON instead of a table")
    out.add_argument(
        "-x", "--export-path", "--export_path", metavar="FILE",
        help="also write the results as JSON",
    )  # fmt: skip
    out.add_argument(
        "--report", metavar="FOLDER",
        help="also write a page with plots, index.html, which needs no other file",
    )  # fmt: skip
    gates = parser.add_argument_group("gates")
    for name, worse in (("--at-least", "below"), ("--at-most", "above")):
        gates.add_argument(
            name, name.replace("t-", "t_"), action="append", type=gate,
            metavar="METRIC=VALUE",
            help=f"exit with 1 if a metric of the JSON's, speedup, or the share of a score that is "
            f"kept (accuracy_kept) is {worse} this; may be repeated",
        )  # fmt: skip
    parser.set_defaults(run=run)
    return parser


def _add_details(parser: argparse.ArgumentParser) -> None:
    how = parser.add_argument_group("details")
    how.add_argument(
        "--tokenizer", metavar="PATH", help="tokenizer.json or its folder, if not beside the models"
    )
    how.add_argument(
        "--text-field", "--text_field", metavar="NAME[,NAME]",
        help="field of JSON lines and Parquet that has the text; two for pairs",
    )  # fmt: skip
    how.add_argument(
        "--label-field", "--label_field", metavar="NAME", help="field that has the label"
    )
    how.add_argument(
        "--pooling", choices=("mean", "cls", "max"),
        help="how an embedding is made of those of the tokens (default: what the model's folder "
        "says, else mean)",
    )  # fmt: skip
    how.add_argument(
        "--max-length", "--max_length", type=positive, metavar="N",
        help="tokens after which texts are cut (default: what both models take)",
    )  # fmt: skip
    how.add_argument("--limit", type=positive, metavar="N", help="texts to read at most")
    how.add_argument(
        "-ncores", "--num-cores", "--num_cores", type=positive, metavar="N",
        help="physical cores to use (default: all that this process may use)",
    )  # fmt: skip
    how.add_argument(
        "-t", "--time", type=_seconds, default=5.0, metavar="SECONDS",
        help="how long to measure latency, 0: not at all",
    )  # fmt: skip
    how.add_argument("--seed", type=int, default=0, metavar="N", help="of what is drawn at random")


def gate(text: str) -> Gate:
    """``name=number``, for argparse."""
    name, _, value = text.rpartition("=")
    try:
        number = float(value.removesuffix("%")) / (100 if value.endswith("%") else 1)
    except ValueError:
        number = None
    if not name or number is None or number != number:
        raise argparse.ArgumentTypeError(f"{text!r} is not like cosine_mean=0.97")
    return name.strip(), number


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a time of at least 0")
    return value


def run(args: argparse.Namespace) -> int:
    """Compare, print, judge."""
    from sparsec.pruning.evaluation import evaluate
    from sparsec.pruning.evaluation.tasks import check_metric

    gates = args.at_least or [], args.at_most or []
    for name, _ in itertools.chain(*gates):
        check_metric(name)
    export = output_file(args.export_path) if args.export_path else None
    page = _page(args.report) if args.report else None
    found = evaluate(
        args.candidate,
        against=args.against,
        texts=args.texts,
        labels=args.labels,
        task=args.task,
        engine=args.engine,
        reference_engine=args.reference_engine,
        tokenizer=args.tokenizer,
        text_field=args.text_field.split(",") if args.text_field else None,
        label_field=args.label_field,
        pooling=args.pooling,
        max_length=args.max_length,
        limit=args.limit,
        num_cores=args.num_cores,
        seconds=args.time,
        seed=args.seed,
        progress=(lambda _: None) if args.quiet else progress(args),
    )
    missed = judge(found, *gates)
    text = json.dumps(found.to_json(), indent=2) + "\n"
    if export is not None:
        _write(export, text)
    if page is not None:
        from sparsec.pruning.evaluation.page import render

        _write(page, render(found))
    print(text if args.json else found, end="" if args.json else "\n")
    for line in missed:
        say(f"missed: {line}")
    return MISSED if missed else 0


def judge(found: Evaluation, at_least: Sequence[Gate], at_most: Sequence[Gate]) -> list[str]:
    """What gates are missed, in words.

    A candidate that gives NaN for some text misses every gate: its other figures are those of the
    rest.

    Raises:
        InputError: there is no such metric for this task.
    """
    values = found.metrics()
    missed = []
    for gates, sign, word in ((at_least, 1, "at least"), (at_most, -1, "at most")):
        for name, bound in gates:
            if name not in values:
                raise InputError(f"there is no {name} here; there are {', '.join(sorted(values))}")
            value = values[name]
            # NaN misses too.
            if not sign * value >= sign * bound:
                missed.append(f"{name} is {value:.6g}, {word} {bound:g} is wanted")
    broken = found.candidate.nonfinite
    if (at_least or at_most) and broken:
        missed.append(f"the candidate gives NaN or infinity for {broken} texts")
    return missed


def _page(folder: str) -> Path:
    """The page to write, whose folder is made now.

    Raises:
        InputError: it cannot be written, or matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError("--report needs matplotlib: pip install 'sparsec[evaluate]'") from None
    return output_file(str(user_path(folder) / "index.html"))


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
