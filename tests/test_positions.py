"""Positions as the architecture counts them, against transformers: which, from where, how many."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sparsec
from sparsec import Pipeline
from sparsec.errors import InputError
from sparsec.positions import Positions, positions
from tests.pipelines_support import TEXTS, byte_level

torch = pytest.importorskip("torch", reason="the reference needs torch: pip install .[zoo]")
transformers = pytest.importorskip(
    "transformers", reason="the reference needs transformers: pip install .[zoo]"
)

TABLE = 20
SMALL = {
    "vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 16, "max_position_embeddings": TABLE,
}  # fmt: skip

# Kinds of models, settings, and whether their positions end.
KINDS: list[tuple[str, dict[str, Any], bool]] = [
    *((kind, {}, True) for kind in (
        "albert", "bert", "camembert", "data2vec-text", "electra", "ibert", "mpnet",
        "nystromformer", "roberta", "xlm-roberta", "xlm-roberta-xl",
    )),
    ("roberta", {"pad_token_id": 5}, True),
    ("xmod", {"languages": ["en_XX"], "default_language": "en_XX"}, True),
    ("roberta-prelayernorm", {}, True),
    ("esm", {"pad_token_id": 1, "mask_token_id": 4, "token_dropout": False}, True),
    ("mpnet", {"pad_token_id": 3}, True),
    ("distilbert", {"dim": 16, "hidden_dim": 16, "n_layers": 1, "n_heads": 2}, True),
    ("bert", {"position_embedding_type": "relative_key"}, True),
    ("gpt2", {"n_embd": 16, "n_head": 2, "n_layer": 1, "n_positions": TABLE}, True),
    ("deberta-v2", {"relative_attention": True, "position_biased_input": True}, True),
    ("deberta-v2", {
        "relative_attention": True, "position_biased_input": False, "position_buckets": 8,
        "norm_rel_ebd": "layer_norm", "share_att_key": True, "pos_att_type": ["p2c", "c2p"],
    }, False),
    ("deberta", {
        "relative_attention": True, "position_biased_input": False, "pos_att_type": ["p2c", "c2p"],
    }, False),
    ("modernbert", {
        "pad_token_id": 0, "bos_token_id": 1, "cls_token_id": 1, "eos_token_id": 2,
        "sep_token_id": 2, "num_hidden_layers": 2, "global_attn_every_n_layers": 2,
    }, False),
    ("esm", {
        "pad_token_id": 1, "mask_token_id": 4, "token_dropout": False,
        "position_embedding_type": "rotary",
    }, False),
    ("llama", {}, False),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "settings", "ends"), KINDS, ids=lambda v: str(v)[:24])
def test_like_the_architecture(kind: str, settings: dict[str, Any], ends: bool) -> None:
    """What config.json tells is what the module does: as many tokens, and the same positions."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **{**SMALL, **settings})
    config._attn_implementation = "eager"
    model = transformers.AutoModel.from_config(config).eval()
    written = json.loads(config.to_json_string())
    found = positions(written)
    ids = torch.randint(6, 300, (2, found.longest or 3 * TABLE))

    def hidden(given: Any, **more: Any) -> Any:
        mask = torch.ones_like(given)
        with torch.no_grad():
            return model(input_ids=given, attention_mask=mask, **more)[0]

    want = hidden(ids)
    assert (found.longest is not None) == ends
    if not ends:
        return
    longer = torch.cat([ids, ids[:, :1]], 1)
    with pytest.raises((IndexError, RuntimeError)):
        hidden(longer)
    if kind == "distilbert":  # takes no position_ids
        return
    padding = found.padding if found.padding is not None else 0
    ids[0, 3] = ids[1, -2] = padding
    got = hidden(ids, position_ids=torch.from_numpy(found.of(ids.numpy())))
    assert torch.allclose(got, hidden(ids), atol=1e-6)
    assert want.shape == got.shape


def test_known_by_its_tokenizer_or_not_at_all() -> None:
    """A config.json that names no model; and settings that say that nothing ends."""
    size = {"max_position_embeddings": 514, "pad_token_id": 1}
    assert positions(size, 512) == Positions(2, 1, 512, 514)
    assert positions(size) == positions(size, 1e30) == Positions(0, None, 514, 514)
    assert positions({}) == Positions()
    for more in (
        {"rope_theta": 1e4},
        {"rotary_emb_base": 10000},
        {"alibi": True},
        {"position_embedding_type": "alibi"},
        {"model_type": "nomic_bert"},
    ):
        assert positions({**size, **more}).longest is None
    for more in ({"rotary_value": False}, {"rope_theta": None}, {"position_embedding_type": None}):
        assert positions({**size, **more}).longest == 514


# ---- through a pipeline --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A RoBERTa with 18 positions for tokens: as an input, and made by the graph."""
    torch.manual_seed(1)
    config = transformers.RobertaConfig(**SMALL)
    config._attn_implementation = "eager"
    model = transformers.RobertaModel(config, add_pooling_layer=False).eval()
    model.requires_grad_(False)
    model.embeddings.position_embeddings.weight.mul_(30)  # so that places matter
    root = tmp_path_factory.mktemp("roberta")
    model.save_pretrained(root / "torch")
    folders = {}
    for name, count in (("input", 3), ("inside", 2)):
        folder = folders[name] = root / name
        folder.mkdir()
        names = ["input_ids", "attention_mask", "position_ids"][:count]
        byte_level(folder / "tokenizer.json")
        (folder / "tokenizer_config.json").write_text(json.dumps({"add_prefix_space": True}))
        (folder / "config.json").write_text(config.to_json_string())

        class Hidden(torch.nn.Module):  # type: ignore[misc]
            def forward(self, ids: Any, mask: Any, places: Any = None) -> Any:
                return model(input_ids=ids, attention_mask=mask, position_ids=places)[0]

        ids = torch.randint(5, 300, (2, 7))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                Hidden(), (ids, torch.ones_like(ids), ids % 7 + 2)[:count],
                str(folder / "model.onnx"), input_names=names, output_names=["hidden"],
                dynamic_axes={n: {0: "batch", 1: "sequence"} for n in (*names, "hidden")},
                opset_version=14, dynamo=False,
            )  # fmt: skip
    return folders


def create(folder: Path, engine: str = "sparsec", **options: Any) -> Pipeline:
    return Pipeline.create(
        "embedding",
        folder,
        engine_type=engine,
        emb_extraction_layer=None,
        truncate=True,
        **options,
    )


@pytest.mark.parametrize("engine", ["onnxruntime", "sparsec"])
@pytest.mark.parametrize("form", ["input", "inside"])
def test_roberta(roberta: dict[str, Path], form: str, engine: str) -> None:
    """The longest texts too; by default no text is longer than there are positions."""
    folder = roberta[form]
    model = transformers.RobertaModel.from_pretrained(folder.parent / "torch").eval()
    texts = [*TEXTS, "a <pad> b", "x" * 15, "x" * 40]
    with create(folder, engine) as pipeline:
        assert pipeline.runner.buckets == (16, 18)
        for text, vectors in zip(texts, pipeline(texts).embeddings, strict=True):
            encoding = pipeline.text.fit(pipeline.text.encode(text), 18)
            with torch.no_grad():
                want = model(torch.tensor([encoding.ids]))[0][0].numpy()
            assert np.asarray(vectors) == pytest.approx(want, abs=1e-5)
        assert max(map(len, pipeline(texts).embeddings)) == 18
    with pytest.raises(InputError, match=r"19 is too long: .* 18 tokens: of the 20 in its table"):
        create(folder, engine, sequence_length=19)


@pytest.mark.parametrize("form", ["input", "inside"])
def test_an_artifact_with_a_longer_bucket(
    roberta: dict[str, Path], form: str, tmp_path: Path
) -> None:
    """It was compiled for all rows of the table: texts end where positions do."""
    folder = roberta[form]
    said: list[str] = []
    artifact = sparsec.compile(
        folder, buckets=[18, 20], output=tmp_path / "long.sparsec", progress=said.append
    )
    warned = [line for line in said if "longer than a text" in line]
    assert warned == [
        "bucket 20 is longer than a text can be: the model has positions for 18 tokens: of the 20 "
        "in its table the first 2 are padding's"
    ]
    with create(artifact.path) as long, create(folder, sequence_length=18) as right:
        got, want = (pipeline("x" * 40).embeddings[0] for pipeline in (long, right))
        assert np.asarray(got) == pytest.approx(np.asarray(want), abs=1e-5)
        inputs = sparsec.generate_random_inputs(artifact, batch_size=3)
        assert all(x.shape == (3, 18) for x in inputs)
        with sparsec.Engine(artifact, num_cores=1) as engine:
            assert engine.run(inputs)[0].shape == (3, 18, 16)
        with pytest.raises(InputError, match=r"19 tokens are too many: .* positions for 18"):
            sparsec.generate_random_inputs(artifact, length=19)


def test_random_inputs_are_inside_all_tables(roberta: dict[str, Path], tmp_path: Path) -> None:
    """With ONNX Runtime as the judge; without a config.json too where positions are an input."""
    ort = pytest.importorskip("onnxruntime", reason="the reference needs onnxruntime")
    bare = tmp_path / "bare.onnx"
    bare.write_bytes((roberta["input"] / "model.onnx").read_bytes())
    for path, longest in ((roberta["input"], 18), (roberta["inside"], 18), (bare, 20)):
        file = path if path.is_file() else path / "model.onnx"
        session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        names = [node.name for node in session.get_inputs()]
        for length in (None, 5):
            made = sparsec.generate_random_inputs(path, 4, length)
            assert all(x.shape == (4, length or longest) for x in made)
            session.run(None, dict(zip(names, made, strict=True)))
        with pytest.raises(InputError, match=f"{longest + 1} tokens are too many"):
            sparsec.generate_random_inputs(path, length=longest + 1)


def test_a_token_that_the_model_does_not_know(roberta: dict[str, Path], tmp_path: Path) -> None:
    """It was added to the tokenizer only: the error says which."""
    from tokenizers import Tokenizer

    for file in roberta["inside"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    fill = [f"filler{i}" for i in range(300 - tokenizer.get_vocab_size())]
    tokenizer.add_tokens([*fill, "sparsec"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with create(tmp_path, "onnxruntime") as pipeline:
        assert len(pipeline(["New", fill[-1]]).embeddings) == 2
        with pytest.raises(
            InputError, match=r"token 'sparsec' with the id 300, .* knows 300 tokens"
        ):
            pipeline("New sparsec York")
