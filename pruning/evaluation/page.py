"""An evaluation as a page that needs no other file: to send to somebody, or to keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sparsec.pruning.evaluation.parts import Bars, Histogram
from sparsec.pruning.evaluation.plots import draw, draw_latency
from sparsec.pruning.evaluation.result import Evaluation, longer, number, short, sides, size
from sparsec.pruning.evaluation.tasks import metric

if TYPE_CHECKING:
    from jinja2 import Environment


@dataclass(frozen=True)
class Card:
    """A figure that is seen first."""

    value: str
    title: str
    note: str


def environment_of(package: str) -> Environment:
    """Templates of a package, and the style that all pages share."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    shared = "sparsec.pruning.evaluation"
    loaders = [PackageLoader(name, ".") for name in dict.fromkeys((package, shared))]
    return Environment(
        loader=ChoiceLoader(loaders),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(found: Evaluation) -> str:
    """The page as HTML."""
    environment = environment_of("sparsec.pruning.evaluation")
    texts = found.texts
    about = (
        f"{texts.count} texts from {short(texts.source, 60)}, {texts.shortest} to "
        f"{texts.longest} tokens, half of them up to {texts.median}"
    )
    models = (found.candidate, found.reference)
    names = [short(model.path, 60) for model in models]
    if names[0] == names[1]:
        names = [f"{short(model.path, 60)} ({model.engine})" for model in models]
    page: str = environment.get_template("page.html.j2").render(
        found=found,
        about=about + (f"; {longer(found)}" if texts.longer else ""),
        names=names,
        cards=_cards(found),
        metrics=[metric_row(found.task, name, value) for name, value in found.agreement.items()],
        sides=list(sides(found))[1:],
        figures=_figures(found),
        labelled=any(example.label is not None for example in found.examples),
    )
    return page


def _cards(found: Evaluation) -> list[Card]:
    name, value = next(iter(found.agreement.items()))
    title = metric(found.task, name).title
    cards = [Card(_short(value), title, "agreement with the reference")]
    for name, value in list(found.candidate.scores.items())[:1]:
        title = metric(found.task, name).title
        before = found.reference.scores[name]
        cards.append(
            Card(_short(value), title, f"by the labels; the reference has {_short(before)}")
        )
    if found.speedup is not None and found.candidate.latency and found.reference.latency:
        one, two = found.candidate.latency.median_ms, found.reference.latency.median_ms
        cards.append(
            Card(f"{found.speedup:.2f} ×", "as fast", f"{one:.3g} ms a text instead of {two:.3g}")
        )
    one_size = found.candidate.file_bytes or found.candidate.artifact_bytes
    two_size = found.reference.file_bytes or found.reference.artifact_bytes
    if one_size and two_size:
        cards.append(Card(size(one_size), "size", f"the reference has {size(two_size)}"))
    return cards


def _short(value: float) -> str:
    return f"{value:.3f}" if abs(value) >= 0.001 or value == 0 else number(value)


def metric_row(task: str, name: str, value: float) -> dict[str, Any]:
    """A metric as templates show it."""
    known = metric(task, name)
    return {
        "title": known.title,
        "name": name,
        "value": number(value),
        "about": known.about,
        # How much of a bar is full; none for what has no upper end.
        "share": None if known.lower or value != value else min(max(value, 0), 1),
        "lower": known.lower,
    }


@dataclass(frozen=True)
class _Figure:
    """A plot; `wide`: over the whole page; `legend`: whether it has both models' colours."""

    title: str
    svg: str
    wide: bool = False
    legend: bool = False


def _figures(found: Evaluation) -> list[_Figure]:
    plots = list(found.plots)
    known = tuple(value for value in found.per_text if value == value)
    if len(plots) % 2 and known:
        plots.append(Histogram("Agreement on a text", "agreement", known))
    figures = [
        _Figure(plot.title, draw(plot), legend=isinstance(plot, Bars) and len(plot.series) > 1)
        for plot in plots
    ]
    if latency := draw_latency(found):
        figures.append(_Figure("Time of one text", latency, wide=True, legend=True))
    return figures
