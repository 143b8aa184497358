"""How linear layers are cut: the rules, the record of measured choices, and measuring."""

from __future__ import annotations

import itertools
import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

import sparsec
from examples.encoders import EncoderConfig, write_random
from sparsec import targets
from sparsec.compiler import toolchain
from sparsec.compiler.lowering.tiling import (
    NOISE,
    LayerClass,
    Tiling,
    Tilings,
    blocks_of,
    by_model,
    candidates,
    choose,
    estimate,
)
from sparsec.compiler.tune import measure, tune
from sparsec.errors import HardwareError, InputError
from sparsec.runtime import cpu

CONFIG = EncoderConfig(layers=1, hidden=32, heads=2, intermediate=64, vocab=50, max_position=16)

#: A machine with a unit for products of tiles, with rates as measured on a Xeon of 2023.
TILED = replace(
    targets.get("avx512_vnni"),
    name="tiled",
    matrix=targets.Matrix(header="tiles_emulated.h", weights=32 << 10, sweep=8, kept=0),
    costs=replace(
        targets.costs(targets.get("avx512_vnni")), matrix=(5.7, 2.5, 30.0, 2.47, 350.0, 4.0)
    ),
)
LAYER = LayerClass.of("i8", 768, 768, 0.2, True)


@pytest.mark.parametrize("target", targets.TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize("kind", ["i8", "f32"])
def test_form_follows_density(target: targets.Target, kind: str) -> None:
    """Nearly empty layers are sparse, full ones dense where that kernel is faster."""
    forms = []
    for density in np.linspace(0, 1, 21):
        layer = LayerClass.of(kind, 768, 768, density, False)
        forms.append(by_model(layer, target, {128: 8})[layer, 128].sparse)
    assert forms[0]
    assert sorted(forms, reverse=True) == forms
    # Some weights are zero by accident.
    assert not any(forms[17:])


@pytest.mark.parametrize("target", targets.TARGETS, ids=lambda t: t.name)
def test_a_few_zeros_are_accidents(target: targets.Target) -> None:
    """Where the core is not known, an eighth of zeros makes no layer sparse; figures tell of it."""
    for n, k in ((384, 384), (768, 3072), (3072, 768)):
        layer = LayerClass.of("i8", n, k, 0.88, True)
        chosen = by_model(layer, target, {16: 1, 128: 8, 512: 32})
        assert not any(tiling.sparse for tiling in chosen.values())
        assert "sparse" in chosen.microseconds[layer, 16]


def test_cost_model_prefers_work_to_rows() -> None:
    """Many rows: tall tiles; wide inputs: several chunks, for all buckets alike."""
    target = targets.get("avx512_vnni")
    layer = LayerClass.of("i8", 768, 3072, 0.2, False)
    chosen = by_model(layer, target, blocks_of([16, 384], 1))
    assert chosen[layer, 16].tile <= chosen[layer, 384].tile
    assert chosen[layer, 16].chunks == chosen[layer, 384].chunks
    assert chosen[layer, 384].tile > 1 and chosen[layer, 384].chunks > 1
    assert blocks_of([16, 20, 0], 3) == {16: 3, 20: 4, 0: 1}


@pytest.mark.parametrize("target", (*targets.TARGETS, TILED), ids=lambda t: t.name)
def test_candidates_are_alike(target: targets.Target) -> None:
    """The same number for every layer, in the same order: they are compiled side by side."""
    layers = [
        LayerClass.of(kind, 64, k, 0.5, False)
        for kind in ("i8", "f32")
        for k in (1, 36, 60, 61, 768, 16000)
    ]
    first = candidates(layers[0], target)
    for layer in layers:
        found = candidates(layer, target)
        forms = [(t.sparse, t.tile) for t in found if not t.matrix]
        assert forms == [(t.sparse, t.tile) for t in first][: len(forms)]
        assert len(found) == len(first)
        fits = target.matrix is not None and (layer.kind == "f32" or layer.k > 60)
        other = "tiles" if layer.kind == "f32" else "masked"  # floats have no masks
        assert [t.form for t in found[len(forms) :]] == ["tiles", other] * fits


def test_tiles_are_for_many_rows_and_full_layers() -> None:
    """Where the products of a sparse layer are few, or its rows, vectors compute it."""

    def chosen(rows: int, zeros: float, k: int = 768, kind: str = "i8") -> Tiling:
        layer = LayerClass.of(kind, 768, k, 1 - zeros, True)
        return by_model(layer, TILED, blocks_of([rows], 1))[layer, rows]

    assert chosen(64, 0.0).matrix and chosen(128, 0.8).matrix and chosen(16, 0.0).matrix
    assert chosen(4096, 0.95).sparse and chosen(16, 0.8).sparse
    assert chosen(128, 0.0, kind="f32").matrix and not chosen(128, 0.9, kind="f32").matrix
    assert not chosen(128, 0.0, k=60).matrix
    # Weights of 32 channels stay in the first-level cache.
    assert [chosen(128, 0.0, k=k).chunks for k in (768, 1024, 3072, 4096)] == [1, 1, 3, 4]


def test_rows_that_weights_do_not_meet_again_cost_more() -> None:
    layer = LayerClass.of("i8", 768, 768, 1.0, True)
    (tiling,) = (t for t in candidates(layer, TILED) if t.form == "tiles")
    times = [estimate(layer, tiling, blocks, TILED) for blocks in range(1, 25)]
    assert all(x < y for x, y in itertools.pairwise(times))
    # The first block brings the weights; the second meets them on the way.
    assert times[0] > times[1] - times[0] and times[7] / 8 < times[3] / 4 < times[0]


@pytest.mark.parametrize("target", (*targets.TARGETS, TILED), ids=lambda t: t.name)
@pytest.mark.parametrize("kind", ["i8", "f32"])
@pytest.mark.parametrize("density", [0.1, 0.2, 1.0])
def test_modelled_cost_has_no_cliffs(target: targets.Target, kind: str, density: float) -> None:
    """From 1 to 520 tokens, 16 more cost about what the first 16 did: up to 1.35 times where they
    begin a tile of rows, 2.7 times where weights are brought once more for a sweep of a matrix
    unit.  Nor do they cost much less than nothing."""
    most = 1.35 if target.matrix is None else 2.7
    for n, k in ((384, 384), (3072, 768), (768, 3072)):
        layer = LayerClass.of(kind, n, k, density, True)
        blocks = blocks_of(range(1, 521), 1)
        chosen = by_model(layer, target, {16 * b: b for b in set(blocks.values())})
        times = {b: estimate(layer, chosen[layer, 16 * b], b, target) for b in blocks.values()}
        for length in range(17, 521):
            now, before = times[blocks[length]], times[blocks[length - 16]]
            assert -NOISE * now <= now - before <= most * times[1], (n, k, length)


def test_choices_share_the_form_between_buckets() -> None:
    """What is stored is one form for all buckets; tiles differ where that is faster."""
    short, tall, dense = Tiling(True, 1, 1), Tiling(True, 1, 2), Tiling(False, 1, 4)
    measured = {
        (LAYER, short): {16: 1.0, 128: 9.0},
        (LAYER, tall): {16: 1.3, 128: 8.0},
        (LAYER, dense): {16: 0.9, 128: 20.0},
    }
    assert dict(choose(measured)) == {(LAYER, 16): short, (LAYER, 128): tall}
    measured[LAYER, tall][16] = 1.005  # as good as the other: the lower tile has less code
    measured[LAYER, short][128] = 8.05
    assert dict(choose(measured)) == {(LAYER, 16): short, (LAYER, 128): short}


def test_another_unit_is_worth_another_form() -> None:
    """Few rows may go to vectors and many to tiles, where that is much faster than one of them."""
    vectors, tiles = Tiling(True, 1, 2), Tiling(False, 1, 2, matrix=True)
    measured = {(LAYER, vectors): {16: 1.0, 128: 9.0}, (LAYER, tiles): {16: 2.0, 128: 4.0}}
    assert dict(choose(measured)) == {(LAYER, 16): vectors, (LAYER, 128): tiles}
    measured[LAYER, tiles][16] = 1.2
    assert dict(choose(measured)) == {(LAYER, 16): tiles, (LAYER, 128): tiles}


def test_record_comes_back() -> None:
    many = Tiling(False, 3, 2, matrix=True)
    chosen = Tilings({(LAYER, 16): Tiling(True, 1, 2), (LAYER, 128): many})
    again = Tilings.from_json(json.loads(json.dumps(chosen.to_json())), "here")
    assert dict(again) == dict(chosen)


@pytest.mark.parametrize(
    "rows",
    [
        None,
        "text",
        [1],
        [{}],
        [{**vars(LAYER), "bucket": 16, "sparse": True, "chunks": 0, "tile": 1}],
        [{**vars(LAYER), "bucket": 16, "sparse": True, "chunks": 1, "tile": 99}],
        [{**vars(LAYER), "bucket": "x", "sparse": True, "chunks": 1, "tile": 1}],
    ],
)
def test_a_damaged_record_is_named(rows: object) -> None:
    with pytest.raises(InputError, match=r"manifest.json is not a record"):
        Tilings.from_json(rows, "manifest.json")


def test_measuring_times_every_candidate() -> None:
    """Each layer has a time for each tiling, and more rows take longer."""
    rng = np.random.default_rng(0)
    sparse = np.where(rng.random((128, 128)) < 0.1, 7, 0).astype(np.int8)
    layers = {
        LayerClass.of("i8", 128, 128, 0.35, True): sparse,
        LayerClass.of("i8", 128, 128, 0.35, False): sparse,
        LayerClass.of("f32", 64, 128, 1.0, False): rng.standard_normal((64, 128)).astype("f4"),
    }
    target = targets.choose("auto", cpu.detect())
    told: list[str] = []
    times = measure(layers, {1: 1, 20: 20}, target, toolchain.find(), progress=told.append)
    assert {layer for layer, _ in times} == set(layers)
    # K is one chunk whatever the budget, and the height of a tile means nothing to dense layers.
    tilings = {tiling for _, tiling in times if tiling.sparse or tiling.matrix}
    assert told[0] == f"compiling {len(tilings) + 1} tilings of 3 kinds of layers"
    assert len(told) == len(tilings) + 2
    for row in times.values():
        assert 0 < row[1] < row[20]


def test_tuning_needs_a_machine_that_runs_the_target() -> None:
    target = replace(targets.get("generic"), name="far", features=("no-such-feature",))
    with pytest.raises(HardwareError, match="no-such-feature"):
        tune({}, [16], 1, target, toolchain.find())


def test_a_tuned_artifact_is_made_again_from_its_record(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    write_random(model, CONFIG, "sparseml", seed=1, sparsity=0.8)
    tuned = sparsec.compile(model, buckets=[8, 16], output=tmp_path / "a", tune=True)
    record = json.loads((tmp_path / "a" / "manifest.json").read_text())["tuning"]
    assert {row["bucket"] for row in record} == {8, 16}
    again = sparsec.compile(model, buckets=[8, 16], output=tmp_path / "b", tuning=tuned.path)
    files = sorted(p.name for p in Path(tuned.path).iterdir())
    assert files == sorted(p.name for p in Path(again.path).iterdir())
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    inputs = sparsec.generate_random_inputs(model, batch_size=2, length=11)
    with sparsec.Engine(tuned.path) as one, sparsec.Engine(again.path) as two:
        for x, y in zip(one.run(inputs), two.run(inputs), strict=True):
            np.testing.assert_array_equal(x, y)


@pytest.mark.slow
def test_every_tiling_computes_the_same(tmp_path: Path) -> None:
    """A model compiled with each candidate for all its layers gives the same bytes out."""
    model = tmp_path / "m.onnx"
    write_random(model, CONFIG, "sparseml", seed=2, sparsity=0.6)
    first = sparsec.compile(model, buckets=[16], output=tmp_path / "plain", tune=True)
    record = json.loads((Path(first.path) / "manifest.json").read_text())["tuning"]
    inputs = sparsec.generate_random_inputs(model, batch_size=11, length=16)
    with sparsec.Engine(first.path) as engine:
        want = engine.run(inputs)
    target = targets.get(first.target.name)
    for index in range(len(candidates(LAYER, target))):
        for row in record:
            layer = LayerClass(*(row[f.name] for f in fields(LayerClass)))
            row.update(vars(candidates(layer, target)[index]))
            row["chunks"] = 2 if row["sparse"] and index % 2 else row["chunks"]
        file = tmp_path / f"{index}.json"
        file.write_text(json.dumps({"tuning": record}))
        made = sparsec.compile(model, buckets=[16], output=tmp_path / f"{index}", tuning=file)
        with sparsec.Engine(made.path) as engine:
            for x, y in zip(engine.run(inputs), want, strict=True):
                np.testing.assert_array_equal(x, y)


def test_tune_and_tuning_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not both"):
        sparsec.compile(tmp_path / "m.onnx", buckets=[8], tune=True, tuning=tmp_path)
    with pytest.raises(InputError, match="no record"):
        sparsec.compile(tmp_path / "m.onnx", buckets=[8], tuning=tmp_path / "none.json")
