"""Second-order pruning of 4-blocks with error compensation, and int8 rounding, in numpy.

For one linear layer with inputs X and wanted outputs Y, the loss of weights w of one output is

    L(w) = |X w - y|^2 / tokens + damping * |w - w0|^2

with the Hessian H = X^T X / tokens + damping * I, the same for all outputs (Optimal Brain Surgeon).
Removing a block b of weights and moving the others to the best place for it costs

    w_b^T ((H^-1)_bb)^-1 w_b          and moves w by   -(H^-1)_:b ((H^-1)_bb)^-1 w_b

after which H^-1 loses the rows and columns of b.  `removal_order` does that for every output row
until enough blocks are gone; `choose_blocks` keeps the blocks that cost most, over all rows;
`refit` solves the remaining weights exactly; `round_compensated` rounds them to int8 one by one,
each rounding error being made up for by the weights that are still free (which is what GPTQ does).

`compress` goes through an encoder in the order it runs.  Each layer sees the inputs that the
compressed layers before it really produce, and is fitted to the outputs of the dense model; the two
layers that end in a residual addition also make up for the error that the residual carries.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from examples.encoders.config import EncoderConfig
from examples.encoders.quantization import QuantizedLinear
from examples.encoders.reference import Batch, Numerics, attend, embeddings, gelu, normalize
from examples.encoders.weights import Weights, expand_blocks


@dataclass(frozen=True)
class Problem:
    """Least squares with a prior, for all outputs of one layer.

    Attributes:
        hessian: float64 [K, K], damping included.
        weights: float64 [N, K], the minimum over dense weights.
        x_mean, y_mean: float64 [K], [N]; the bias of weights w is y_mean - w x_mean.
    """

    hessian: np.ndarray
    weights: np.ndarray
    x_mean: np.ndarray
    y_mean: np.ndarray

    def bias(self, weights: np.ndarray) -> np.ndarray:
        """The bias [N] that makes the mean output exact for these weights [N, K]."""
        return self.y_mean - weights @ self.x_mean

    def loss(self, weights: np.ndarray) -> np.ndarray:
        """Loss of each row of weights [N, K] above the dense minimum."""
        d = weights - self.weights
        return ((d @ self.hessian) * d).sum(1)


def make_problem(x: np.ndarray, y: np.ndarray, prior: np.ndarray, damping: float = 0.01) -> Problem:
    """The problem of fitting y [T, N] from x [T, K], staying near the weights `prior` [N, K].

    `damping` is relative to the mean of the Hessian's diagonal.
    """
    x_mean, y_mean = x.mean(0, dtype=np.float64), y.mean(0, dtype=np.float64)
    xc, yc = x - x_mean.astype(x.dtype), y - y_mean.astype(y.dtype)
    hessian = (xc.T @ xc).astype(np.float64) / len(x)
    strength = damping * max(float(np.trace(hessian)) / len(hessian), 1e-12)
    hessian[np.diag_indices_from(hessian)] += strength
    target = (yc.T @ xc).astype(np.float64) / len(x) + strength * prior
    return Problem(hessian, np.linalg.solve(hessian, target.T).T, x_mean, y_mean)


def saliency(weights: np.ndarray, inverse: np.ndarray, block: int) -> np.ndarray:
    """Cost of removing each block of one row: w_b^T ((H^-1)_bb)^-1 w_b.

    Args:
        weights: [K], K a multiple of `block`.
        inverse: [K, K], the inverse Hessian.

    Returns:
        [K / block].
    """
    count = len(weights) // block
    diagonal = np.einsum("bibj->ijb", inverse.reshape(count, block, count, block))
    w = weights.reshape(count, block).T
    # Forward substitution with the Cholesky factors of all blocks at once.
    low = np.zeros((block, block, count), weights.dtype)
    half = np.zeros((block, count), weights.dtype)
    for i in range(block):
        for j in range(i):
            low[i, j] = (diagonal[i, j] - (low[i, :j] * low[j, :j]).sum(0)) / low[j, j]
        low[i, i] = np.sqrt(diagonal[i, i] - np.square(low[i, :i]).sum(0))
        half[i] = (w[i] - (low[i, :i] * half[:i]).sum(0)) / low[i, i]
    return np.square(half).sum(0)


def removal_order(
    weights: np.ndarray, inverse: np.ndarray, block: int, remove: int, rate: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Which blocks of each row to remove first, and at what cost.

    Args:
        weights: [N, K], K a multiple of `block`; the best dense weights.
        inverse: [K, K], the inverse Hessian.
        remove: how many blocks of each row to remove.
        rate: remove this share of the blocks that are left at once; 0 is the exact greedy order,
            one by one.

    Returns:
        (order, cost), both [N, remove]: block numbers in order of removal, and the loss that each
        removal adds.  What is removed at once shares the joint cost by saliency.
    """
    rows = len(weights)
    order = np.empty((rows, remove), np.int64)
    cost = np.empty((rows, remove), np.float64)
    start = inverse.astype(np.float32)

    def work(part: slice) -> None:
        for row in range(part.start, part.stop):
            w = weights[row].astype(np.float32)
            order[row], cost[row] = _row_order(w, start, block, remove, rate)

    _in_parts(work, rows, 16)
    return order, cost


def _row_order(
    w: np.ndarray, h: np.ndarray, block: int, remove: int, rate: float
) -> tuple[np.ndarray, np.ndarray]:
    """`removal_order` of one row w [K] with inverse Hessian h [K, K]."""
    order, cost = np.empty(remove, np.int64), np.empty(remove)
    numbers = np.arange(len(w) // block)  # the blocks that w and h still hold
    done = 0
    while done < remove:
        take = min(max(1, round(rate * len(numbers))), remove - done)
        s = saliency(w, h, block)
        ranked = np.argsort(s, kind="stable")
        gone, left = ranked[:take], np.sort(ranked[take:])
        gone_columns = (gone[:, None] * block + np.arange(block)).reshape(-1)
        slab = h[gone_columns]  # h is symmetric: its rows are its columns
        half = np.linalg.inv(np.linalg.cholesky(slab[:, gone_columns]))
        move = half @ _blocks_of(slab, left, block)
        wb = half @ w[gone_columns]
        order[done : done + take] = numbers[gone]
        cost[done : done + take] = s[gone] * (np.square(wb).sum() / max(s[gone].sum(), 1e-30))
        w = w.reshape(-1, block)[left].reshape(-1) - wb @ move
        rows = h.reshape(len(numbers), -1)[left].reshape(len(left) * block, -1)
        h = _blocks_of(rows, left, block)
        h -= move.T @ move
        numbers, done = numbers[left], done + take
    return order, cost


def _blocks_of(matrix: np.ndarray, blocks: np.ndarray, block: int) -> np.ndarray:
    """The columns of some blocks: [R, K] -> [R, len(blocks) * block], a copy."""
    rows = len(matrix)
    return matrix.reshape(rows, -1, block).take(blocks, axis=1).reshape(rows, -1)


def _in_parts(work: Callable[[slice], None], rows: int, size: int) -> None:
    """Call `work` for all rows, `size` at a time, on all cores; numpy releases the GIL."""
    parts = [slice(i, min(i + size, rows)) for i in range(0, rows, size)]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(work, parts))


def choose_blocks(order: np.ndarray, cost: np.ndarray, blocks: int, sparsity: float) -> np.ndarray:
    """Which blocks to keep: bool [N, blocks], with round(sparsity * N * blocks) of them False.

    Each row loses the first blocks of its order; how many is decided over all rows by cost.
    """
    rows, steps = order.shape
    # A removal can cost less than the one before it: getting there costs the larger of the two.
    ranked = np.maximum.accumulate(cost, axis=1).reshape(-1)
    chosen = np.zeros(rows * steps, bool)
    chosen[np.argsort(ranked, kind="stable")[: round(sparsity * rows * blocks)]] = True
    keep = np.ones((rows, blocks), bool)
    row, position = np.nonzero(chosen.reshape(rows, steps))
    keep[row, order[row, position]] = False
    return keep


def refit(problem: Problem, keep: np.ndarray) -> np.ndarray:
    """The weights [N, K] of least loss that are zero outside the mask `keep` [N, K]."""
    right = (problem.weights @ problem.hessian).astype(np.float32)
    hessian = problem.hessian.astype(np.float32)
    result = np.zeros(keep.shape)

    def work(part: slice) -> None:
        for row in range(part.start, part.stop):
            c = np.nonzero(keep[row])[0]
            result[row, c] = np.linalg.solve(hessian[np.ix_(c, c)], right[row, c])

    _in_parts(work, len(keep), 32)
    return result


def round_compensated(
    problem: Problem, weights: np.ndarray, keep: np.ndarray, scale: np.ndarray
) -> np.ndarray:
    """Round weights [N, K] to int8 multiples of `scale` [N], spreading each error over the rest.

    Weights outside the mask `keep` [N, K] stay zero and take no part.
    """
    result = np.zeros(keep.shape, np.int8)
    sizes = keep.sum(1)
    # Rows that keep equally many weights are swept together.
    ranked = np.argsort(sizes, kind="stable")
    hessian = problem.hessian.astype(np.float32)

    def work(part: slice) -> None:
        for size in np.unique(sizes[ranked[part]]):
            rows = ranked[part][sizes[ranked[part]] == size]
            columns = np.nonzero(keep[rows])[1].reshape(len(rows), size)
            w = np.take_along_axis(weights[rows], columns, axis=1).astype(np.float32)
            result[rows[:, None], columns] = _round_rows(hessian, w, columns, scale[rows])

    _in_parts(work, len(keep), 64)
    return result


def _round_rows(
    hessian: np.ndarray, w: np.ndarray, columns: np.ndarray, scale: np.ndarray
) -> np.ndarray:
    """Rows of weights w [R, n], which belong to `columns` [R, n] of the Hessian, as int8.

    With H = L L^T and errors e, the loss is |L^T e|^2, whose term i has only the errors from i on.
    So the last weight is rounded first, and each other one to cancel what the later ones left.
    """
    same = bool((columns == columns[0]).all())
    factor = np.stack(
        [np.linalg.cholesky(hessian[np.ix_(c, c)]).T for c in (columns[:1] if same else columns)]
    )
    q = np.empty(w.shape, np.int8)
    error = np.zeros(w.shape, np.float32)
    for i in reversed(range(w.shape[1])):
        later = (factor[:, i, i:] * error[:, i:]).sum(1)
        wanted = w[:, i] - later / factor[:, i, i]
        q[:, i] = np.clip(np.rint(wanted / scale), -127, 127)
        error[:, i] = q[:, i] * scale - w[:, i]
    return q


def search_scale(problem: Problem, weights: np.ndarray, per_channel: bool) -> np.ndarray:
    """Weight scale [N] (all equal unless `per_channel`) with the least loss of plain rounding."""
    peak = np.maximum(np.abs(weights).max(axis=1), 1e-8)
    if not per_channel:
        peak = np.full_like(peak, peak.max())
    best, best_loss = peak / 127, np.full(len(peak), np.inf)
    for shrink in np.linspace(0.6, 1.0, 9):
        scale = peak * shrink / 127
        error = np.clip(np.rint(weights / scale[:, None]), -127, 127) * scale[:, None] - weights
        loss = ((error @ problem.hessian) * error).sum(1)
        if not per_channel:
            loss = np.full_like(loss, loss.sum())
        better = loss < best_loss
        best, best_loss = np.where(better, scale, best), np.where(better, loss, best_loss)
    return best.astype(np.float32)


@dataclass(frozen=True)
class Options:
    """How a model is compressed.

    Attributes:
        sparsity: share of the blocks of the encoder's linear layers that become zero.
        block: input channels in a block.
        per_channel: one weight scale per output, else one per layer.
        damping: of the Hessians, relative to their mean diagonal.
        residual: layers before a residual addition also make up for the residual's error.
        norms: gains and offsets of the LayerNorms are fitted to the dense model's outputs.
        sentences: weight of the mean over a sentence, beside its tokens, in what is fitted.
        rate: share of a row's remaining blocks that is removed at once.
    """

    sparsity: float = 0.5
    block: int = 4
    per_channel: bool = True
    damping: float = 0.05
    residual: bool = True
    norms: bool = True
    sentences: float = 1.0
    rate: float = 0.25


def prune_layer(problem: Problem, options: Options) -> QuantizedLinear:
    """Solve one layer: choose blocks, refit what is left, round it to int8."""
    rows, width = problem.weights.shape
    if width % options.block:
        raise ValueError(f"{width} input channels are no multiple of {options.block}")
    blocks = width // options.block
    mask = np.ones((rows, width), bool)
    weights = problem.weights
    if options.sparsity:
        # Rows may differ: each is followed further than the average row will go.
        remove = round(blocks * min(1.0, options.sparsity + 0.15))
        inverse = np.linalg.inv(problem.hessian)
        order, cost = removal_order(weights, inverse, options.block, remove, options.rate)
        keep = choose_blocks(order, cost, blocks, options.sparsity)
        mask = expand_blocks(keep, options.block, width)
        weights = refit(problem, mask)
    scale = search_scale(problem, weights, options.per_channel)
    q = round_compensated(problem, weights, mask, scale)
    bias = problem.bias(q * scale[:, None].astype(np.float64))
    return QuantizedLinear(
        q, scale if options.per_channel else np.asarray(scale[0]), bias.astype(np.float32)
    )


def match_channels(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(gain, offset), float32 [C] each, that bring x [T, C] nearest to y: y = gain * x + offset."""
    x_mean, y_mean = x.mean(axis=0), y.mean(axis=0)
    gain = ((x - x_mean) * (y - y_mean)).mean(axis=0) / np.maximum(x.var(axis=0), 1e-12)
    return gain.astype(np.float32), (y_mean - gain * x_mean).astype(np.float32)


class _Path:
    """One of the two networks, dense or compressed, run side by side over all batches."""

    def __init__(self, config: EncoderConfig, weights: Weights, batches: Sequence[Batch]) -> None:
        self.config = config
        self.numerics = Numerics(weights)
        self.masks = [mask for _, mask, _ in batches]
        self.hidden = [embeddings(config, self.numerics, ids, t) for ids, _, t in batches]

    def attend(self, layer: str) -> list[np.ndarray]:
        """Merged heads of one layer."""
        pairs = zip(self.hidden, self.masks, strict=True)
        return [attend(self.config, self.numerics, layer, x, mask) for x, mask in pairs]

    def linear(self, name: str, xs: list[np.ndarray]) -> list[np.ndarray]:
        """A linear layer on every batch."""
        return [self.numerics.linear(name, x) for x in xs]

    def add_and_norm(self, name: str, ys: list[np.ndarray]) -> None:
        """hidden = LayerNorm(hidden + y)."""
        pairs = zip(self.hidden, ys, strict=True)
        self.hidden = [normalize(self.config, self.numerics, name, x + y) for x, y in pairs]

    def rows(self, xs: list[np.ndarray], sentences: float = 0.0) -> np.ndarray:
        """What layers are fitted on: the real tokens of all batches [T, C], and after them each
        sentence's mean, as heavy as `sentences` times its tokens."""
        tokens = [x[mask != 0] for x, mask in zip(xs, self.masks, strict=True)]
        if not sentences:
            return np.concatenate(tokens)
        center = np.concatenate(tokens).mean(axis=0)
        for x, mask in zip(xs, self.masks, strict=True):
            count = mask.sum(axis=1, keepdims=True).astype(np.float32)
            mean = (x * mask[:, :, None]).sum(axis=1, dtype=np.float32) / count
            tokens.append(center + (mean - center) * np.sqrt(sentences * count))
        return np.concatenate(tokens)


def compress(
    config: EncoderConfig,
    weights: Weights,
    batches: Sequence[Batch],
    options: Options,
    progress: Callable[[str, float], None] = lambda name, error: None,
) -> tuple[Weights, dict[str, QuantizedLinear]]:
    """Prune and round the linear layers of an encoder.

    Args:
        batches: calibration (input_ids, attention_mask, token_type_ids), integers [B, S].
        progress: called after each layer with its name and its squared output error, relative to
            the variance of what it was fitted to.

    Returns:
        (weights, linears): all float parameters, with the compressed layers' new values, and the
        int8 form of those layers.
    """
    result = dict(weights)
    linears: dict[str, QuantizedLinear] = {}
    dense = _Path(config, weights, batches)
    small = _Path(config, result, batches)

    def fit(name: str, small_x: list[np.ndarray], target: list[np.ndarray]) -> None:
        x, y = (small.rows(v, options.sentences) for v in (small_x, target))
        prior = weights[f"{name}.weight"].astype(np.float64)
        layer = prune_layer(make_problem(x, y, prior, options.damping), options)
        spread = layer.scale[:, None] if layer.scale.ndim else layer.scale
        result[f"{name}.weight"] = layer.weight.astype(np.float32) * spread
        result[f"{name}.bias"] = layer.bias
        linears[name] = layer
        error = x @ result[f"{name}.weight"].T + layer.bias - y
        progress(name, float(np.square(error).mean() / y.var(axis=0).mean()))

    def fit_residual(module: str, dense_x: list[np.ndarray], small_x: list[np.ndarray]) -> None:
        name, norm = f"{module}.dense", f"{module}.LayerNorm"
        target = dense_y = dense.linear(name, dense_x)
        if options.residual:
            streams = zip(target, dense.hidden, small.hidden, strict=True)
            target = [y + d - s for y, d, s in streams]
        fit(name, small_x, target)
        dense.add_and_norm(norm, dense_y)
        small.add_and_norm(norm, small.linear(name, small_x))
        if options.norms:
            gain, offset = match_channels(small.rows(small.hidden), dense.rows(dense.hidden))
            small.hidden = [x * gain + offset for x in small.hidden]
            result[f"{norm}.weight"] = weights[f"{norm}.weight"] * gain
            result[f"{norm}.bias"] = weights[f"{norm}.bias"] * gain + offset

    for i in range(config.layers):
        layer = f"encoder.layer.{i}"
        for part in ("query", "key", "value"):
            name = f"{layer}.attention.self.{part}"
            fit(name, small.hidden, dense.linear(name, dense.hidden))
        fit_residual(f"{layer}.attention.output", dense.attend(layer), small.attend(layer))
        name = f"{layer}.intermediate.dense"
        wide = dense.linear(name, dense.hidden)
        fit(name, small.hidden, wide)
        narrow = small.linear(name, small.hidden)
        fit_residual(f"{layer}.output", [gelu(y) for y in wide], [gelu(y) for y in narrow])
    return result, linears
