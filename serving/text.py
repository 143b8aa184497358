"""Text to token ids: a tokenizer whose state never changes after it is loaded.

Truncation and windows are cut here, never by the tokenizer: its settings are shared by all threads.
Special tokens are placed by the tokenizer's own post-processor.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, BertWordPieceTokenizer, Encoding, Tokenizer

from sparsec.errors import InputError, ModelError
from sparsec.serving.models import ModelFiles
from sparsec.serving.runner import Features, Role, roles

_FIELDS = {"ids": "ids", "mask": "attention_mask", "types": "type_ids"}


class Text:
    """A tokenizer.

    Args:
        tokenizer: where truncation and padding are off.
        pad_id: id of the padding token; 0 where there is none.
        unknown, mask: the unknown and the mask token, or None.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        pad_id: int = 0,
        unknown: str | None = None,
        mask: str | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.pad_id = pad_id
        self.unknown = unknown
        self.mask = mask
        # The post-processor would trim byte-level offsets twice if `encode` ran it as well.
        bare = json.loads(tokenizer.to_str())
        bare["post_processor"] = None
        self._bare: Tokenizer = Tokenizer.from_str(json.dumps(bare))
        self._roles: tuple[Role, ...] = ()
        self._special: dict[bool, int] = {
            pair: tokenizer.num_special_tokens_to_add(pair) for pair in (False, True)
        }

    @classmethod
    def load(cls, model: ModelFiles) -> Text:
        """Read a model's tokenizer.

        Raises:
            ModelError: the file is damaged.
        """
        path = model.tokenizer
        settings = _json(path.with_name("tokenizer_config.json"))
        names = {**_json(path.with_name("special_tokens_map.json")), **settings}
        try:
            tokenizer = _word_piece(path, settings) if path.name == "vocab.txt" else _read(path)
        except Exception as error:  # the library raises plain Exception
            raise ModelError(f"{path} is not a tokenizer: {error}") from error
        tokenizer.no_truncation()
        padding = tokenizer.padding
        tokenizer.no_padding()

        def token(key: str, *usual: str) -> str | None:
            value = names.get(key)
            value = value.get("content") if isinstance(value, dict) else value
            for candidate in (value, *usual):
                if isinstance(candidate, str) and tokenizer.token_to_id(candidate) is not None:
                    return candidate
            return None

        pad = token("pad_token", "[PAD]", "<pad>")
        pad_id = tokenizer.token_to_id(pad) if pad else (padding or {}).get("pad_id", 0)
        unknown = getattr(tokenizer.model, "unk_token", None) or token("unk_token")
        return cls(tokenizer, pad_id, unknown, token("mask_token", "[MASK]", "<mask>"))

    def check_inputs(self, names: Sequence[str]) -> None:
        """Take note of the model's inputs.

        Raises:
            ModelError: one of them cannot be filled.
        """
        self._roles = roles(names)

    def special_tokens(self, pair: bool = False) -> int:
        """How many special tokens a sequence, or a pair, gets."""
        return self._special[pair]

    # ---- text to tokens --------------------------------------------------------------------------

    def encode(self, text: str) -> Encoding:
        """All tokens of a text, special ones and truncation left out."""
        return self._bare.encode(text, add_special_tokens=False)

    def encode_words(self, words: Sequence[str]) -> Encoding:
        """The same of words; offsets are inside each word."""
        return self._bare.encode(list(words), is_pretokenized=True, add_special_tokens=False)

    def join(self, first: Encoding, second: Encoding | None = None) -> Encoding:
        """Put the special tokens around one or two encodings."""
        return self.tokenizer.post_process(first, second)

    def fit(self, first: Encoding, max_length: int) -> Encoding:
        """Tokens of a text with special ones, cut at the end to `max_length` in all."""
        self.cut(first, max_length - self.special_tokens())
        return self.join(first)

    def fit_pair(self, first: Encoding, second: Encoding, max_length: int) -> Encoding:
        """The same of a pair; the longer one loses tokens until they fit or are equally long."""
        room = max_length - self.special_tokens(pair=True)
        short, long = sorted((len(first), len(second)))
        if short + long > room:
            long = max(short, room - short) if short <= room else short
            if short + long > room:
                short, long = room // 2, room - room // 2
            one, two = (short, long) if len(first) <= len(second) else (long, short)
            self.cut(first, one)
            self.cut(second, two)
        return self.join(first, second)

    def cut(self, encoding: Encoding, length: int) -> None:
        """Drop tokens after `length`.

        Raises:
            InputError: no token would be left.
        """
        if len(encoding) > length:
            if length < 1:
                raise InputError(
                    "sequence_length leaves no room for text beside the special tokens: "
                    "use a larger one"
                )
            encoding.truncate(length)

    def windows(self, encoding: Encoding, length: int, stride: int) -> list[Encoding]:
        """An encoding in pieces of at most `length` tokens, each starting with the last `stride`
        ones of the piece before.

        Raises:
            InputError: pieces would not advance.
        """
        if len(encoding) <= length:
            return [encoding]
        if stride >= length:
            raise InputError(
                f"windows of {length} tokens cannot overlap by {stride}: use a larger "
                f"sequence_length or a smaller stride"
            )
        encoding.truncate(length, stride=stride)
        return [encoding, *encoding.overflowing]

    def features(self, encoding: Encoding) -> Features:
        """What the model takes of an encoding."""
        arrays: dict[str, NDArray[np.int64]] = {}
        for role in self._roles:
            if role.kind == "positions":
                arrays[role.name] = np.arange(len(encoding), dtype=np.int64)
            else:
                values = getattr(encoding, _FIELDS[role.kind])
                arrays[role.name] = np.array(values, np.int64)
        return Features(arrays, len(encoding))


def _read(path: Path) -> Tokenizer:
    return Tokenizer.from_file(str(path))


def _word_piece(path: Path, settings: dict[str, Any]) -> Tokenizer:
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
    return value if isinstance(value, dict) else {}
