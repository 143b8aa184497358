"""What every test gets: repeatable random examples, and a cache folder of its own."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import settings
from onnx import TensorProto, helper, numpy_helper

from tests import quick_cc, shared
from tests.server_support import TextModels

GIVEN_COMPILER = os.environ.get("CC")

settings.register_profile("sparsec", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("sparsec")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With SPARSEC_ZOO_SHARE=N, of the zoo's slow cells each N-th: other ones each day."""
    share = int(os.environ.get("SPARSEC_ZOO_SHARE", "1"))
    day = datetime.datetime.now(datetime.timezone.utc).date().toordinal()
    zoo = [item for item in items if item.path.name == "test_zoo.py"]
    cells = [item for item in zoo if item.get_closest_marker("slow")]
    left = {item for i, item in enumerate(cells) if i % share != day % share}
    if left:
        config.hook.pytest_deselected(items=list(left))
        items[:] = [item for item in items if item not in left]


@pytest.fixture(scope="session", autouse=True)
def quick_compiler(tmp_path_factory: pytest.TempPathFactory) -> str | None:
    """The command of a C compiler that takes less time; None where the compiler is not gcc."""
    from sparsec.compiler import toolchain
    from sparsec.errors import ToolchainError

    try:
        found = toolchain.find()
    except ToolchainError:
        return None
    if not isinstance(found, toolchain.Gcc):
        return None
    return str(quick_cc.script(shared.folder(tmp_path_factory, "objects"), found.command))


def use_compiler(node: pytest.Item | pytest.Module, quick: str | None) -> Iterator[None]:
    """What is marked as `optimized` is compiled as users have it, the rest quickly."""
    with pytest.MonkeyPatch.context() as patch:
        if quick and not node.get_closest_marker("optimized"):
            patch.setenv("CC", quick)
        elif GIVEN_COMPILER is None:
            patch.delenv("CC", raising=False)
        else:
            patch.setenv("CC", GIVEN_COMPILER)
        yield


@pytest.fixture(scope="module", autouse=True)
def compiler_of_module(
    request: pytest.FixtureRequest, quick_compiler: str | None
) -> Iterator[None]:
    yield from use_compiler(request.node, quick_compiler)


@pytest.fixture(autouse=True)
def compiler_of_test(
    request: pytest.FixtureRequest, compiler_of_module: None, quick_compiler: str | None
) -> Iterator[None]:
    yield from use_compiler(request.node, quick_compiler)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Models compiled on the way never come from, or end up in, the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def shared_cache(
    own_cache: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """For tests of what answers, not of the cache: models that another such test has compiled."""
    folder = shared.folder(tmp_path_factory, "cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a one-layer encoder in SparseML's form, four of five 4-blocks pruned."""
    from examples import encoders
    from examples.encoders.config import EncoderConfig

    folder = tmp_path_factory.mktemp("tiny")
    encoders.write_random(
        folder / "model.onnx", EncoderConfig(layers=1), form="sparseml", sparsity=0.8
    )
    (folder / "config.json").write_text('{"vocab_size": 500}\n')
    return folder


@pytest.fixture(scope="session")
def micro_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an embedding and one layer, for tests that compile many times."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((32, 16)).astype(np.float32)
    weight = rng.standard_normal((16, 16)).astype(np.float32)
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", "sequence", 16])
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "input_ids"], ["x"], name="embed"),
            helper.make_node("MatMul", ["x", "weight"], ["y"], name="project"),
            helper.make_node("Relu", ["y"], ["out"], name="clip"),
        ],
        "micro",
        [ids],
        [out],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(weight, "weight")],
    )
    folder = tmp_path_factory.mktemp("micro")
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), folder / "model.onnx")
    (folder / "config.json").write_text('{"vocab_size": 32}\n')
    return folder


@pytest.fixture(scope="session")
def tiny_artifact(
    tiny_model: Path, quick_compiler: str | None, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The tiny model compiled for 8 and 16 tokens with portable C."""
    import sparsec

    folder = shared.folder(tmp_path_factory, "tiny")
    output = folder / "tiny.sparsec"
    with shared.locked(folder / "lock"):
        if not output.exists():
            sparsec.compile(
                tiny_model, buckets=[8, 16], output=output, target="generic", cc=quick_compiler
            )
    return output


@pytest.fixture(scope="session")
def text_models(tmp_path_factory: pytest.TempPathFactory) -> TextModels:
    """Artifacts of small text models by task, with tokenizers."""
    return TextModels(shared.folder(tmp_path_factory, "text-models"))
