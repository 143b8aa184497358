"""How workers split the cores."""

from __future__ import annotations

import os
from pathlib import Path

from sparsec.runtime import cpu


def split(workers: int, num_cores: int | None = None) -> list[tuple[tuple[int, ...], int]]:
    """CPUs to pin each worker to, and how many cores its model may use.

    No CPUs means no pinning: there is one worker, which takes the cores that are free.  With more
    workers than cores, some share one.

    Args:
        workers: how many there are.
        num_cores: of all of them together; None: all usable ones.
    """
    usable = cpu.usable_cores()[0]
    total = min(num_cores or usable, usable)
    if workers == 1 or not hasattr(os, "sched_setaffinity"):
        return [((), max(1, total // workers))] * workers
    cores = physical(sorted(os.sched_getaffinity(0)))[:total]
    shares: list[tuple[tuple[int, ...], int]] = []
    for i in range(workers):
        if workers <= len(cores):
            mine = cores[i * len(cores) // workers : (i + 1) * len(cores) // workers]
        else:
            mine = [cores[i % len(cores)]]
        shares.append((tuple(sorted(c for core in mine for c in core)), len(mine)))
    return shares


def physical(cpus: list[int], root: Path = Path("/sys/devices/system/cpu")) -> list[list[int]]:
    """CPUs grouped by the core that they belong to."""
    cores: dict[str, list[int]] = {}
    for number in cpus:
        try:
            siblings = (root / f"cpu{number}/topology/thread_siblings_list").read_text().strip()
        except OSError:
            siblings = str(number)
        cores.setdefault(siblings, []).append(number)
    return list(cores.values())
