"""Texts as batches of tensors for the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sparsec.compiler.frontend import Model, import_graph, shorter_graphs, signature
from sparsec.compiler.padding import settle
from sparsec.errors import InputError
from sparsec.pruning.evaluation.models import Found
from sparsec.pruning.evaluation.texts import Sample
from sparsec.serving.runner import Features

#: Tokens of a batch, about.
TOKENS = 2048

#: Sequences are padded to a multiple of this where padding is masked.
STEP = 8

_PROBE = 16


@dataclass(frozen=True, eq=False)
class Batch:
    """Sequences of one length.

    Attributes:
        inputs: by the names of the model's inputs, [batch, length].
        mask: bool [batch, length], the tokens that are real.
        texts: which text each sequence is.
    """

    inputs: dict[str, Tensor]
    mask: Tensor
    texts: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Real ones."""
        return int(self.mask.sum())

    def rows(self, x: Tensor) -> Tensor | None:
        """What each row of x [..., channels] counts: 0 for padding; None where rows are no
        tokens."""
        shape = x.shape[:-1]
        if shape == self.mask.shape:
            return self.mask.float()
        if shape.numel() == self.mask.numel() and len(shape) == 1:
            return self.mask.float().reshape(-1)
        return None


def features(found: Found, samples: Sequence[Sample], max_length: int) -> list[Features]:
    """The sequences of texts, cut to so many tokens.

    Raises:
        ModelError: the model has an input that no text fills.
        InputError: a text has a token that the model does not know.
    """
    text = found.text
    made = []
    for sample in samples:
        if sample.words:
            made.append(text.features(text.fit(text.encode_words(sample.words), max_length)))
        elif sample.pair is None:
            made.append(text.features(text.fit(text.encode(sample.text), max_length)))
        else:
            first, second = text.ids(sample.text), text.ids(sample.pair)
            made.append(text.pair(first, second, max_length))
    return made


def may_pad(model: Model) -> bool:
    """Whether it is proved that padding reaches no result because the mask drops it."""
    found = signature(model)
    if not found.has_sequence or found.fixed_length is not None or found.mask_input is None:
        return False
    graph = import_graph(model, _PROBE)
    return settle([graph], shorter_graphs(model, found, _PROBE), found.mask_input).kind == "masked"


def make_batches(
    items: Sequence[Features],
    *,
    pad: bool,
    fixed: int | None = None,
    longest: int | None = None,
    tokens: int = TOKENS,
) -> list[Batch]:
    """Batches of sequences of about one length, in an order that only depends on the lengths.

    Args:
        items: from :func:`features`.
        pad: whether sequences may be padded (:func:`may_pad`); else a batch has one length.
        fixed: the only length that the model takes.
        longest: the most tokens that it takes.
        tokens: of a batch, about, padding included.

    Raises:
        InputError: sequences have to be padded for the model, and padding is not masked.
    """
    if fixed is not None and any(item.length > fixed for item in items):
        raise InputError(f"the model takes {fixed} tokens, and a text has more")
    groups: dict[int, list[int]] = {}
    for i, item in enumerate(items):
        length = fixed or item.length
        if pad and fixed is None:
            length = -(-length // STEP) * STEP
            length = min(length, longest) if longest else length
        groups.setdefault(length, []).append(i)
    batches = []
    for length, members in sorted(groups.items()):
        size = max(1, tokens // max(length, 1))
        for start in range(0, len(members), size):
            batches.append(_batch(items, members[start : start + size], length))
    return batches


def _batch(items: Sequence[Features], members: Sequence[int], length: int) -> Batch:
    names = items[members[0]].arrays
    inputs = {name: np.zeros((len(members), length), np.int64) for name in names}
    mask = np.zeros((len(members), length), bool)
    for row, i in enumerate(members):
        count = items[i].length
        mask[row, :count] = True
        for name, array in items[i].arrays.items():
            inputs[name][row, :count] = array
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    return Batch(tensors, torch.from_numpy(mask), tuple(members))
