"""Tiles in a process that others use: libraries with tiles of their own, forks, workers, signals.

On the unit where there is one.  Elsewhere on the emulation, whose tiles nobody else can touch: then
what is seen is that the code around them holds.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sparsec
from examples.encoders import EncoderConfig, Export, Model, write_random
from sparsec import targets
from sparsec.compiler import toolchain
from tests import pipelines_support
from tests.server_support import TASKS, Server
from tests.test_tiles import UNIT
from tests.test_tiles_models import EMULATED

CONTEXT = multiprocessing.get_context("spawn")
SOURCE = Path(__file__).parents[1] / "examples" / "c" / "threads.c"
CONFIG = EncoderConfig(layers=1, hidden=128, heads=2, intermediate=128, vocab=2050, max_position=64)

#: Nothing is known of it where an artifact is loaded, so that any process runs it.
ANYWHERE = replace(EMULATED, name="emulated")


@pytest.fixture(scope="module")
def target() -> Iterator[str]:
    """The unit, or the emulation as a target of its own."""
    if UNIT:
        yield "amx"
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(targets, "TARGETS", targets.table(ANYWHERE, *targets.TARGETS))
        yield ANYWHERE.name


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("neighbours")
    return write_random(folder / "m.onnx", CONFIG, "qdq", Export(), seed=4, sparsity=0.0)


@pytest.fixture(scope="module")
def artifact(model: Model, target: str) -> Path:
    made = sparsec.compile(model.path, buckets=[16], target=target)
    assert any("_tiles_" in kernel.kernel for kernel in made.manifest.buckets[0].kernels)
    return Path(made.path)


def _torch(model: Path) -> Callable[[], Any]:
    """Products of bfloat16, which oneDNN computes on tiles."""
    import torch

    a = torch.randn(256, 256, dtype=torch.bfloat16)
    return lambda: (a @ a).float().sum().item()


def _openvino(model: Path) -> Callable[[], Any]:
    """The same model: int8, and bfloat16 where there are tiles."""
    import openvino

    compiled = openvino.Core().compile_model(str(model), "CPU")
    arrays = {port: np.ones((1, 16), np.int64) for port in compiled.inputs}
    return lambda: compiled.create_infer_request().infer(arrays)


NEIGHBOURS = {"torch": _torch, "openvino": _openvino}


def run_beside(artifact: Path, model: Path, inputs: list[np.ndarray], name: str) -> int:
    """How many results differ while another library computes in between and at the same time."""
    with sparsec.Engine(artifact, num_cores=2) as engine:
        want = engine.run(inputs)
        other = NEIGHBOURS[name](model)
        wrong, done = 0, threading.Event()

        def beside() -> None:
            while not done.is_set():
                other()

        thread = threading.Thread(target=beside)
        for i in range(20):
            if i == 10:
                thread.start()
            other()
            wrong += sum(
                not np.array_equal(x, y) for x, y in zip(engine.run(inputs), want, strict=True)
            )
        done.set()
        thread.join()
    return wrong


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_beside_another_library(artifact: Path, model: Model, name: str) -> None:
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    inputs = model.batch(2, 16, seed=3, ragged=False)
    with CONTEXT.Pool(1) as pool:
        assert pool.apply(run_beside, (artifact, Path(model.path), inputs, name)) == 0


def test_a_fork_of_a_process_that_runs(artifact: Path, model: Model) -> None:
    """Permission is inherited; what was in tiles is not needed."""
    inputs = model.batch(2, 16, seed=3, ragged=False)
    with sparsec.Engine(artifact, num_cores=2) as engine:
        want = engine.run(inputs)
        for _ in range(3):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    same = map(np.array_equal, engine.run(inputs), want)
                    code = 0 if all(same) else 2
                finally:
                    os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert all(map(np.array_equal, engine.run(inputs), want))


def test_threads_with_signals_on_stacks_of_their_own(artifact: Path, tmp_path: Path) -> None:
    """examples/c/threads.c, compiled as its first lines say."""
    command = [*toolchain.find().command, "-O2", "-Wall", "-Wextra", "-Werror", "-pthread"]
    program = tmp_path / "threads"
    done = subprocess.run(
        [*command, f"-I{artifact}", str(SOURCE), "-o", str(program), "-ldl"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    done = subprocess.run(
        [str(program), str(artifact / "bucket_16.so")], capture_output=True, text=True
    )
    name = sparsec.Artifact.load(artifact).manifest.target.name
    assert done.stdout == f"m on {name}: 0 of 200 runs differ, interrupted\n", done.stderr


def test_workers_of_a_server(target: str, tmp_path: Path) -> None:
    """Several processes answer side by side, all the same."""
    head, settings = TASKS["embedding"]
    pipelines_support.make(tmp_path, head, **settings)
    made = sparsec.compile(tmp_path, buckets=[16], output=tmp_path / "model.sparsec", target=target)
    endpoint = {"task": "embedding", "model": str(made.path), "route": "/embed"}
    config = {"num_workers": 2, "endpoints": [endpoint]}
    with Server(tmp_path / "server", config) as server, server.client() as client:
        body = {"sequences": "a word"}
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: client.post("/embed", json=body), range(12)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
