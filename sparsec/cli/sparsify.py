"""``sparsec sparsify``: from a dense model to a fast one."""

from __future__ import annotations

import argparse
import json
from typing import Any

from sparsec.cli.common import HelpFormatter, positive, progress
from sparsec.console import say

FORMS = ("auto", "blocks", "channels", "int8")

MISSED = 1
"""Exit code when the goal is missed."""


def register(commands: Any, common: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the command's parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "sparsify",
        parents=[common],
        help="make a dense model small and fast, and say what that cost",
        description="prune and quantize a dense model with some of the texts that it is for; the "
        "result is an ONNX model with the same inputs and outputs, and a report",
        epilog="Example: sparsec sparsify ./model --texts texts.txt --speedup 3 -o ./model-fast. "
        "Interrupted, the same command goes on. Exit code 1: the goal is missed.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "model",
        help="the dense model: a folder with model.onnx and tokenizer.json, an .onnx file beside "
        "its tokenizer, or hf:org/name; float32 or float16",
    )
    parser.add_argument(
        "--texts", required=True, metavar="FILE",
        help="lines, JSON lines or Parquet, as for evaluate; - for standard input; 64 or more, "
        "some thousands do better; a fifth is held out to judge by",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", required=True, metavar="OUT",
        help="the folder to make; until it is whole, the work so far is in .OUT.sparsify beside it",
    )  # fmt: skip
    goal = parser.add_argument_group("goal").add_mutually_exclusive_group()
    goal.add_argument(
        "--sparsity", type=float, metavar="S",
        help="share of the blocks of 4 weights of the encoder's layers that become zero, as 0.8",
    )  # fmt: skip
    goal.add_argument(
        "--speedup", type=float, metavar="X",
        help="times as fast as the dense model in int8, measured on this machine at the lengths of "
        "the texts",
    )  # fmt: skip
    goal.add_argument(
        "--keep", type=float, metavar="K",
        help="the fastest whose agreement with the dense model on the texts held out is at least "
        "this; otherwise nothing is written but the report",
    )  # fmt: skip
    _add_details(parser)
    parser.set_defaults(run=run)
    return parser


def _add_details(parser: argparse.ArgumentParser) -> None:
    how = parser.add_argument_group("how")
    how.add_argument(
        "--form", choices=FORMS, default="auto",
        help="what is pruned: blocks of 4 weights, whole heads and feed-forward channels, nothing "
        "(int8: quantization only), or the best mixture of them",
    )  # fmt: skip
    how.add_argument(
        "--minutes", type=float, default=0.0, metavar="M",
        help="how long to train against the dense model; 0: one shot, without training",
    )  # fmt: skip
    how.add_argument(
        "--steps", type=positive, metavar="N",
        help="train so many steps instead: the same number gives the same bytes on the same "
        "machine; the report says how many --minutes made",
    )  # fmt: skip
    how.add_argument(
        "--labels", metavar="FILE",
        help="a label for each text, a line each, for training to count as well",
    )  # fmt: skip
    how.add_argument(
        "--dialect", choices=("qdq", "sparseml"), default="qdq",
        help="how the file says what is quantized",
    )  # fmt: skip
    how.add_argument(
        "--target", default="auto", metavar="NAME",
        help="ISA target whose costs decide (auto: the fastest that runs here)",
    )  # fmt: skip
    how.add_argument(
        "-e", "--engine", choices=("sparsec", "onnxruntime"), default="sparsec",
        help="what runs the models that are compared; onnxruntime needs no C compiler",
    )  # fmt: skip
    how.add_argument(
        "-ncores", "--num-cores", "--num_cores", "--threads", type=positive, metavar="N",
        help="physical cores to use (default: all that this process may use)",
    )  # fmt: skip
    how.add_argument("--seed", type=int, default=0, metavar="N", help="of what is drawn at random")
    how.add_argument(
        "-t", "--time", type=float, default=5.0, metavar="SECONDS",
        help="how long each measurement of latency takes, 0: none unless --speedup needs it",
    )  # fmt: skip
    how.add_argument("--force", action="store_true", help="replace what an earlier run has made")
    details = parser.add_argument_group("texts")
    details.add_argument(
        "--tokenizer", metavar="PATH", help="tokenizer.json or its folder, if not beside the model"
    )
    details.add_argument(
        "--text-field", "--text_field", metavar="NAME[,NAME]",
        help="field of JSON lines and Parquet that has the text; two for pairs",
    )  # fmt: skip
    details.add_argument(
        "--label-field", "--label_field", metavar="NAME",
        help="field that has the label, for training to count as well",
    )  # fmt: skip
    details.add_argument(
        "--max-length", "--max_length", type=positive, metavar="N",
        help="tokens after which texts are cut (default: what the model takes)",
    )  # fmt: skip
    details.add_argument("--limit", type=positive, metavar="N", help="texts to read at most")
    out = parser.add_argument_group("output")
    out.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    """Prune, write, judge."""
    import sparsec
    from sparsec.pruning.waiting import wait_briefly

    wait_briefly()

    found = sparsec.sparsify(
        args.model,
        texts=args.texts,
        output=args.output,
        sparsity=args.sparsity,
        speedup=args.speedup,
        keep=args.keep,
        form=args.form,
        minutes=args.minutes,
        steps=args.steps,
        labels=args.labels,
        dialect=args.dialect,
        target=args.target,
        engine=args.engine,
        num_cores=args.num_cores,
        seed=args.seed,
        tokenizer=args.tokenizer,
        text_field=args.text_field.split(",") if args.text_field else None,
        label_field=args.label_field,
        max_length=args.max_length,
        limit=args.limit,
        seconds=args.time,
        force=args.force,
        progress=(lambda _: None) if args.quiet else progress(args),
    )
    print(json.dumps(found.to_json(), indent=2) if args.json else found)
    if found.output is None:
        say(f"missed: nothing but the report was written to {args.output}")
    elif not found.reached:
        say(f"missed: {found.goal}; what was reached is in {args.output}")
    return 0 if found.reached else MISSED
