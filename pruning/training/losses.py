"""How far a student is from its teacher, and whether that is right: losses and agreement.

Distillation of outputs: Hinton et al. (2015), "Distilling the knowledge in a neural network"; of
the token states of all layers: Sun et al. (2019), "Patient knowledge distillation", and Kurtic et
al. (2023), "Sparse fine-tuning for inference acceleration of large language models", whose squared
distance is measured in units of the teacher's: layers with large states must not drown the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor
from torch.nn import functional

TEMPERATURE = 2.0
"""Of the softmax whose outputs are compared: above 1, wrong labels say something too."""

IGNORE = -100
"""A target that is none, as torch's cross entropy has it."""

_FAR = -1e4
"""The score of a place that cannot be chosen; bfloat16 has it too."""


class Kind(Enum):
    """What an output says."""

    CLASSES = "classes"
    """A choice of one label along the last axis: of a text `[B, L]` or each token `[B, S, L]`."""
    LABELS = "labels"
    """Any number of labels: `[B, L]`, each a logit of its own."""
    PLACES = "places"
    """A choice of one token: `[B, S]`."""
    STATES = "states"
    """A vector for each token, of which the mean or the first stands for the text: `[B, S, C]`."""
    VECTOR = "vector"
    """A vector whose direction counts: `[B, C]`."""
    NUMBERS = "numbers"
    """Numbers as they are, of any shape."""


@dataclass(frozen=True)
class Weights:
    """How much each part of the loss counts; the kinds are of about the same size.

    Attributes:
        outputs: distance of the outputs.
        states: squared distance of the token states, of their own variance, averaged over layers.
        labels: cross entropy with the labels, where there are any.
    """

    outputs: float = 1.0
    states: float = 1.0
    labels: float = 0.5


@dataclass(frozen=True)
class Result:
    """What a network gave for a batch.

    Attributes:
        outputs: by name.
        states: of each layer, `[B, S, C]`.
    """

    outputs: Mapping[str, Tensor]
    states: Sequence[Tensor] = ()


def kind_of(task: str, shape: Sequence[int | str]) -> Kind:
    """What an output of a model is.

    Args:
        task: as :mod:`sparsec.pruning.evaluation.tasks` names it.
        shape: of the output; extents that vary are words.
    """
    rank = len(shape)
    if task == "embeddings":
        return {2: Kind.VECTOR, 3: Kind.STATES}.get(rank, Kind.NUMBERS)
    if task == "question-answering":
        return Kind.PLACES if rank == 2 and isinstance(shape[1], str) else Kind.NUMBERS
    if task == "multi-label-classification" and rank == 2:
        return Kind.LABELS
    chosen = {"text-classification": 2, "token-classification": 3, "fill-mask": 3}
    return Kind.CLASSES if chosen.get(task) == rank else Kind.NUMBERS


def output_loss(kind: Kind, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Distance of an output from the teacher's; a scalar, 0 where they are equal.

    Args:
        student, teacher: float, shaped as `kind` says.
        mask: bool `[B, S]`, which tokens are real.
    """
    student, teacher = student.float(), teacher.float()
    if kind is Kind.STATES:
        pooled = pool(student, mask), pool(teacher, mask)
        tokens = _directions(student[mask], teacher[mask])
        # The text's vector is what users compare; its tokens say where it comes from.
        return _directions(*pooled) + 0.5 * tokens
    if kind is Kind.VECTOR:
        return _directions(student, teacher)
    if kind is Kind.LABELS:
        chances = (teacher / TEMPERATURE).sigmoid()
        got = functional.binary_cross_entropy_with_logits(student / TEMPERATURE, chances)
        least = functional.binary_cross_entropy_with_logits(teacher / TEMPERATURE, chances)
        return TEMPERATURE**2 * (got - least)
    if kind is Kind.NUMBERS:
        return relative_error(student.flatten(1), teacher.flatten(1))
    if kind is Kind.PLACES:
        student, teacher = (x.masked_fill(~mask, _FAR) for x in (student, teacher))
    elif student.dim() == 3:
        student, teacher = student[mask], teacher[mask]
    return _divergence(student, teacher)


def state_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Squared distance of token states of real tokens, of their variance, averaged over layers.

    Args:
        student, teacher: of each layer, `[B, S, C]`.
        mask: bool `[B, S]`.
    """
    if not student:
        return torch.zeros((), device=mask.device)
    far = [
        relative_error(a.float()[mask], b.float()[mask])
        for a, b in zip(student, teacher, strict=True)
    ]
    return torch.stack(far).mean()


def label_loss(kind: Kind, student: Tensor, targets: Tensor) -> Tensor:
    """Distance of an output from the labels.

    Args:
        student: the output, shaped as `kind` says.
        targets: classes and places: int64 `[B]` or `[B, S]`, :data:`IGNORE` where there is none;
            labels: 0 or 1 `[B, L]`; numbers: as the output, NaN where there is none.
    """
    student = student.float()
    if kind is Kind.LABELS:
        return functional.binary_cross_entropy_with_logits(student, targets.float())
    if kind is Kind.NUMBERS:
        known = targets.isfinite()
        return functional.mse_loss(student[known], targets[known].float())
    if kind in (Kind.CLASSES, Kind.PLACES):
        known = targets != IGNORE
        if not known.any():
            return student.sum() * 0
        return functional.cross_entropy(student[known], targets[known])
    raise ValueError(f"{kind.value} have no labels")


def total_loss(
    kinds: Mapping[str, Kind],
    weights: Weights,
    student: Result,
    teacher: Result,
    mask: Tensor,
    targets: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """All parts of the loss together, a scalar.

    Args:
        kinds: of the outputs that count.
        student, teacher: what the two gave.
        mask: bool `[B, S]`, which tokens are real.
        targets: labels by output, see :func:`label_loss`; None: there are none.
    """
    loss = weights.states * state_loss(student.states, teacher.states, mask)
    for name, kind in kinds.items():
        mine = student.outputs[name]
        far = output_loss(kind, mine, teacher.outputs[name], mask)
        loss = loss + weights.outputs / len(kinds) * far
        if targets is not None and name in targets:
            right = label_loss(kind, mine, targets[name])
            loss = loss + weights.labels / len(targets) * right
    return loss


def agreement(kind: Kind, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """How much an output agrees with the teacher's, of each text or token, at most 1: `[rows]`.

    Choices: whether it is the same one; labels: the share that is the same; vectors: the cosine;
    numbers: 1 minus the squared distance, of the teacher's variance.
    """
    student, teacher = student.float(), teacher.float()
    if kind is Kind.STATES:
        return functional.cosine_similarity(pool(student, mask), pool(teacher, mask))
    if kind is Kind.VECTOR:
        return functional.cosine_similarity(student, teacher)
    if kind is Kind.LABELS:
        return ((student > 0) == (teacher > 0)).float().mean(1)
    if kind is Kind.NUMBERS:
        return (1 - relative_error(student.flatten(1), teacher.flatten(1)))[None]
    if kind is Kind.PLACES:
        student, teacher = (x.masked_fill(~mask, _FAR) for x in (student, teacher))
    elif student.dim() == 3:
        student, teacher = student[mask], teacher[mask]
    return (student.argmax(-1) == teacher.argmax(-1)).float()


def pool(states: Tensor, mask: Tensor) -> Tensor:
    """Mean of the real tokens' vectors: `[B, S, C]`, bool `[B, S]` -> `[B, C]`."""
    real = mask[:, :, None].to(states.dtype)
    return (states * real).sum(1) / real.sum(1).clamp(min=1)


def relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared distance `[rows, C]`, of the teacher's variance around each column's mean; a
    single row has none: of its square then.  A scalar."""
    center = teacher.mean(0) if len(teacher) > 1 else torch.zeros_like(teacher)
    spread = (teacher - center).square().mean()
    return (student - teacher).square().mean() / spread.clamp(min=1e-8)


def _directions(student: Tensor, teacher: Tensor) -> Tensor:
    return (1 - functional.cosine_similarity(student, teacher, dim=-1)).mean()


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL divergence of softmaxes along the last axis at the temperature, times its square, which
    makes gradients as large as without."""
    ours, theirs = ((x / TEMPERATURE).log_softmax(-1) for x in (student, teacher))
    far = functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)
    return TEMPERATURE**2 * far.mean()
