"""Plots as SVG for a page: colours are the page's, so that they fit its light and its dark form."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sparsec.pruning.evaluation.parts import Bars, Histogram, Latency, Matrix, Plot, Scatter
from sparsec.pruning.evaluation.result import Evaluation
from sparsec.serving.buckets import fit

# What is drawn in these becomes a variable of the page's style.
COLOURS = {
    "ink": "#000001",
    "faint": "#000002",
    "candidate": "#000003",
    "reference": "#000004",
    "surface": "#000005",
}

SIZE = (5.6, 3.5)
WIDE = (11.6, 3.3)


def draw(plot: Plot) -> str:
    """A plot as an ``<svg>`` element."""
    return svg(plot.title, lambda axes: _DRAW[type(plot)](axes, plot))


def draw_latency(found: Evaluation) -> str:
    """Time against tokens of both models; empty where it was not measured."""
    sides = [
        (name, model.latency)
        for name, model in (("reference", found.reference), ("candidate", found.candidate))
        if model.latency is not None
    ]
    return draw_latencies(sides)


def draw_latencies(sides: Sequence[tuple[str, Latency]]) -> str:
    """Time against tokens, of the ``reference`` and the ``candidate``; empty without any."""
    if not sides:
        return ""

    times = np.concatenate([latency.medians_ms for _, latency in sides])
    # A disturbed text or two must not make all others look alike.
    top = min(float(times.max()), 2 * float(np.quantile(times, 0.9))) * 1.08

    def paint(axes: Any) -> None:
        for name, latency in sides:
            colour = COLOURS[name]
            order = np.argsort(latency.tokens, kind="stable")
            tokens, found = (np.array(v)[order] for v in (latency.tokens, latency.medians_ms))
            above = found > top
            points = {"color": colour, "alpha": 0.75, "linewidth": 0}
            axes.plot(tokens[~above], found[~above], "o", markersize=4, **points)
            axes.plot(tokens[above], np.full(above.sum(), top * 0.98), "^", markersize=5, **points)
            if len(set(tokens.tolist())) > 2:
                axes.plot(tokens, _line(tokens, found), color=colour, linewidth=1.8)
        axes.set_ylim(0, top)
        axes.set_xlim(left=0)
        axes.set_xlabel("tokens")
        axes.set_ylabel("ms a text")

    return svg("Time of one text", paint, WIDE)


def _line(tokens: np.ndarray, times: np.ndarray) -> np.ndarray:
    """A curve through points: a call, and what grows with the tokens and their square."""
    by_length = {int(n): float(np.median(times[tokens == n])) for n in np.unique(tokens)}
    cost = fit(by_length, "")
    line: np.ndarray = cost.call + cost.token * tokens + cost.pair * tokens**2
    return line


def _histogram(axes: Any, plot: Histogram) -> None:
    values = np.array(plot.values)
    low, high = float(values.min()), float(values.max())
    if plot.label in ("cosine", "F1", "agreement"):
        high = 1.0
        low = min(low, high - 0.01)
    if high - low < 1e-12:
        high = low + 1e-6
    axes.hist(values, bins=np.linspace(low, high, 31), color=COLOURS["candidate"], rwidth=0.92)
    median = float(np.median(values))
    axes.axvline(median, color=COLOURS["ink"], linewidth=1, linestyle=(0, (3, 3)))
    left = median < (low + high) / 2
    axes.annotate(
        f"median {median:.3g}", (median, 1), xycoords=("data", "axes fraction"),
        xytext=(5 if left else -5, -3), textcoords="offset points",
        ha="left" if left else "right", va="top",
    )  # fmt: skip
    axes.margins(y=0.15)
    axes.set_xlabel(plot.label)
    axes.set_ylabel("how many")


def _scatter(axes: Any, plot: Scatter) -> None:
    x, y = np.array(plot.x), np.array(plot.y)
    low, high = float(min(x.min(), y.min())), float(max(x.max(), y.max()))
    margin = (high - low) * 0.04 or 0.01
    axes.plot([low, high], [low, high], color=COLOURS["faint"], linewidth=1.2, zorder=1)
    few = len(x) < 300
    axes.scatter(
        x, y, s=16 if few else 6, alpha=0.6 if few else 0.35, color=COLOURS["candidate"],
        linewidths=0, zorder=2,
    )  # fmt: skip
    axes.set_xlim(low - margin, high + margin)
    axes.set_ylim(low - margin, high + margin)
    axes.set_aspect("equal")
    axes.set_xlabel(plot.x_label)
    axes.set_ylabel(plot.y_label)


def _matrix(axes: Any, plot: Matrix) -> None:
    counts = np.array(plot.counts)
    size = len(plot.labels)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    for row in range(size):
        for column in range(size):
            share = float(shares[row, column])
            right = row == column
            if share:
                axes.add_patch(
                    _rectangle(column, row, COLOURS["candidate" if right else "reference"], share)
                )
            if size <= 12 and counts[row, column]:
                axes.text(
                    column, row, str(counts[row, column]), ha="center", va="center",
                    color=COLOURS["surface" if share > 0.55 and right else "ink"],
                    fontsize=10 if size <= 8 else 8,
                )  # fmt: skip
    axes.set_xlim(-0.5, size - 0.5)
    axes.set_ylim(size - 0.5, -0.5)
    axes.set_aspect("equal")
    names = [name if len(name) <= 16 else f"{name[:15]}…" for name in plot.labels]
    turned = {"rotation": 45, "ha": "right"} if size > 3 else {}
    axes.set_xticks(range(size), names, **turned)
    axes.set_yticks(range(size), names)
    axes.tick_params(length=0)
    axes.grid(False)
    axes.set_xlabel("candidate")
    axes.set_ylabel("reference")
    axes.spines[["left", "bottom"]].set_visible(False)


def _rectangle(column: int, row: int, colour: str, share: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(
        (column - 0.48, row - 0.48), 0.96, 0.96, color=colour, alpha=max(0.12, share), linewidth=0
    )


def _bars(axes: Any, plot: Bars) -> None:
    count = len(plot.series)
    height = 0.8 / max(count, 1)
    places = np.arange(len(plot.names))
    for k, (name, values) in enumerate(plot.series.items()):
        offset = (k - (count - 1) / 2) * height
        drawn = axes.barh(
            places + offset, values, height * 0.9, color=COLOURS.get(name, COLOURS["ink"])
        )
        axes.bar_label(drawn, fmt="%.3f", padding=4, fontsize=9, color=COLOURS["ink"])
    axes.set_yticks(places, plot.names)
    axes.set_ylim(len(plot.names) - 0.4, -0.6)
    axes.set_xlim(0, 1.12)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.tick_params(axis="y", length=0)


_DRAW: Mapping[type, Callable[[Any, Any], None]] = {
    Histogram: _histogram,
    Scatter: _scatter,
    Matrix: _matrix,
    Bars: _bars,
}


def svg(title: str, paint: Callable[[Any], None], size: tuple[float, float] = SIZE) -> str:
    """What `paint` draws on axes, as an ``<svg>`` element."""
    import matplotlib

    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": title,  # the same plot has the same names in it, other plots have others
        "font.family": "sans-serif",
        "font.size": 10,
        "text.color": COLOURS["ink"],
        "axes.labelcolor": COLOURS["ink"],
        "axes.edgecolor": COLOURS["faint"],
        "xtick.color": COLOURS["faint"],
        "ytick.color": COLOURS["faint"],
        "xtick.labelcolor": COLOURS["ink"],
        "ytick.labelcolor": COLOURS["ink"],
        "grid.color": COLOURS["faint"],
        "grid.alpha": 0.35,
        "grid.linewidth": 0.6,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
    }
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        paint(figure.subplots())
        out = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", metadata=nothing)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    for name, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    # Sizes are the page's, and so is the font.
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    return text.replace("<svg ", '<svg role="img" ', 1).strip()
