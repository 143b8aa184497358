"""The part of a context that answers a question."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Encoding

from sparsec.arguments import setting
from sparsec.errors import InputError, TooLongError
from sparsec.serving.models import ModelFiles
from sparsec.serving.pipelines.base import Job, Pipeline, Truncate, output_named, width
from sparsec.serving.pipelines.hub import HubForm
from sparsec.serving.runner import Outputs, Runner
from sparsec.serving.text import Text, places

# Tokens that a question is cut to where texts may be cut and nothing else is said.
QUESTION = 64

# What infinite logits count as, so that differences stay numbers.
_LEAST, _MOST = -10000.0, float(np.finfo(np.float32).max)


class QuestionAnsweringInput(BaseModel):
    """A question and the text to look for its answer in."""

    model_config = ConfigDict(extra="forbid")

    question: str = Field(min_length=1, description="The question")
    context: str = Field(min_length=1, description="The text that has the answer")
    id: str | None = Field(default=None, description="The caller's name for this; not used")
    truncate: Truncate = None


class QuestionAnsweringOutput(BaseModel):
    """The best answer."""

    score: float = Field(description="Its probability")
    answer: str = Field(description="The part of the context; empty where there is none")
    start: int = Field(description="Where it starts in the context, in characters")
    end: int = Field(description="Where it ends, exclusive")


class QuestionAnsweringRanking(QuestionAnsweringOutput):
    """The best answer, and the others that were asked for."""

    answers: list[QuestionAnsweringOutput] = Field(
        description="The best answers, best first; only if top_k is more than 1"
    )


def _as_hub(given: Any, output: BaseModel) -> list[Any]:
    assert isinstance(output, QuestionAnsweringOutput)
    if isinstance(output, QuestionAnsweringRanking):
        return [[answer.model_dump() for answer in output.answers]]
    return [output.model_dump()]


@dataclass(frozen=True)
class _Window:
    """What part of the context an item is.

    Attributes:
        first: index of its first token among those of the whole context.
        start, count: the tokens of the item that are the context's.
        null: the class token; None if there is none.
    """

    first: int
    start: int
    count: int
    null: int | None


@dataclass(frozen=True)
class _Chances:
    """Of each token of a window's context, the probability that an answer starts (or ends) there.

    Attributes:
        each: in this window alone, beside the class token.
        total: logarithm of how much more likely any of them is than the class token, it included.
    """

    each: NDArray[np.float64]
    total: float


@dataclass
class QuestionAnsweringJob(Job):
    """The context, its words (of each token, where its word starts and ends), and the windows."""

    context: str = ""
    words: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    windows: list[_Window] = field(default_factory=list)


@Pipeline.register("question-answering", task_aliases=["qa"])
class QuestionAnsweringPipeline(Pipeline):
    """Answers from a context.  A context that does not fit is split into overlapping windows.

    Every candidate is measured against its own window's class token, which all windows share, and
    its score is the probability beside the candidates of the window that has most to offer: with
    one window, a plain softmax over it.

    Args:
        doc_stride: tokens that windows overlap by; None: half the largest bucket, 128 at most.
        max_question_len: tokens of the question after which it is cut; None: 64 where texts may be
            cut, else no question is.  DeepSparse's name, ``max_question_length``, is accepted.
        max_answer_len: tokens of the longest answer; also as ``max_answer_length``.
        n_best_size: candidates of each window; those within the same words add up.
        version_2_with_negative: the answer may be that there is none.
        num_spans: windows to look at, from the first; None: all.
        top_k: answers to return: more than 1 are `answers` of a QuestionAnsweringRanking.
        max_seq_len: tokens of a window; None: as many as fit.

    Raises:
        InputError: an argument has a wrong value.
    """

    input_schema = QuestionAnsweringInput
    output_schema = QuestionAnsweringOutput
    hub = HubForm(
        parameters={
            "doc_stride": "doc_stride",
            "max_answer_len": "max_answer_len",
            "max_question_len": "max_question_len",
            "max_seq_len": "max_seq_len",
            "handle_impossible_answer": "version_2_with_negative",
            "top_k": "top_k",
        },
        fixed={"align_to_words": True},
        rows=_as_hub,
        alone=True,
    )

    def __init__(
        self,
        model: ModelFiles,
        text: Text,
        runner: Runner,
        *,
        doc_stride: int | None = None,
        max_question_len: int | None = None,
        max_answer_len: int = 15,
        n_best_size: int = 12,
        version_2_with_negative: bool = False,
        num_spans: int | None = None,
        top_k: int = 1,
        max_seq_len: int | None = None,
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
        self.top_k = top_k
        if doc_stride is not None and doc_stride < 0:
            raise InputError(f"doc_stride must be at least 0, not {doc_stride}")
        for name in ("max_question_len", "max_answer_len", "n_best_size", "num_spans", "top_k"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, not {value}")
        if max_seq_len is not None:
            if max_seq_len < 1:
                raise InputError(f"max_seq_len must be at least 1, not {max_seq_len}")
            self.max_length = min(self.max_length, max_seq_len)
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

    def example(self) -> dict[str, Any]:
        return {"question": "Who flies to Lima?", "context": "Mary flies to Lima on Friday."}

    def prepare(self, inputs: BaseModel) -> QuestionAnsweringJob:
        assert isinstance(inputs, QuestionAnsweringInput)
        job = QuestionAnsweringJob(context=inputs.context, truncate=self.may_cut(inputs))
        question = self.text.encode(inputs.question)
        limit = self.max_question_len or (QUESTION if job.truncate else None)
        if limit is not None and len(question) > limit:
            self.text.cut(question, limit)
            job.cut += 1
        room = self.max_length - self.text.special_tokens(pair=True) - len(question)
        if room < 1:
            way = f"a smaller {setting('max_question_len', option=True)}"
            if limit is None:  # `truncate` would have set one
                way = self._cutting()
            raise TooLongError(
                f"a question of {len(question)} tokens leaves no room for the context in "
                f"{self.max_length}: {way} cuts it{self._more_room()}"
            )
        stride = self.doc_stride
        if stride is None:
            stride = min(self.max_length // 2, 128)
            stride = stride if stride < room else room // 2
        context = self.text.encode(inputs.context)
        job.words = _words(context, inputs.context)
        side = 0 if self.text.context_first else 1
        cls = self.text.special_id("cls")
        for first, piece in self.text.windows(context, room, stride)[: self.num_spans]:
            encoding = self.text.join(*((question, piece) if side else (piece, question)))
            job.windows.append(_window(encoding, first, side, cls))
            job.items.append(self.text.features(encoding))
        return job

    def finish(self, job: Job, outputs: list[Outputs]) -> QuestionAnsweringOutput:
        assert isinstance(job, QuestionAnsweringJob)
        chances = [
            (window, _chances(window, output[self._start]), _chances(window, output[self._end]))
            for window, output in zip(job.windows, outputs, strict=True)
        ]
        # Windows with NaN say nothing.
        chances = [row for row in chances if not math.isnan(row[1].total + row[2].total)]
        if not chances:
            return QuestionAnsweringOutput(score=math.nan, answer="", start=0, end=0)
        # The largest of all windows: what puts them on one scale.
        whole = max(row[1].total for row in chances) + max(row[2].total for row in chances)
        scores: dict[tuple[int, int], float] = {}
        for window, start, end in chances:
            share = math.exp(start.total + end.total - whole)
            found: dict[tuple[int, int], float] = {}
            for first, last, score in self._spans(start.each, end.each):
                place = _between(job, window.first + first, window.first + last)
                if place[0] < place[1]:
                    # Parts of the same words are one answer, of which only one can be true.
                    found[place] = found.get(place, 0.0) + score * share
            for place, score in found.items():
                # Windows that overlap see the same words: they count once.
                scores[place] = max(scores.get(place, 0.0), score)
        if self.version_2_with_negative and job.windows[0].null is not None:
            scores[0, 0] = math.exp(-whole)
        # Of equal ones an answer comes before none, and the first in the context before others.
        ranked = sorted(scores, key=lambda place: (-scores[place], place == (0, 0), place))
        answers = [
            QuestionAnsweringOutput(
                score=min(1.0, scores[place]),
                answer=job.context[slice(*place)],
                start=place[0],
                end=place[1],
            )
            for place in ranked[: self.top_k]
        ] or [QuestionAnsweringOutput(score=0.0, answer="", start=0, end=0)]
        if self.top_k == 1:
            return answers[0]
        return QuestionAnsweringRanking(**answers[0].model_dump(), answers=answers)

    def _spans(
        self, start: NDArray[np.float64], end: NDArray[np.float64]
    ) -> list[tuple[int, int, float]]:
        """The best candidates of a window: (first token, last token, score)."""
        scores = np.tril(np.triu(np.outer(start, end)), self.max_answer_len - 1).ravel()
        best = np.arange(scores.size)
        if scores.size > self.n_best_size:
            best = np.argpartition(-scores, self.n_best_size - 1)[: self.n_best_size]
        return [
            (*divmod(int(flat), len(start)), float(scores[flat])) for flat in best if scores[flat]
        ]


def _window(encoding: Encoding, first: int, context: int, cls: int | None) -> _Window:
    """Where the parts of a window are.

    Args:
        encoding: question and context.
        first: index of the first token among those of the whole context.
        context: which of the two sequences is the context.
        cls: id of the class token.
    """
    sequences = encoding.sequence_ids
    count = sequences.count(context)
    special = zip(encoding.ids, encoding.special_tokens_mask, strict=True)
    null = [i for i, (number, mask) in enumerate(special) if mask and number == cls]
    return _Window(
        first, sequences.index(context) if count else 0, count, null[0] if null else None
    )


def _chances(window: _Window, logits: NDArray[Any]) -> _Chances:
    """What a window's logits say of each token of the context.

    The class token takes part: models point at it if there is no answer.
    """
    values = np.clip(np.asarray(logits, np.float64), _LEAST, _MOST)
    tokens = values[window.start : window.start + window.count]
    if window.null is None:
        total = float(np.logaddexp.reduce(tokens, initial=_LEAST))
    else:
        tokens = tokens - values[window.null]
        total = float(np.logaddexp.reduce(tokens, initial=0.0))
    return _Chances(np.exp(tokens - total), total)


def _words(encoding: Encoding, text: str) -> NDArray[np.int64]:
    """Where the word that each token belongs to starts and ends in the text, ``[tokens, 2]``."""
    words: list[list[int]] = []
    result = []
    for place in places(encoding, text):
        if place.head or words[-1][0] == words[-1][1]:
            # A word begins, or has had nothing but white space so far.
            if place.head:
                words.append([place.start, place.end])
            else:
                words[-1][:] = place.start, place.end
        elif place.start < place.end:
            words[-1][1] = place.end
        result.append(words[-1])
    return np.array(result, np.int64).reshape(-1, 2)


def _between(job: QuestionAnsweringJob, first: int, last: int) -> tuple[int, int]:
    """Whole words from one token of the context to another, without white space around."""
    start, end = int(job.words[first, 0]), int(job.words[last, 1])
    text = job.context[start:end]
    start += len(text) - len(text.lstrip())
    return start, start + len(text.strip())
