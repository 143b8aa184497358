"""How `sparsec run --ray` grows from one node of one core to two.

    python benchmarks/run_ray.py --texts 8000

Clusters of this machine alone, by Ray's own utility: a head without a CPU, and nodes that
are kept to one core each; the head and the process that writes use any.
The rate is that from the first part that is done to the last, so that starting processes, which
takes seconds, does not count.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

if __package__ in (None, ""):  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import sparsec
from benchmarks.run_texts import LAYERS, ROOT, prepare, write_texts
from sparsec.serving.bulk import Progress

PART = 500
STORE = 200 << 20


def rate(nodes: int, artifact: Path, folder: Path) -> float:
    """Texts a second on so many nodes."""
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": STORE}
    )
    cores = os.sched_getaffinity(0)
    for core in sorted(cores)[:nodes]:
        os.sched_setaffinity(0, {core})  # what starts now stays there
        cluster.add_node(num_cpus=1, object_store_memory=STORE)
    os.sched_setaffinity(0, cores)
    cluster.wait_for_nodes()
    seen: list[tuple[float, int]] = []

    def note(progress: Progress) -> None:
        if not seen or progress.rows > seen[-1][1]:
            seen.append((time.perf_counter(), progress.rows))

    try:
        sparsec.run(
            folder / "in.jsonl", folder / f"{nodes}.jsonl", task="sentence-embedding",
            model=artifact, part_rows=PART, ray=cluster.address, progress=note,
        )  # fmt: skip
    finally:
        ray.shutdown()
        cluster.shutdown()
    first = next(row for row in seen if row[1] >= 2 * nodes * PART)
    return (seen[-1][1] - first[1]) / (seen[-1][0] - first[0])


def main() -> None:
    """Measure one node, then two."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--texts", type=int, default=8000)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "bench" / "run")
    args = parser.parse_args()
    artifact = prepare(args.folder, args.layers)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_texts(folder / "in.jsonl", args.texts)
        one, two = (rate(nodes, artifact, folder) for nodes in (1, 2))
    print(f"1 node {one:.0f} texts/s, 2 nodes {two:.0f} texts/s: {two / one:.2f} times")


if __name__ == "__main__":
    main()
