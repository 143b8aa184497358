"""Plots of the comparison, as PNG and SVG (matplotlib: the `bench` extra)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.harness.comparison import CONTENDERS, Point

# sparsec stands out; the peers can be told apart without colour too.
STYLES = {
    "sparsec": {"color": "#0b5fa5", "marker": "o", "linewidth": 2.6},
    "deepsparse": {"color": "#d1495b", "marker": "s"},
    "openvino": {"color": "#7b5ea7", "marker": "^"},
    "openvino-f32": {"color": "#b59ad6", "marker": "<"},
    "ort-int8": {"color": "#66a182", "marker": "D"},
    "ort-fp32": {"color": "#8d8d8d", "marker": "v"},
}


def plot_length(points: Sequence[Point], title: str, stem: Path) -> list[Path]:
    """Latency against the number of tokens, both logarithmic."""
    return _plot(points, lambda p: p.length, "tokens", title, stem, log=True)


def plot_sparsity(points: Sequence[Point], title: str, stem: Path) -> list[Path]:
    """Latency against the share of weights that is pruned."""
    return _plot(points, lambda p: 100 * p.sparsity, "pruned blocks, %", title, stem, log=False)


def _plot(
    points: Sequence[Point],
    where: Callable[[Point], float],
    label: str,
    title: str,
    stem: Path,
    log: bool,
) -> list[Path]:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = stem.name
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

    figure, axes = pyplot.subplots(figsize=(7.2, 4.8), layout="constrained")
    for name, contender in CONTENDERS.items():
        seen = [(where(p), p.timings[name].median_ms) for p in points if name in p.timings]
        if seen:
            style = {"linewidth": 1.5, "markersize": 5, **STYLES[name]}
            axes.plot(*zip(*seen, strict=True), label=contender.label, **style)
    limits = [(where(p), p.limit_ms) for p in points if p.limit_ms]
    if limits:
        dashes = {"color": "black", "linestyle": "--", "linewidth": 1.2}
        axes.plot(*zip(*limits, strict=True), label="limit of the machine", **dashes)
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axes.set_yscale("log")
    if log:
        axes.set_xscale("log", base=2)
    axes.set_xticks(sorted({where(p) for p in points}))
    axes.xaxis.set_major_formatter(plain)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(label)
    axes.set_ylabel("median latency, ms")
    axes.set_title(title, fontsize=8, wrap=True)
    axes.grid(which="both", alpha=0.2)
    axes.legend(frameon=False, fontsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [Path(f"{stem}.png"), Path(f"{stem}.svg")]
    figure.savefig(paths[0], dpi=150)
    figure.savefig(paths[1], metadata={"Date": None})
    pyplot.close(figure)
    return paths
