"""What sparsify found, as a page that needs no other file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsec.pruning.evaluation.page import Card, environment_of, metric_row
from sparsec.pruning.evaluation.parts import Latency
from sparsec.pruning.evaluation.plots import COLOURS, WIDE, draw_latencies, svg
from sparsec.pruning.evaluation.result import short, sides, size
from sparsec.pruning.evaluation.tasks import metric
from sparsec.pruning.outcome import Sparsified


@dataclass(frozen=True)
class _Figure:
    """A plot; `wide`: over the whole page; `legend`: what both colours mean."""

    title: str
    svg: str
    wide: bool = False
    legend: tuple[str, str] | None = None


def render(found: Sparsified) -> str:
    """The page as HTML."""
    evaluation = found.evaluation
    texts = evaluation.texts
    about = (
        f"{found.goal}; judged by {texts.count} texts of {texts.shortest} to {texts.longest} "
        f"tokens that were held out"
    )
    page: str = (
        environment_of("sparsec.pruning")
        .get_template("report.html.j2")
        .render(
            found=found,
            name=short(found.model, 60),
            about=about,
            warnings=[*found.warnings, *evaluation.warnings],
            cards=_cards(found),
            metrics=[metric_row(found.task, n, v) for n, v in evaluation.agreement.items()],
            sides=list(sides(evaluation))[1:],
            figures=_figures(found),
        )
    )
    return page


def _cards(found: Sparsified) -> list[Card]:
    name, value = next(iter(found.agreement.items()))
    cards = [
        Card(f"{found.sparsity:.0%}", "of the 4-blocks pruned", "in the encoder's linear layers"),
        Card(f"{value:.4f}", metric(found.task, name).title, "agreement with the dense model"),
    ]
    if found.speedup is not None and found.latency and found.baseline:
        after, before = found.latency.median_ms, found.baseline.median_ms
        note = f"{after:.3g} ms a text instead of {before:.3g}"
        cards.append(Card(f"{found.speedup:.2f} ×", "as fast as dense int8", note))
    one, two = found.evaluation.candidate.file_bytes, found.evaluation.reference.file_bytes
    if one and two:
        cards.append(Card(size(one), "file", f"the dense one has {size(two)}"))
    return cards


def _figures(found: Sparsified) -> list[_Figure]:
    figures = [_Figure("Blocks pruned in each layer", _bars(found, "sparsity"), wide=True)]
    if any(layer.error == layer.error for layer in found.layers):
        figures.append(_Figure("Error of each layer's outputs", _bars(found, "error"), wide=True))
    if found.curve:
        figures.append(_Figure("Agreement while it was trained", _curve(found), wide=True))
    if found.latency and found.baseline:
        pair: list[tuple[str, Latency]] = [
            ("reference", found.baseline), ("candidate", found.latency),
        ]  # fmt: skip
        drawn = draw_latencies(pair)
        legend = ("result", "dense int8")
        figures.append(_Figure("Time of one text", drawn, wide=True, legend=legend))
    return figures


def _bars(found: Sparsified, what: str) -> str:
    """A bar for each layer, in order, in per cent."""
    values = 100 * np.array([getattr(layer, what) for layer in found.layers], np.float64)

    def paint(axes: Any) -> None:
        axes.bar(np.arange(1, len(values) + 1), values, width=0.8, color=COLOURS["candidate"])
        axes.set_xlim(0.3, len(values) + 0.7)
        axes.set_xlabel("layer")
        axes.set_ylabel("%")
        axes.grid(axis="x", visible=False)

    return svg(what, paint, WIDE)


def _curve(found: Sparsified) -> str:
    def paint(axes: Any) -> None:
        minutes = [point.minutes for point in found.curve]
        for values, name in (
            ([point.agreement for point in found.curve], "candidate"),
            ([point.sparsity for point in found.curve], "reference"),
        ):
            axes.plot(minutes, values, "o-", color=COLOURS[name], linewidth=1.8, markersize=4)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("minutes")
        axes.set_ylabel("agreement, share pruned")

    return svg("curve", paint, WIDE)
