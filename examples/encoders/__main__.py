"""Write a random encoder: python -m examples.encoders --preset bert-base out.onnx"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path

import onnx

from examples.encoders import FORMS, HEADS, PRESETS, Export, write_random


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and write one file."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.encoders",
        description="Write a BERT-shaped encoder with random weights as an ONNX file.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("output", type=Path, help="the .onnx file to write")
    add("--preset", choices=PRESETS, default="tiny", help="size to start from")
    for name in ("layers", "hidden", "heads", "intermediate", "vocab", "max-position"):
        add(f"--{name}", type=int, help="override the preset", default=argparse.SUPPRESS)
    add("--type-vocab", type=int, default=2, help="0: no token types, as DistilBERT")
    add("--head", choices=HEADS, default="hidden")
    add("--num-labels", type=int, default=3)
    add("--attention", choices=["eager", "sdpa", "distilbert"], default="eager")
    add("--form", choices=FORMS, default="sparseml")
    add("--sparsity", type=float, default=0.0, help="share of the encoder's blocks that is zero")
    add("--block", type=int, default=4, help="input channels in a block")
    add("--spread", type=float, default=0.0, help="unevenness of the channels when pruning")
    add("--seed", type=int, default=0)
    add("--opset", type=int, default=14)
    add("--fused", action="store_true", help="LayerNormalization and Gelu as single nodes")
    add("--length", type=int, help="fixed number of tokens (default: dynamic)")
    add("--per-channel", action="store_true", help="one weight scale per output channel")
    add("--activation", choices=["u8", "s8"], default="u8", help="activation type of qdq")
    add("--float-attention", action="store_true", help="leave QK^T and PV in float")
    add("--qlinear-attention", action="store_true", help="sparseml: QLinearMatMul in attention")
    add("--gemm", action="store_true", help="fp32, qdq: linear layers as Gemm")
    add("--external-data", action="store_true", help="weights in a file beside the model")
    args = parser.parse_args(argv)

    names = {f.name for f in dataclasses.fields(PRESETS["tiny"])}
    changes = {k: v for k, v in vars(args).items() if k in names}
    config = dataclasses.replace(PRESETS[args.preset], **changes)
    export = Export(
        opset=args.opset,
        fused=args.fused,
        length=args.length,
        matmul_attention="qlinear" if args.qlinear_attention else "integer",
        linear="gemm" if args.gemm else "matmul",
        external_data=args.external_data,
    )
    quantization = {}
    if args.form != "fp32":
        quantization = {
            "per_channel": args.per_channel,
            "activation": args.activation,
            "attention": not args.float_attention,
        }
    start = time.perf_counter()
    write_random(
        args.output,
        config,
        args.form,
        export,
        seed=args.seed,
        sparsity=args.sparsity,
        block=args.block,
        spread=args.spread,
        **quantization,
    )
    onnx.checker.check_model(str(args.output), full_check=False)
    size = args.output.stat().st_size / 1e6
    print(f"{args.output}: {size:.1f} MB in {time.perf_counter() - start:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
