"""Tables that tokens are looked up in, trained by rows: Adam of what a batch has looked up.

A batch of 512 tokens looks up one row in a hundred of a table that is as large as half of the
layers.  Its gradient is sparse.  Adam (Kingma and Ba, 2015) without momentum does nothing to a row
that has no gradient but let its second moment fade, and that can be made up for when the row is
looked up again: what comes out is what steps of the whole table would give, at the cost of those
rows.  A rare row makes the larger steps for it.  A row that is never looked up stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

BETA, EPSILON = 0.99, 1e-8
"""Of second moments: a row that is looked up for the first time in long moves by at most ten times
the learning rate."""


def clip(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scale gradients down to a norm, those of rows too.

    Args:
        parameters: those without a gradient do not count.
        limit: the norm, of all gradients together, that they have at most.

    Returns:
        The norm that they had, a scalar.
    """
    holders: list[Tensor] = []
    for parameter in parameters:
        holder: Tensor = parameter
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
            values = parameter.grad.values()
            holder = torch.empty_like(values)
            holder.grad = values  # the same numbers, which are scaled in place
        holders.append(holder)
    return torch.nn.utils.clip_grad_norm_(holders, limit)


class RowAdam:
    """Adam without momentum over tables, of which it touches the rows that have gradients.

    Args:
        tables: float `[V, C]`, by name; their gradients are sparse, with rows as indices.
    """

    def __init__(self, tables: Mapping[str, nn.Parameter]) -> None:
        self._tables = dict(tables)
        self._moments = {name: _Moments.none(table) for name, table in tables.items()}

    def rows(self, name: str) -> Tensor:
        """Rows that were ever looked up, int64 `[R]`, in the order in which they were."""
        return self._moments[name].rows

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for table in self._tables.values():
            table.grad = None

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """A step of all tables that have gradients.

        Args:
            rate: the learning rate.
        """
        for name, table in self._tables.items():
            if table.grad is None:
                continue
            grad = table.grad.coalesce()
            rows = grad.indices()[0]
            table.index_add_(0, rows, self._moments[name].steps(rows, grad.values()), alpha=-rate)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Rows, their values and their moments, of each table: `rows` int64 `[R]`, `values` and
        `second` float `[R, C]`, `last` int64 `[R]` and `count` int64 `[]`; copies."""
        return {
            name: {"values": self._tables[name].detach()[moments.rows], **moments.state()}
            for name, moments in self._moments.items()
        }

    @torch.no_grad()
    def load(self, state: Mapping[str, Mapping[str, Any]], start: Mapping[str, Tensor]) -> None:
        """Bring back what :meth:`state` gave.

        Args:
            start: the tables as they are where no row was ever looked up.
        """
        for name, table in self._tables.items():
            kept = {key: value.to(table.device) for key, value in state[name].items()}
            table.copy_(start[name])
            table[kept["rows"]] = kept.pop("values")
            self._moments[name] = _Moments(len(table), **kept)


class _Moments:
    """Second moments of the rows of a table that were looked up, in the order in which they were.

    Args:
        extent: of the table, rows.
        rows: int64 `[R]`.
        second: float `[R, C]`, as they were when each row was looked up last.
        last: int64 `[R]`, the step at which that was, 1 the first.
        count: int64 `[]`, steps that the table has made.
    """

    def __init__(
        self, extent: int, rows: Tensor, second: Tensor, last: Tensor, count: Tensor
    ) -> None:
        self.rows, self._second, self._last, self._count = rows, second, last, count
        self._slots = torch.full((extent,), -1, dtype=torch.int64, device=rows.device)
        self._slots[rows] = torch.arange(len(rows), device=rows.device)

    @classmethod
    def none(cls, table: Tensor) -> _Moments:
        """Those of a table of which no row was looked up."""
        none = torch.zeros(0, dtype=torch.int64, device=table.device)
        empty = table.detach().new_zeros(0, table.shape[1])
        return cls(len(table), none, empty, none.clone(), none.new_zeros(()))

    def state(self) -> dict[str, Tensor]:
        """What makes it again; copies, without the room that is left."""
        known = len(self.rows)
        return {
            "rows": self.rows.clone(),
            "second": self._second[:known].clone(),
            "last": self._last[:known].clone(),
            "count": self._count.clone(),
        }

    def steps(self, rows: Tensor, grad: Tensor) -> Tensor:
        """What Adam would move rows by at a learning rate of -1, `[U, C]`; moments take the
        gradients in.

        Args:
            rows: int64 `[U]`, each once.
            grad: float `[U, C]`.
        """
        self._admit(rows[self._slots[rows] < 0])
        slots = self._slots[rows]
        self._count += 1
        # In doubles: the second is the difference of nearly equal numbers.
        faded = (BETA ** (self._count - self._last[slots]).double()).to(grad.dtype)
        so_far = (1 - BETA ** self._count.double()).to(grad.dtype)
        second = self._second[slots].mul_(faded[:, None])
        second.addcmul_(grad, grad, value=1 - BETA)
        self._second[slots], self._last[slots] = second, self._count
        return grad / ((second / so_far).sqrt_() + EPSILON)

    def _admit(self, new: Tensor) -> None:
        """Room for rows that are looked up for the first time: twice as much as is needed."""
        if not len(new):
            return
        known = len(self.rows)
        self._slots[new] = torch.arange(known, known + len(new), device=new.device)
        self.rows = torch.cat([self.rows, new])
        if len(self.rows) > len(self._last):
            self._second, self._last = (
                torch.cat([old, old.new_zeros(2 * len(self.rows) - len(old), *old.shape[1:])])
                for old in (self._second, self._last)
            )
