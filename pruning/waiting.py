"""How threads wait for each other."""

from __future__ import annotations

import os


def wait_briefly() -> None:
    """Let OpenMP's threads wait awake for a third of a millisecond, and then asleep.

    Most products of matrices here end sooner than a thread wakes up: asleep at once, pruning takes
    a third longer on two idle cores.  Awake for longer, they take the time of those that work where
    cores are shared.  What the environment says already stays.  Before PyTorch is imported.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "ACTIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
