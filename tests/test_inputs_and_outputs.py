"""Inputs and outputs as files have them: tapped values, missing types, names of any kind."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, ValueInfoProto, helper

import sparsec
from examples.encoders import Form, write_random
from examples.encoders.config import EncoderConfig
from sparsec.compiler.c_text import WIDTH, c_comment, c_string, tidy
from sparsec.compiler.frontend import load_model, signature
from sparsec.errors import ModelError, UnsupportedError
from tests.frontend_support import BOOL, FLOAT, INT64, check, model_proto, node, session


def compare(path: Path, artifact: sparsec.Artifact, batch: int, length: int) -> None:
    """All outputs against ONNX Runtime's, in order."""
    reference = session(path)
    names = [value.name for value in reference.get_inputs()]
    inputs = sparsec.generate_random_inputs(artifact, batch, length or None)
    with sparsec.Engine(artifact) as engine:
        got = engine.run(inputs)
        assert engine.output_names == [value.name for value in reference.get_outputs()]
    want = reference.run(None, dict(zip(names, inputs, strict=True)))
    for name, a, b in zip(engine.output_names, got, want, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), name
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("form", ["fp32", "sparseml"])
def test_every_value_can_be_tapped(tmp_path: Path, form: Form) -> None:
    """Shapes, masks, quantized tensors, constants and initializers, all without type or shape."""
    path = tmp_path / "model.onnx"
    config = EncoderConfig(layers=1, hidden=16, heads=2, intermediate=32, vocab=50, max_position=16)
    write_random(path, config, form=form, sparsity=0.5)
    proto = onnx.load(path)
    given = {v.name for v in proto.graph.output}
    values = [name for n in proto.graph.node for name in n.output if name and name not in given]
    values += [v.name for v in proto.graph.input] + [t.name for t in proto.graph.initializer]
    proto.graph.output.extend(ValueInfoProto(name=name) for name in dict.fromkeys(values))
    onnx.save(proto, path)
    artifact = sparsec.compile(path, buckets=[4], target="generic")
    kinds = {spec.dtype for spec in artifact.outputs}
    assert {"float32", "int64"} <= kinds
    assert form == "fp32" or {"uint8", "int8"} & kinds
    for batch in (1, 3):
        compare(path, artifact, batch, 4)


def test_forms_of_an_output_that_says_little(tmp_path: Path) -> None:
    nodes = [
        node("Relu", "x", "y"),
        node("Greater", "y x", "larger"),
        node("Shape", "x", "shape"),
        node("Identity", "y", "again"),
        node("Cast", "shape", "sizes", to=TensorProto.FLOAT),
    ]
    proto = model_proto(nodes, [("x", FLOAT, ["batch", 4])], [("y", FLOAT, [0, 0])])
    no_shape = helper.make_tensor_value_info("larger", BOOL, None)
    no_type = helper.make_tensor_value_info("again", TensorProto.FLOAT, None)
    bare = [ValueInfoProto(name=name) for name in ("shape", "sizes", "x", "w")]
    # The same value three times, once under another name: loops over all nodes list it again.
    proto.graph.output.extend([no_shape, no_type, *bare, ValueInfoProto(name="y")])
    proto.graph.value_info.append(ValueInfoProto(name="y"))
    proto.graph.initializer.append(helper.make_tensor("w", FLOAT, [2], [1.5, -2.0]))
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    check(load_model(path), lengths=(0,))
    artifact = sparsec.compile(path, target="generic")
    for batch in (1, 3):
        compare(path, artifact, batch, 0)


def test_undefined_type_of_an_output(tmp_path: Path) -> None:
    """ONNX Runtime refuses this form; what the type is can be found all the same."""
    proto = model_proto([node("Relu", "x", "y")], [("x", FLOAT, ["batch", 4])], [])
    proto.graph.output.append(helper.make_tensor_value_info("y", TensorProto.UNDEFINED, None))
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    (spec,) = signature(load_model(path)).outputs
    assert (spec.name, spec.dtype, spec.shape) == ("y", np.float32, ("batch", 4))


def test_inputs_that_say_little(tmp_path: Path) -> None:
    table = np.arange(20, dtype=np.float32).reshape(10, 2)

    def load(kind: int | None, name: str = "ids") -> Any:
        value = (
            ValueInfoProto(name=name)
            if kind is None
            else helper.make_tensor_value_info(name, kind, None)
        )
        nodes = [node("Cast", name, "index", to=INT64), node("Gather", "table index", "y")]
        proto = model_proto(nodes, [], [("y", FLOAT, [0, 0, 0])], {"table": table})
        proto.graph.input.append(value)
        onnx.save(proto, tmp_path / "model.onnx")
        return load_model(tmp_path / "model.onnx")

    model = load(INT64)
    assert signature(model).inputs[0].shape == ("batch", "sequence")
    with pytest.raises(UnsupportedError, match="input ids: the file does not say its shape"):
        signature(load(FLOAT))
    for kind in (None, TensorProto.UNDEFINED):
        with pytest.raises(ModelError, match="element type of the input ids"):
            signature(load(kind))


NAMES = (
    "Größe",
    "日本語/出力:0",
    'say "hi"',
    "back\\slash\\n",
    "line\nbreak\r\t",
    "what??/ever??)",
    "100%d %s",
    "*/ int x; /*",
    "// end \\",
    "\x1b[31m\x7f\x01",
    "{{ name }}{% raw %}",
    "$(rm) `x` '",
    "a0",
    " ",
    "\U0001f600\u2028",
)


def test_names_of_any_kind(tmp_path: Path) -> None:
    """They reach the C interface exactly, in UTF-8, and no comment or literal ends early."""
    nodes = [helper.make_node("Mul", [name, name], [f"{name}²"], name=name) for name in NAMES]
    proto = model_proto(
        nodes,
        [(name, FLOAT, ["batch", 3]) for name in NAMES],
        [(f"{name}²", FLOAT, [0, 0]) for name in NAMES],
    )
    path = tmp_path / 'a "b"\\ ??).onnx'
    onnx.save(proto, path)
    artifact = sparsec.compile(path, output=tmp_path / "out.sparsec", target="generic")
    assert [spec.name for spec in artifact.inputs] == list(NAMES)
    given = {name: np.full((2, 3), i, np.float32) for i, name in enumerate(NAMES)}
    with sparsec.Engine(artifact) as engine:
        for i, output in enumerate(engine.run(given)):
            assert np.all(output == i * i)

    class Tensor(ctypes.Structure):
        _fields_ = (
            ("name", ctypes.c_char_p),
            ("dtype", ctypes.c_int32),
            ("rank", ctypes.c_int32),
            ("dims", ctypes.c_int64 * 8),
        )

    class Info(ctypes.Structure):
        _fields_ = (
            ("abi_version", ctypes.c_uint32),
            ("length", ctypes.c_uint32),
            ("model", ctypes.c_char_p),
            ("target", ctypes.c_char_p),
            ("n_inputs", ctypes.c_int32),
            ("n_outputs", ctypes.c_int32),
            ("inputs", ctypes.POINTER(Tensor)),
            ("outputs", ctypes.POINTER(Tensor)),
        )

    library = ctypes.CDLL(str(artifact.library(0)))
    library.sparsec_model_info.restype = ctypes.POINTER(Info)
    info = library.sparsec_model_info().contents
    assert info.model == path.stem.encode()
    assert [info.inputs[i].name for i in range(len(NAMES))] == [n.encode() for n in NAMES]
    assert [info.outputs[i].name for i in range(len(NAMES))] == [f"{n}²".encode() for n in NAMES]


@pytest.mark.parametrize("bad", [b"\0", b"\xff"])
def test_names_that_c_cannot_say(tmp_path: Path, bad: bytes) -> None:
    proto = model_proto(
        [node("Relu", "x", "Q")], [("x", FLOAT, ["batch", 3])], [("Q", FLOAT, [0, 0])]
    )
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString().replace(b"\x01Q", b"\x01" + bad))
    with pytest.raises(ModelError, match="not UTF-8 or holds a NUL"):
        load_model(path)


def test_text_in_c() -> None:
    assert c_string('a"b\\c?\n1é') == "a\\042b\\134c\\077\\0121\\303\\251"
    for text in ("*/", "/*/", "**//", "a\\", "??/", "/\n*"):
        safe = c_comment(text)
        assert not any(end in f"{safe}\n" for end in ("*/", "/*", "\\", "??", "\n\n"))


C_LINES = st.lists(st.sampled_from(["x = f(a, b);", "+ 4", '"a  b"', "word", "q"]), max_size=60)


@given(st.lists(st.tuples(st.sampled_from(["", "    ", "/* "]), C_LINES), max_size=6))
def test_long_lines_of_c_are_folded(lines: list[tuple[str, list[str]]]) -> None:
    """Only white space outside literals changes, and what is tidy stays as it is."""
    text = "\n".join(
        head + " ".join(words) + (" */" if head == "/* " else "") for head, words in lines
    )
    made = tidy(text)
    assert "".join(made.replace("\n * ", "").split()) == "".join(text.split())
    assert max(map(len, made.split("\n"))) <= WIDTH
    assert "\n\n\n" not in made
    assert tidy(made) == made
    assert "/*" in text or text.count('"a  b"') == made.count('"a  b"')
