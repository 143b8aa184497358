"""``sparsec compile``: an ONNX model becomes an artifact."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from sparsec.cli import completion
from sparsec.cli.common import HelpFormatter, lengths, positive, progress


def register(commands: Any, common: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the command's parser."""
    from sparsec import microarchitectures
    from sparsec.targets import NAMES, PRECISIONS

    parser: argparse.ArgumentParser = commands.add_parser(
        "compile",
        parents=[common],
        help="compile an ONNX model to an artifact",
        description="compile an ONNX model to shared libraries, one per sequence length",
        epilog="Example: sparsec compile model.onnx --buckets 16,128",
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "model",
        help="an ONNX file, a folder with model.onnx, tokenizer.json, config.json, or "
        "hf:org/name[/file.onnx][@revision]",
    )
    parser.add_argument(
        "--buckets",
        type=lengths,
        metavar="LENGTHS",
        help="sequence lengths to compile for, such as 16,128; "
        "needed unless the model has no sequence axis or works for one length only",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        help="the artifact to write (default: model.sparsec beside model.onnx; of hf:org/name, "
        "name.sparsec in the working directory)",
    )
    parser.add_argument(
        "--batch-size",
        type=positive,
        default=1,
        metavar="N",
        help="batch size to cut layers for; any other runs too",
    )
    target = parser.add_argument(
        "--target",
        type=_targets,
        default="auto",
        metavar="NAMES",
        help=f"instructions to use: {', '.join(NAMES)}; several such as avx2,avx512_vnni make one "
        "artifact of which the fastest that runs is loaded; auto: the best that this machine has",
    )
    completion.suggest(target, ("auto", *NAMES))
    parser.add_argument(
        "--tune-for",
        choices=("auto", "native", *microarchitectures.NAMES),
        default="auto",
        metavar="CPU",
        help="microarchitecture whose costs decide between ways to compute the same, named as for "
        f"gcc's -mtune: {', '.join(microarchitectures.NAMES)}; native: this machine's; "
        "auto: native with --target auto, else generic",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="of products of floats in linear layers and attention; bf16: operands rounded to "
        "bfloat16, sums in float32, for CPUs that have instructions for it",
    )
    parser.add_argument(
        "--cc",
        metavar="COMMAND",
        help="C compiler: a path or a command, or zig for the one of sparsec[cc] "
        "(default: $CC, else the first of cc, gcc, clang, zig)",
    )
    parser.add_argument(
        "--jobs",
        type=positive,
        metavar="N",
        help="C compilers to run at once (default: as many as usable cores)",
    )
    parser.add_argument(
        "--emit-c", metavar="DIR", help="keep the generated C there, with a Makefile"
    )
    parser.add_argument(
        "--dump-ir",
        metavar="DIR",
        help="write the IR there, after import and after every pass, and the plan of the code",
    )
    parser.add_argument(
        "--profile", action="store_true", help="compile counters in, for benchmark --profile"
    )
    parser.add_argument(
        "--tune",
        action="store_true",
        help="measure on this machine how to cut the layers into tiles; takes a minute",
    )
    parser.add_argument(
        "--tuning",
        metavar="ARTIFACT",
        help="make the choices that --tune recorded in this artifact's manifest",
    )
    parser.add_argument("--force", action="store_true", help="replace an existing artifact")
    parser.set_defaults(run=run)
    return parser


def _targets(text: str) -> str:
    """Names of targets with commas, for argparse."""
    from sparsec.targets import NAMES

    for name in text.split(","):
        if name.strip() not in ("auto", *NAMES):
            choices = ", ".join(("auto", *NAMES))
            raise argparse.ArgumentTypeError(f"there is no target {name!r}; choose of {choices}")
    return text


def run(args: argparse.Namespace) -> int:
    """Compile, and print where the artifact is."""
    import sparsec

    tell = progress(args)
    artifact = sparsec.compile(
        args.model,
        buckets=args.buckets or (),
        output=args.output,
        batch_size=args.batch_size,
        target=args.target,
        tune_for=args.tune_for,
        precision=args.precision,
        cc=args.cc,
        jobs=args.jobs,
        emit_c=args.emit_c,
        dump_ir=args.dump_ir,
        force=args.force,
        profile=args.profile,
        tune=args.tune,
        tuning=args.tuning,
        progress=tell,
    )
    if tell:
        size = sum(info.size for info in artifact.manifest.files.values())
        tell(
            f"done: {artifact.path}, {size / 1e6:.1f} MB for "
            f"{', '.join(variant.target.name for variant in artifact.manifest.variants)}, "
            f"tuned for {artifact.target.tuned_for}"
        )
    # What a script reads; whoever looks at a terminal has been told.
    if not args.quiet and not (tell and sys.stdout.isatty()):
        print(artifact.path)
    return 0
