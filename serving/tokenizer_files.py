"""A tokenizer from the files of a model's folder, as transformers (4.57) loads a fast one.

``tokenizer.json`` is not all: ``tokenizer_config.json`` changes what is in it, ``special_tokens_map
.json`` and ``added_tokens.json`` of older models add to it, and what these leave out comes from the
tokenizer's class.  Without ``tokenizer_config.json``, tokenizer.json is taken as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, BertWordPieceTokenizer, Tokenizer, processors

from sparsec.errors import ModelError

# Special tokens in the order in which those that the vocabulary lacks are added to it.
ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")

# Special tokens by the names that the usual tokenizers give them, where nothing says more.
_USUAL = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "mask": ("[MASK]", "<mask>"),
}

# From here on a greatest length means that there is none.
_NO_LIMIT = 10**20


@dataclass(frozen=True)
class Family:
    """What a class of tokenizers does with its settings, and the values of those left out.

    Attributes:
        tokens: special tokens by role.
        lowers: whether do_lower_case and strip_accents are put into BERT's normalizer.
        chinese: whether tokenize_chinese_chars is, too.
        template: whether a template of begin and end tokens replaces the post-processor.
        begins: whether it has a begin token.
        prefix: whether add_prefix_space counts for bytes; what it needs otherwise is not there.
        mask: how the mask token is found in texts, where it is given as a string.
        left: whether padding is on the left.
    """

    tokens: Mapping[str, str] = field(default_factory=dict)
    lowers: bool = False
    chinese: bool = False
    template: bool = False
    begins: bool = False
    prefix: bool = True
    mask: Mapping[str, bool] = field(default_factory=dict)
    left: bool = False


def _tokens(**tokens: str) -> dict[str, str]:
    return tokens


_STRIPS = {"lstrip": True}
_END = "<|endoftext|>"
_S = _tokens(bos="<s>", eos="</s>", unk="<unk>", sep="</s>", pad="<pad>", cls="<s>", mask="<mask>")
_XL = {**_S, "sep": "<sep>", "cls": "<cls>"}
_CAPITALS = _tokens(unk="[UNK]", sep="[SEP]", pad="[PAD]", cls="[CLS]", mask="[MASK]")
_SPM = {**_CAPITALS, "unk": "<unk>", "pad": "<pad>"}
_ENDS = _tokens(bos="[CLS]", eos="[SEP]")
_BERT = Family(_CAPITALS, lowers=True, chinese=True)
_GEMMA = Family(
    _tokens(bos="<bos>", eos="<eos>", unk="<unk>", pad="<pad>"),
    template=True, begins=True, left=True,
)  # fmt: skip
_GPT2 = Family(_tokens(bos=_END, eos=_END, unk=_END))

# By the class's name, without "Tokenizer" and "TokenizerFast".
FAMILIES: dict[str, Family] = {
    name: family
    for names, family in (
        ("Bert ConvBert DPRContextEncoder DPRQuestionEncoder DPRReader DistilBert Electra", _BERT),
        ("LayoutLM Lxmert MobileBert SqueezeBert", _BERT),
        ("Funnel", replace(_BERT, tokens=_XL)),
        ("MPNet", Family({**_S, "unk": "[UNK]"}, lowers=True, mask=_STRIPS)),
        ("Blenderbot Longformer Mvp Roberta", Family(_S, mask=_STRIPS)),
        ("Barthez Camembert XLMRoberta", Family(_S, mask=_STRIPS)),
        ("Bart LED", Family(_S, mask={"lstrip": True, "normalized": True})),
        ("Albert RemBert", Family({**_SPM, **_ENDS}, mask=_STRIPS)),
        ("FNet", Family(_SPM, mask=_STRIPS)),
        ("BigBird", Family({**_SPM, "bos": "<s>", "eos": "</s>"}, mask=_STRIPS)),
        ("Deberta DebertaV2", Family({**_CAPITALS, **_ENDS})),
        ("XLNet", Family(_XL, mask=_STRIPS, left=True)),
        ("Herbert", Family({k: v for k, v in _S.items() if k not in ("bos", "eos")})),
        ("CodeGen GPT2", _GPT2),
        ("GPTNeoX", replace(_GPT2, template=True)),
        ("Gemma", _GEMMA),
        ("Llama", replace(
            _GEMMA, tokens=_tokens(bos="<s>", eos="</s>", unk="<unk>"), prefix=False)),
        ("MT5 T5", Family(_tokens(eos="</s>", unk="<unk>", pad="<pad>"), prefix=False)),
        ("Bloom", Family(_tokens(bos="<s>", eos="</s>", unk="<unk>", pad="<pad>"))),
        ("Qwen2", Family(_tokens(eos=_END, unk=_END, pad=_END))),
        ("PreTrained", Family()),
    )
    for name in names.split()
}  # fmt: skip

# The class of a kind of model, where nothing names a tokenizer's.
MODELS = {
    model: kind
    for kind, models in {
        "Albert": "albert nystromformer yoso",
        "Bart": "bart",
        "Barthez": "barthez",
        "Bert": "bert bros chinese_clip ernie megatron-bert nezha qdqbert visual_bert",
        "BigBird": "big_bird",
        "Bloom": "bloom",
        "Camembert": "camembert",
        "ConvBert": "convbert",
        "Deberta": "deberta",
        "DebertaV2": "deberta-v2",
        "DistilBert": "distilbert",
        "DPRQuestionEncoder": "dpr",
        "Electra": "electra",
        "FNet": "fnet",
        "Funnel": "funnel",
        "GPT2": "gpt2 gpt_neo gptj opt",
        "GPTNeoX": "gpt_neox mpt",
        "Gemma": "gemma gemma2 gemma3 gemma3_text t5gemma",
        "Herbert": "herbert",
        "LayoutLM": "layoutlm",
        "LED": "led",
        "Llama": "llama mistral mixtral",
        "Longformer": "longformer",
        "Lxmert": "lxmert",
        "MobileBert": "mobilebert",
        "MPNet": "mpnet",
        "MT5": "mt5",
        "Mvp": "mvp",
        "PreTrained": "modernbert",
        "Qwen2": "qwen2 qwen3",
        "RemBert": "rembert",
        "Roberta": "bridgetower clap data2vec-text ibert mega mra roberta roberta-prelayernorm",
        "RoFormer": "roformer",
        "SqueezeBert": "squeezebert",
        "T5": "longt5 switch_transformers t5 umt5",
        "XLMRoberta": "xlm-roberta xlm-roberta-xl xmod",
        "XLNet": "xlnet",
    }.items()
    for model in models.split()
}


@dataclass(frozen=True)
class Loaded:
    """A tokenizer and what its files say besides.

    Attributes:
        tokenizer: truncation and padding are off.
        specials: the tokens that are there of pad, unk, cls and mask, by those names.
        clean: whether decoded text has the spaces before punctuation removed.
        max_length: the greatest number of tokens, special ones included; None: no limit.
        cut_left: whether text that is too long loses its beginning.
        pad_left: whether padding would stand before the text.
    """

    tokenizer: Tokenizer
    specials: dict[str, str]
    clean: bool
    max_length: int | None
    cut_left: bool
    pad_left: bool


def load(path: Path, config: Mapping[str, Any]) -> Loaded:
    """Read a tokenizer.

    Args:
        path: ``tokenizer.json``, or the ``vocab.txt`` of a BERT; the other files are beside it.
        config: contents of the model's config.json; may be empty.

    Raises:
        ModelError: a file is damaged, or says what cannot be done.
    """
    file = path.with_name("tokenizer_config.json")
    settings = _json(file)
    if settings.get("tokenizer_class") is None:
        settings.pop("tokenizer_class", None)
    family = _family(settings, config) if file.is_file() else None
    try:
        if path.name == "vocab.txt":
            tokenizer = _word_piece(path, settings)
        else:
            tokenizer = Tokenizer.from_file(str(path))
        truncation, padding = tokenizer.truncation or {}, tokenizer.padding or {}
    except Exception as error:  # the library raises plain Exception
        raise ModelError(f"{path} is not a tokenizer: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()

    added = _added_tokens(path, settings, tokenizer)
    specials = _specials(settings, family, added, padding)
    try:
        tokenizer = _configure(tokenizer, settings, family)
        _add(tokenizer, settings, added, specials)
        if family and family.template:
            _enclose(tokenizer, settings, family, specials)
    except ModelError:
        raise
    except Exception as error:  # the library raises plain Exception
        raise ModelError(f"{file}: {error}") from error
    tokenizer.encode_special_tokens = bool(settings.get("split_special_tokens", False))

    names = {role: str(token) for role, token in specials.items()}
    for role, usual in _USUAL.items():
        found = [t for t in (names.get(role), *usual) if t and tokenizer.token_to_id(t) is not None]
        names[role] = found[0] if found else ""
    return Loaded(
        tokenizer,
        {role: names[role] for role in _USUAL if names[role]},
        bool(settings.get("clean_up_tokenization_spaces", False)),
        _max_length(file, settings),
        _is_left(file, settings, "truncation_side", truncation.get("direction", "right")),
        _is_left(
            file, settings, "padding_side",
            padding.get("direction", "left" if family and family.left else "right"),
        ),
    )  # fmt: skip


def _family(settings: Mapping[str, Any], config: Mapping[str, Any]) -> Family | None:
    """What the tokenizer's class is known to do; None if nothing names a class that is known."""
    name = settings.get("tokenizer_class") or config.get("tokenizer_class")
    kind = str(name).removesuffix("Fast").removesuffix("Tokenizer") if name else None
    kind = kind or MODELS.get(str(config.get("model_type")))
    if kind == "RoFormer":
        raise ModelError(
            "RoFormer's tokenizer finds Chinese words with jieba, which tokenizer.json cannot say: "
            "it would make other tokens; tokenize elsewhere and use sparsec.Engine"
        )
    return FAMILIES.get(kind or "")


def _configure(
    tokenizer: Tokenizer, settings: Mapping[str, Any], family: Family | None
) -> Tokenizer:
    """The tokenizer with those of its parts changed that settings are for.

    Of a class that is not known only the settings that are there count.
    """
    whole = json.loads(tokenizer.to_str())
    changes: dict[str, Any] = {}
    if family is None or family.lowers:
        if family or "do_lower_case" in settings:
            changes["lowercase"] = bool(settings.get("do_lower_case", True))
        if family or "strip_accents" in settings:
            changes["strip_accents"] = settings.get("strip_accents")
        if (family and family.chinese) or (not family and "tokenize_chinese_chars" in settings):
            changes["handle_chinese_chars"] = bool(settings.get("tokenize_chinese_chars", True))
    normalizer = whole.get("normalizer") or {}
    for part in (normalizer, *(() if family else normalizer.get("normalizers", ()))):
        if part.get("type") == "BertNormalizer":
            part.update(changes)
    if family.prefix if family else "add_prefix_space" in settings:
        prefix = bool(settings.get("add_prefix_space", False))
        before = whole.get("pre_tokenizer") or {}
        for part in (before, *(() if family else before.get("pretokenizers", ()))):
            if "add_prefix_space" in part:
                part["add_prefix_space"] = prefix
    return Tokenizer.from_str(json.dumps(whole))


def _token(value: Any, special: bool | None = None) -> AddedToken | str | None:
    """A token as the files have it: a string, or an object with flags."""
    if isinstance(value, dict):
        flags = {key: flag for key, flag in value.items() if key != "__type"}
        if special is not None:
            flags["special"] = special
        try:
            return AddedToken(**flags)
        except TypeError as error:
            raise ModelError(f"{value} is not a token: {error}") from None
    if value is not None and not isinstance(value, str):
        raise ModelError(f"{value!r} is not a token: it must be a string, or an object with flags")
    return value


def _added_tokens(
    path: Path, settings: dict[str, Any], tokenizer: Tokenizer
) -> dict[int, AddedToken]:
    """Tokens beside the vocabulary, by their ids.

    Only files that do not have them in tokenizer_config.json have them elsewhere; then the special
    tokens of special_tokens_map.json are put into `settings`.
    """
    found: dict[int, AddedToken] = {}
    table = settings.get("added_tokens_decoder")
    if table is not None:
        try:
            for key, value in dict(table).items():
                found[int(key)] = _token(dict(value))
        except (TypeError, ValueError):
            raise ModelError(
                "tokenizer_config.json: added_tokens_decoder must map ids to tokens"
            ) from None
        return found
    for key, value in _json(path.with_name("special_tokens_map.json")).items():
        if key == "additional_special_tokens":
            value = [*(settings.get(key) or []), *(value or [])]
        elif isinstance(value, dict):
            value = {**value, "special": True}
        settings[key] = value
    specials = {
        str(_token(settings[f"{role}_token"]))
        for role in ROLES
        if settings.get(f"{role}_token") is not None
    }
    specials |= {str(_token(value)) for value in settings.get("additional_special_tokens") or ()}
    for name, number in _json(path.with_name("added_tokens.json")).items():
        special = name in specials
        try:
            found[int(number)] = AddedToken(name, normalized=not special, special=special)
        except (TypeError, ValueError):
            raise ModelError("added_tokens.json must map tokens to ids") from None
    found.update(tokenizer.get_added_tokens_decoder())
    return found


def _specials(
    settings: Mapping[str, Any],
    family: Family | None,
    added: Mapping[int, AddedToken],
    padding: Mapping[str, Any],
) -> dict[str, AddedToken | str]:
    """Special tokens by role."""
    known = {token.content: token for token in added.values()}
    found: dict[str, AddedToken | str] = {}
    for role in ROLES:
        key = f"{role}_token"
        if key in settings:
            token = _token(settings[key])
            token = known.get(str(token), token)
        elif family and role in family.tokens:
            token = family.tokens[role]
        else:
            token = padding.get("pad_token") if role == "pad" else None
        if isinstance(token, str) and role == "mask" and family and family.mask:
            token = AddedToken(token, **family.mask)
        if token is not None:
            found[role] = token
    return found


def _add(
    tokenizer: Tokenizer,
    settings: Mapping[str, Any],
    added: Mapping[int, AddedToken],
    specials: Mapping[str, AddedToken | str],
) -> None:
    """Add tokens that the files have and the tokenizer has not, or with other flags."""
    more = [_token(value, True) for value in settings.get("additional_special_tokens") or ()]
    everything = [token for token in (*specials.values(), *more) if token is not None]
    names = {str(token) for token in everything}
    present = tokenizer.get_added_tokens_decoder()
    there = {repr(token) for token in present.values()}
    missing: list[AddedToken | str] = [
        token for _, token in sorted(added.items()) if repr(token) not in there
    ]
    listed = {repr(token) for token in missing}
    known = {token.content for token in present.values()} | {str(token) for token in missing}
    first: dict[str, AddedToken | str] = {}
    for token in everything:
        first.setdefault(str(token), token)
    for name, token in first.items():
        # With flags it replaces the tokenizer's.
        same = name in known if isinstance(token, str) else repr(token) in listed
        if not same:
            missing.append(token)
    for token in missing:
        special = str(token) in names
        if isinstance(token, str):
            token = AddedToken(token, special=special)
        else:
            token.special = special or token.special
        tokenizer.add_tokens([token])


def _enclose(
    tokenizer: Tokenizer,
    settings: Mapping[str, Any],
    family: Family,
    specials: Mapping[str, AddedToken | str],
) -> None:
    """Make the post-processor of classes that take add_bos_token and add_eos_token."""
    parts = {}
    for role, usual in (("bos", family.begins), ("eos", False)):
        token = str(specials.get(role, ""))
        if settings.get(f"add_{role}_token", usual):
            number = tokenizer.token_to_id(token)
            if number is None:
                raise ModelError(
                    f"tokenizer_config.json: add_{role}_token needs {role}_token, a token of the "
                    f"vocabulary"
                )
            parts[role] = (token, number)
    before, behind = ([parts[role][0]] if role in parts else [] for role in ("bos", "eos"))
    first, second = (
        [*(f"{token}:{n}" for token in before), f"${name}:{n}", *(f"{t}:{n}" for t in behind)]
        for n, name in enumerate("AB")
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=first, pair=[*first, *second], special_tokens=list(parts.values())
    )


def _max_length(file: Path, settings: Mapping[str, Any]) -> int | None:
    value = settings.get("model_max_length", settings.get("max_len"))
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ModelError(f"{file}: model_max_length must be a number of tokens, not {value!r}")
    return None if value > _NO_LIMIT else int(value)


def _is_left(file: Path, settings: Mapping[str, Any], key: str, usual: str) -> bool:
    value = settings.get(key, str(usual).lower())
    if value not in ("left", "right"):
        raise ModelError(f"{file}: {key} must be left or right, not {value!r}")
    return bool(value == "left")


def _word_piece(path: Path, settings: Mapping[str, Any]) -> Tokenizer:
    """A BERT tokenizer of which only the vocabulary is there."""
    made = BertWordPieceTokenizer(
        str(path),
        lowercase=settings.get("do_lower_case", True),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
    )
    specials = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    made.add_special_tokens([AddedToken(t) for t in specials if made.token_to_id(t) is not None])
    return Tokenizer.from_str(made.to_str())


def _json(path: Path) -> dict[str, Any]:
    """A JSON object that may be missing."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} is damaged: it must be a JSON object")
    return value
