"""Runs on a cluster of Ray, and its Serve: what nodes and replicas do is what one machine does."""

from __future__ import annotations

import json
import os
import random
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sparsec
from sparsec.errors import InputError, TooLongError
from sparsec.serving.pipelines import Pipeline
from tests.server_support import TextModels
from tests.test_run import LONG, lines, texts

pytest.importorskip("pyarrow", reason="the extra sparsec[run] is not installed")
from sparsec.serving.bulk.cluster import READING, Nodes


def test_actors_leave_room_for_reading() -> None:
    """One for each node, several on nodes that are larger than the smallest."""
    assert Nodes.of([4, 4]) == Nodes(2, 4 - READING, 4)
    assert Nodes.of([1, 1, 0]) == Nodes(2, 1 - READING, 1)
    assert Nodes.of([4, 9]) == Nodes(3, 4 - READING, 4)
    assert Nodes.of([8], 2) == Nodes(4, 2 - READING, 2)
    with pytest.raises(InputError, match="no node"):
        Nodes.of([0, 0.5])
    with pytest.raises(InputError, match="so many"):
        Nodes.of([4], 5)


def test_what_travels_is_all_that_a_node_needs(text_models: TextModels, tmp_path: Path) -> None:
    """A pipeline made of the packed files answers as the one that was packed."""
    import pickle
    import shutil

    from sparsec.serving.bulk.model_files import Packed

    folder = tmp_path / "m.sparsec"
    shutil.copytree(text_models["text-classification"], folder)
    given = texts(5)
    with Pipeline.create("sentiment", folder, top_k=2, truncate=True) as pipeline:
        wanted = pipeline(given)
        packed = pickle.dumps(Packed.of(pipeline, {"top_k": 2, "truncate": True}))
    shutil.rmtree(folder)
    with pickle.loads(packed).make(1) as again:
        assert again(given) == wanted
        assert again.truncate and again.top_k == 2


def test_without_ray_the_error_says_how_to_get_it(
    text_models: TextModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    (tmp_path / "in.txt").write_text("good\n")
    with pytest.raises(InputError, match=r"sparsec\[ray\]"):
        sparsec.run(
            tmp_path / "in.txt", tmp_path / "out.jsonl", task="sentiment", ray="auto",
            model=text_models["text-classification"],
        )  # fmt: skip
    with pytest.raises(InputError, match=r"sparsec\[ray\]"):
        sparsec.ray.deployment("sentiment", "m.sparsec")


# ---- a cluster of this machine -----------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without a CPU, and three nodes of one."""
    ray = pytest.importorskip("ray", reason="the extra sparsec[ray] is not installed")
    from ray.cluster_utils import Cluster

    # On a busy machine a process of Serve takes longer to start than the 5 s it is given.
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "120")
    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": 100 << 20},
    )
    made.spares = [made.add_node(num_cpus=1, object_store_memory=100 << 20) for _ in range(3)]
    made.wait_for_nodes()
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.mark.slow
def test_a_cluster_answers_as_one_machine_and_loses_nothing_with_a_node(
    cluster: Any, text_models: TextModels, tmp_path: Path
) -> None:
    given = texts(3000, most=40)
    path = tmp_path / "in.jsonl"
    rows = [{"id": i, "text": text} for i, text in enumerate(given)]
    rows[1234]["text"] = LONG
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options: dict[str, Any] = {
        "task": "sentiment",
        "model": text_models["text-classification"],
        "part_rows": 25,
    }
    once = sparsec.run(path, tmp_path / "one.jsonl", bad_rows=tmp_path / "bad1", **options)
    state = tmp_path / ".many.jsonl.run"

    def kill() -> None:
        """A node in the middle of its work."""
        while len(list(state.glob("*.done"))) < 20:
            time.sleep(0.05)
        cluster.remove_node(cluster.spares.pop(), allow_graceful=False)
        seen.append(len(list(state.glob("*.done"))))

    seen: list[int] = []
    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    many = sparsec.run(
        path, tmp_path / "many.jsonl", bad_rows=tmp_path / "bad2", ray=cluster.address, **options
    )
    killer.join(60)
    assert seen and 20 <= seen[0] < 120
    assert (tmp_path / "many.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    assert lines(tmp_path / "bad2") == lines(tmp_path / "bad1")
    assert (many.rows, many.bad) == (once.rows, once.bad) == (2999, 1)


@pytest.mark.slow
def test_errors_of_nodes_are_ours(cluster: Any, text_models: TextModels, tmp_path: Path) -> None:
    """And what was done before stays done, for a run without the cluster too."""
    (tmp_path / "in.txt").write_text("good\n" * 40 + LONG + "\n")
    options: dict[str, Any] = {
        "task": "sentiment",
        "model": text_models["text-classification"],
        "part_rows": 10,
    }
    with pytest.raises(TooLongError, match="row 41"):
        sparsec.run(tmp_path / "in.txt", tmp_path / "o.csv", ray=cluster.address, **options)
    done = len(list((tmp_path / ".o.csv.run").glob("*.done")))
    found = sparsec.run(
        tmp_path / "in.txt", tmp_path / "o.csv", bad_rows=tmp_path / "bad", **options
    )
    assert (found.rows, found.bad, found.resumed) == (40, 1, 10 * done)


@pytest.mark.slow
def test_serve_answers_as_the_server(cluster: Any, text_models: TextModels) -> None:
    import httpx
    from ray import serve

    model = text_models["text-classification"]
    app = sparsec.ray.deployment(
        "sentiment",
        model,
        max_batch=8,
        autoscaling_config={"min_replicas": 1, "max_replicas": 2},
        top_k=2,
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"port": port, "location": "HeadOnly"})
    try:
        handle = serve.run(app, route_prefix="/predict")
        given = texts(20)
        with Pipeline.create("sentiment", model, top_k=2) as pipeline:
            wanted = [pipeline(text).model_dump() for text in given]
        asked = [handle.predict.remote({"sequences": text}) for text in given]
        for one, two in zip(asked, wanted, strict=True):
            found = one.result(timeout_s=60)
            assert found["labels"] == two["labels"]
            assert found["scores"][0] == pytest.approx(two["scores"][0], rel=1e-5)
        url = f"http://127.0.0.1:{port}/predict"
        random.Random(0).shuffle(given)
        answer = httpx.post(url, json={"inputs": given}, timeout=60)
        assert answer.status_code == 200 and len(answer.json()["labels"]) == 20
        wrong = httpx.post(url, json={"inputs": LONG}, timeout=60)
        assert (wrong.status_code, wrong.json()["code"]) == (422, "input_too_long")
        assert httpx.post(url, content=b"{", timeout=60).json()["code"] == "invalid_json"
        assert httpx.post(url, json={"x": 1}, timeout=60).status_code == 422
    finally:
        serve.shutdown()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_replicas": 2, "autoscaling_config": {}}, "not both"),
        ({"num_cores": 0}, "num_cores must be at least 1"),
        ({"max_batch": 0}, "max_batch"),
        ({"limits": {"speed": 1}}, "speed"),
    ],
)
def test_deployments_refuse_what_is_wrong(change: dict[str, Any], said: str) -> None:
    pytest.importorskip("ray.serve", reason="the extra sparsec[ray] is not installed")
    with pytest.raises(InputError, match=said):
        sparsec.ray.deployment("sentiment", "m.sparsec", **change)
