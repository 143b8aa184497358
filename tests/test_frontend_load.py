"""Damaged and hostile files: each is one ModelError that says what to do."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from sparsec import ort
from sparsec.compiler.artifact import companions
from sparsec.compiler.cut import cut
from sparsec.compiler.frontend import import_graph, load_model, signature
from sparsec.errors import InputError, ModelError, UnsupportedError
from tests.frontend_support import FLOAT, INT64, check, model_proto, node, save

X = ("x", FLOAT, ["batch", 4])
Y = ("y", FLOAT, ["batch", 4])
W = np.arange(16, dtype=np.float32).reshape(4, 4)


def linear() -> onnx.ModelProto:
    return model_proto([node("MatMul", "x w", "y")], [X], [Y], {"w": W})


def write(folder: Path, proto: onnx.ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def test_a_good_file_and_its_folder(tmp_path: Path) -> None:
    path = write(tmp_path, linear())
    for given in (path, tmp_path, str(path)):
        model = load_model(given)
        assert (model.name, model.opset, model.path) == ("model", 17, path)
        assert model.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    check(load_model(path), lengths=(0,))


def test_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model\.onnx \(it has no \.onnx file: export"):
        load_model(tmp_path)
    (tmp_path / "onnx").mkdir()
    only = tmp_path / "onnx" / "model_quantized.onnx"
    only.write_bytes(linear().SerializeToString())
    assert load_model(tmp_path).path == only
    half = tmp_path / "onnx" / "model_fp16.onnx"
    half.write_bytes(linear().SerializeToString())
    assert load_model(tmp_path).path == half
    (tmp_path / "onnx" / "model.onnx").write_bytes(linear().SerializeToString())
    assert load_model(tmp_path).path == tmp_path / "onnx" / "model.onnx"
    with pytest.raises(ModelError, match="does not exist"):
        load_model(tmp_path / "nothing.onnx")
    with pytest.raises(ModelError, match="not a regular file"):
        load_model("/dev/null")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04 not a model" * 20, "not an ONNX"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        (b"\x08\x08", "has no graph"),
        (b"<html>404</html>", "not an ONNX"),
    ],
)
def test_not_an_onnx_file(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=message):
        load_model(path)


def test_every_truncation_is_a_model_error(tmp_path: Path) -> None:
    data = linear().SerializeToString()
    path = tmp_path / "model.onnx"
    for size in range(len(data)):
        path.write_bytes(data[:size])
        try:
            signature(load_model(path))
        except ModelError:
            continue
        # Only trailing fields of the file may go unnoticed: the opset of the other domain.
        assert onnx.load(path).graph == linear().graph


def test_flipped_bytes_never_escape_as_another_error(tmp_path: Path) -> None:
    data = bytearray(linear().SerializeToString())
    rng = np.random.default_rng(1)
    path = tmp_path / "model.onnx"
    refused = 0
    for _ in range(400):
        broken = bytearray(data)
        for at in rng.integers(0, len(data), 2):
            broken[at] = rng.integers(0, 256)
        path.write_bytes(bytes(broken))
        try:
            model = load_model(path)
            import_graph(model, 4 if signature(model).has_sequence else 0)
        except ModelError:
            refused += 1
    assert 100 < refused < 400


def external(folder: Path, **changes: str | None) -> Path:
    """The linear model with its weight in data.bin, with changed entries."""
    proto = linear()
    tensor = proto.graph.initializer[0]
    (folder / "data.bin").write_bytes(b"\0" * 16 + tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entries = {"location": "data.bin", "offset": "16", "length": "64"} | changes
    for key, value in entries.items():
        if value is not None:
            tensor.external_data.add(key=key, value=value)
    return write(folder, proto)


def test_external_data(tmp_path: Path) -> None:
    model = load_model(external(tmp_path))
    assert np.array_equal(model.array(model.proto.graph.initializer[0]), W)
    check(model, lengths=(0,))
    check(load_model(external(tmp_path, length=None)), lengths=(0,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"location": "missing.bin"}, "download that file"),
        ({"location": "../data.bin"}, "outside the model's folder"),
        ({"location": "sub/../../data.bin"}, "outside the model's folder"),
        ({"location": "/etc/passwd"}, "outside the model's folder"),
        ({"location": "C:\\data.bin"}, "outside the model's folder"),
        ({"location": "..\\data.bin"}, "outside the model's folder"),
        ({"location": ""}, "outside the model's folder"),
        ({"location": "."}, "not a regular file"),
        ({"offset": "32"}, "cut short"),
        ({"offset": "-1"}, "export it again"),
        ({"offset": "many"}, "no number"),
        ({"length": "32"}, "needs 64 bytes"),
        ({"length": str(2**62)}, "needs 64 bytes"),
    ],
)
def test_bad_external_data(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "data.bin").write_bytes(b"\0" * 80)
    with pytest.raises(ModelError, match=message):
        load_model(external(folder, **changes))


def test_external_data_through_symbolic_links(tmp_path: Path) -> None:
    folder, blobs = tmp_path / "snapshot", tmp_path / "blobs"
    folder.mkdir()
    blobs.mkdir()
    external(folder)
    (folder / "data.bin").rename(blobs / "data")
    (folder / "data.bin").symlink_to(blobs / "data")
    with pytest.raises(ModelError, match="a symbolic link that leaves the model's folder"):
        load_model(folder)
    (folder / "data.bin").unlink()
    (folder / "data.bin").symlink_to(folder / "data.bin")
    with pytest.raises(ModelError, match="download that file"):
        load_model(folder)


def hub_snapshot(root: Path) -> Path:
    """A snapshot in a cache as huggingface_hub makes it: every file a link to a blob."""
    repository = root / "hub" / "models--org--name"
    snapshot = repository / "snapshots" / ("0" * 40)
    for path in (snapshot / "onnx", repository / "blobs"):
        path.mkdir(parents=True)
    external(snapshot / "onnx")
    (snapshot / "onnx" / "config.json").write_text("{}")
    for i, path in enumerate(sorted((snapshot / "onnx").iterdir())):
        blob = repository / "blobs" / f"{i:064x}"
        path.rename(blob)
        path.symlink_to(os.path.relpath(blob, path.parent))
    return snapshot


def test_external_data_in_the_cache_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = hub_snapshot(tmp_path)
    (tmp_path / "short").symlink_to(snapshot, target_is_directory=True)
    for given in (snapshot, snapshot / "onnx" / "model.onnx", tmp_path / "short"):
        model = load_model(given)
        assert np.array_equal(model.array(model.proto.graph.initializer[0]), W)
    assert set(companions(snapshot / "onnx")) == {"config.json"}
    cut(model, "y", tmp_path / "cut.onnx")
    check(load_model(tmp_path / "cut.onnx"), lengths=(0,))

    x = np.ones((2, 4), np.float32)
    loaded = onnxruntime.InferenceSession

    def refuses(source: str | bytes, *args: Any, **options: Any) -> Any:
        if isinstance(source, str):
            raise RuntimeError("External data path is a symbolic link")
        return loaded(source, *args, **options)

    for _ in range(2):
        (y,) = ort.session(snapshot, 1).run(None, {"x": x})
        assert np.array_equal(y, x @ W)
        monkeypatch.setattr(onnxruntime, "InferenceSession", refuses)
    monkeypatch.undo()
    monkeypatch.setattr(onnxruntime, "InferenceSession", refuses)
    (tmp_path / "plain").mkdir()
    with pytest.raises(ModelError, match=r"ONNX Runtime cannot load .*symbolic link"):
        ort.session(write(tmp_path / "plain", linear()), 1)


@pytest.mark.parametrize("kind", ["other model", "other file", "outside", "datasets", "no cache"])
def test_links_out_of_the_cache_of_the_hub(tmp_path: Path, kind: str) -> None:
    snapshot = hub_snapshot(tmp_path) / "onnx"
    repository = tmp_path / "hub" / "models--org--name"
    for name in ("data.bin", "config.json"):
        blob = (snapshot / name).resolve()
        (snapshot / name).unlink()
        target = {
            "other model": tmp_path / "hub" / "models--org--other" / "blobs" / blob.name,
            "other file": repository / "refs" / "main",
            "outside": tmp_path / "secret",
        }.get(kind, blob)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(blob.read_bytes())
        (snapshot / name).symlink_to(target)
    if kind == "outside":  # blobs that are no folder of the repository
        (repository / "blobs").rename(tmp_path / "moved")
        (repository / "blobs").symlink_to(tmp_path / "moved")
    renamed = {"datasets": "datasets--org--name", "no cache": "name"}.get(kind)
    if renamed:
        for name in ("data.bin", "config.json"):
            target = (snapshot / name).resolve()
            (snapshot / name).unlink()
            (snapshot / name).symlink_to(f"../../../blobs/{target.name}")
        snapshot = repository.rename(tmp_path / "hub" / renamed) / snapshot.relative_to(repository)
    with pytest.raises(ModelError, match="a symbolic link that leaves the model's folder"):
        load_model(snapshot)
    with pytest.raises(ModelError, match=r"config\.json is a symbolic link that leaves the"):
        companions(snapshot)


def test_external_data_with_hard_links(tmp_path: Path) -> None:
    path = external(tmp_path)
    (tmp_path / "other").hardlink_to(tmp_path / "data.bin")
    with pytest.raises(ModelError, match=r"2 hard links.*put a copy there"):
        load_model(path)


def test_home_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    external(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_model("~").path == load_model("~/model.onnx").path == tmp_path / "model.onnx"
    with pytest.raises(InputError, match="no such home folder is known"):
        load_model("~nobody-of-that-name/model.onnx")
    with pytest.raises(ModelError, match="cannot read"):
        load_model("model\0.onnx")


def test_external_data_that_is_a_pipe(tmp_path: Path) -> None:
    path = external(tmp_path)
    (tmp_path / "data.bin").unlink()
    os.mkfifo(tmp_path / "data.bin")
    with pytest.raises(ModelError, match="not a regular file"):
        load_model(path)


def damaged(change: Callable[[onnx.ModelProto], None]) -> onnx.ModelProto:
    proto = linear()
    change(proto)
    return proto


def _dims(*dims: int) -> Callable[[onnx.ModelProto], None]:
    def change(proto: onnx.ModelProto) -> None:
        tensor = proto.graph.initializer[0]
        del tensor.dims[:]
        tensor.dims.extend(dims)

    return change


def _typed_claim(proto: onnx.ModelProto) -> None:
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.float_data.append(1.0)
    _dims(2**20, 2**20)(proto)


def _cycle(proto: onnx.ModelProto) -> None:
    proto.graph.node.append(node("Add", "a b", "b2"))
    proto.graph.node.append(node("Neg", "b2", "a"))
    proto.graph.node.append(node("Neg", "b2", "b"))


def _self_call(proto: onnx.ModelProto) -> None:
    ids = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    call = helper.make_node("F", ["a"], ["b"], domain="mine")
    proto.functions.append(helper.make_function("mine", "F", ["a"], ["b"], [call], ids))
    proto.opset_import.append(helper.make_opsetid("mine", 1))
    proto.graph.node[0].CopyFrom(helper.make_node("F", ["x"], ["y"], domain="mine"))


def _bomb(proto: onnx.ModelProto) -> None:
    ids = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    for i in range(40):
        name = f"F{i + 1}" if i < 39 else "Neg"
        domain = "mine" if i < 39 else ""
        calls = [
            helper.make_node(name, ["a"], ["m"], domain=domain),
            helper.make_node(name, ["m"], ["b"], domain=domain),
        ]
        proto.functions.append(helper.make_function("mine", f"F{i}", ["a"], ["b"], calls, ids))
    proto.opset_import.append(helper.make_opsetid("mine", 1))
    proto.graph.node[0].CopyFrom(helper.make_node("F0", ["x"], ["y"], domain="mine"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_dims(4, 5), "needs 80 bytes but holds 64"),
        (_dims(2**40, 2**40), "needs .* bytes but holds 64"),
        (_dims(-4, -4), "negative extent"),
        (_typed_claim, "far more than the data it holds"),
        (lambda p: setattr(p.graph.initializer[0], "data_type", 99), "unknown element type 99"),
        (lambda p: setattr(p.graph.node[0], "op_type", "NoSuchOp"), "not a valid ONNX model"),
        (lambda p: p.graph.node[0].input.__setitem__(1, "nowhere"), "nothing makes.*nowhere"),
        (lambda p: setattr(p.graph.output[0], "name", "nothing"), "nothing makes.*nothing"),
        (_cycle, "a cycle through Add, Neg"),
        (_self_call, "calls itself"),
        (_bomb, "expands to more than"),
        (lambda p: p.graph.node.append(p.graph.node[0]), "not a valid ONNX model"),
        (lambda p: p.graph.input.append(p.graph.input[0]), "'x' has been used .* multiple times"),
        (lambda p: p.graph.initializer.append(p.graph.initializer[0]), "w .* is not unique"),
        (lambda p: p.graph.node.append(node("Neg", "x", "w")), "'w' has been used .* multiple"),
        (lambda p: p.graph.node.append(node("Split", "x", "a a")), "'a' has been used .* multiple"),
        (lambda p: p.graph.node.append(node("Neg", "x", "x")), "'x' has been used .* multiple"),
    ],
)
def test_damaged_graphs(
    tmp_path: Path, change: Callable[[onnx.ModelProto], None], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(write(tmp_path, damaged(change)))


def test_nodes_out_of_order(tmp_path: Path) -> None:
    """ONNX Runtime's quantizer leaves the maker of what an If's branch reads behind the If."""
    proto = linear()
    body = [
        helper.make_graph(
            [node(op, "late", "r")], op, [], [helper.make_empty_tensor_value_info("r")]
        )
        for op in ("Neg", "Relu")
    ]
    yes = node("If", "yes", "out", then_branch=body[0], else_branch=body[1])
    late = node("Abs", "y", "late")
    flag = helper.make_tensor("yes", onnx.TensorProto.BOOL, [], [True])
    proto.graph.initializer.append(flag)
    product = onnx.NodeProto.FromString(proto.graph.node[0].SerializeToString())
    del proto.graph.node[:]
    proto.graph.node.extend([yes, late, product])
    proto.graph.output[0].name = "out"
    model = load_model(write(tmp_path, proto))
    assert [n.op_type for n in model.proto.graph.node] == [product.op_type, "Abs", "If"]
    check(model, lengths=(0,))


def test_graphs_inside_graphs_without_end(tmp_path: Path) -> None:
    """More levels than any reader of the format goes down."""

    def part(field: int, content: bytes) -> bytes:
        size, length = len(content), b""
        while size >= 128:
            length, size = length + bytes([size % 128 + 128]), size // 128
        return bytes([field << 3 | 2]) + length + bytes([size]) + content

    data = b""
    for _ in range(2000):
        for field in (6, 5, 1):  # a graph in an attribute of a node of a graph
            data = part(field, data)
    path = tmp_path / "model.onnx"
    path.write_bytes(linear().SerializeToString() + part(7, data))
    with pytest.raises(ModelError, match="not an ONNX file"):
        load_model(path)


@pytest.mark.parametrize("shape", [["b", 2**40], [2**40, 2**40], ["b", "s", 2**62], [3] * 80])
def test_absurd_inputs_are_refused(tmp_path: Path, shape: list[Any]) -> None:
    model = save(tmp_path, [node("Softmax", "x", "y")], [("x", FLOAT, shape)], [Y])
    with pytest.raises(UnsupportedError, match=r"x \(input\): .* absurdly large"):
        signature(model)


def test_samples_that_meet_each_other(tmp_path: Path) -> None:
    """Every sample times every other: refused for any batch size, compiled for a fixed one."""
    nodes = [node("Transpose", "x", "t"), node("MatMul", "x t", "y")]
    model = save(tmp_path, nodes, [("x", FLOAT, ["b", 4])], [Y])
    with pytest.raises(UnsupportedError, match=r"MatMul.* square of the batch size"):
        signature(model)
    fixed = save(tmp_path, nodes, [("x", FLOAT, [3, 4])], [Y])
    assert [s.shape for s in signature(fixed).outputs] == [(3, 3)]
    check(fixed, lengths=(0,), batches=(1,))


def test_local_functions_are_inlined(tmp_path: Path) -> None:
    proto = linear()
    ids = [helper.make_opsetid("", 17)]
    body = [node("MatMul", "a b", "m"), node("Relu", "m", "c")]
    proto.functions.append(helper.make_function("mine", "F", ["a", "b"], ["c"], body, ids))
    proto.opset_import.append(helper.make_opsetid("mine", 1))
    proto.graph.node[0].CopyFrom(helper.make_node("F", ["x", "w"], ["y"], domain="mine"))
    check(load_model(write(tmp_path, proto)), lengths=(0,))


@pytest.mark.parametrize(
    "nodes",
    [
        [node("ConstantOfShape", "n", "c"), node("ReduceSum", "c", "s")],
        [node("Range", "zero n0 one", "c"), node("ReduceMax", "c", "s")],
        [node("Expand", "half n", "s")],
        [node("Tile", "x n", "s")],
    ],
    ids=["ConstantOfShape", "Range", "Expand", "Tile"],
)
def test_gigantic_results_are_refused(tmp_path: Path, nodes: list[onnx.NodeProto]) -> None:
    constants = {
        "n": np.array([2**31, 2**31]),
        "n0": np.array(2**40),
        "zero": np.array(0),
        "one": np.array(1),
        "half": np.float32(0.5),
    }
    nodes = [*nodes, node("Cast", "s", "f", to=FLOAT), node("Add", "x f", "y")]
    model = save(tmp_path, nodes, [X], [Y], constants)
    with pytest.raises(UnsupportedError, match="absurd"):
        import_graph(model, 0)


def test_sparse_initializers(tmp_path: Path) -> None:
    for indices in ([1, 6, 15], [[0, 1], [1, 2], [3, 3]]):
        proto = model_proto([node("MatMul", "x w", "y")], [X], [Y])
        values = numpy_helper.from_array(np.array([1, 2, 3], np.float32), "w")
        proto.graph.sparse_initializer.append(
            helper.make_sparse_tensor(values, numpy_helper.from_array(np.array(indices)), [4, 4])
        )
        model = load_model(write(tmp_path, proto))
        graph = import_graph(model, 0)
        (w,) = (a for a in graph.constants.values() if a.ndim == 2)
        want = np.zeros((4, 4), np.float32)
        want[[0, 1, 3], [1, 2, 3]] = [1, 2, 3]
        assert np.array_equal(w.T, want)
        check(model, lengths=(0,))


def test_sparse_initializer_out_of_range(tmp_path: Path) -> None:
    proto = model_proto([node("MatMul", "x w", "y")], [X], [Y])
    values = numpy_helper.from_array(np.array([1], np.float32), "w")
    indices = numpy_helper.from_array(np.array([16]))
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4, 4]))
    with pytest.raises(ModelError):
        import_graph(load_model(write(tmp_path, proto)), 0)


def test_all_unsupported_nodes_are_listed(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Det", ["x"], ["d"], name="first"),
        helper.make_node("NonZero", ["x"], ["n"], name="second"),
        helper.make_node("Cast", ["n"], ["c"], name="fine", to=FLOAT),
        helper.make_node("Hardmax", ["c"], ["h"], name="after an unsupported one"),
        helper.make_node("ReduceSum", ["h"], ["s"], keepdims=0),
        node("Add", "d s", "t"),
        node("Add", "x t", "y"),
    ]
    # What no output needs is not asked for.
    nodes.append(helper.make_node("Hardmax", ["x"], ["unused"], name="nobody reads it"))
    model = save(tmp_path, nodes, [X], [Y])
    with pytest.raises(UnsupportedError) as caught:
        import_graph(model, 0)
    found = [(name, op) for name, op, _ in caught.value.nodes]
    assert found == [
        ("first", "Det"),
        ("second", "NonZero"),
        ("after an unsupported one", "Hardmax"),
    ]
    for name, op in found:
        assert f"{name} ({op}, opset 17): " in str(caught.value)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("op", ["Resize", "ConvTranspose", "MaxPool"])
def test_advice_on_heads_leads_to_a_model_that_works(tmp_path: Path, op: str) -> None:
    image = ("image", FLOAT, ["batch", 2, 4, 4])
    head = {
        "Resize": node("Resize", "a _ scales", "y", mode="linear"),
        "ConvTranspose": node("ConvTranspose", "a kernel", "y"),
        "MaxPool": node("MaxPool", "a", "y", kernel_shape=[2, 2]),
    }[op]
    constants = {
        "scales": np.array([1, 1, 2, 2], np.float32),
        "kernel": np.ones((2, 1, 2, 2), np.float32),
    }
    nodes = [node("Relu", "image", "a"), head, node("Sigmoid", "y", "z")]
    proto = model_proto(nodes, [image], [("z", FLOAT, [0] * 4)], constants)
    path = write(tmp_path, proto)
    with pytest.raises(UnsupportedError, match="make 'a' the output instead"):
        signature(load_model(path))
    del proto.graph.output[:]
    proto.graph.output.append(onnx.ValueInfoProto(name="a"))
    write(tmp_path, proto)
    check(load_model(path), lengths=(0,))


@pytest.mark.parametrize(
    ("op", "domain", "advice"),
    [
        ("DynamicQuantizeLSTM", "com.microsoft", "; recurrent networks are not compiled"),
        ("NhwcConv", "com.microsoft", "as it was before ONNX Runtime's optimizer"),
        ("MatMulBnb4", "com.microsoft", "as it was before it was quantized"),
        ("GreedySearch", "com.microsoft", "export the encoder alone"),
        ("MurmurHash3", "com.microsoft", "; it is an op of ONNX Runtime alone"),
        ("Conv", "com.microsoft.nchwc", "as it was before ONNX Runtime's optimizer"),
        ("Foo", "my.own", "of the domain my.own, which nothing in the file defines"),
    ],
)
def test_advice_on_foreign_ops(tmp_path: Path, op: str, domain: str, advice: str) -> None:
    proto = model_proto([helper.make_node(op, ["x"], ["y"], domain=domain)], [X], [Y])
    proto.opset_import.append(helper.make_opsetid(domain, 1))
    with pytest.raises(UnsupportedError, match=advice):
        signature(load_model(write(tmp_path, proto)))


def test_old_opsets_and_wrong_lengths(tmp_path: Path) -> None:
    one = ("x", FLOAT, ["b"])
    old = save(tmp_path, [node("Add", "x x", "y")], [one], [("y", FLOAT, [1])], opset=6)
    with pytest.raises(UnsupportedError, match=r"\(Add, opset 6\): .*version_converter"):
        import_graph(old, 0)
    same = save(tmp_path, [node("Not", "x", "y")], [("x", 9, ["b"])], [("y", 9, [1])], opset=1)
    check(same, lengths=(0,))
    nodes = [node("Cast", "ids", "y", to=1)]
    model = save(tmp_path, nodes, [("ids", INT64, ["batch", "sequence"])], [("y", FLOAT, [1, 1])])
    for length in (0, -1, 2**40):
        with pytest.raises(InputError, match="sequence length"):
            import_graph(model, length)


def test_string_and_sequence_inputs_are_unsupported(tmp_path: Path) -> None:
    nodes = [node("Identity", "text", "t"), node("Relu", "x", "y")]
    model = save(tmp_path, nodes, [("text", TensorProto.STRING, [1]), X], [Y])
    with pytest.raises(UnsupportedError, match=r"text \(input\).*string"):
        import_graph(model, 0)
    proto = linear()
    proto.graph.input.append(
        helper.make_value_info(
            "s", helper.make_sequence_type_proto(helper.make_tensor_type_proto(FLOAT, [1]))
        )
    )
    with pytest.raises(UnsupportedError, match="not tensors"):
        import_graph(load_model(write(tmp_path, proto)), 0)
