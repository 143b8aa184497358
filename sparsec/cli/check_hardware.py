"""``sparsec check-hardware``: what this machine has, and which targets run on it."""

from __future__ import annotations

import argparse
import json
from typing import Any

from sparsec.cli.common import HelpFormatter


def register(commands: Any, common: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the command's parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "check-hardware",
        parents=[common],
        help="show instruction sets, caches, cores, and which targets run here",
        description="show instruction sets, caches and usable cores, and which targets run here",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Print what was detected."""
    from sparsec import microarchitectures, targets
    from sparsec.compiler import toolchain
    from sparsec.errors import ToolchainError
    from sparsec.runtime import cpu as detection

    cpu = detection.detect()
    best = targets.choose("auto", cpu).name
    core = microarchitectures.of(cpu)
    here = cpu.arch, cpu.features
    rows: list[dict[str, Any]] = [
        {
            "name": target.name,
            "runs": target.runs_on(*here) and not reason,
            "missing": list(target.missing(cpu.features)),
            "refused": reason,
            "summary": target.summary,
        }
        for target in targets.TARGETS
        for reason in (targets.refusal(target) if target.runs_on(*here) else None,)
    ]
    try:
        compiler = toolchain.find().name
    except ToolchainError as error:
        compiler = f"none: {error}"
    if args.json:
        report = {
            "arch": cpu.arch,
            "brand": cpu.brand,
            "vendor": cpu.vendor,
            "family": cpu.family,
            "model": cpu.model,
            "microarchitecture": core,
            "features": sorted(cpu.features),
            "caches": dict(cpu.caches),
            "cores": cpu.cores,
            "threads": cpu.threads,
            "compiler": compiler,
            "target": best,
            "targets": rows,
        }
        print(json.dumps(report, indent=2))
        return 0
    print(f"CPU:        {cpu.brand or 'unknown'} ({cpu.arch})")
    print(
        f"Tuned for:  {core} ({cpu.vendor or 'unknown vendor'}, family {cpu.family}, "
        f"model {cpu.model}; costs: {microarchitectures.source(core, best)})"
    )
    print(f"Cores:      {cpu.cores} usable ({cpu.threads} hardware threads)")
    caches = ", ".join(f"{level} {_size(size)}" for level, size in cpu.caches.items())
    print(f"Caches:     {caches or 'unknown'}")
    print(f"Features:   {' '.join(sorted(cpu.features)) or 'none that sparsec uses'}")
    print(f"C compiler: {compiler}")
    print("Targets:")
    for row in rows:
        lacks = f"lacks {', '.join(row['missing']) or 'the arch'}"
        state = "runs here" if row["runs"] else row["refused"] or lacks
        mark = "*" if row["name"] == best else " "
        print(f"  {mark} {row['name']:12} {state}; {row['summary']}")
    return 0


def _size(count: int) -> str:
    return f"{count >> 20} MiB" if count >= 1 << 20 else f"{count >> 10} KiB"
