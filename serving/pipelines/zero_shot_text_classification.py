"""Labels that the model was not trained for, by asking whether the text entails each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from sparsec.arguments import setting
from sparsec.errors import InputError, ModelError
from sparsec.serving.models import ModelFiles
from sparsec.serving.pipelines.base import Job, Pipeline, Truncate, output_named, softmax, width
from sparsec.serving.pipelines.hub import HubForm
from sparsec.serving.runner import Outputs, Runner
from sparsec.serving.text import Text

TEMPLATE = "This text is about {}"


class ZeroShotTextClassificationInput(BaseModel):
    """Texts and the labels to choose from."""

    model_config = ConfigDict(extra="forbid")

    sequences: str | list[str] = Field(
        validation_alias=AliasChoices("sequences", "inputs"), description="A text, or several"
    )
    labels: str | list[str] | None = Field(
        default=None,
        description="Labels, as a list or separated by commas, unless the pipeline has its own",
    )
    hypothesis_template: str | None = Field(
        default=None, description="A sentence with {} for the label"
    )
    multi_class: bool | None = Field(
        default=None, description="Whether several labels may be true of a text"
    )
    truncate: Truncate = None


class ZeroShotTextClassificationOutput(BaseModel):
    """Labels of a text, best first; lists of those if several texts were given."""

    sequences: str | list[str] = Field(description="The texts")
    labels: list[str] | list[list[str]] = Field(description="The labels of each, best first")
    scores: list[float] | list[list[float]] = Field(description="Their scores")


@dataclass
class ZeroShotTextClassificationJob(Job):
    """Items are all labels of the first text, then of the next."""

    sequences: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    multi_class: bool = False
    single: bool = False


def _as_hub(given: Any, output: BaseModel) -> list[Any]:
    assert isinstance(output, ZeroShotTextClassificationOutput)
    columns: tuple[Any, ...] = (output.sequences, output.labels, output.scores)
    if isinstance(output.sequences, str):
        columns = tuple([column] for column in columns)
    return [
        {"sequence": text, "labels": labels, "scores": scores}
        for text, labels, scores in zip(*columns, strict=True)
    ]


@Pipeline.register(
    "zero-shot-text-classification", task_aliases=["zero-shot-classification", "zero-shot"]
)
class ZeroShotTextClassificationPipeline(Pipeline):
    """Any labels, by a model for natural language inference.

    Args:
        labels: the labels of every call; None: each call gives its own.
        hypothesis_template: the sentence that a text may entail; {} stands for the label.
        multi_class: whether several labels may be true: then each score is entailment against
            contradiction, else they are a softmax over the labels.
        entailment_index, contradiction_index: outputs of the model; by the names in config.json if
            absent.
        model_scheme: only ``mnli`` exists.
        model_config: the options above in a mapping, as DeepSparse takes them.

    Raises:
        InputError: an argument has a wrong value.
        ModelError: config.json does not name the output for entailment.
    """

    input_schema = ZeroShotTextClassificationInput
    output_schema = ZeroShotTextClassificationOutput
    hub = HubForm(
        names=("zero-shot-classification",),
        parameters={
            "candidate_labels": "labels",
            "hypothesis_template": "hypothesis_template",
            "multi_label": "multi_class",
            "multi_class": "multi_class",
        },
        defaults={"hypothesis_template": "This example is {}."},
        rows=_as_hub,
    )

    def __init__(
        self,
        model: ModelFiles,
        text: Text,
        runner: Runner,
        *,
        labels: str | Sequence[str] | None = None,
        hypothesis_template: str = TEMPLATE,
        multi_class: bool = False,
        entailment_index: int | None = None,
        contradiction_index: int | None = None,
        model_scheme: str = "mnli",
        model_config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(model, text, runner)
        if model_scheme != "mnli":
            raise InputError(f"model_scheme must be mnli, not {model_scheme!r}")
        options: dict[str, Any] = {
            "hypothesis_template": hypothesis_template,
            "multi_class": multi_class,
            "entailment_index": entailment_index,
            "contradiction_index": contradiction_index,
        }
        unknown = sorted(set(model_config or {}) - set(options))
        if unknown:
            raise InputError(f"model_config has {', '.join(unknown)}; it may have {list(options)}")
        options |= model_config or {}
        self.labels = None if labels is None else _labels(labels)
        self.hypothesis_template = _template(options["hypothesis_template"])
        self.multi_class = bool(options["multi_class"])
        self._output = output_named(runner, "logits", rank=2)
        self.reads = (self._output,)
        self._count = width(runner, self._output, 2)
        names = model.labels(self._count) if self._count is not None else []
        self._entailment = self._index(names, options["entailment_index"], "entail")
        if options["contradiction_index"] is None and not _named(names, "contradict"):
            options["contradiction_index"] = -1 if self._entailment == 0 else 0
        self._contradiction = self._index(names, options["contradiction_index"], "contradict")
        if self._entailment == self._contradiction:
            raise InputError("entailment_index must differ from contradiction_index")

    def _index(self, names: list[str], given: int | None, start: str) -> int:
        """An output's index: the given one, or that of the label that starts so."""
        if given is None:
            found = _named(names, start)
            if not found:
                raise ModelError(
                    f"config.json names no label {start}...: give "
                    f"{setting(f'{start}ment_index', option=True)} "
                    f"(labels: {', '.join(names) or 'none'})"
                )
            return found[0]
        if self._count is not None and not -self._count <= given < self._count:
            raise InputError(f"index {given} is not one of the model's {self._count} outputs")
        return given % self._count if self._count else given

    def example(self) -> dict[str, Any]:
        own = {"labels": ["sports", "politics"]} if self.labels is None else {}
        return {"sequences": "The team won the match.", **own}

    def count(self, inputs: BaseModel) -> int:
        assert isinstance(inputs, ZeroShotTextClassificationInput)
        labels = inputs.labels if self.labels is None else self.labels
        each = labels.count(",") + 1 if isinstance(labels, str) else len(labels or ())
        return super().count(inputs) * each

    def prepare(self, inputs: BaseModel) -> ZeroShotTextClassificationJob:
        assert isinstance(inputs, ZeroShotTextClassificationInput)
        if (inputs.labels is None) == (self.labels is None):
            raise InputError(
                "labels: give them once, to the pipeline or to the call"
                if inputs.labels is not None
                else "labels: needed by the call, because the pipeline was made without"
            )
        labels = self.labels if self.labels is not None else _labels(inputs.labels or [])
        template = (
            self.hypothesis_template
            if inputs.hypothesis_template is None
            else _template(inputs.hypothesis_template)
        )
        texts = [inputs.sequences] if isinstance(inputs.sequences, str) else inputs.sequences
        job = ZeroShotTextClassificationJob(
            sequences=list(texts),
            labels=labels,
            multi_class=self.multi_class if inputs.multi_class is None else inputs.multi_class,
            single=isinstance(inputs.sequences, str),
            truncate=self.may_cut(inputs),
        )
        hypotheses = [self.text.ids(template.replace("{}", label)) for label in labels]
        longest = max(hypotheses, key=len)
        for i, text in enumerate(texts):
            premise = self.text.ids(text)
            whole = len(premise) + len(longest) + self.text.special_tokens(pair=True)
            self.admit(job, whole, f"sequences.{i}")
            for hypothesis in hypotheses:
                # Only the text is truncated: without the label there is no question.
                job.items.append(
                    self.text.pair(premise, hypothesis, self.max_length, only_first=True)
                )
        return job

    def finish(self, job: Job, outputs: list[Outputs]) -> ZeroShotTextClassificationOutput:
        assert isinstance(job, ZeroShotTextClassificationJob)
        count = len(job.labels)
        labels, scores = [], []
        for i in range(len(job.sequences)):
            logits = np.stack(
                [output[self._output] for output in outputs[i * count : (i + 1) * count]]
            )
            if job.multi_class or count == 1:
                values = softmax(logits[:, [self._contradiction, self._entailment]])[:, 1]
            else:
                values = softmax(logits[:, self._entailment])
            # Of equal labels the last one comes first, as in transformers; NaN is below all.
            order = np.argsort(np.where(np.isnan(values), -1.0, values), kind="stable")[::-1]
            labels.append([job.labels[k] for k in order])
            scores.append([float(values[k]) for k in order])
        if job.single:
            return ZeroShotTextClassificationOutput(
                sequences=job.sequences[0], labels=labels[0], scores=scores[0]
            )
        return ZeroShotTextClassificationOutput(
            sequences=job.sequences, labels=labels, scores=scores
        )


def _named(names: Sequence[str], start: str) -> list[int]:
    return [i for i, name in enumerate(names) if name.lower().startswith(start)]


def _labels(labels: str | Sequence[str]) -> list[str]:
    parts = labels.split(",") if isinstance(labels, str) else labels
    found = [part.strip() for part in parts if part.strip()]
    if not found:
        raise InputError("labels: at least one is needed")
    return found


def _template(template: str) -> str:
    # Not str.format: templates come over the network, and {:>999999999} is a format too.
    if "{}" not in template:
        raise InputError(f"hypothesis_template must have {{}} for the label: {template!r}")
    return template
