"""``sparsec run``: files of texts through a model, however many."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from sparsec.cli.common import HelpFormatter, guessed_task, lengths, option, positive
from sparsec.console import say

if TYPE_CHECKING:
    from sparsec.serving.bulk import Progress

# Seconds between lines about progress that no terminal shows.
_PERIOD = 10.0


def register(commands: Any, common: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the command's parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "run",
        parents=[common],
        help="answer all rows of files",
        description="answer every row of files and write the rows, with the answers as further "
        "columns, in the order of the inputs; stopped at any moment, the same command goes on",
        epilog="Example: sparsec run --task sentiment-analysis --model model.sparsec "
        "'reviews/*.parquet' -o answers.parquet --column review",
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "inputs", nargs="+", metavar="INPUT",
        help="files of Parquet, CSV, JSON lines or text (a text a line), folders, patterns; paths "
        "or URLs such as s3://bucket/data/*.parquet",
    )  # fmt: skip
    parser.add_argument(
        "--task",
        help="task or alias, such as sentiment-analysis (default: what the model's files say)",
    )
    parser.add_argument(
        "--model", "--model-path", "--model_path", dest="model", metavar="MODEL",
        help="an artifact, a folder with model.onnx, an .onnx file, or hf:org/name (default: the "
        "task's own, of sparsec[models])",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", required=True, metavar="OUTPUT",
        help="a file, by its end .parquet, .csv or .jsonl; else a folder of parts",
    )  # fmt: skip
    _add_data(parser)
    _add_model(parser)
    parser.add_argument(
        "--ray", metavar="ADDRESS",
        help="let the nodes of a Ray cluster do the work: its address, or auto, or local",
    )  # fmt: skip
    parser.add_argument(
        "--force", action="store_true", help="replace what is there, finished or not"
    )
    parser.set_defaults(run=run)
    return parser


def _add_data(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("rows")
    data.add_argument(
        "--column", action="append", default=[], type=_pair, metavar="[FIELD=]COLUMN",
        help="the column with the text (default: text); of tasks that take several, which it is "
        "for, as question=q; may be repeated",
    )  # fmt: skip
    data.add_argument(
        "--prefix", default="", metavar="TEXT", help="what the answer's columns begin with"
    )
    data.add_argument(
        "--bad-rows", "--bad_rows", metavar="FILE",
        help="where rows go that cannot be answered, as JSON lines (default: the first one stops "
        "the run)",
    )  # fmt: skip
    data.add_argument(
        "--input-format", "--input_format", choices=("parquet", "csv", "jsonl", "text"),
        help="what the inputs are (default: by their names)",
    )  # fmt: skip
    data.add_argument(
        "--output-format", "--output_format", choices=("parquet", "csv", "jsonl"),
        help="what the output is (default: by its name, else as the inputs)",
    )  # fmt: skip
    data.add_argument(
        "--delimiter", metavar="CHARACTER", help="what parts the fields of CSV (default: a comma)"
    )
    data.add_argument(
        "--part-rows", "--part_rows", type=positive, metavar="N",
        help="rows that are written, and after a stop repeated, together (default: 16384, fewer "
        "where answers are large)",
    )  # fmt: skip


def _add_model(parser: argparse.ArgumentParser) -> None:
    model = parser.add_argument_group("model")
    model.add_argument(
        "--option", action="append", default=[], type=option, metavar="NAME=VALUE",
        help="an option of the task, such as top_k=3; lists as JSON or with commas; may be "
        "repeated",
    )  # fmt: skip
    model.add_argument(
        "--truncate", action="store_true", help="cut texts that are too long for the model"
    )
    model.add_argument("--tokenizer", metavar="PATH", help="tokenizer.json or its folder")
    model.add_argument(
        "--sequence-length", "--sequence_length", type=lengths, metavar="N[,N]",
        help="buckets to use (default: all of an artifact)",
    )  # fmt: skip
    model.add_argument(
        "--engine-type", "--engine_type", "-e", default="sparsec",
        choices=("sparsec", "onnxruntime"), help="what runs the model",
    )  # fmt: skip
    model.add_argument(
        "--on-nonfinite", "--on_nonfinite", choices=("warn", "error", "ignore"), default="warn",
        help="what NaN and infinity in the model's outputs do",
    )  # fmt: skip
    model.add_argument(
        "-ncores", "--num-cores", "--num_cores", type=positive, metavar="N",
        help="cores to use, of each node with --ray (default: all that this process may use)",
    )  # fmt: skip


def _pair(text: str) -> tuple[str, str]:
    field, mark, column = text.partition("=")
    return (field, column) if mark else ("", text)


def run(args: argparse.Namespace) -> int:
    """Answer all rows; prints what was done."""
    import sparsec
    from sparsec.serving.pipelines import base

    task = args.task or (guessed_task(args, args.model) if args.model else None)
    lines = _Lines(args)
    options: dict[str, Any] = {"engine_type": args.engine_type}
    if task:
        options |= base.parse_options(base.find(task), args.option)
    for name in ("tokenizer", "sequence_length"):
        if getattr(args, name) is not None:
            options[name] = getattr(args, name)
    try:
        found = sparsec.run(
            args.inputs,
            args.output,
            task=task,
            model=args.model,
            columns=dict(args.column),
            prefix=args.prefix,
            input_format=args.input_format,
            output_format=args.output_format,
            delimiter=args.delimiter,
            bad_rows=args.bad_rows,
            part_rows=args.part_rows,
            num_cores=args.num_cores,
            ray=args.ray,
            force=args.force,
            truncate=args.truncate,
            on_nonfinite=args.on_nonfinite,
            progress=lines,
            **options,
        )
    finally:
        lines.end()
    print(found)
    return 0


class _Lines:
    """Shows progress: on a terminal one line that changes, with -v else a line now and then."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._terminal = sys.stderr.isatty() and not args.quiet
        self._shown = self._terminal or args.verbose
        self._last = 0.0
        self._width = 0

    def __call__(self, progress: Progress) -> None:
        if not self._shown:
            return
        if self._terminal:
            text = f"sparsec: {progress}"
            try:
                print(f"\r{text:{self._width}}", end="", file=sys.stderr, flush=True)
            except (OSError, ValueError):
                self._shown = False
            self._width = len(text)
        elif time.monotonic() - self._last >= _PERIOD or progress.rows == progress.total:
            self._last = time.monotonic()
            say(str(progress))

    def end(self) -> None:
        """Leave the line."""
        if self._width and self._shown:
            print(file=sys.stderr)
