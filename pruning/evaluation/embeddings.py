"""Embeddings: are vectors, similarities and neighbours the same?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sparsec.errors import InputError
from sparsec.pruning.evaluation.models import Contender, Found
from sparsec.pruning.evaluation.parts import Histogram, Plot, Scatter
from sparsec.pruning.evaluation.task import Findings, Metric, Said, Task
from sparsec.pruning.evaluation.texts import Sample
from sparsec.serving.pipelines import EmbeddingExtractionPipeline, Job
from sparsec.serving.runner import Outputs

Vectors = NDArray[np.float64]

NEIGHBOURS = 10

MOST_PAIRED = 2000
"""Texts of which all pairs are looked at; there are two million of them then."""

_PLOTTED = 1500

_VECTOR = "sentence_embedding"


class Embeddings(Task[Vectors, tuple[Vectors, Vectors]]):
    """Vectors of texts, or of both texts of pairs.

    Args:
        pooling: ``mean``, ``cls`` or ``max``, how one vector is made of those of the tokens; None:
            as sentence-transformers' ``1_Pooling/config.json`` says, else ``mean``.
        seed: of the choice of pairs where there are too many.
    """

    name = "embeddings"
    pipeline = EmbeddingExtractionPipeline.task
    agreement: ClassVar[Mapping[str, Metric]] = {
        "cosine_mean": Metric("cosine, mean", "of the two vectors of a text"),
        "cosine_median": Metric("cosine, median", "half of the texts are above"),
        "cosine_p05": Metric("cosine, lowest 5 %", "95 % of the texts are above"),
        "pair_spearman": Metric(
            "similarities, Spearman", "do the similarities of all pairs of texts rank alike?"
        ),
        "neighbours": Metric(
            f"{NEIGHBOURS} nearest shared", "share of a text's nearest texts that are the same"
        ),
    }
    scores: ClassVar[Mapping[str, Metric]] = {
        "similarity_spearman": Metric(
            "similarity, Spearman", "do cosines of pairs rank as the labels do?"
        )
    }

    def __init__(self, pooling: str | None = None, seed: int = 0) -> None:
        self._pooling = pooling
        self._rng = np.random.default_rng(seed)
        self._labels: list[float] | None = None

    def options(self, found: Found, samples: Sequence[Sample]) -> dict[str, Any]:
        self._pooling = self._pooling or _pooling_of(found) or "mean"
        strategies = {"mean": "reduce_mean", "cls": "cls_token", "max": "reduce_max"}
        # The model as it is: it was compiled, or pruned, whole.
        layer = _VECTOR if _VECTOR in found.outputs else None
        return {
            "emb_extraction_layer": layer,
            "extraction_strategy": strategies[self._pooling],
            "return_numpy": True,
        }

    def settle(
        self, reference: Contender, candidate: Contender, samples: Sequence[Sample]
    ) -> Sequence[Sample]:
        if samples[0].label is None:
            return samples
        try:
            self._labels = [float(sample.label) for sample in samples]
        except (TypeError, ValueError):
            self._labels = None
        if self._labels is None or any(sample.pair is None for sample in samples):
            raise InputError(
                "labels for embeddings are similarities, a number for each pair of texts; without "
                "labels the models are compared with each other"
            )
        return samples

    def prepare(self, model: Contender, sample: Sample) -> Job:
        texts = [sample.text] if sample.pair is None else [sample.text, sample.pair]
        return Job([model.features(text) for text in texts])

    def read(self, model: Contender, sample: Sample, job: Job, outputs: list[Outputs]) -> Vectors:
        found = model.pipeline.finish(job, outputs).model_dump()["embeddings"]
        return np.stack(found).astype(np.float64)

    def pair(
        self, sample: Sample, reference: Vectors, candidate: Vectors
    ) -> tuple[Vectors, Vectors]:
        if reference.shape != candidate.shape:
            raise InputError(
                f"the outputs do not match: the candidate's vectors have {candidate.shape[-1]} "
                f"numbers, the reference's {reference.shape[-1]}"
            )
        return reference, candidate

    def compare(
        self, samples: Sequence[Sample], rows: Sequence[tuple[Vectors, Vectors]]
    ) -> Findings:
        from scipy.stats import spearmanr

        reference, candidate = (np.concatenate(side) for side in zip(*rows, strict=True))
        cosines = cosine(reference, candidate)
        each = np.split(cosines, np.cumsum([len(row[0]) for row in rows])[:-1])
        per_text = [float(part.mean()) for part in each]
        chosen = np.arange(len(reference))
        warnings = []
        if len(chosen) > MOST_PAIRED:
            chosen = np.sort(self._rng.choice(chosen, MOST_PAIRED, replace=False))
            warnings.append(
                f"similarities are those of the pairs of {MOST_PAIRED} texts, drawn at random"
            )
        pairs = similarities(reference[chosen]), similarities(candidate[chosen])
        near = [neighbours(side) for side in (reference, candidate)]
        agreement = {
            "cosine_mean": float(cosines.mean()),
            "cosine_median": float(np.median(cosines)),
            "cosine_p05": float(np.quantile(cosines, 0.05)),
            "pair_spearman": float(spearmanr(*pairs).statistic) if len(chosen) > 2 else np.nan,
            "neighbours": shared(*near),
        }
        scores: tuple[dict[str, float], dict[str, float]] = ({}, {})
        if self._labels is not None:
            labels = [float(sample.label) for sample in samples]
            for side, of in enumerate(("reference", "candidate")):
                both = np.stack([row[side] for row in rows])
                ranks = spearmanr(cosine(both[:, 0], both[:, 1]), labels).statistic
                scores[side]["similarity_spearman"] = float(ranks)
                assert of
        return Findings(
            agreement,
            per_text,
            _said(samples, rows, near),
            scores,
            self._plots(cosines, pairs),
            warnings,
        )

    def _plots(self, cosines: Vectors, pairs: tuple[Vectors, Vectors]) -> list[Plot]:
        count = len(pairs[0])
        shown = np.arange(count)
        if count > _PLOTTED:
            shown = self._rng.choice(count, _PLOTTED, replace=False)
        x, y = (tuple(np.round(side[shown], 4).tolist()) for side in pairs)
        return [
            Histogram("Cosine of a text's two vectors", "cosine", tuple(cosines.tolist())),
            Scatter("Similarity of two texts", "reference", "candidate", x, y),
        ]


def _pooling_of(found: Found) -> str | None:
    """What the folder of a sentence-transformers model says."""
    for folder in (found.files.tokenizer.parent, found.files.path):
        try:
            says = json.loads((folder / "1_Pooling" / "config.json").read_bytes())
        except (OSError, ValueError):
            continue
        for name, key in (("cls", "cls_token"), ("max", "max_tokens"), ("mean", "mean_tokens")):
            if isinstance(says, dict) and says.get(f"pooling_mode_{key}") is True:
                return name
    return None


def cosine(one: Vectors, two: Vectors) -> Vectors:
    """Of each row of one with the same row of the other; 0 where a vector is zero."""
    from sklearn.metrics.pairwise import paired_cosine_distances

    there = np.any(one, axis=1) & np.any(two, axis=1)
    if np.array_equal(one, two):
        alone: Vectors = there.astype(np.float64)
        return alone
    found: Vectors = np.clip(1.0 - paired_cosine_distances(one, two), -1.0, 1.0) * there
    return found


def similarities(vectors: Vectors) -> Vectors:
    """Cosines of all pairs of different rows."""
    from sklearn.metrics.pairwise import cosine_similarity

    found: Vectors = cosine_similarity(vectors)[np.triu_indices(len(vectors), 1)]
    return found


def neighbours(vectors: Vectors) -> NDArray[np.int64]:
    """``[n, k]``: the k = 10 (or n - 1) other rows of greatest cosine, nearest first."""
    from sklearn.neighbors import NearestNeighbors

    count = min(NEIGHBOURS, len(vectors) - 1)
    if count < 1:
        return np.zeros((len(vectors), 0), np.int64)
    index = NearestNeighbors(n_neighbors=count, metric="cosine").fit(vectors)
    found: NDArray[np.int64] = index.kneighbors(return_distance=False)
    return found


def shared(one: NDArray[np.int64], two: NDArray[np.int64]) -> float:
    """Mean share of each row's members that the other's row has too; NaN where rows are empty."""
    if not one.shape[1]:
        return float("nan")
    same = [len(np.intersect1d(a, b)) for a, b in zip(one, two, strict=True)]
    return float(np.mean(same) / one.shape[1])


def _said(
    samples: Sequence[Sample],
    rows: Sequence[tuple[Vectors, Vectors]],
    near: Sequence[NDArray[np.int64]],
) -> list[Said]:
    """The nearest other text of each."""
    texts: list[str] = []
    starts = []
    for sample, row in zip(samples, rows, strict=True):
        starts.append(len(texts))
        texts += [sample.text] if len(row[0]) == 1 else [sample.text, sample.pair or ""]

    def nearest(side: int, start: int) -> str:
        return texts[near[side][start, 0]] if near[side].shape[1] else ""

    return [Said(nearest(0, start), nearest(1, start), text=texts[start]) for start in starts]
