"""Names, places, parts of speech: a label for each token, or for each group of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import AliasChoices, BaseModel, ConfigDict, Field
from tokenizers import Encoding

from sparsec.errors import InputError
from sparsec.serving.models import ModelFiles
from sparsec.serving.pipelines.base import Job, Pipeline, Truncate, output_named, softmax, width
from sparsec.serving.pipelines.hub import HubForm
from sparsec.serving.pipelines.labels import Label, parse
from sparsec.serving.runner import Outputs, Runner
from sparsec.serving.text import Text, places

STRATEGIES = ("none", "simple", "first", "average", "max")


class TokenClassificationInput(BaseModel):
    """Texts; or words of one text, or of several."""

    model_config = ConfigDict(extra="forbid")

    inputs: str | list[str] | list[list[str]] = Field(
        validation_alias=AliasChoices("inputs", "sequences"),
        description="A text, several texts, or lists of words of texts that are split already",
    )
    is_split_into_words: bool = Field(
        default=False, description="Whether a list of strings is the words of one text"
    )
    truncate: Truncate = None


class TokenClassificationResult(BaseModel):
    """One token, or one group of tokens."""

    entity: str = Field(description="The label")
    score: float = Field(description="Its probability")
    word: str = Field(description="The token, or the text of the group, as the tokenizer spells it")
    start: int = Field(description="Where it starts in the text, in characters, after white space")
    end: int = Field(description="Where it ends, exclusive; of words, in their join by spaces")
    index: int | None = Field(
        default=None, description="The token's index; only without aggregation"
    )
    is_grouped: bool = Field(default=False, description="Whether this may be several tokens")


class TokenClassificationOutput(BaseModel):
    """Results of each text."""

    predictions: list[list[TokenClassificationResult]] = Field(
        description="For each text, its tokens or groups whose label is not ignored"
    )


@dataclass(frozen=True)
class _Window:
    """A sequence that the model runs: a text or a part of one.

    Attributes:
        text: index of the text.
        encoding: its tokens.
        words: where each word of a text that came split starts; None for another.
    """

    text: int
    encoding: Encoding
    words: tuple[int, ...] | None


@dataclass
class TokenClassificationJob(Job):
    """The texts, and what part of which each item is."""

    texts: list[str] = field(default_factory=list)
    windows: list[_Window] = field(default_factory=list)


@dataclass(frozen=True)
class _Token:
    """A token or a word with the scores of all labels; a word has the tokens it is made of.

    `head`: whether a word begins here.
    """

    word: str
    scores: NDArray[np.float64]
    best: int
    start: int
    end: int
    index: int
    head: bool
    pieces: tuple[str, ...] = ()

    @property
    def score(self) -> float:
        return float(self.scores[self.best])


def _as_hub(given: Any, output: BaseModel) -> list[Any]:
    assert isinstance(output, TokenClassificationOutput)
    return [[_row(result) for result in results] for results in output.predictions]


def _row(result: TokenClassificationResult) -> dict[str, Any]:
    row = result.model_dump(include={"score", "word", "start", "end"})
    if result.is_grouped:
        return {"entity_group": result.entity, **row}
    return {"entity": result.entity, "index": result.index, **row}


@Pipeline.register("token-classification", task_aliases=["ner"])
class TokenClassificationPipeline(Pipeline):
    """Labels of tokens.

    Args:
        aggregation_strategy: ``none``: a result for each token; ``simple``: neighbours of one
            label make a group (prefixes such as B- and I- say where one begins); ``first``,
            ``average``, ``max``: the same, but all tokens of a word get the label of its first, of
            the average, or of the one that is most certain.  Words are the tokenizer's; white
            space of any kind parts them.
        ignore_labels: labels that are left out of the results, groups by their name without the
            prefix; O unless given.
        stride: text longer than the largest bucket is split into windows that overlap by so many
            tokens; None: it is not.  Needs an aggregation strategy other than none.

    Raises:
        InputError: an argument has a wrong value.
    """

    input_schema = TokenClassificationInput
    output_schema = TokenClassificationOutput
    label_fields = ("entity",)
    words_field = "is_split_into_words"
    hub = HubForm(
        parameters={
            "aggregation_strategy": "aggregation_strategy",
            "ignore_labels": "ignore_labels",
            "stride": "stride",
            "is_split_into_words": "is_split_into_words",
        },
        defaults={"aggregation_strategy": "simple"},
        rows=_as_hub,
    )

    def __init__(
        self,
        model: ModelFiles,
        text: Text,
        runner: Runner,
        *,
        aggregation_strategy: str = "none",
        ignore_labels: Sequence[str] | None = None,
        stride: int | None = None,
    ) -> None:
        super().__init__(model, text, runner)
        self.aggregation_strategy = str(aggregation_strategy).strip().lower()
        if self.aggregation_strategy not in STRATEGIES:
            raise InputError(
                f"aggregation_strategy must be one of {', '.join(STRATEGIES)}, "
                f"not {aggregation_strategy!r}"
            )
        if stride is not None:
            if self.aggregation_strategy == "none":
                raise InputError(
                    "stride needs an aggregation_strategy other than none: windows overlap"
                )
            if stride < 0:
                raise InputError(f"stride must be at least 0, not {stride}")
        self.stride = stride
        self.ignore_labels = frozenset(["O"] if ignore_labels is None else ignore_labels)
        self._output = output_named(runner, "logits")
        self.reads = (self._output,)
        self._labels: list[Label] | None = None
        if (count := width(runner, self._output, 3)) is not None:
            self._labels = parse(model.labels(count))

    def count(self, inputs: BaseModel) -> int:
        assert isinstance(inputs, TokenClassificationInput)
        words = inputs.is_split_into_words and inputs.inputs and isinstance(inputs.inputs[0], str)
        return 1 if words else super().count(inputs)

    def prepare(self, inputs: BaseModel) -> TokenClassificationJob:
        assert isinstance(inputs, TokenClassificationInput)
        given = inputs.inputs
        texts: Sequence[str | list[str]]
        if isinstance(given, str):
            if inputs.is_split_into_words:
                raise InputError("is_split_into_words: inputs must be a list of words")
            texts = [given]
        elif inputs.is_split_into_words and all(isinstance(word, str) for word in given):
            texts = [[str(word) for word in given]]
        else:
            texts = given
        job = TokenClassificationJob(truncate=self.may_cut(inputs))
        for i, text in enumerate(texts):
            words: tuple[int, ...] | None = None
            if isinstance(text, str):
                encoding = self.text.encode(text)
                job.texts.append(text)
            else:
                encoding = self.text.encode_words(text)
                starts = np.cumsum([0, *(len(word) + 1 for word in text)])
                words = tuple(int(start) for start in starts[: len(text)])
                job.texts.append(" ".join(text))
            if self.stride is None:
                parts = [self.fit(job, encoding, f"inputs.{i}")]
            else:
                room = self.max_length - self.text.special_tokens()
                pieces = self.text.windows(encoding, room, self.stride)
                parts = [self.text.join(piece) for _, piece in pieces]
            for part in parts:
                job.windows.append(_Window(i, part, words))
                job.items.append(self.text.features(part))
        return job

    def finish(self, job: Job, outputs: list[Outputs]) -> TokenClassificationOutput:
        assert isinstance(job, TokenClassificationJob)
        found: list[list[TokenClassificationResult]] = [[] for _ in job.texts]
        counts = [0] * len(job.texts)
        for window, output in zip(job.windows, outputs, strict=True):
            scores = softmax(output[self._output])
            if self._labels is None:
                self._labels = parse(self.model.labels(scores.shape[-1]))
            tokens = self._tokens(window, job.texts[window.text], scores)
            found[window.text] += self._results(tokens, self._labels)
            counts[window.text] += 1
        return TokenClassificationOutput(
            predictions=[
                _without_overlaps(results) if count > 1 else results
                for results, count in zip(found, counts, strict=True)
            ]
        )

    def _tokens(self, window: _Window, text: str, scores: NDArray[np.float64]) -> list[_Token]:
        """The tokens that are not special, with their place in the text."""
        encoding = window.encoding
        unknown = self.text.special_id("unk")
        tokens = []
        best = scores.argmax(axis=-1).tolist()
        rows = zip(
            encoding.tokens, encoding.ids, places(encoding, text, window.words),
            encoding.special_tokens_mask, strict=True,
        )  # fmt: skip
        for index, (token, number, place, special) in enumerate(rows):
            if special:
                continue
            start, end = place.start, place.end
            if number == unknown:
                token = text[start:end]
            tokens.append(_Token(token, scores[index], best[index], start, end, index, place.head))
        return tokens

    def _results(
        self, tokens: list[_Token], labels: list[Label]
    ) -> list[TokenClassificationResult]:
        """One text's results, without ignored labels."""
        if self.aggregation_strategy == "none":
            return [
                TokenClassificationResult(
                    entity=labels[token.best].name,
                    score=token.score,
                    word=token.word,
                    start=token.start,
                    end=token.end,
                    index=token.index,
                )
                for token in tokens
                if labels[token.best].name not in self.ignore_labels
            ]
        if self.aggregation_strategy != "simple":
            tokens = self._words(tokens)
        groups: list[list[_Token]] = []
        last: Label | None = None
        for token in tokens:
            label = labels[token.best]
            if last is not None and label.continues(last):
                groups[-1].append(token)
            else:
                groups.append([token])
            last = label
        results = []
        for group in groups:
            label = labels[group[0].best]
            # Tokens of nothing but white space have no place in the text.
            seen = [token for token in group if token.start < token.end]
            if not seen or (label.entity in self.ignore_labels and not label.hides_outside):
                continue
            results.append(
                TokenClassificationResult(
                    entity=label.entity,
                    score=sum(token.score for token in group) / len(group),
                    word=self.text.join_words([self._spelling(token) for token in group]),
                    start=seen[0].start,
                    end=seen[-1].end,
                    is_grouped=True,
                )
            )
        return results

    def _words(self, tokens: list[_Token]) -> list[_Token]:
        """Tokens joined to words; the strategy says whose scores a word gets."""
        words: list[list[_Token]] = []
        for token in tokens:
            if words and not token.head:
                words[-1].append(token)
            else:
                words.append([token])
        joined = []
        for word in words:
            first = word[0]
            scores, best = first.scores, first.best
            if len(word) > 1 and self.aggregation_strategy != "first":
                scores = self._scores(word)
                best = int(scores.argmax())
            pieces = tuple(token.word for token in word)
            end = word[-1].end
            joined.append(_Token("", scores, best, first.start, end, first.index, True, pieces))
        return joined

    def _spelling(self, token: _Token) -> str:
        """A token's, or a word's."""
        return self.text.join_words(token.pieces) if token.pieces else token.word

    def _scores(self, word: list[_Token]) -> NDArray[Any]:
        """The most certain token's, or the average."""
        if self.aggregation_strategy == "max":
            return max(word, key=lambda token: float(token.scores.max())).scores
        mean: NDArray[Any] = np.mean([token.scores for token in word], axis=0)
        return mean


def _without_overlaps(
    results: list[TokenClassificationResult],
) -> list[TokenClassificationResult]:
    """Of groups that overlap, as those of neighbouring windows do, the longest, or most certain."""
    kept: list[TokenClassificationResult] = []
    for result in sorted(results, key=lambda r: r.start):
        if kept and kept[-1].start <= result.start < kept[-1].end:
            before = kept[-1]
            if (result.end - result.start, result.score) > (
                before.end - before.start,
                before.score,
            ):
                kept[-1] = result
        else:
            kept.append(result)
    return kept
