"""Models on tiles, through the emulation.

Against ONNX Runtime, under sanitizers, in threads and forks, and where tiles are refused.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import sparsec
from examples.encoders import EncoderConfig, Export, Form, Model, write_random
from sparsec import targets
from sparsec.cli import main
from sparsec.compiler.codegen import bucket
from sparsec.errors import SparsecError
from tests import stand_ins
from tests.test_end_to_end import BOUNDS, Case, compare_case
from tests.test_generated_c import ODD, compile_sanitized, compile_tree, needs_gcc

AVX2 = targets.get("avx2")
AMX = targets.get("amx")
assert AMX.matrix is not None and isinstance(AMX.costs, targets.Costs)

#: What tiles take, so that a new fit of the real ones changes no test.
TILES = (8.5, 0.0, 42.0, 1.0, 350.0, 13.0)

#: The target on vectors that this machine has and emulated tiles.  Its choices are those of a real
#: one: vectors are half as wide, so tiles are half as fast.
EMULATED = replace(
    AMX,
    features=AVX2.features,
    tuning=AVX2.tuning,
    vectors=AVX2.vectors,
    tiles=AVX2.tiles,
    matrix=replace(AMX.matrix, header="tiles_emulated.h"),
    costs=replace(AMX.costs, matrix=tuple(f * (1 if i == 3 else 2) for i, f in enumerate(TILES))),
    prepare=None,
)

SLOW = pytest.mark.slow
WIDE = {"layers": 1, "hidden": 96, "heads": 4, "intermediate": 260}


#: The same, where no weights are still near at the next run: as with a large model.
COLD = replace(EMULATED, matrix=replace(AMX.matrix, header="tiles_emulated.h", kept=0))

#: On the target's own vectors, which are emulated where this CPU lacks them.
WHOLE = stand_ins.on_emulated_tiles(stand_ins.here("amx"))
assert WHOLE.matrix is not None

#: Those whose tiles take all the layers they can; and whose masked tiles do.
EAGER = replace(WHOLE, costs=replace(AMX.costs, matrix=(1e-3,) * 6))
MASKING = replace(
    WHOLE,
    matrix=replace(WHOLE.matrix, kept=0),
    costs=replace(AMX.costs, matrix=(1e-3, 1e-3, 1.0, 1e-3, 1e-3, 1e-3)),
)


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """`amx` is the emulation."""
    stand_ins.install(monkeypatch, EMULATED)


def kernels(artifact: sparsec.Artifact, length: int) -> set[str]:
    """Forms of the layers of a bucket."""
    (found,) = (b for b in artifact.manifest.buckets if b.length == length)
    names = [k.kernel for k in found.kernels]
    return {m[1] for name in names if (m := re.match(r"linear_i8_([a-z]+)_", name))}


@pytest.mark.parametrize(
    ("case", "form"),
    [
        (Case("dense", config=WIDE, sparsity=0.0), "qdq"),
        pytest.param(Case("dense", config=WIDE, sparsity=0.0), "sparseml", marks=SLOW),
        pytest.param(Case("sparse", config=WIDE, sparsity=0.7), "qdq", marks=SLOW),
        (Case("sparse", config=WIDE, sparsity=0.7), "sparseml"),
        (Case("s8", config=WIDE, quantization={"activation": "s8"}, sparsity=0.2), "qdq"),
        pytest.param(
            Case("per-channel", config=WIDE, quantization={"per_channel": True}, sparsity=0.2),
            "qdq",
            marks=SLOW,
        ),
        pytest.param(
            Case("unstructured", config=WIDE, sparsity=0.5, block=1, spread=0.5), "qdq", marks=SLOW
        ),
        (
            Case(
                "odd", config={**WIDE, "hidden": 70, "heads": 5, "intermediate": 131}, sparsity=0.0
            ),
            "qdq",
        ),
    ],
    ids=lambda x: x if isinstance(x, str) else x.name,
)
def test_models_agree_with_onnx_runtime(tmp_path: Path, case: Case, form: Form) -> None:
    compare_case(tmp_path, case, form, "amx").check(BOUNDS[form])
    (artifact,) = tmp_path.glob("*.sparsec")
    assert "tiles" in kernels(sparsec.Artifact.load(artifact), 32)


def encoder(folder: Path, sparsity: float) -> Model:
    config = EncoderConfig(
        layers=1, hidden=256, heads=4, intermediate=512, vocab=50, max_position=128
    )
    return write_random(folder / "m.onnx", config, "qdq", Export(), seed=4, sparsity=sparsity)


def test_each_bucket_runs_what_is_fastest_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few rows of a sparse model on vectors, many on tiles; a very sparse one on vectors only."""
    model = encoder(tmp_path, 0.85)
    warm = sparsec.compile(model.path, buckets=[16], target="amx", output=tmp_path / "warm")
    assert kernels(warm, 16) == {"tiles"}
    stand_ins.install(monkeypatch, COLD)
    artifact = sparsec.compile(model.path, buckets=[16, 128], target="amx")
    assert kernels(artifact, 16) == kernels(artifact, 128) == {"masked"}
    plain = sparsec.compile(
        model.path, buckets=[128], target="avx2", output=tmp_path / "plain.sparsec"
    )
    with sparsec.Engine(artifact) as ours, sparsec.Engine(plain) as others:
        for batch, length in ((1, 9), (2, 100), (5, 17)):
            inputs = model.batch(batch, length, seed=2, ragged=True)
            for x, y in zip(ours.run(inputs), others.run(inputs), strict=True):
                np.testing.assert_array_equal(x, y)
    assert main(["inspect", str(model.path), "--length", "128", "--target", "amx", "--json"]) == 0
    layers = json.loads(capsys.readouterr().out)["layers"]
    assert all(layer["kernel"].startswith("linear_i8_masked_") for layer in layers)
    found = {}
    for share in (92, 97):
        (tmp_path / str(share)).mkdir()
        pruned = encoder(tmp_path / str(share), share / 100)
        artifact = sparsec.compile(pruned.path, buckets=[16, 128], target="amx")
        found[share] = kernels(artifact, 16), kernels(artifact, 128)
    few, many = found[92]
    assert few == {"sparse"} and "masked" in many
    assert found[97] == ({"sparse"}, {"sparse"})


def test_masked_tiles_give_what_vectors_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the weights are zero, and there is no time to fetch whole tiles."""
    stand_ins.install(monkeypatch, COLD)
    model = encoder(tmp_path, 0.5)
    artifact = sparsec.compile(model.path, buckets=[32], target="amx")
    assert kernels(artifact, 32) == {"masked"}
    plain = sparsec.compile(model.path, buckets=[32], target="avx2", output=tmp_path / "plain")
    with sparsec.Engine(artifact) as ours, sparsec.Engine(plain) as others:
        for batch, length in ((1, 9), (3, 32)):
            inputs = model.batch(batch, length, seed=2, ragged=True)
            for x, y in zip(ours.run(inputs), others.run(inputs), strict=True):
                np.testing.assert_array_equal(x, y)


def test_threads_and_forks(tmp_path: Path) -> None:
    """Tiles belong to a thread: pool threads, callers side by side, a child after a fork."""
    model = encoder(tmp_path, 0.0)
    artifact = sparsec.compile(model.path, buckets=[64], target="amx")
    inputs = model.batch(6, 64, seed=3, ragged=True)
    with sparsec.Engine(artifact, num_cores=1) as engine:
        want = engine.run(inputs)
    with sparsec.Engine(artifact, num_cores=2) as engine:
        same: list[bool] = []

        def run() -> None:
            have = engine.run(inputs)
            same.append(all(np.array_equal(x, y) for x, y in zip(want, have, strict=True)))

        threads = [threading.Thread(target=run) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert same == [True] * 3
        child = os.fork()
        if child == 0:
            code = 1
            try:
                run()
                code = 0 if same[-1] else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        run()
        assert same[-1]


@pytest.mark.slow
@needs_gcc
@pytest.mark.parametrize("form", ["tiles", "masked"])
def test_stays_inside_its_buffers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """As the other targets, with layers whose inputs and outputs are no whole tiles."""
    row = MASKING if form == "masked" else EAGER
    stand_ins.install(monkeypatch, row)
    config = EncoderConfig(**{**vars(ODD), "hidden": 72, "intermediate": 202})
    tree = compile_tree(tmp_path, config, "sparseml", "amx", [21])
    text = (tree.folder / "bucket_21" / "bucket.c").read_text()
    assert f"linear_i8_{form}_202x72" in text and f"linear_i8_{form}_72x202" in text
    compile_sanitized(tree, row, tmp_path / "driver")
    done = subprocess.run(
        [str(tmp_path / "driver"), str(tree.folder / "weights.bin")],
        capture_output=True,
        text=True,
        env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"},
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[:6000]


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Templates whose tiles the system refuses."""
    read = bucket.read_template
    header = read("lanes/tiles_emulated.h")
    refused = header.replace(
        "tiles_request(void) { return 0; }", "tiles_request(void) { return 1; }"
    )
    assert refused != header
    files = {"lanes/tiles_emulated.h": refused}
    monkeypatch.setattr(bucket, "read_template", lambda name: files.get(name) or read(name))
    return read


@pytest.mark.usefixtures("refusing")
def test_a_library_without_its_tiles_runs_nothing(tmp_path: Path) -> None:
    """Where the process was not prepared, as in a C program: no fault, but SPARSEC_REFUSED."""
    model = encoder(tmp_path, 0.0)
    with (
        sparsec.Engine(sparsec.compile(model.path, buckets=[16], target="amx")) as engine,
        pytest.raises(SparsecError, match=r"refused to run \(status 3\)"),
    ):
        engine.run(model.batch(1, 16, seed=3, ragged=False))
