"""``sparsec buckets``: which sequence lengths to compile for, judged by a file of texts."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsec import hub
from sparsec.cli.common import HelpFormatter, output_file, positive, progress
from sparsec.errors import InputError
from sparsec.paths import user_path

if TYPE_CHECKING:
    from sparsec.serving.buckets import CostModel, Suggestion

# Lengths at which an ONNX model is measured, as far as they are not above the greatest; some are no
# multiples of what kernels compute together.
_MEASURED = (16, 24, 64, 136, 256, 512)

_SECONDS = 3.0


def register(commands: Any, common: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the command's parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "buckets",
        parents=[common],
        help="suggest sequence lengths to compile for",
        description="suggest the cheapest sequence lengths (buckets) to compile for, from texts "
        "like those to come",
        epilog="Example: sparsec buckets texts.txt --tokenizer model -n 4 --plot out.png",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("texts", help="a file with a text per line, UTF-8; - for standard input")
    parser.add_argument(
        "-n", "--count", type=positive, default=4, metavar="N", help="buckets at most"
    )
    parser.add_argument(
        "--tokenizer",
        metavar="PATH",
        help="tokenizer.json, or its folder (default: the one of --model)",
    )
    parser.add_argument(
        "--model",
        metavar="PATH",
        help="measure this artifact or ONNX model (hf:org/name too) on this machine, instead of "
        "going by a BERT-base that was measured",
    )
    parser.add_argument(
        "--max-length",
        type=positive,
        metavar="N",
        help="tokens after which texts are truncated (default: what the model has positions for, "
        "else 512)",
    )
    parser.add_argument(
        "--num-cores", "--num_cores", type=positive, metavar="N", help="cores to measure with"
    )
    parser.add_argument(
        "--plot", metavar="FILE", help="draw lengths and buckets (needs matplotlib)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Count tokens, find the cheapest sets, print them."""
    from sparsec.serving import buckets

    plot = output_file(args.plot) if args.plot else None
    model = hub.local(args.model, progress(args)) if args.model else None
    lengths, limit = _lengths(args, model)
    limit = args.max_length or limit or 512
    cost = _measured(args, model, limit) if model else buckets.DEFAULT
    suggestions = buckets.suggest(lengths, args.count, cost, limit)
    # What a model costs that leaves padding out.
    least = sum(cost(min(length, limit)) for length in lengths)
    if plot is not None:
        _plot(plot, lengths, suggestions, least, limit)
    if args.json:
        print(json.dumps(_report(lengths, limit, cost, suggestions, least), indent=2))
    else:
        print("\n".join(_show(args, lengths, limit, cost, suggestions, least)))
    return 0


def _lengths(
    args: argparse.Namespace, model: str | os.PathLike[str] | None
) -> tuple[list[int], int | None]:
    """(tokens of each text, special ones included; the most that the model takes, if known)."""
    from sparsec.serving.models import ModelFiles
    from sparsec.serving.text import Text

    if not (args.tokenizer or model):
        raise InputError(
            "a tokenizer is needed: give --tokenizer, or --model with one in its folder"
        )
    files = ModelFiles.find_tokenizer(args.tokenizer, model)
    text = Text.load(files)
    try:
        stdin = args.texts == "-"
        content = sys.stdin.buffer.read() if stdin else user_path(args.texts).read_bytes()
        lines = [line for line in content.decode("utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise InputError(f"cannot read {args.texts}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{args.texts} is not UTF-8: {error}") from error
    if not lines:
        raise InputError(f"{args.texts} has no text")
    special = text.special_tokens()
    limits = (files.positions.longest or files.positions.configured, text.max_length)
    most = min((limit for limit in limits if limit is not None), default=None)
    return [len(text.encode(line)) + special for line in lines], most


def _measured(args: argparse.Namespace, model: str | os.PathLike[str], limit: int) -> CostModel:
    """Measure the model on this machine."""
    from sparsec.facade import Engine, generate_random_inputs, is_artifact
    from sparsec.serving import buckets

    tell = progress(args)
    lengths: Sequence[int] | None = None
    if not is_artifact(model):
        lengths = sorted({*(n for n in _MEASURED if n < limit), limit})
    with Engine(model, args.num_cores, buckets=lengths, progress=tell) as engine:
        lengths = engine.buckets
        inputs = {n: generate_random_inputs(engine.artifact, length=n) for n in lengths}
        if tell:
            tell(f"measuring {len(lengths)} lengths")
        times = buckets.measure(lambda n: engine.run(inputs[n]), lengths, _SECONDS)
        cores = engine.num_cores
    name = Path(args.model).name
    return buckets.fit(
        times, f"{name}, measured at {', '.join(map(str, times))} tokens, {cores} cores"
    )


def _report(
    lengths: Sequence[int],
    limit: int,
    cost: CostModel,
    suggestions: Sequence[Suggestion],
    least: float,
) -> dict[str, Any]:
    return {
        "texts": len(lengths),
        "truncated": sum(length > limit for length in lengths),
        "max_length": limit,
        "cost": vars(cost),
        "suggestions": [vars(suggestion) for suggestion in suggestions],
        "milliseconds_without_padding": least,
        "buckets": list(suggestions[-1].buckets),
    }


def _show(
    args: argparse.Namespace,
    lengths: Sequence[int],
    limit: int,
    cost: CostModel,
    suggestions: Sequence[Suggestion],
    least: float,
) -> list[str]:
    ordered = sorted(lengths)
    count = len(ordered)
    cut = sum(length > limit for length in ordered)
    one = suggestions[0].milliseconds
    rows = [
        (",".join(map(str, s.buckets)), f"{s.padding:.0%}", s.milliseconds) for s in suggestions
    ]
    rows.append(("padding left out", "0%", least))
    width = max(len("buckets"), *(len(row[0]) for row in rows))
    lines = [
        f"{count} texts of {ordered[0]} to {ordered[-1]} tokens, half of them up to "
        f"{ordered[(count - 1) // 2]}, 95% up to {ordered[(95 * count - 1) // 100]}"
        + (f"; {cut} above {limit} are truncated" if cut else ""),
        f"cost: {cost.source}",
        "",
        f"{'buckets':{width}}  padding  ms per text  saved",
    ]
    for name, padding, total in rows:
        lines.append(f"{name:{width}}  {padding:>7}  {total / count:11.2f}  {1 - total / one:5.0%}")
    chosen = ",".join(map(str, suggestions[-1].buckets))
    lines += ["", f"sparsec compile {args.model or 'model.onnx'} --buckets {chosen}"]
    return lines


def _plot(
    path: Path, lengths: Sequence[int], suggestions: Sequence[Suggestion], least: float, limit: int
) -> None:
    """Lengths with the buckets above them, and what each number of buckets costs."""
    try:
        import matplotlib
    except ImportError:
        raise InputError("--plot needs matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    count = len(lengths)
    chosen = suggestions[-1].buckets
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(10, 4), width_ratios=(2, 1), layout="constrained"
    )
    top = min(limit, max(lengths))
    step = max(1, top // 64)
    left.hist(
        [min(length, limit) for length in lengths],
        bins=[edge + 0.5 for edge in range(0, top + step, step)],
        color="#7da7d9",
    )
    for bucket in chosen:
        left.axvline(bucket, color="#c0392b", linewidth=1.2)
        left.annotate(
            str(bucket), (bucket, 1), xycoords=("data", "axes fraction"), xytext=(0, 3),
            textcoords="offset points", ha="center", color="#c0392b", fontsize=9,
        )  # fmt: skip
    left.set_xlabel("tokens")
    left.set_ylabel("texts")
    left.set_title(f"{count} texts and the buckets suggested", pad=18, fontsize=11)
    names = [*(str(len(s.buckets)) for s in suggestions), "no\npadding"]
    means = [*(s.milliseconds / count for s in suggestions), least / count]
    bars = right.bar(names, means, color=["#7da7d9"] * len(suggestions) + ["#bbbbbb"])
    right.bar_label(bars, fmt="%.2f", fontsize=9)
    right.set_ylim(0, max(means) * 1.15)
    right.set_xlabel("buckets")
    right.set_ylabel("ms per text")
    right.set_title("cost", pad=18, fontsize=11)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write {path}: {error}") from error
    finally:
        plt.close(figure)
