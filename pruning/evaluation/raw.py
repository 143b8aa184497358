"""Outputs as they are, of models whose task is not known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from sparsec.arguments import argument
from sparsec.errors import InputError
from sparsec.pruning.evaluation.models import Contender
from sparsec.pruning.evaluation.parts import Histogram
from sparsec.pruning.evaluation.task import Findings, Metric, Said, Task
from sparsec.pruning.evaluation.texts import Sample
from sparsec.serving.pipelines import (
    Job,
    Pipeline,
    TextClassificationInput,
    TextClassificationPipeline,
)
from sparsec.serving.runner import Outputs


class AnyOutputs(BaseModel):
    """All outputs of the model, for each text."""

    outputs: list[dict[str, Any]]


class AnyModel(Pipeline):
    """Texts or pairs to all outputs, whatever they are; it is not registered."""

    task = "outputs"
    input_schema = TextClassificationInput
    output_schema = AnyOutputs
    prepare = TextClassificationPipeline.prepare

    def finish(self, job: Job, outputs: list[Outputs]) -> AnyOutputs:
        return AnyOutputs(
            outputs=[{name: array.tolist() for name, array in each.items()} for each in outputs]
        )


class Raw(Task[Outputs, dict[str, tuple[float, float]]]):
    """All outputs, number by number."""

    name = "outputs"
    pipeline = AnyModel
    agreement: ClassVar[Mapping[str, Metric]] = {
        "cosine_mean": Metric("cosine, mean", "of a text's two outputs, the worst output"),
        "cosine_p05": Metric("cosine, lowest 5 %", "95 % of the texts are above"),
        "difference_max": Metric("difference, largest", "of two numbers", lower=True),
    }

    def settle(
        self, reference: Contender, candidate: Contender, samples: Sequence[Sample]
    ) -> Sequence[Sample]:
        names = [model.pipeline.runner.output_names for model in (reference, candidate)]
        if sorted(names[0]) != sorted(names[1]):
            raise InputError(
                f"the outputs do not match: the candidate has {', '.join(names[1])}, the reference "
                f"{', '.join(names[0])}"
            )
        if samples[0].label is not None:
            raise InputError(f"labels are of no use without a task: give {argument('task')}")
        return samples

    def prepare(self, model: Contender, sample: Sample) -> Job:
        return Job([model.features(sample.text, sample.pair)])

    def read(self, model: Contender, sample: Sample, job: Job, outputs: list[Outputs]) -> Outputs:
        return outputs[0]

    def pair(
        self, sample: Sample, reference: Outputs, candidate: Outputs
    ) -> dict[str, tuple[float, float]]:
        """Cosine and largest difference, by output."""
        found = {}
        for name, one in reference.items():
            if one.shape != candidate[name].shape:
                raise InputError(
                    f"the outputs do not match: {name} has the shape {list(candidate[name].shape)} "
                    f"in the candidate and {list(one.shape)} in the reference, for the same text"
                )
            found[name] = alike(one, candidate[name])
        return found

    def compare(
        self, samples: Sequence[Sample], rows: Sequence[Mapping[str, tuple[float, float]]]
    ) -> Findings:
        tables = {name: np.array([row[name] for row in rows]) for name in rows[0]}
        means = {name: float(table[:, 0].mean()) for name, table in tables.items()}
        worst = min(means, key=means.__getitem__)
        per_text = np.min([table[:, 0] for table in tables.values()], axis=0)
        agreement = {
            "cosine_mean": means[worst],
            "cosine_p05": float(np.quantile(per_text, 0.05)),
            "difference_max": float(max(table[:, 1].max() for table in tables.values())),
        }
        if len(means) > 1:
            agreement |= {f"cosine_mean[{name}]": value for name, value in means.items()}
        said = [
            Said("", "; ".join(f"{name}: cosine {row[name][0]:.4f}" for name in row))
            for row in rows
        ]
        plots = [
            Histogram(f"{name}: a text's two outputs", "cosine", tuple(table[:, 0].tolist()))
            for name, table in tables.items()
        ]
        return Findings(agreement, per_text.tolist(), said, plots=plots)


def alike(one: NDArray[np.generic], two: NDArray[np.generic]) -> tuple[float, float]:
    """(cosine, largest difference) of all numbers of two arrays; equal ones have cosine 1."""
    from sparsec.pruning.evaluation.embeddings import cosine

    a, b = (np.asarray(side, np.float64).reshape(1, -1) for side in (one, two))
    if np.array_equal(a, b):
        return 1.0, 0.0
    return float(cosine(a, b)[0]), float(np.abs(a - b).max())
