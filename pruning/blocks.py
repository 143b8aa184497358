"""Blocks of neighbouring inputs pruned by second order, and what is left at its best.

Which blocks stay is found for all rows at once (`splitting`), and made a little better by exchanges
where that is asked for (`refining`); for a whole ladder of sparsities, by one greedy order of
removal (`removal`).  The remaining weights are solved for (`least_squares.solve_rows`).

Squared error of the query layer of all-MiniLM-L6-v2's third encoder layer, as a share of its
output's variance, the remaining weights solved in each case but the first:

    4-blocks removed                             50 %    80 %
    by magnitude, nothing solved                17.4 %  47.2 %
    by magnitude                                 8.4 %  32.0 %
    by the Hessian's diagonal                    7.3 %  27.4 %
    greedily, a quarter of the rest at once      6.2 %  22.4 %
    greedily, a tenth                            5.8 %  21.8 %
    by splitting                                 5.6 %  21.2 %
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsec.pruning.gram import Centered
from sparsec.pruning.least_squares import Problem, solve_rows
from sparsec.pruning.refining import refine
from sparsec.pruning.removal import choose, removal_order
from sparsec.pruning.splitting import Scope, best_blocks, choose_support

#: What the compiler's kernels take: 4 inputs of int8, one dword.
BLOCK = 4


@dataclass(frozen=True, eq=False)
class Pruned:
    """A layer without some of its blocks.

    Attributes:
        weights: float64 [N, K], zero where pruned.
        keep: bool [N, blocks].
        loss: float64 [N], above the dense minimum, damping included.
        error: squared error of all outputs as a share of the targets' variance.
    """

    weights: Tensor
    keep: Tensor
    loss: Tensor
    error: float

    @property
    def sparsity(self) -> float:
        """Share of the blocks that are pruned."""
        return 1 - float(self.keep.double().mean())


def expand(keep: Tensor, block: int, width: int) -> Tensor:
    """A mask of blocks [N, blocks] as one of weights [N, width]; the last block may be shorter."""
    return keep.repeat_interleave(block, dim=1)[:, :width]


def likely_mask(data: Centered, weights: Tensor, sparsity: float, block: int = BLOCK) -> Tensor:
    """About what pruning keeps of weights [N, K], at once: bool [N, K].

    By the size of weights in units in which all inputs have the same variance.
    """
    width = weights.shape[1]
    sized = weights.double() * data.xx.diagonal().clamp_min(0).sqrt()
    filled = torch.nn.functional.pad(sized, (0, -width % block))
    return expand(best_blocks(filled, sparsity, block, "layer"), block, width)


def solve(problem: Problem, keep: Tensor, block: int = BLOCK) -> Pruned:
    """The best weights on the blocks `keep` [N, blocks]."""
    mask = expand(keep, block, problem.weights.shape[1])
    weights = solve_rows(problem.hessian, problem.weights, mask)
    error = problem.data.relative_error(weights)
    return Pruned(weights, keep, problem.loss(weights), error)


def ladder(
    problem: Problem,
    sparsities: Sequence[float],
    *,
    block: int = BLOCK,
    scope: Scope = "layer",
    rate: float = 0.1,
) -> list[Pruned]:
    """A layer at several sparsities, from one order of removal.

    Args:
        sparsities: shares of blocks to remove, each below 1.
        rate: as in :func:`removal_order`.
    """
    blocks = -(-problem.weights.shape[1] // block)
    most = max(sparsities, default=0.0)
    # Rows may differ: each is followed further than the average one will go.
    further = most if scope == "row" else min(1.0, most + 0.15)
    removal = removal_order(problem, block, round(blocks * further), rate)
    return [solve(problem, choose(removal, s, scope), block) for s in sparsities]


def support(
    problem: Problem,
    sparsity: float,
    *,
    block: int = BLOCK,
    scope: Scope = "layer",
    sweeps: int = 0,
    importance: Tensor | None = None,
) -> Tensor:
    """The blocks of a layer that are kept without `sparsity` of them: bool [N, blocks].

    Args:
        sparsity: share of blocks to remove, to the nearest number of them.
        scope: over all rows of the layer together, or of each row.
        sweeps: of exchanges, as in `refining.refine`; 0: none.
        importance: [N], what a squared error of each output counts: how rows share the blocks of a
            layer; absent: 1.
    """
    keep = choose_support(problem, sparsity, block, scope, importance)
    return refine(problem, keep, block, sweeps) if sweeps else keep
