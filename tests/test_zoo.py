"""Every architecture in every dialect: compiled, and compared with ONNX Runtime (see tests/zoo)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

import sparsec
from examples import encoders
from examples.encoders.config import EncoderConfig, Export
from sparsec.compiler import frontend, import_buckets, report
from sparsec.compiler.ir import Graph
from tests.ort_reference import session
from tests.zoo import matrix
from tests.zoo.architectures import BY_NAME
from tests.zoo.check import check
from tests.zoo.dialects import DIALECTS
from tests.zoo.exports import BY_NAME as EXPORTER_BY_NAME
from tests.zoo.exports import export

#: A mask of -10000, quantized to 8 bits, would leave nothing of the scores.
CONFIG = EncoderConfig(
    hidden=32, heads=2, intermediate=64, vocab=100, max_position=32, layers=1, mask_value=-12.0
)

#: Those that lead to kernels, or ways to call them, which the others do not lead to.
COMPILED = {"dynamic-channel", "dynamic-u8", "dynamic-all-products", "qdq-u8u8", "qoperator-u8s8"}


@dataclass(frozen=True)
class Encoder:
    """The checked-in encoder as the tools see it."""

    model: encoders.Model
    heads: int = CONFIG.heads
    width: int = CONFIG.hidden
    image: bool = False

    def feed(
        self, batch: int, length: int, seed: int = 0, ragged: bool = True
    ) -> Mapping[str, np.ndarray]:
        names = ("input_ids", "attention_mask", "token_type_ids")
        return dict(zip(names, self.model.batch(batch, length, seed, ragged), strict=True))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    path = tmp_path_factory.mktemp("encoder") / "model.onnx"
    return Encoder(encoders.write_random(path, CONFIG, "fp32", Export(opset=17, fused=True)))


def _graph(path: Path) -> Graph:
    model = frontend.load_model(path)
    (graph,) = import_buckets(model, frontend.signature(model), [16])
    return graph


@pytest.mark.parametrize("dialect", [name for name in DIALECTS if name != "fp32"])
def test_dialect(encoder: Encoder, dialect: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime.quantization", reason="onnxruntime's quantizer needs more")
    path = tmp_path / "model.onnx"
    DIALECTS[dialect](encoder.model.path, path, encoder, 16)
    outcome = check(
        path,
        encoder.model.path,
        encoder,
        tmp_path,
        target="generic",
        compiled=dialect in COMPILED,
    )
    assert outcome.passes, outcome
    kernels = dict(outcome.kernels)
    assert kernels["linear f32" if dialect in FLOAT else "linear i8"] >= 6
    general = {name for name in kernels if name in SLOW}
    assert bool(general) == (dialect in GENERAL), kernels
    named, _ = report.general(_graph(path))
    assert bool(named) == bool(general) and all(row["reason"] for row in named)


FLOAT = {"fp16", "ort-extended", "fused", "fused-fast-gelu", "fused-qdq"}
SLOW = {f"general {op}" for op in ("matmul", "matmul integer", "linear", "qlinear", "attention")}
#: The probabilities' range has to be known before they are quantized.
GENERAL = {"dynamic-all-products"}
#: Forms of one network and one way to quantize it.
SAME = (
    ("fp32", "ort-extended", "fused"),
    ("dynamic-s8", "fused-dynamic", "ort-extended-dynamic"),
    ("qdq-u8s8", "qoperator-u8s8", "ort-extended-qdq", "qdq-float-weights"),
)


@pytest.mark.parametrize("forms", SAME, ids=lambda forms: forms[0])
def test_dialects_of_one_network_run_on_the_same_kernels(
    encoder: Encoder, forms: tuple[str, ...], tmp_path: Path
) -> None:
    lists = []
    for dialect in forms:
        path = tmp_path / f"{dialect}.onnx"
        DIALECTS[dialect](encoder.model.path, path, encoder, 16)
        graph = _graph(path)
        heavy = ("linear", "qlinear", "linear_integer", "attention", "layernorm", "gelu", "matmul")
        lists.append(
            Counter(
                (n.op, graph.values[n.inputs[0]].dtype.name, graph.values[n.output].shape)
                for n in graph.nodes
                if n.op in heavy
            )
        )
    for dialect, kernels in zip(forms[1:], lists[1:], strict=True):
        assert kernels == lists[0], dialect


#: Architectures of which every dialect is compiled; of the others the optimized graph is
#: interpreted, which takes half the time.  `python -m tests.zoo.matrix` compiles all.
COMPILED_IN_ALL_DIALECTS = {
    "bert",
    "albert",
    "mpnet",
    "mobilebert",
    "deberta-v2",
    "modernbert",
    "vit",
}

#: What other heads and widths of an architecture are exported with; the matrix takes all exporters.
FOR_VARIANTS = {"ts17-sdpa", "dynamo20-sdpa"}

#: Cells of one architecture share its exports, so one worker takes them.
CELLS = [
    pytest.param(cell, id=cell.key, marks=pytest.mark.xdist_group(cell.architecture))
    for cell in matrix.cells()
    if cell.exporter in FOR_VARIANTS or not BY_NAME[cell.architecture].variant
]


def test_the_page_has_every_model() -> None:
    """Those of the tables, under today's names and words, each with an outcome, and none wrong."""
    page, empty = matrix.PAGE.read_text(encoding="utf-8"), matrix.render({})
    row = re.compile(r"(?m)^(\| [\w-]+ \|)((?: (?:A?N?8?L?(?: \+\d+)?|·) \|)+)$")
    outcomes = [cell.strip() for found in row.findall(page) for cell in found[1].split("|")[:-1]]
    assert len(outcomes) == len(list(matrix.cells())) and "" not in outcomes
    count = re.search(r"Of (\d+) models (\d+) were", page)
    assert count and {int(n) for n in count.groups()} == {len(outcomes) - outcomes.count("·")}

    def bare(text: str) -> str:
        return re.sub(r"Of \d+ models \d+ were", "Of so many", row.sub(r"\1", text))

    assert bare(page) == bare(empty)


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the exported models, which dialects share."""
    for module in ("torch", "transformers", "onnxscript"):
        pytest.importorskip(module, reason="the zoo's networks need the extra `zoo`")
    return tmp_path_factory.mktemp("zoo")


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS)
def test_zoo(zoo: Path, cell: matrix.Cell) -> None:
    compiled = cell.dialect == "fp32" or cell.architecture in COMPILED_IN_ALL_DIALECTS
    outcome = matrix.run(cell, zoo, compiled)
    if outcome.problem.startswith("tool: "):
        pytest.skip(outcome.problem)
    assert outcome.passes, outcome


@pytest.mark.slow
@pytest.mark.xdist_group("modernbert")
def test_modernbert_with_long_texts(zoo: Path, tmp_path: Path) -> None:
    """Global and local attention over 2048 tokens; 8192 import with their masks."""
    small = BY_NAME["modernbert"]
    sizes = {"num_hidden_layers": 2, "local_attention": 128, "max_position_embeddings": 8192}
    network = replace(small, options={**small.options, **sizes})
    path = export(network, EXPORTER_BY_NAME[matrix.EXPORT_OF_DIALECTS], tmp_path / "model.onnx")
    artifact = sparsec.compile(path, buckets=[2048], output=tmp_path / "a.sparsec")
    feed = network.feed(2, 2048, ragged=True)
    with sparsec.Engine(artifact.path) as engine:
        (got,) = engine.run(list(feed.values()))
    (want,) = session(path).run(None, dict(feed))
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * float(np.abs(want).max()))

    model = frontend.load_model(path)
    (graph,) = import_buckets(model, frontend.signature(model), [8192])
    assert [n.op for n in graph.nodes].count("attention") == 2
