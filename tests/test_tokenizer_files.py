"""Tokenizers from a folder's files, compared with what transformers makes of the same files."""

from __future__ import annotations

import inspect
import json
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from sparsec.errors import ModelError
from sparsec.serving import tokenizer_files
from sparsec.serving.models import ModelFiles
from sparsec.serving.text import Text

transformers = pytest.importorskip(
    "transformers", reason="the reference needs transformers: pip install .[zoo]"
)

FAMILIES = tokenizer_files.FAMILIES
TEXTS = [
    "Mary lives in PARIS.",
    " Éa  CAFÉ cafe\u0301 naïve",
    "東京x \u00a0new\n[MASK] <mask>x",
    "a<mask> b [MASK], <ent> x<ent>y <Ent> ÉNT [CLS] <s> </s>",
    "",
]


def tokens_of(word: str, mask: str) -> list[str]:
    return [f"<s>{word}", "<pad>", "</s>", "<unk>", mask]


def word_piece(lower: bool = True, accents: bool | None = None, chinese: bool = True) -> Tokenizer:
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = string.ascii_letters + "éÉ东東京.,<>[]/"
    pieces = [*specials, "Mary", "mary", "cafe", "CAFÉ", *letters, *(f"##{c}" for c in letters)]
    made = Tokenizer(models.WordPiece(_ids(pieces), unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(
        lowercase=lower, strip_accents=accents, handle_chinese_chars=chinese
    )
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    _enclose(made, "[CLS]", "[SEP]")
    return made


def byte_level(prefix: bool = False) -> Tokenizer:
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    pieces = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet()), "Ma", "ĠM", "ĠMa"]
    made = Tokenizer(models.BPE(_ids(pieces), [("M", "a"), ("Ġ", "M"), ("Ġ", "Ma")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    made.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), add_prefix_space=prefix
    )
    return made


def metaspace() -> Tokenizer:
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "▁Mary", "▁", *string.ascii_letters, "é"]
    made = Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], 3))
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    _enclose(made, "<s>", "</s>")
    return made


def _ids(pieces: list[str]) -> dict[str, int]:
    return {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}


def _enclose(made: Tokenizer, first: str, last: str) -> None:
    made.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B:1 {last}:1",
        special_tokens=[(token, made.token_to_id(token)) for token in (first, last)],
    )


def write(folder: Path, made: Tokenizer, files: dict[str, Any]) -> Text:
    """Write tokenizer.json and other files; returns ours."""
    for old in folder.iterdir():
        old.unlink()
    made.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return Text.load(ModelFiles(folder, folder / "tokenizer.json", files.get("config", {})))


def compare(ours: Text, theirs: Any) -> None:
    for text in TEXTS:
        encoding = ours.join(ours.encode(text))
        want = theirs(text, return_token_type_ids=True)
        assert encoding.ids == want["input_ids"], text
        pair = ours.join(ours.encode(text), ours.encode(TEXTS[0]))
        want = theirs(text, TEXTS[0], return_token_type_ids=True)
        assert (pair.ids, pair.type_ids) == (want["input_ids"], want["token_type_ids"])
        length = 6 + ours.special_tokens()
        cut = ours.fit(ours.encode(text), length)
        assert cut.ids == theirs(text, truncation=True, max_length=length)["input_ids"]
        length = 9 + ours.special_tokens(pair=True)
        ids = [ours.ids(part) for part in (text, TEXTS[0])]
        if all(map(len, ids)):
            ours.check_inputs(["input_ids"], ModelFiles(Path(), Path(), {}))
            joined = ours.pair(*ids, length).arrays["input_ids"].tolist()
            want = theirs(text, TEXTS[0], truncation="longest_first", max_length=length)
            assert joined == want["input_ids"]
    longest = theirs.model_max_length
    assert ours.max_length == (None if longest > 1e20 else longest)
    assert ours.context_first == (theirs.padding_side == "left")
    for role in ("pad", "unk", "cls", "mask"):
        if (token := getattr(theirs, f"{role}_token")) is not None:
            assert ours.special_id(role) == theirs.convert_tokens_to_ids(token)


def flags(special: bool | None = None) -> Any:
    known = {name: st.booleans() for name in ("lstrip", "rstrip", "normalized", "single_word")}
    return st.fixed_dictionaries(
        {
            **known,
            "content": st.sampled_from(["<ent>", "ént", "[MASK]", "<mask>", "x", "lives"]),
            "special": st.booleans() if special is None else st.just(special),
        }
    )


def optional(**known: Any) -> Any:
    return st.fixed_dictionaries({}, optional=known)


@st.composite
def folders(draw: Any) -> tuple[Tokenizer, dict[str, Any]]:
    yes = st.booleans()
    made = draw(
        st.one_of(
            st.builds(word_piece, yes, st.none() | yes, yes),
            st.builds(byte_level, yes),
            st.builds(metaspace),
        )
    )
    bert = made.token_to_id("[CLS]") is not None
    names = (
        {"cls": "[CLS]", "sep": "[SEP]", "unk": "[UNK]", "pad": "[PAD]", "mask": "[MASK]"}
        if bert
        else {"cls": "<s>", "sep": "</s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask>"}
    )
    names |= {"bos": names["cls"], "eos": names["sep"]}
    for token in draw(st.lists(st.sampled_from(sorted(names.values())), unique=True)):
        made.add_special_tokens([AddedToken(token, lstrip=draw(yes), normalized=draw(yes))])
    for token in draw(st.lists(flags(), max_size=2)):
        made.add_tokens([AddedToken(**token)])
    if draw(yes):
        made.enable_padding(direction=draw(st.sampled_from(["left", "right"])), length=50)
        made.enable_truncation(5, direction=draw(st.sampled_from(["left", "right"])))
    side = st.sampled_from(["left", "right"])
    config = draw(
        optional(
            do_lower_case=yes,
            strip_accents=st.none() | yes,
            tokenize_chinese_chars=yes,
            add_bos_token=yes,
            add_eos_token=yes,
            model_max_length=st.sampled_from([16, 512, int(1e30), 1e30]),
            padding_side=side,
            truncation_side=side,
            clean_up_tokenization_spaces=yes,
            split_special_tokens=yes,
            additional_special_tokens=st.lists(
                st.sampled_from(["<ent>", "x", "lives"]), unique=True
            ),
            **{
                f"{role}_token": st.sampled_from([
                    token,
                    {"__type": "AddedToken", "content": token, "lstrip": True, "rstrip": False,
                     "normalized": True, "single_word": False},
                ])
                for role, token in names.items()
            },
        )
    )  # fmt: skip
    kind = draw(st.sampled_from([k for k in FAMILIES if k not in ("T5", "MT5")]))
    # What its class would convert from another format.
    if kind != "Llama":
        config |= draw(optional(add_prefix_space=yes))
    if FAMILIES[kind].template:
        config |= {"bos_token": names["bos"], "eos_token": names["eos"]}
    if kind == "CodeGen":
        config.pop("add_bos_token", None)
    files: dict[str, Any] = {"tokenizer_config": config, "config": {}}
    config["tokenizer_class"] = kind + draw(st.sampled_from(["Tokenizer", "TokenizerFast"]))
    if kind == "PreTrained":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if draw(yes):
        size = made.get_vocab_size()
        there = made.get_added_tokens_decoder()
        known = {token.content for token in there.values()}
        tokens = draw(st.lists(flags(), max_size=2, unique_by=lambda token: token["content"]))
        config["added_tokens_decoder"] = {
            str(size + i): t for i, t in enumerate(tokens) if t["content"] not in known
        }
        for number, token in there.items():
            if draw(yes):
                config["added_tokens_decoder"][str(number)] = {
                    "content": token.content, "lstrip": draw(yes), "rstrip": False,
                    "normalized": draw(yes), "single_word": False, "special": True,
                }  # fmt: skip
    if draw(yes):
        files["special_tokens_map"] = draw(
            optional(
                **{
                    f"{role}_token": st.sampled_from([token, {"content": token, "lstrip": True,
                                                              "normalized": True}])
                    for role, token in names.items()
                },
                additional_special_tokens=st.just(["<ent>"]),
            )
        )  # fmt: skip
    if draw(yes):
        files["added_tokens"] = {"<ent>": made.get_vocab_size()}
    return made, files


@given(case=folders())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_as_transformers_loads_them(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[Tokenizer, dict[str, Any]]
) -> None:
    made, files = case
    note(f"{made.get_added_tokens_decoder()} {made.pre_tokenizer} {made.truncation}")
    folder = tmp_path_factory.mktemp("files")
    try:
        ours = write(folder, made, files)
    except ModelError as error:
        ours, said = None, error
    try:
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
    except Exception:
        # Of classes with BERT's normalizer, transformers insists on there being one.
        assert ours is None or made.normalizer is None
        return
    assert ours is not None, said
    # Tokens found in normalized text are normalized when they are added, not when the normalizer
    # is changed after that: only what was saved and loaded again does what the settings say.
    theirs._tokenizer = Tokenizer.from_str(theirs._tokenizer.to_str())
    compare(ours, theirs)


def classes() -> dict[str, Any]:
    """transformers' fast tokenizers by name, as we call them."""
    names = {name: f"{name}TokenizerFast" for name in FAMILIES}
    return {name: getattr(transformers, full) for name, full in names.items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_classes_are_those_of_transformers(name: str) -> None:
    kind, family = classes()[name], FAMILIES[name]
    parameters = inspect.signature(kind.__init__).parameters
    tokens = {
        key.removesuffix("_token"): parameter.default
        for key, parameter in parameters.items()
        if key.endswith("_token") and isinstance(parameter.default, str)
    }
    assert dict(family.tokens) == tokens
    defaults = {key: parameter.default for key, parameter in parameters.items()}
    assert family.left == (kind.padding_side == "left")
    assert defaults.get("add_bos_token", False) == family.begins
    assert defaults.get("add_prefix_space", False) in (False, None)
    source = "" if name == "PreTrained" else inspect.getsource(kind)
    assert family.lowers == ("normalizer_class" in source or "pre_tok_class" in source or bool(
        issubclass(kind, transformers.BertTokenizerFast)
    ))  # fmt: skip
    assert family.template == ("self.update_post_processor()" in source)


def test_models_have_the_classes_of_transformers() -> None:
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    known = {name: kind.__name__ for name, kind in classes().items()}
    for model, name in tokenizer_files.MODELS.items():
        if name != "RoFormer":
            assert TOKENIZER_MAPPING_NAMES[model][1] == known[name]


def test_nothing_names_the_class(tmp_path: Path) -> None:
    """Then what the settings say counts, wherever it fits, and nothing else."""
    made = word_piece(lower=True)
    made.normalizer = normalizers.Sequence([normalizers.NFC(), made.normalizer])
    for config, want in (
        ({}, ["mary"]),
        ({"do_lower_case": False}, ["Mary"]),
        ({"do_lower_case": True}, ["mary"]),
        ({"strip_accents": False}, ["mary"]),
    ):
        text = write(tmp_path, made, {"tokenizer_config": config})
        assert text.encode("Mary").tokens == want
    assert text.encode("é").tokens == ["é"]
    for prefix in (True, False):
        text = write(tmp_path, byte_level(), {"tokenizer_config": {"add_prefix_space": prefix}})
        assert text.encode("M").tokens == (["ĠM"] if prefix else ["M"])
        assert text.encode_words(["M", "M"]).tokens == (["ĠM", "ĠM"] if prefix else ["M", "M"])
    # Without tokenizer_config.json there are no settings: not those of the class, either.
    text = write(tmp_path, word_piece(lower=False), {"config": {"model_type": "bert"}})
    assert text.encode("Mary").tokens == ["Mary"]
    files = {"config": {"model_type": "bert"}, "tokenizer_config": {}}
    assert write(tmp_path, word_piece(lower=False), files).encode("Mary").tokens == ["mary"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer_config": []}, "must be a JSON object"),
        ({"tokenizer_config": {"padding_side": "top"}}, "padding_side must be left or right"),
        ({"tokenizer_config": {"truncation_side": 3}}, "truncation_side must be left or right"),
        ({"tokenizer_config": {"model_max_length": "512"}}, "model_max_length must be a number"),
        ({"tokenizer_config": {"model_max_length": 0}}, "model_max_length must be a number"),
        ({"tokenizer_config": {"mask_token": 3}}, "3 is not a token"),
        ({"tokenizer_config": {"mask_token": {"content": 3}}}, "is not a token"),
        ({"tokenizer_config": {"added_tokens_decoder": [1]}}, "must map ids to tokens"),
        ({"tokenizer_config": {"strip_accents": "no"}}, "tokenizer_config.json: "),
        ({"tokenizer_config": {"tokenizer_class": "RoFormerTokenizer"}}, "jieba"),
        ({"tokenizer_config": {"tokenizer_class": "LlamaTokenizer", "bos_token": None}},
         "add_bos_token needs"),
        ({"added_tokens": {"x": "y"}}, "must map tokens to ids"),
    ],
)  # fmt: skip
def test_what_cannot_be_done(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        write(tmp_path, word_piece(), files)
