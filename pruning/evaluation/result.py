"""What an evaluation finds, as JSON and as a table for a terminal."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from sparsec.errors import InputError
from sparsec.pruning.evaluation.parts import Example, Model, Number, Plot, Texts
from sparsec.pruning.evaluation.tasks import metric

_TITLE = 26
_VALUE = 14
_WIDTH = 100


@dataclass(frozen=True)
class Evaluation:
    """Two models compared.

    Attributes:
        task: as what they were compared.
        agreement: metrics of the candidate's outputs against the reference's, by name.
        candidate, reference: the models.
        texts: what they were compared on.
        per_text: how much they agree on each text, 1: entirely; NaN: an output was no number.
        examples: the texts on which they agree least.
        plots: what is to be seen.
        warnings: what is to be said.
        machine: where it was measured.
        versions: of sparsec and of ONNX Runtime.
        created: when, UTC.
    """

    task: str
    agreement: Mapping[str, Number]
    candidate: Model
    reference: Model
    texts: Texts
    per_text: tuple[Number, ...]
    examples: tuple[Example, ...]
    plots: tuple[Plot, ...] = field(repr=False)
    warnings: tuple[str, ...]
    machine: str
    versions: Mapping[str, str]
    created: str

    @property
    def speedup(self) -> float | None:
        """How many times as fast the candidate is; None: not measured."""
        if self.candidate.latency is None or self.reference.latency is None:
            return None
        return self.reference.latency.median_ms / self.candidate.latency.median_ms

    def metrics(self) -> dict[str, float]:
        """All that can be asked for by name: the agreement, the candidate's scores, what share of
        the reference's scores it keeps (``accuracy_kept``), ``speedup``."""
        found = {**self.agreement, **self.candidate.scores}
        for name, value in self.reference.scores.items():
            kept = self.candidate.scores[name] / value if value else math.nan
            found[f"{name}_kept"] = kept
        if self.speedup is not None:
            found["speedup"] = self.speedup
        return found

    def to_json(self) -> dict[str, Any]:
        """As values of JSON; null for what is no number."""
        made: dict[str, Any] = _adapter().dump_python(self, mode="json")
        return made

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Evaluation:
        """What :meth:`to_json` was made of.

        Raises:
            InputError: it is something else.
        """
        try:
            return _adapter().validate_python(dict(values))
        except ValidationError as error:
            raise InputError(f"this is no evaluation: {error}") from error

    def replace(self, **changes: Any) -> Evaluation:
        """A copy with other values."""
        return dataclasses.replace(self, **changes)

    def __str__(self) -> str:
        return table(self)


@cache
def _adapter() -> TypeAdapter[Evaluation]:
    return TypeAdapter(Evaluation)


def table(found: Evaluation) -> str:
    """Models, sizes, times and scores side by side, then the agreement; a line each."""
    texts = found.texts
    lines = [
        f"{found.task}: {texts.count} texts of {texts.shortest} to {texts.longest} tokens"
        + (", with labels" if texts.labelled else "")
        + (f"; {longer(found)}" if texts.longer else ""),
        *(f"warning: {warning}" for warning in found.warnings),
        "",
        _row("", "candidate", "reference"),
        *(_row(*row) for row in sides(found)),
        "",
        "agreement of the candidate with the reference",
    ]
    for name, value in found.agreement.items():
        known = metric(found.task, name)
        about = f"{known.about}{' (0 is best)' if known.lower else ''}"
        lines.append(f"{known.title:{_TITLE}}{number(value):>{_VALUE}}   {about}")
    if found.examples:
        lines += ["", "least agreement:"]
        for example in found.examples[:3]:
            lines.append(f"  {clip(example.text, _WIDTH - 2)}")
            parts = (("reference", example.reference), ("candidate", example.candidate))
            lines += [f"    {who:10}{clip(said, _WIDTH - 14)}" for who, said in parts if said]
            if example.label is not None:
                lines.append(f"    {'right':10}{clip(example.label, _WIDTH - 14)}")
    return "\n".join(lines)


def longer(found: Evaluation) -> str:
    """What became of texts that are too long."""
    parted = found.task in ("token-classification", "question-answering")
    return (
        f"{found.texts.longer} above {found.texts.max_length} are "
        f"{'read in parts' if parted else 'cut'}"
    )


def sides(found: Evaluation) -> Iterable[tuple[str, str, str, str]]:
    """(title, candidate's, reference's, what that makes) of all that both models have."""
    one, two = found.candidate, found.reference
    yield "model", short(one.path), short(two.path), ""
    yield "engine", one.engine, two.engine, ""
    yield "file", size(one.file_bytes), size(two.file_bytes), ratio(one.file_bytes, two.file_bytes)
    if one.artifact_bytes is not None or two.artifact_bytes is not None:
        smaller = ratio(one.artifact_bytes, two.artifact_bytes)
        yield "artifact", size(one.artifact_bytes), size(two.artifact_bytes), smaller
    if one.latency and two.latency:
        for title, a, b in (
            ("ms a text, median", one.latency.median_ms, two.latency.median_ms),
            ("ms a text, fastest tenth", one.latency.fastest_ms, two.latency.fastest_ms),
        ):
            yield title, f"{a:.3g}", f"{b:.3g}", f"{b / a:.2f} x as fast"
    for name, value in two.scores.items():
        mine = one.scores[name]
        kept = f"{mine / value:.1%} kept" if value else ""
        yield metric(found.task, name).title, number(mine), number(value), kept
    if one.nonfinite or two.nonfinite:
        yield "texts with NaN", str(one.nonfinite), str(two.nonfinite), ""


def _row(title: str, one: str, two: str, note: str = "") -> str:
    return f"{title:{_TITLE}}{one:>{_VALUE}}  {two:>{_VALUE}}   {note}".rstrip()


def number(value: float) -> str:
    """A metric; what is small with two digits that count."""
    if value != value:
        return "no number"
    return f"{value:.4f}" if abs(value) >= 1e-3 or value == 0 else f"{value:.1e}"


def size(count: int | None) -> str:
    """Bytes for people."""
    if count is None:
        return "-"
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"


def ratio(one: int | None, two: int | None) -> str:
    """How much smaller the candidate is."""
    return f"{one / two:.0%} of it" if one and two else ""


def short(path: str, width: int = _VALUE) -> str:
    """The end of a path, for a column."""
    name = path.rstrip("/").rpartition("/")[2] or path
    return name if len(name) <= width else f"…{name[1 - width :]}"


def clip(text: str, width: int) -> str:
    """One line of at most so many characters, without what a terminal would obey."""
    line = " ".join(text.split())
    line = "".join(c if c.isprintable() else "?" for c in line)
    return line if len(line) <= width else f"{line[: width - 1]}…"
