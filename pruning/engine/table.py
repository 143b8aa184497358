"""Parameters that are looked up by row."""

from __future__ import annotations

from torch import nn


class Table(nn.Parameter):
    """A table `[V, C]` whose gradient is sparse where rows of it are looked up: a dense one would
    be as large as the table, nearly all of it zero."""
