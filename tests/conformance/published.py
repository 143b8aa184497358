"""What is published: ``results.json`` beside this file, and ``docs/operators.md`` made from it."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import onnx

from sparsec.compiler.frontend.importer import IMPORTERS, MIN_OPSET, STATIC

FILE = Path(__file__).with_name("results.json")
DOCS = Path(__file__).parents[2] / "docs" / "operators.md"


@dataclass
class OpRecord:
    """What the suite says about one op.

    Attributes:
        passing: names of the cases that pass, on every target.
        refused: reasons by case, for those that are refused.
        core: core ops that the cases become; each has a general kernel of its name.
        types: element types of the first input that compile.
        ulp: largest error in units of the last place.
        absolute: largest absolute error.
    """

    passing: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    core: list[str] = field(default_factory=list)
    types: list[str] = field(default_factory=list)
    ulp: float = 0.0
    absolute: float = 0.0


@dataclass
class Published:
    """Results of one version of onnx; `ops` in alphabetical order."""

    onnx: str
    targets: list[str]
    ops: dict[str, OpRecord]

    @property
    def passing(self) -> dict[str, str]:
        """Op by name of every case that passes."""
        return {name: op for op, record in self.ops.items() for name in record.passing}


def read() -> Published:
    """What is checked in."""
    document = json.loads(FILE.read_text(encoding="utf-8"))
    ops = {op: OpRecord(**record) for op, record in document["ops"].items()}
    return Published(document["onnx"], document["targets"], ops)


def write(results: Published) -> None:
    """Replace what is checked in, and the page in the documentation."""
    FILE.write_text(json.dumps(asdict(results), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    DOCS.write_text(page(results), encoding="utf-8")


_INTRODUCTION = """\
# Operators

Made by `python -m tests.conformance --write` from the table of importers, the core ops and the
node tests of onnx {version}; do not edit.

{passing} of the {total} node tests whose ops are known pass, compiled for {targets}.
The others are refused with a reason (last column); no case gives a wrong result.

- **Types**: of the first input. Half floats (`f16`, `bf16`) are taken and given as `f32`, and
  computed in it. Strings, 8-bit and 4-bit floats, 2-bit and 4-bit integers, sequences and optionals
  are refused.
- **At compile time**: inputs that must be constants, or follow from shapes: most of them say
  shapes. An output whose shape depends on data cannot be compiled.
- **Core ops**: what the op becomes when nothing fuses; each is a general kernel. Linear layers,
  attention, normalizations and what is elementwise between them run in the kernels of
  [architecture.md](architecture.md).
- **Error**: the largest one in the suite's cases, in units of the last place of the expected float,
  and absolute; what is expected was computed by numpy in the same type, so part of it is numpy's.
- Opsets are those of the domain `ai.onnx` from {first} on; older forms are refused unless they mean
  the same.
"""

_HEAD = ("Op", "Opsets", "Types", "At compile time", "Core ops", "Cases", "Error", "Refused")

_BODIES = """
## Through the standard's function bodies

Ops without an importer, which the standard defines by others. Cases that are made of several ops
are the first row.
"""


def page(results: Published) -> str:
    """``docs/operators.md``."""
    own = {op: r for op, r in results.ops.items() if ("", op) in IMPORTERS}
    bodies = {op: r for op, r in results.ops.items() if op not in own}
    lines = [
        _INTRODUCTION.format(
            version=results.onnx,
            passing=len(results.passing),
            total=sum(len(r.passing) + len(r.refused) for r in results.ops.values()),
            targets=" and ".join(f"`{t}`" for t in results.targets),
            first=MIN_OPSET,
        ),
        f"| {' | '.join(_HEAD)} |",
        "|---" * len(_HEAD) + "|",
    ]
    for op in sorted({name for domain, name in IMPORTERS if not domain}):
        lines.append(_row(op, own.get(op, OpRecord())))
    lines += [_BODIES, "| Op | Core ops | Cases | Error | Refused |", "|---|---|---|---|---|"]
    for op, record in sorted(bodies.items()):
        cells = [op, _code(record.core), _count(record), _error(record), _refused(record)]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "## Contributed ops of ONNX Runtime", ""]
    contributed = sorted(name for domain, name in IMPORTERS if domain == "com.microsoft")
    sentence = "Of the domain `com.microsoft`: " + _code(contributed) + "."
    lines += [*textwrap.wrap(sentence, 100), ""]
    return "\n".join(lines)


def _row(op: str, record: OpRecord) -> str:
    cells = [
        op,
        _opsets(op),
        " ".join(record.types),
        _static(op),
        _code(record.core),
        _count(record),
        _error(record),
        _refused(record),
    ]
    return f"| {' | '.join(cells)} |"


def _opsets(op: str) -> str:
    versions = sorted(
        s.since_version
        for s in onnx.defs.get_all_schemas_with_history()  # type: ignore[attr-defined]
        if s.name == op and s.domain == ""
    )
    return f"{max(MIN_OPSET, versions[0])}+"


def _static(op: str) -> str:
    schema: Any = onnx.defs.get_schema(op)
    positions = STATIC["", op]
    names = [schema.inputs[i].name if i < len(schema.inputs) else str(i) for i in positions]
    return _code(names)


def _code(names: Sequence[str]) -> str:
    return ", ".join(f"`{n}`" for n in names)


def _count(record: OpRecord) -> str:
    total = len(record.passing) + len(record.refused)
    return f"{len(record.passing)} of {total}" if total else "none in the suite"


def _error(record: OpRecord) -> str:
    if not record.absolute:
        return "exact" if record.passing else ""
    return f"{record.ulp:.2g}, {record.absolute:.1g}"


def _refused(record: OpRecord) -> str:
    return "; ".join(_reasons(record.refused))


def _reasons(refused: Mapping[str, str]) -> list[str]:
    """Reasons, each once; those of element types as one."""
    types: set[str] = set()
    others: dict[str, None] = {}
    for reason in refused.values():
        for part in reason.split("; "):
            said = part.split(": ", 1)[-1] if part.startswith(("input: ", "Cast: ")) else part
            if said.startswith("tensors of type "):
                types.add(said.split()[3])
            else:
                others[said.replace("|", "/")] = None
    listed = [f"element types {', '.join(sorted(types))}"] if types else []
    return [*listed, *others]
