"""Layers pruned and rounded in one shot, and written back into the user's graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from examples import encoders
from examples.encoders import EncoderConfig, Export
from sparsec.compiler.frontend import dialect_name, import_graph, load_model
from sparsec.errors import UnsupportedError
from tests.frontend_support import FLOAT, INT64, node, ops, save
from tests.ort_reference import session

torch = pytest.importorskip("torch")

from sparsec.pruning import export, oneshot  # noqa: E402
from sparsec.pruning.batches import Batch, make_batches, may_pad  # noqa: E402
from sparsec.pruning.engine import TorchModel  # noqa: E402
from sparsec.pruning.oneshot import Form, OneShot, Settings  # noqa: E402
from sparsec.pruning.prepare import prepared  # noqa: E402
from sparsec.serving.runner import Features  # noqa: E402

torch.set_num_threads(1)

SMALL = EncoderConfig(layers=1, hidden=32, heads=4, intermediate=64, head="sequence-classification")


def _batches(model: TorchModel, written: encoders.Model, count: int) -> list[Batch]:
    names = model.graph(model.opened.probe).inputs
    made = []
    for seed in range(count):
        arrays = written.batch(4, 24, seed=seed)
        inputs = {name: torch.from_numpy(a) for name, a in zip(names, arrays, strict=True)}
        made.append(Batch(inputs, torch.from_numpy(arrays[1] != 0), tuple(range(4))))
    return made


def _ready(folder: Path, export_as: Export | None = None) -> Any:
    written = encoders.write_random(folder / "dense.onnx", SMALL, export=export_as)
    ready = prepared(load_model(written.path))
    model = TorchModel(ready)
    return written, ready, model, _batches(model, written, 6)


def _outputs(model: TorchModel, batch: Batch, run: oneshot.Run | None = None) -> Any:
    with torch.no_grad():
        if run is None:
            return model(batch.inputs).outputs["logits"].numpy()
        given = model(batch.inputs, weights=run.weights, on_input=run.on_input)
        return given.outputs["logits"].numpy()


@pytest.mark.parametrize("dialect", export.DIALECTS)
@pytest.mark.parametrize(
    "form",
    [
        Export(),
        Export(opset=20, fused=True, linear="gemm"),
        Export(opset=11),
        Export(external_data=True),
    ],
    ids=["matmul", "gemm", "opset-11", "external"],
)
def test_onnx_runtime_gives_what_torch_gives(tmp_path: Path, form: Export, dialect: str) -> None:
    written, ready, model, batches = _ready(tmp_path, form)
    settings = Settings(per_channel=export.per_channel(ready, dialect))
    run = OneShot(model, batches[:5], settings).compress(
        {layer.name: Form(0.5) for layer in model.layers}
    )
    out = tmp_path / dialect
    out.mkdir()
    path = export.save(export.export(ready, model.layers, run.made, dialect), ready, out)
    before, after = (onnx.load(p, load_external_data=False) for p in (written.path, path))
    assert before.opset_import == after.opset_import
    assert [before.graph.input, before.graph.output] == [after.graph.input, after.graph.output]
    assert (out / export.DATA).exists() == form.external_data
    runner, far = session(path), []
    for batch in batches:
        feeds = {name: tensor.numpy() for name, tensor in batch.inputs.items()}
        (got,), want = runner.run(None, feeds), _outputs(model, batch, run)
        far.append(np.abs(got - want).max(1) / np.abs(want).max())
    # Steps of 8 bits at ties: sums of floats in another order may fall on the other side, which is
    # seen in that text alone.
    assert np.mean(np.concatenate(far) < 5e-5) > 0.75
    assert np.max(far) < 0.02
    loaded = load_model(path)
    assert dialect_name(loaded) == dialect
    graph = import_graph(loaded, 8)
    assert ops(graph)["qlinear"] == len(model.layers)
    pruned = [graph.constants[n.inputs[1]] for n in graph.nodes if n.op == "qlinear"]
    for weights in pruned:
        assert oneshot.block_sparsity(torch.from_numpy(weights)) == pytest.approx(0.5, abs=0.01)


def test_the_dense_model_is_met_closely_by_bytes_and_less_so_by_fewer_of_them(
    tmp_path: Path,
) -> None:
    _, _, model, batches = _ready(tmp_path)
    dense = _outputs(model, batches[5])
    errors = []
    for sparsity in (0.0, 0.5, 0.9):
        forms = {layer.name: Form(sparsity) for layer in model.layers}
        run = OneShot(model, batches[:5]).compress(forms)
        errors.append(float(np.square(_outputs(model, batches[5], run) - dense).mean()))
        assert [round(made.sparsity, 1) for made in run.made.values()] == [sparsity] * len(forms)
    assert errors[0] < 1e-3 * np.square(dense).mean()
    assert errors[0] < errors[1] < errors[2]


@pytest.mark.parametrize("dialect", export.DIALECTS)
def test_channels_of_one_size_are_in_the_file(
    tmp_path: Path, dialect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few channels that are far larger than the others leave those their levels."""
    written = encoders.write_random(tmp_path / "dense.onnx", SMALL)
    proto = onnx.load(written.path)
    for tensor in proto.graph.initializer:
        if "LayerNorm.weight" in tensor.name:
            gamma = numpy_helper.to_array(tensor).copy()
            gamma[:2] *= 50
            tensor.CopyFrom(numpy_helper.from_array(gamma, tensor.name))
    onnx.save(proto, written.path)
    ready = prepared(load_model(written.path))
    model = TorchModel(ready)
    batches = _batches(model, written, 6)
    forms = {layer.name: Form() for layer in model.layers}
    run = OneShot(model, batches[:5]).compress(forms)
    assert any(made.factors is not None for made in run.made.values())
    path = export.save(export.export(ready, model.layers, run.made, dialect), ready, tmp_path)
    feeds = {name: tensor.numpy() for name, tensor in batches[5].inputs.items()}
    (got,) = session(path).run(None, feeds)
    want = _outputs(model, batches[5], run)
    np.testing.assert_allclose(got, want, rtol=0, atol=5e-3 * np.abs(want).max())
    assert ops(import_graph(load_model(path), 8))["qlinear"] == len(model.layers)
    monkeypatch.setattr("sparsec.pruning.smoothing.choose", lambda *args: None)
    plain = OneShot(model, batches[:5]).compress(forms)
    dense = _outputs(model, batches[5])
    even, uneven = (np.square(_outputs(model, batches[5], r) - dense).mean() for r in (run, plain))
    assert even < 0.5 * uneven


def test_the_same_texts_give_the_same_layers_and_known_ones_are_not_solved_again(
    tmp_path: Path,
) -> None:
    _, _, model, batches = _ready(tmp_path)
    forms = {layer.name: Form(0.5) for layer in model.layers}
    one, two = (OneShot(model, batches).compress(forms).made for _ in range(2))
    half = dict(list(one.items())[:4])
    seen: list[str] = []
    three = OneShot(model, batches).compress(
        forms, lambda layer, made: seen.append(layer.name), known=half
    )
    assert seen == list(one)
    for name, made in one.items():
        for other in (two[name], three.made[name]):
            assert torch.equal(made.weights, other.weights)
            assert torch.equal(made.bias, other.bias)
            assert made.range == other.range
        assert (three.made[name] is made) == (name in half)


def test_layers_make_up_for_what_was_lost_before_them(tmp_path: Path) -> None:
    """A layer whose inputs are pruned ones is fitted to what the dense one gave."""
    _, _, model, batches = _ready(tmp_path)
    up, down = model.layers[4:6]
    light = Settings(damping=0.001)  # these few texts would have the layer held where it was
    run = OneShot(model, batches[:5], light).compress({up.name: Form(0.9), down.name: Form(0.0)})
    alone = OneShot(model, batches[:5], light).compress({up.name: Form(0.9)})
    dense = _outputs(model, batches[5])
    both, one = (_outputs(model, batches[5], r) for r in (run, alone))
    assert np.square(both - dense).mean() < np.square(one - dense).mean()


def test_the_run_that_is_pruned_so_far_is_that_of_pruned_layers(tmp_path: Path) -> None:
    """Later layers are fitted to what the pruned ones before them give."""
    _, _, model, batches = _ready(tmp_path)
    up, down = model.layers[4:6]
    both = OneShot(model, batches[:1])
    run = both.compress({up.name: Form(0.9, quantize=False)})
    ((batch, dense, small, _),) = list(both._stopped(down))
    with torch.no_grad():
        seen = model(batch.inputs, weights=run.weights, keep=(down.name,)).inputs
    assert seen is not None and torch.equal(small, seen[down.name][0])
    assert not torch.allclose(small, dense, atol=1e-3)


def _tiny(folder: Path, half: bool = False, twice: bool = False) -> Any:
    """Layers without a bias, one matrix used twice, a bias that two layers read."""
    rng = np.random.default_rng(0)
    dtype = np.float16 if half else np.float32

    def some(*shape: int) -> np.ndarray:
        return (rng.normal(size=shape) / 3).astype(dtype)

    nodes = [
        node("Gather", "table ids", "x"),
        node("MatMul", "x first", "a"),
        node("Tanh", "a", "b"),
        node("MatMul", "b second", "c"),
        node("Add", "c both", "d"),
        node("MatMul", f"d {'first' if twice else 'third'}", "e"),
        node("Add", "both e", "y"),
    ]
    return save(
        folder,
        nodes,
        [("ids", INT64, ["batch", "sequence"])],
        [("y", TensorProto.FLOAT16 if half else FLOAT, "bsc")],
        {
            "table": some(50, 16),
            "first": some(16, 16),
            "second": some(16, 16),
            "third": some(16, 16),
            "both": some(16),
        },
        opset=17,
    )


def _ids(count: int, length: int = 12) -> list[Batch]:
    made = []
    for seed in range(count):
        ids = np.random.default_rng(seed).integers(0, 50, (4, length))
        made.append(Batch({"ids": torch.from_numpy(ids)}, torch.ones(4, length).bool(), (0,)))
    return made


@pytest.mark.parametrize("dialect", export.DIALECTS)
@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize("twice", [False, True], ids=["apart", "shared"])
def test_biases_shared_weights_and_half_floats(
    tmp_path: Path, dialect: str, half: bool, twice: bool
) -> None:
    given = _tiny(tmp_path, half, twice)
    original = given.path.read_bytes()
    ready = prepared(given)
    model = TorchModel(ready)
    assert len(model.layers) == 3 - twice
    assert all(layer.bias for layer in model.layers)
    assert len({layer.bias for layer in model.layers}) == len(model.layers)
    batches = _ids(4)
    plain = session(given.path).run(None, {"ids": batches[3].inputs["ids"].numpy()})[0]
    with torch.no_grad():
        same = model(batches[3].inputs).outputs["y"].numpy()
    tolerance = 1e-2 if half else 1e-5
    np.testing.assert_allclose(same, plain.astype(np.float32), rtol=0, atol=tolerance)
    run = OneShot(model, batches[:3]).compress({x.name: Form(0.25) for x in model.layers})
    out = tmp_path / "out"
    out.mkdir()
    path = export.save(export.export(ready, model.layers, run.made, dialect), ready, out)
    (got,) = session(path).run(None, {"ids": batches[3].inputs["ids"].numpy()})
    assert got.dtype == (np.float16 if half else np.float32)
    with torch.no_grad():
        found = model(batches[3].inputs, weights=run.weights, on_input=run.on_input)
    want = found.outputs["y"].numpy()
    np.testing.assert_allclose(got.astype(np.float32), want, rtol=0, atol=5e-2)
    assert np.square(want - same).mean() < 0.2 * same.var()
    assert ops(import_graph(load_model(path), 8))["qlinear"] == 3
    assert given.path.read_bytes() == original


def test_models_of_old_opsets_are_refused(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    infos = [helper.make_tensor_value_info(n, FLOAT, ["batch", 4]) for n in "xy"]
    graph = helper.make_graph([node("MatMul", "x w", "y")], "g", infos[:1], infos[1:], [weight])
    path = tmp_path / "old.onnx"
    opset = [helper.make_opsetid("", 9)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    with pytest.raises(UnsupportedError, match="opset 9 has no quantized operators: convert"):
        export.check_opset(load_model(path))


def test_sequences_are_padded_where_a_mask_drops_that(tmp_path: Path) -> None:
    written, ready, _, _ = _ready(tmp_path)
    assert may_pad(ready)
    names = ("input_ids", "attention_mask")
    items = [
        Features({n: np.full(k, 1 + i, np.int64) for i, n in enumerate(names)}, k)
        for k in (3, 9, 5, 8, 12)
    ]
    padded = make_batches(items, pad=True)
    assert [(b.mask.shape[1], b.texts) for b in padded] == [(8, (0, 2, 3)), (16, (1, 4))]
    assert [b.mask.sum(1).tolist() for b in padded] == [[3, 5, 8], [9, 12]]
    assert int(padded[0].inputs["attention_mask"].sum()) == 2 * 16
    exact = make_batches(items, pad=False, tokens=1)
    assert [b.mask.shape for b in exact] == [(1, 3), (1, 5), (1, 8), (1, 9), (1, 12)]
    assert written.config.hidden == 32
