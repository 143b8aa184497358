"""The whole zoo: every architecture through both exporters, and in every dialect.

    python -m tests.zoo.matrix              goes on where it stopped, writes docs/coverage.md
    python -m tests.zoo.matrix --seconds 170 --work FOLDER
    python -m tests.zoo.matrix --interpret  without the C compiler
    python -m tests.zoo.matrix --render     only writes docs/coverage.md from what is there

What it finds is kept in the work folder, one line of JSON a model, so that it can be stopped at any
time; delete that folder to begin anew.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from tests.zoo.architectures import ARCHITECTURES, BY_NAME, Architecture
from tests.zoo.check import BUCKET, Outcome, check
from tests.zoo.dialects import DIALECTS
from tests.zoo.exports import BY_NAME as EXPORTER_BY_NAME
from tests.zoo.exports import EXPORTERS, export

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "coverage.md"

EXPORT_OF_DIALECTS = "ts17-sdpa"
"""The export that the dialects are made from."""


@dataclass(frozen=True)
class Cell:
    """One model: an architecture, how it was exported, and what was done to it."""

    architecture: str
    exporter: str
    dialect: str

    @property
    def key(self) -> str:
        return f"{self.architecture}.{self.exporter}.{self.dialect}"


def cells() -> Iterator[Cell]:
    """Every model of the matrix; variants of a head or a width only as they were exported."""
    for architecture in ARCHITECTURES:
        for exporter in EXPORTERS:
            yield Cell(architecture.name, exporter.name, "fp32")
    for architecture in ARCHITECTURES:
        if not architecture.variant:
            for dialect in DIALECTS:
                if dialect != "fp32":
                    yield Cell(architecture.name, EXPORT_OF_DIALECTS, dialect)


def make(cell: Cell, folder: Path) -> tuple[Path, Path]:
    """The model's file and that of its float original; made where they are not there yet."""
    architecture, exporter = BY_NAME[cell.architecture], EXPORTER_BY_NAME[cell.exporter]
    source = folder / f"{cell.architecture}.{cell.exporter}.fp32.onnx"
    if not source.exists():
        _replacing(source, lambda path: export(architecture, exporter, path))
    path = folder / f"{cell.key}.onnx"
    if not path.exists():
        maker = DIALECTS[cell.dialect]
        _replacing(path, lambda new: maker(source, new, architecture, BUCKET))
    return path, source


def _replacing(path: Path, write: object) -> None:
    """Write through a temporary folder, so that no half file is left behind."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        new = Path(folder) / path.name
        assert callable(write)
        write(new)
        new.rename(path)


def run(cell: Cell, folder: Path, compiled: bool = True) -> Outcome:
    """Make, compile (or only import and optimize) and compare one model.

    What a tool cannot export, quantize or run itself has the problem ``tool: ...``.
    """
    architecture, exporter = BY_NAME[cell.architecture], EXPORTER_BY_NAME[cell.exporter]
    try:
        path, source = make(cell, folder)
    except Exception as error:  # whatever the tools raise
        return Outcome(problem=f"tool: {type(error).__name__}: {error}"[:300])
    with tempfile.TemporaryDirectory() as out:
        batch = exporter.fixed[0] if exporter.fixed else None
        return check(path, source, architecture, Path(out), batch, compiled=compiled)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "zoo")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--only", default="", help="cells whose name contains this")
    parser.add_argument(
        "--interpret", action="store_true", help="do not compile: many times quicker, less certain"
    )
    parser.add_argument("--render", action="store_true", help="write the page and nothing else")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    log = args.work / "outcomes.jsonl"
    found = read(log)
    until = time.monotonic() + args.seconds

    def open_(cell: Cell) -> bool:
        known = found.get(cell.key)
        return known is None or not (known.compiled or known.problem or args.interpret)

    todo = [c for c in cells() if args.only in c.key and open_(c)]
    for cell in [] if args.render else todo:
        if time.monotonic() > until:
            break
        outcome = run(cell, args.work, not args.interpret)
        found[cell.key] = outcome
        with log.open("a") as file:
            file.write(json.dumps({"key": cell.key, **asdict(outcome)}) + "\n")
        print(cell.key, "passes" if outcome.passes else outcome, flush=True)
    PAGE.write_text(render(found), encoding="utf-8")


def read(log: Path) -> dict[str, Outcome]:
    """What earlier runs found, by key."""
    found = {}
    for line in log.read_text().splitlines() if log.exists() else []:
        row = json.loads(line)
        key = row.pop("key")
        if set(row) != {f.name for f in fields(Outcome)}:
            continue  # an earlier version's
        row["kernels"] = tuple((name, count) for name, count in row["kernels"])
        found[key] = Outcome(**row)
    return found


_FUSED = (("attention", "A"), ("layernorm", "N"), ("linear i8", "8"), ("linear f32", "L"))
_SLOW = ("matmul", "matmul_integer", "linear", "qlinear", "linear_integer", "attention")


def summary(outcome: Outcome | None) -> str:
    """A cell of the table."""
    if outcome is None:
        return ""
    if outcome.problem.startswith("tool: "):
        return "·"
    if outcome.problem:
        return "no"
    kernels = dict(outcome.kernels)
    letters = "".join(letter for name, letter in _FUSED if kernels.get(name))
    general = sum(kernels.get(f"general {op.replace('_', ' ')}", 0) for op in _SLOW)
    text = letters + (f" +{general}" if general else "")
    return text if outcome.passes else f"**{text} !**"


_HEAD = """# Coverage

Tiny, randomly initialized networks of every architecture, exported by torch.onnx, quantized and
fused by the tools that people use, compiled for the machine at hand, and compared with ONNX Runtime
for several batch sizes, lengths and ragged masks. Made by `python -m tests.zoo.matrix`, which
compiles everything. `make test-slow` goes through the same models, but for heads and widths, of
which two exports have to do: it compiles every export, and every dialect of one architecture of
each kind; of the rest it interprets the optimized graph.

| | |
|---|---|
| A | attention runs on the fused kernel |
| N | layer normalization runs on the fused kernel |
| L, 8 | linear layers run on the float and the int8 kernels |
| +n | n matrix products, or attention blocks, run on general kernels |
| **!** | results differ from ONNX Runtime's by more than rounding |
| no | does not compile |
| · | the exporter, the quantizer or ONNX Runtime itself cannot do it |
| (blank) | not tried yet |

"Equal up to rounding": the root mean square of the difference is below 2e-5 of the result's. In a
quantized model a last bit now and then rounds a byte the other way, and every quantization behind
it makes more of that: at least one of four runs is equal, and all are nearer to ONNX Runtime than
1.2 of what the quantization itself costs. The latter alone counts for half precision, which ONNX
Runtime computes in half precision and sparsec in float32, and with `QLinearSoftmax`, which ONNX
Runtime looks up in a table that is often a step off. What a model gives for tokens that its mask
leaves out is compared in sequences as long as the bucket, but not in shorter ones, where it depends
on how many follow.

"""

_ROWS = {
    "fp16": "ONNX Runtime's float16 converter",
    "qdq-*, qoperator-*": "ONNX Runtime's `quantize_static`, by types of activations and weights; "
    "`channel`: a scale for each output",
    "nncf": "as NNCF writes it: weights stay float and are quantized in the graph; products of "
    "activations and embedding tables are quantized, too",
    "torch-qat": "as torch.onnx writes torch.ao's fake quantization of 7 bits, with a `Clip` of "
    "bytes",
    "neural-compressor": "as Neural Compressor writes it: stored bytes, a scale for each output, a "
    "pair of quantize and dequantize for each reader",
    "dynamic-s8, -u8, -channel": "ONNX Runtime's `quantize_dynamic`; the `model_int8.onnx`, "
    "`model_uint8.onnx` and `model_quantized.onnx` of transformers.js",
    "dynamic-channel-reduced": "the same with weights of 7 bits: older `model_quantized.onnx`",
    "dynamic-all-products": "with the products of attention, too: Optimum's "
    "`model_qint8_avx512_vnni.onnx` and `model_quint8_avx2.onnx`",
    "ort-extended*": "saved by ONNX Runtime after its own optimization",
    "fused*": "ONNX Runtime's optimizer of transformers",
}

_REMARKS = """
Where `L` stands in a quantized row, the quantizer has left those layers in float: ONNX Runtime's
does so with the later uses of ALBERT's shared layers, and has no ranges for what its own fused ops
make. The products of DeBERTa that run on general kernels are those with the positions. `mpnet` in
static forms: ONNX Runtime quantizes the numbers of its position buckets, and then cannot run it.
"""


def _table(title: str, columns: list[str], rows: Mapping[str, list[str]]) -> str:
    lines = [
        f"## {title}",
        "",
        "| | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    lines += [f"| {name} | " + " | ".join(row) + " |" for name, row in rows.items()]
    return "\n".join([*lines, ""])


def render(found: Mapping[str, Outcome]) -> str:
    """docs/coverage.md."""

    def cell(architecture: Architecture, exporter: str, dialect: str) -> str:
        return summary(found.get(Cell(architecture.name, exporter, dialect).key))

    exporters = [e.name for e in EXPORTERS]
    first = {a.name: [cell(a, e, "fp32") for e in exporters] for a in ARCHITECTURES}
    main_ones = [a for a in ARCHITECTURES if not a.variant]
    dialects = [d for d in DIALECTS if d != "fp32"]
    second = {d: [cell(a, EXPORT_OF_DIALECTS, d) for a in main_ones] for d in dialects}
    problems = sorted(
        f"- `{key}`: {' '.join(o.problem.split())[:300]}"
        for key, o in found.items()
        if o.problem and not o.problem.startswith("tool: ")
    )
    done = [o for o in found.values() if not o.problem]
    count = sum(o.compiled for o in done)
    how = f"Of {len(done)} models {count} were compiled and run"
    how += (
        "; of the others the optimized graph was interpreted.\n\n" if count < len(done) else ".\n\n"
    )
    title = f"Dialects, made from `{EXPORT_OF_DIALECTS}`"
    parts = [
        _HEAD + how + _table("Exporters (TorchScript opset 11-17, dynamo 18-23)", exporters, first),
        _table(title, [a.name for a in main_ones], second),
    ]
    if problems:
        parts.append("\n".join(["## What does not compile", "", *problems, ""]))
    rows = [f"| `{row}` | {text} |" for row, text in _ROWS.items()]
    parts.append("\n".join(["## How the dialects are made", "", "| | |", "|---|---|", *rows, ""]))
    parts.append(_REMARKS.lstrip())
    return "\n".join(parts)


if __name__ == "__main__":
    main()
