"""What people of other libraries try first: their tensors, ONNX Runtime's calls, ``await``, and
errors in the words of whoever made the call."""

from __future__ import annotations

import array
import ast
import asyncio
import re
import threading
from collections import UserDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime_fake import inputs, make_artifact

import sparsec
from sparsec.arguments import argument, setting, speaking
from sparsec.cli import main
from sparsec.errors import ArtifactError, EngineClosedError, InputError
from sparsec.runtime.arrays import as_array
from tests.server_support import TextModels

ROOT = Path(__file__).resolve().parent.parent


# ---- the words of errors -------------------------------------------------------------------------


def strings(path: Path) -> Iterator[tuple[int, str]]:
    """Texts of a file that are no docstrings, with their lines."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    skipped = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    joined = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    inside = {id(part) for node in joined for part in node.values}
    for node in joined:
        parts = (part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
        yield node.lineno, "".join(map(str, parts))
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Constant) else None
        if isinstance(text, str) and id(node) not in skipped | inside:
            yield node.lineno, text


def test_no_flag_is_named_outside_of_the_command_line() -> None:
    """An error that says `--force` is of no use to who called a function: `argument` says it."""
    found = []
    for folder in ("compiler", "runtime", "serving", "pruning", "sparsec"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.parent == ROOT / "sparsec" / "cli":
                continue
            for line, text in strings(path):
                # Commands that a reader is to type, in `backquotes`, have flags.
                prose = re.sub(r"`\w[^`]*`|pip install [^;]*", "", text)
                if re.search(r"(?<![\w-])(--[a-z][\w-]+|another -\w)", prose) and " " in prose:
                    found.append(f"{path.relative_to(ROOT)}:{line}: {text}")
    assert found == []


def test_what_an_argument_is_called() -> None:
    assert argument("force", True) == "force=True" and argument("emit_c") == "emit_c"
    assert argument("target", "avx2") == "target='avx2'"
    with speaking("flags"):
        assert argument("force", True) == "--force" and argument("emit_c") == "--emit-c"
        assert argument("target", "avx2") == "--target avx2"
        assert argument("exist_ok", True) == "--force" and argument("seconds") == "--time"
    with speaking("json"):
        assert argument("truncate", True) == '"truncate": true' and argument("cc") == "cc"
    assert argument("force", True) == "force=True"


def test_what_an_argument_is_called_that_a_pipeline_has() -> None:
    assert setting("tokenizer") == "tokenizer" and setting("layer", None) == "layer=None"
    with speaking("flags"):
        assert setting("on_nonfinite", "error") == "--on-nonfinite error"
        assert setting("stride", option=True) == "--option stride"
        assert setting("layer", None, option=True) == "--option layer=null"
    with speaking("json"):
        assert setting("on_nonfinite") == "on_nonfinite of the endpoint"
        assert setting("layer", None, option=True) == "layer: null of the endpoint"


def test_no_python_is_spoken_to_who_has_none() -> None:
    """`truncate=True` is of no use to who typed a command: `argument` and `setting` know."""
    found = []
    # What is to be done to a model before sparsec has it is done in Python.
    known = ("dynamo=True", "save_as_external_data=True", "onnx.ValueInfoProto(")
    for folder in ("compiler", "runtime", "serving", "pruning", "sparsec"):
        for path in (ROOT / folder).rglob("*.py"):
            for line, text in strings(path):
                spoken = re.search(r"[a-z]=(True|False|None)\b|\bgive \w+=", text)
                if spoken and not any(word in text for word in known):
                    found.append(f"{path.relative_to(ROOT)}:{line}: {text}")
    # A programmer's mistake, no user's.
    found = [row for row in found if "not accumulated with full=True" not in row]
    assert found == []


def test_every_flag_that_an_error_may_name_is_one() -> None:
    """`argument("x")` speaks of `--x` to who ran a command: there is such a flag."""
    from sparsec.cli import all_parsers

    flags = {flag for parser in all_parsers() for a in parser._actions for flag in a.option_strings}
    # What only programs can say: options of classes that no command makes.
    programs = {"layer", "length", "num_replicas", "sess_options.intra_op_num_threads"}
    calls = re.compile(
        r"""(?<!\w)(?:argument|setting|whole|wholes|number)\(\s*["']([\w.]+)["'](?!.*option=True)"""
    )
    names = {
        name
        for folder in ("compiler", "runtime", "serving", "pruning", "sparsec")
        for path in (ROOT / folder).rglob("*.py*")
        if path.suffix in (".py", ".pyx")
        for name in calls.findall(path.read_text(encoding="utf-8"))
    }
    assert len(names) > 15
    with speaking("flags"):
        assert {argument(name) for name in names - programs} <= flags


def test_an_artifact_that_is_there(
    micro_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "m.sparsec"
    options: dict[str, Any] = {"buckets": [4], "output": output, "target": "generic"}
    sparsec.compile(micro_model, **options)
    with pytest.raises(ArtifactError, match=r"replace it with exist_ok=True, or choose another o"):
        sparsec.compile(micro_model, **options)
    assert sparsec.compile(micro_model, **options, exist_ok=True).path == output
    assert sparsec.compile(micro_model, **options, force=True).path == output
    assert main(["compile", str(micro_model), "--buckets", "4", "-o", str(output)]) == 6
    said = capsys.readouterr().err
    assert "replace it with --force, or choose another --output" in said

    with pytest.raises(InputError, match=r"to compile for \(buckets\)"):
        sparsec.compile(micro_model, output=tmp_path / "n.sparsec")
    assert main(["compile", str(micro_model), "-o", str(tmp_path / "n.sparsec")]) == 8
    assert "to compile for (--buckets)" in capsys.readouterr().err


# ---- what may be an input ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artifact(tmp_path_factory.mktemp("habits") / "fake.sparsec", (4, 16))


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[sparsec.Engine]:
    with sparsec.Engine(folder, num_cores=1) as engine:
        yield engine


@pytest.fixture
def arrays() -> list[np.ndarray[Any, Any]]:
    return inputs(np.random.default_rng(3), 2, 4)


def same(found: list[np.ndarray[Any, Any]], wanted: list[np.ndarray[Any, Any]]) -> None:
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(a, b)


def test_lists(engine: sparsec.Engine, arrays: list[np.ndarray[Any, Any]]) -> None:
    wanted = engine.run(arrays)
    same(engine.run([x.tolist() for x in arrays]), wanted)
    same(engine.run([tuple(map(tuple, x.tolist())) if x.ndim == 2 else x for x in arrays]), wanted)
    named = dict(zip(engine.input_names, arrays, strict=True))
    same(engine.run(UserDict({name: x.tolist() for name, x in named.items()})), wanted)


def test_torch_tensors(engine: sparsec.Engine, arrays: list[np.ndarray[Any, Any]]) -> None:
    torch = pytest.importorskip("torch")
    wanted = engine.run(arrays)
    tensors = [torch.from_numpy(x.copy()) for x in arrays]
    same(engine.run(tensors), wanted)
    turned = [t.T.contiguous().T if t.ndim == 2 else t for t in tensors]
    assert any(not t.is_contiguous() for t in turned)
    same(engine.run(turned), wanted)
    with torch.no_grad():
        learned = [t.clone().requires_grad_() if t.is_floating_point() else t for t in tensors]
    same(engine.run(learned), wanted)
    for wrong in (torch.zeros(2, 4, device="meta"), torch.zeros(2, 4).to_sparse()):
        with pytest.raises(InputError, match=r"must be an array, a tensor or lists of numbers"):
            engine.run([wrong, *tensors[1:]])
    name = engine.input_names[0]
    with pytest.raises(InputError, match=f"input '{name}' must be int64, not float32"):
        engine.run([torch.zeros(2, 4), *tensors[1:]])


def test_a_tensor_is_not_copied() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.arange(6, dtype=torch.int64)
    shared = as_array("x", tensor, np.dtype(np.int64))
    tensor[0] = 41
    assert shared[0] == 41


class Foreign:
    """A tensor of a library that has nothing but DLPack."""

    def __init__(self, data: np.ndarray[Any, Any], device: int = 1) -> None:
        self.data, self.device_type = data, device

    def __dlpack__(self, **options: Any) -> Any:
        return self.data.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device_type, 0


def test_dlpack_and_buffers(engine: sparsec.Engine, arrays: list[np.ndarray[Any, Any]]) -> None:
    wanted = engine.run(arrays)
    same(engine.run([Foreign(x) for x in arrays]), wanted)
    first = memoryview(np.ascontiguousarray(arrays[0]))
    same(engine.run([first, *arrays[1:]]), wanted)
    with pytest.raises(InputError, match=r"it is on the device 2 of DLPack: move it to the CPU"):
        engine.run([Foreign(arrays[0], device=2), *arrays[1:]])
    assert as_array("x", array.array("q", [1, 2]), np.dtype(np.int64)).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("value", "dtype", "why"),
    [
        ([[1, 2], [3]], "int64", "inhomogeneous"),
        ("text", "int64", "<U4"),
        (["a"], "int64", "<U1"),
        ([None], "int64", "object"),
        ([1 << 70], "int64", "object"),
        (object(), "int64", "object"),
        ([1e300], "float32", "overflow"),
    ],
)
def test_what_is_no_array(value: object, dtype: str, why: str) -> None:
    with pytest.raises(InputError, match=f"^input 'x' must be an array, .*{why}"):
        as_array("x", value, np.dtype(dtype))


def test_numbers_of_lists() -> None:
    assert as_array("x", [1, 2], np.dtype(np.float32)).dtype == np.float32
    assert as_array("x", [[]], np.dtype(np.int64)).dtype == np.int64
    assert as_array("x", [0.1], np.dtype(np.float32))[0] == np.float32(0.1)
    assert as_array("x", 3, np.dtype(np.int64)).shape == ()


# ---- the calls of ONNX Runtime -------------------------------------------------------------------


def test_run_as_a_session_has_it(
    engine: sparsec.Engine, arrays: list[np.ndarray[Any, Any]]
) -> None:
    wanted = engine.run(arrays)
    feed = dict(zip(engine.input_names, arrays, strict=True))
    same(engine.run(None, feed), wanted)
    same(engine(None, feed), wanted)
    names = engine.output_names
    same(engine.run([names[2], names[0]], feed), [wanted[2], wanted[0]])
    with pytest.raises(InputError, match=r"^the model has no output logits; it has "):
        engine.run(["logits"], feed)
    for wrong in ("logits", feed):
        with pytest.raises(InputError, match=r"names of outputs must be None or a list"):
            engine.run(wrong, feed)


def test_session_beside_onnx_runtime(tiny_model: Path, tiny_artifact: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    providers = ["CPUExecutionProvider"]
    sessions = [
        onnxruntime.InferenceSession(str(tiny_model / "model.onnx"), options, providers=providers),
        sparsec.InferenceSession(str(tiny_artifact), options, providers=providers),
    ]
    theirs, ours = sessions
    assert ours.engine.num_cores == 1

    def nodes(session: Any, kind: str) -> list[tuple[str, str, list[bool]]]:
        found = getattr(session, f"get_{kind}")()
        return [(n.name, n.type, [isinstance(d, str) for d in n.shape]) for n in found]

    for kind in ("inputs", "outputs"):
        assert nodes(ours, kind) == nodes(theirs, kind)
    assert ours.get_providers() == theirs.get_providers()
    assert list(ours.get_provider_options()) == list(theirs.get_provider_options())
    assert ours.get_overridable_initializers() == theirs.get_overridable_initializers()
    rng = np.random.default_rng(0)
    feed = {
        node.name: rng.integers(0, 500, (2, 7)) if "ids" in node.name else np.ones((2, 7), int)
        for node in theirs.get_inputs()
    }
    feed = {n: np.zeros_like(x) if "type" in n else x for n, x in feed.items()}
    name = theirs.get_outputs()[0].name
    run_options = onnxruntime.RunOptions()
    run_options.logid = "x"
    found = [session.run([name], feed, run_options=run_options)[0] for session in sessions]
    np.testing.assert_allclose(found[1], found[0], atol=0.02)
    metadata = ours.get_modelmeta()
    assert metadata.producer_name == "sparsec" and metadata.custom_metadata_map["target"]

    run_options.terminate = True
    with pytest.raises(InputError, match=r"^run_options.terminate is set"):
        ours.run(None, feed, run_options)
    ours.set_providers(["CUDAExecutionProvider", ("CPUExecutionProvider", {})])
    for refused in ("set_providers", "InferenceSession"):
        call = getattr(ours, refused, lambda p: sparsec.InferenceSession(tiny_artifact, None, p))
        with pytest.raises(InputError, match=r"CPUs only.* not just CUDAExecutionProvider"):
            call(["CUDAExecutionProvider"])


def test_what_a_session_refuses(folder: Path) -> None:
    session = sparsec.InferenceSession(folder)
    assert session.get_session_options() is None
    for name, given in (("io_binding", 0), ("run_with_iobinding", 1), ("run_with_ort_values", 2)):
        with pytest.raises(InputError, match=f"^there is no {name}: "):
            getattr(session, name)(*[None] * given)
    for name in ("run_async", "end_profiling"):
        with pytest.raises(InputError, match=f"^there is no {name}"):
            getattr(session, name)()
    with pytest.raises(InputError, match=r"^the model is given as bytes: write it to a file"):
        sparsec.InferenceSession(b"onnx")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^input_feed must be a dict"):
        session.run(None, [1])  # type: ignore[arg-type]
    session.disable_fallback()
    session.enable_fallback()


# ---- await ---------------------------------------------------------------------------------------


def test_acall(text_models: TextModels) -> None:
    pipeline = sparsec.Pipeline.create(
        task="text-classification", model_path=text_models["text-classification"]
    )
    with pipeline:
        texts = [f"text {'of words ' * i}" for i in range(6)]
        wanted = [pipeline(text) for text in texts]
        seen = []
        real = pipeline.finish

        def finish(job: Any, outputs: Any) -> Any:
            seen.append(threading.current_thread() is threading.main_thread())
            return real(job, outputs)

        pipeline.finish = finish

        async def both() -> list[Any]:
            return await asyncio.gather(*(pipeline.acall(text) for text in texts))

        assert asyncio.run(both()) == wanted
        assert seen == [False] * len(texts)

        async def wrong() -> None:
            await pipeline.acall(sequences=3)

        with pytest.raises(InputError):
            asyncio.run(wrong())
    with pytest.raises(EngineClosedError):
        asyncio.run(pipeline.acall("a"))
