"""The part of a context that answers a question."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Encoding

from sparsec.errors import InputError
from sparsec.serving.models import ModelFiles
from sparsec.serving.pipelines.base import Job, Pipeline, output_named, softmax, width
from sparsec.serving.runner import Outputs, Runner
from sparsec.serving.text import Text

# Logits of tokens that cannot be in an answer.
_HIDDEN = -10000.0


class QuestionAnsweringInput(BaseModel):
    """A question and the text to look for its answer in."""

    model_config = ConfigDict(extra="forbid")

    question: str = Field(min_length=1, description="The question")
    context: str = Field(min_length=1, description="The text that has the answer")
    id: str | None = Field(default=None, description="The caller's name for this; not used")


class QuestionAnsweringOutput(BaseModel):
    """The best answer."""

    score: float = Field(description="Its probability")
    answer: str = Field(description="The part of the context; empty where there is none")
    start: int = Field(description="Where it starts in the context, in characters")
    end: int = Field(description="Where it ends, exclusive")


@dataclass
class QuestionAnsweringJob(Job):
    """The context, and the tokens of question and window of each item."""

    context: str = ""
    windows: list[Encoding] = field(default_factory=list)


@Pipeline.register("question-answering", task_aliases=["qa"])
class QuestionAnsweringPipeline(Pipeline):
    """Answers from a context.  A context that does not fit is split into overlapping windows.

    Args:
        doc_stride: tokens that windows overlap by; None: half the largest bucket, 128 at most.
        max_question_len: tokens of the question after which it is cut; DeepSparse's name,
            ``max_question_length``, is accepted.
        max_answer_len: tokens of the longest answer; also as ``max_answer_length``.
        n_best_size: candidates of each window; those that are the same text add up.
        version_2_with_negative: the answer may be that there is none.
        num_spans: windows to look at, from the first; None: all.

    Raises:
        InputError: an argument has a wrong value.
    """

    input_schema = QuestionAnsweringInput
    output_schema = QuestionAnsweringOutput

    def __init__(
        self,
        model: ModelFiles,
        text: Text,
        runner: Runner,
        *,
        doc_stride: int | None = None,
        max_question_len: int = 64,
        max_answer_len: int = 15,
        n_best_size: int = 12,
        version_2_with_negative: bool = False,
        num_spans: int | None = None,
        max_question_length: int | None = None,
        max_answer_length: int | None = None,
    ) -> None:
        super().__init__(model, text, runner)
        self.doc_stride = doc_stride
        self.max_question_len = (
            max_question_len if max_question_length is None else max_question_length
        )
        self.max_answer_len = max_answer_len if max_answer_length is None else max_answer_length
        self.n_best_size = n_best_size
        self.version_2_with_negative = version_2_with_negative
        self.num_spans = num_spans
        if doc_stride is not None and doc_stride < 0:
            raise InputError(f"doc_stride must be at least 0, not {doc_stride}")
        for name in ("max_question_len", "max_answer_len", "n_best_size", "num_spans"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, not {value}")
        names = runner.output_names
        if len(names) < 2:
            raise InputError(
                f"the model has the output {', '.join(names)} only; question answering needs "
                f"start_logits and end_logits"
            )
        self._start = output_named(runner, "start")
        ends = [name for name in names if "end" in name.lower() and name != self._start]
        self._end = ends[0] if ends else names[1]
        for name in (self._start, self._end):
            width(runner, name, 2)
        self.reads = (self._start, self._end)

    def prepare(self, inputs: BaseModel) -> QuestionAnsweringJob:
        assert isinstance(inputs, QuestionAnsweringInput)
        question = self.text.encode(inputs.question)
        self.text.cut(question, self.max_question_len)
        room = self.max_length - self.text.special_tokens(pair=True) - len(question)
        if room < 1:
            raise InputError(
                f"a question of {len(question)} tokens leaves no room for the context in "
                f"{self.max_length}: use a larger sequence_length or a smaller max_question_len"
            )
        stride = self.doc_stride
        if stride is None:
            stride = min(self.max_length // 2, 128)
            stride = stride if stride < room else room // 2
        windows = self.text.windows(self.text.encode(inputs.context), room, stride)
        job = QuestionAnsweringJob(context=inputs.context)
        for window in windows[: self.num_spans]:
            encoding = self.text.join(question, window)
            job.windows.append(encoding)
            job.items.append(self.text.features(encoding))
        return job

    def finish(self, job: Job, outputs: list[Outputs]) -> QuestionAnsweringOutput:
        assert isinstance(job, QuestionAnsweringJob)
        answers: dict[str, QuestionAnsweringOutput] = {}
        nothing = 1.0
        for encoding, output in zip(job.windows, outputs, strict=True):
            start, end, null = self._probabilities(encoding, output)
            nothing = min(nothing, null)
            for first, last, score in self._spans(encoding, start, end):
                a, b = _characters(encoding, first, last)
                text = job.context[a:b]
                answer = answers.get(text.lower())
                if answer is None:
                    answers[text.lower()] = QuestionAnsweringOutput(
                        score=score, answer=text, start=a, end=b
                    )
                else:
                    answer.score += score
        found = list(answers.values())
        if self.version_2_with_negative or not found:
            score = nothing if self.version_2_with_negative else 0.0
            found.append(QuestionAnsweringOutput(score=score, answer="", start=0, end=0))
        return max(found, key=lambda answer: answer.score)

    def _probabilities(
        self, encoding: Encoding, output: Outputs
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
        """Of each token, to be the first and the last of the answer; and that there is none."""
        # The class token takes part in the softmax: models point at it if there is no answer.
        allowed = np.array([sequence == 1 for sequence in encoding.sequence_ids])
        allowed |= np.array(encoding.ids) == self.text.special_id("cls")
        start, end = (
            softmax(np.where(allowed, output[name], _HIDDEN)) for name in (self._start, self._end)
        )
        null = float(start[0] * end[0])
        start[0] = end[0] = 0.0
        return start, end, null

    def _spans(
        self, encoding: Encoding, start: NDArray[np.float64], end: NDArray[np.float64]
    ) -> list[tuple[int, int, float]]:
        """The best candidates: (first token, last token, score)."""
        scores = np.tril(np.triu(np.outer(start, end)), self.max_answer_len - 1).ravel()
        count = min(self.n_best_size, scores.size)
        best = np.argpartition(-scores, count - 1)[:count]
        best = best[np.argsort(-scores[best], kind="stable")]
        context = [sequence == 1 for sequence in encoding.sequence_ids]
        spans = []
        for flat in best:
            first, last = divmod(int(flat), len(start))
            if context[first] and context[last] and scores[flat] > 0:
                spans.append((first, last, float(scores[flat])))
        return spans


def _characters(encoding: Any, first: int, last: int) -> tuple[int, int]:
    """Where whole words that the tokens belong to start and end in the context."""
    words = encoding.token_to_word(first), encoding.token_to_word(last)
    if None not in words:
        places = [encoding.word_to_chars(word, sequence_index=1) for word in words]
        if None not in places:
            return int(places[0][0]), int(places[1][1])
    return int(encoding.offsets[first][0]), int(encoding.offsets[last][1])
