"""Results as tables for people, as Markdown and as JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.comparison import CONTENDERS, Point, Timing

# Results measured beside as much load a core, by others, are marked.
BUSY = 0.25


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up: the first to the left, others to the right."""
    lines = [header, *rows]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(header))]

    def show(line: Sequence[str]) -> str:
        cells = [
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        return "| " + " | ".join(cells) + " |"

    rule = [("-" * w if i == 0 else "-" * (w - 1) + ":") for i, w in enumerate(widths)]
    return "\n".join([show(header), show(rule), *(show(row) for row in rows)])


def number(value: float) -> str:
    """Three digits that matter."""
    if not 0 < value < math.inf:
        return str(value)
    return f"{value:.{min(max(0, 2 - math.floor(math.log10(value))), 5)}f}"


def amount(milliseconds: float | None, batch: int) -> str:
    """Latency of one sequence; items per second of a batch."""
    if milliseconds is None:
        return "-"
    if batch == 1:
        return f"{number(milliseconds)} ms"
    return f"{number(1e3 * batch / milliseconds)}/s"


def shape(point: Point) -> str:
    """Batch and length, for the first column."""
    return f"{point.batch} x {point.length}"


def pruned(point: Point) -> str:
    """The same with the sparsity."""
    return f"{shape(point)}, {point.sparsity:.0%} pruned"


def speed_table(
    points: Sequence[Point], names: Sequence[str], label: Callable[[Point], str] = shape
) -> str:
    """What each engine needs, beside the limit; ! where outputs do not agree."""
    rows = []
    for point in points:
        row = [label(point), amount(point.limit_ms, point.batch)]
        for name in names:
            timing, agreement = point.timings.get(name), point.agreement.get(name)
            mark = "!" if agreement and not agreement.holds else ""
            row.append(amount(timing.median_ms, point.batch) + mark if timing else "failed")
        rows.append(row)
    labels = [CONTENDERS[name].label for name in names]
    return table(["batch x length", "limit", *labels], rows)


def ratio_table(
    points: Sequence[Point],
    names: Sequence[str],
    title: str = "sparsec against",
    of: Callable[[Timing], float] = lambda timing: timing.median_ms,
) -> str:
    """How many times faster sparsec is than each, and its share of the limit.

    Args:
        of: what is compared; the median, unless another is given.
    """
    peers = [name for name in names if name != "sparsec"]
    rows = []
    for point in points:
        ours = point.timings.get("sparsec")
        if ours is None:
            continue
        share = f"{point.limit_ms / of(ours):.0%}" if point.limit_ms else "-"
        theirs = [point.timings.get(name) for name in peers]
        ratios = [f"{of(t) / of(ours):.2f}x" if t else "-" for t in theirs]
        rows.append([shape(point), *ratios, share])
    labels = [CONTENDERS[name].label for name in peers]
    return table([title, *labels, "of the limit"], rows)


def detail_table(points: Sequence[Point]) -> str:
    """Fastest run, number of runs, and how far outputs are from the reference."""
    rows = []
    for point in points:
        for name, timing in point.timings.items():
            agreement = point.agreement.get(name)
            cells = ["-", "-", "not checked"]
            if agreement:
                verdict = "agrees" if agreement.holds else f"DIFFERS, > {agreement.bound:.0%}"
                cells = [f"{agreement.max:.3%}", f"{agreement.mean:.3%}", verdict]
            rows.append(
                [
                    f"{shape(point)}, {CONTENDERS[name].label}",
                    f"{number(timing.median_ms)} ms",
                    f"{number(timing.min_ms)} ms",
                    str(timing.runs),
                    *cells,
                ]
            )
        if point.spread:
            most, mean = point.spread
            cells = ["-", "-", "-", f"{most:.3%}", f"{mean:.3%}", "its own spread"]
            rows.append([f"{shape(point)}, ORT not optimized", *cells])
    return table(
        ["", "median", "fastest", "runs", "max difference", "mean difference", "outputs"], rows
    )


def machine_text(machine: Mapping[str, Any]) -> str:
    """The machine in a few lines."""
    load = " ".join(f"{value:.2f}" for value in machine["load_average"])
    busy = machine["load_average"][0] > BUSY * machine["cores"]
    warning = ": the machine was BUSY, do not trust the medians" if busy else ""
    return "\n".join(
        [
            f"- {machine['cpu'] or machine['arch']}, {machine['cores']} cores, "
            f"{machine['threads']} threads, best target {machine['targets'][0]}",
            f"- {machine['distribution'] or machine['system']}, {machine['compiler']}, "
            f"Python {machine['python']}, commit {machine['commit'] or 'unknown'}",
            f"- load average before the start {load}{warning}",
        ]
    )


def failures(points: Sequence[Point], skipped: Mapping[str, str]) -> list[str]:
    """One line for each engine that is missing from the tables, or from a row."""
    lines = [f"- {name} is skipped: {why}" for name, why in skipped.items()]
    for point in points:
        lines += [
            f"- {name} failed at {pruned(point)}: {why}" for name, why in point.failed.items()
        ]
    return lines


def as_json(value: Any) -> Any:
    """Dataclasses as dictionaries, anything else as it is."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def save(folder: Path, stem: str, text: str, results: Mapping[str, Any]) -> list[Path]:
    """Write `stem`.md and `stem`.json."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{stem}.md", folder / f"{stem}.json"]
    paths[0].write_text(text.rstrip() + "\n", encoding="utf-8")
    content = json.dumps(results, indent=1, sort_keys=True, default=as_json)
    paths[1].write_text(content + "\n", encoding="utf-8")
    return paths
