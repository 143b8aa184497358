"""Tables that tokens are looked up in, trained by rows: Adam of what a batch has looked up.

A batch of 512 tokens looks up one row in a hundred of a table that is as large as half of the
layers.  Its gradient is sparse, and each row has an Adam of its own (Kingma and Ba, 2015): its
moments are kept from when it is first looked up on, and they and the count of its steps stand still
while it is not, so that a rare row begins as any parameter does.  A row that is never looked up
stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

BETAS, EPSILON = (0.9, 0.999), 1e-8
"""As torch's Adam has them."""


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
    """Adam over the rows of tables, each with its own moments and its own count of steps.

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
        """A step of all rows that have gradients.

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
        """Rows, their values and their moments, of each table: `rows` int64 `[R]`, `values`,
        `first` and `second` float `[R, C]`, `counts` int64 `[R]`; copies."""
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
    """Moments of the rows of a table that were looked up, in the order in which they were."""

    def __init__(
        self, extent: int, rows: Tensor, first: Tensor, second: Tensor, counts: Tensor
    ) -> None:
        self.rows, self._first, self._second, self._counts = rows, first, second, counts
        self._slots = torch.full((extent,), -1, dtype=torch.int64, device=rows.device)
        self._slots[rows] = torch.arange(len(rows), device=rows.device)

    @classmethod
    def none(cls, table: Tensor) -> _Moments:
        """Those of a table of which no row was looked up."""
        empty = table.detach().new_zeros(0, table.shape[1])
        none = torch.zeros(0, dtype=torch.int64, device=table.device)
        return cls(len(table), none, empty, empty.clone(), none.clone())

    def state(self) -> dict[str, Tensor]:
        """What makes it again; copies, without the room that is left."""
        known = len(self.rows)
        return {
            "rows": self.rows.clone(),
            "first": self._first[:known].clone(),
            "second": self._second[:known].clone(),
            "counts": self._counts[:known].clone(),
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
        count = self._counts[slots] + 1
        first = self._first[slots].lerp_(grad, 1 - BETAS[0])
        second = self._second[slots].mul_(BETAS[1]).addcmul_(grad, grad, value=1 - BETAS[1])
        self._counts[slots], self._first[slots], self._second[slots] = count, first, second
        shrunk = [(1 - beta**count).to(grad.dtype)[:, None] for beta in BETAS]
        return (first / shrunk[0]) / ((second / shrunk[1]).sqrt_() + EPSILON)

    def _admit(self, new: Tensor) -> None:
        """Room for rows that are looked up for the first time: twice as much as is needed."""
        if not len(new):
            return
        known = len(self.rows)
        self._slots[new] = torch.arange(known, known + len(new), device=new.device)
        self.rows = torch.cat([self.rows, new])
        if len(self.rows) > len(self._counts):
            self._first, self._second, self._counts = (
                torch.cat([old, old.new_zeros(2 * len(self.rows) - len(old), *old.shape[1:])])
                for old in (self._first, self._second, self._counts)
            )
