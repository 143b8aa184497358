"""Text to token ids: a tokenizer whose state never changes after it is loaded.

Truncation and windows are cut here, never by the tokenizer: its settings are shared by all threads.
Special tokens are placed by the tokenizer's own post-processor.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from sparsec.arguments import setting
from sparsec.errors import InputError, ModelError
from sparsec.positions import Positions
from sparsec.serving import tokenizer_files
from sparsec.serving.models import ModelFiles
from sparsec.serving.plain_text import PlainText, encode_batch
from sparsec.serving.runner import Features, Role, roles

# What tokens have for a space.
_SPACES = "▁Ġ"

# What decoding leaves a space before, and does not for a tokenizer that cleans up.
_TIGHT = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")

# Characters of a text from which on it is tokenized as a batch of one: only for batches does the
# library release the GIL.
LONG = 4096


class Tokens(NamedTuple):
    """Tokens of texts, special ones left out.

    Attributes:
        ids: int64, of all texts, one behind the other.
        lengths: int64 ``[texts]``, how many of them each has.
    """

    ids: NDArray[np.int64]
    lengths: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Sequence[NDArray[np.int64]]) -> Tokens:
        """Of the ids of each text."""
        ids = np.concatenate(rows) if rows else np.zeros(0, np.int64)
        return cls(ids, np.array([len(row) for row in rows], np.int64))

    def rows(self) -> list[NDArray[np.int64]]:
        """The ids of each text."""
        ends = np.cumsum(self.lengths).tolist()
        return [self.ids[start:end] for start, end in itertools.pairwise([0, *ends])]


class Text:
    """A tokenizer.

    Args:
        tokenizer: where truncation and padding are off.
        specials: the tokens that are there of pad, unk, cls and mask, by those names.
        clean: whether decoded text has the spaces before punctuation removed.
        max_length: tokens that the model was made for at most, special ones included; None: not
            known.
        cut_left: whether text that is too long loses its beginning instead of its end.
        context_first: whether a question stands behind what it is asked of.

    Attributes:
        side: of text that is too long, which is cut: left or right.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        specials: Mapping[str, str] | None = None,
        clean: bool = False,
        *,
        max_length: int | None = None,
        cut_left: bool = False,
        context_first: bool = False,
    ) -> None:
        self.specials = dict(specials or {})
        self.max_length = max_length
        self.context_first = context_first
        self._ids = {key: tokenizer.token_to_id(token) for key, token in self.specials.items()}
        self._clean = clean
        self.side = "left" if cut_left else "right"
        whole = json.loads(tokenizer.to_str())
        _keep_offsets(whole["post_processor"])
        self.tokenizer: Tokenizer = Tokenizer.from_str(json.dumps(whole))
        bare = {**whole, "post_processor": None}
        self._bare: Tokenizer = Tokenizer.from_str(json.dumps(bare))
        self._plain = PlainText.of(bare)
        plain = () if self._plain is None else (self._plain.tokenizer,)
        # Which the serialized form does not have.
        for made in (self.tokenizer, self._bare, *plain):
            made.encode_special_tokens = tokenizer.encode_special_tokens
        self._roles: tuple[Role, ...] = ()
        self._positions = Positions()
        self._vocabulary: int | None = None
        # Whether no text can have a token that the model does not know.
        self._all_known = False
        self._special: dict[bool, int] = {
            pair: tokenizer.num_special_tokens_to_add(pair) for pair in (False, True)
        }

    @classmethod
    def load(cls, model: ModelFiles) -> Text:
        """Read a model's tokenizer.

        Raises:
            ModelError: a file is damaged, or says what cannot be done.
        """
        found = tokenizer_files.load(model.tokenizer, model.config)
        return cls(
            found.tokenizer,
            found.specials,
            found.clean,
            max_length=found.max_length,
            cut_left=found.cut_left,
            # transformers turns pairs of question and context round where padding is on the left.
            context_first=found.pad_left,
        )

    def special_id(self, key: str) -> int | None:
        """Id of the pad, unk, cls or mask token; None where there is none."""
        return self._ids.get(key)

    def check_inputs(self, names: Sequence[str], model: ModelFiles) -> None:
        """Take note of the model's inputs, and of what its configuration says about them.

        Raises:
            ModelError: one of them cannot be filled.
        """
        self._roles = roles(names)
        self._positions = model.positions
        self._vocabulary = model.vocabulary
        ids = self.tokenizer.get_vocab().values()
        self._all_known = self._vocabulary is None or max(ids, default=0) < self._vocabulary

    def special_tokens(self, pair: bool = False) -> int:
        """How many special tokens a sequence, or a pair, gets."""
        return self._special[pair]

    # ---- text to tokens --------------------------------------------------------------------------

    def encode(self, text: str) -> Encoding:
        """All tokens of a text, special ones and truncation left out.

        Raises:
            InputError: the text holds half a character.
        """
        return self._encode(text)

    def encode_words(self, words: Sequence[str]) -> Encoding:
        """The same of words; offsets are inside each word."""
        return self._encode(list(words), is_pretokenized=True)

    def _encode(self, text: str | list[str], is_pretokenized: bool = False) -> Encoding:
        options = {"is_pretokenized": is_pretokenized, "add_special_tokens": False}
        try:
            if len(text) > LONG:
                return self._bare.encode_batch([text], **options)[0]
            return self._bare.encode(text, **options)
        except TypeError:
            raise InputError(
                "the text is not valid Unicode: it has a surrogate (U+D800 to U+DFFF) of its own"
            ) from None

    def all_ids(self, texts: Sequence[str]) -> Tokens:
        """All tokens of each text, special ones and truncation left out.

        Other threads run meanwhile, and several share the work where the tokenizer may use them.

        Raises:
            InputError: a text holds half a character.
        """
        if self._plain is None:
            return Tokens.of(self._batch(texts))
        ids, lengths, is_plain = self._plain.ids(texts)
        found = Tokens(ids, lengths)
        if len(lengths) == len(texts):
            return found
        plain = iter(found.rows())
        others = iter(self._batch([t for t, own in zip(texts, is_plain, strict=True) if not own]))
        return Tokens.of([next(plain if own else others) for own in is_plain])

    def _batch(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        if len(texts) < 2:
            return [self.ids(text) for text in texts]
        try:
            return [np.array(one.ids, np.int64) for one in encode_batch(self._bare, texts)]
        except TypeError:
            # The one that it is says so.
            return [self.ids(text) for text in texts]

    def singles(self, tokens: Tokens, max_length: int) -> list[Features]:
        """What the model takes of texts, with special tokens, each cut to `max_length` in all.

        Args:
            tokens: of the texts, as :meth:`all_ids` gives them.

        Raises:
            InputError: as for :meth:`features`.
        """
        room = max_length - self.special_tokens()
        if len(tokens.lengths) and tokens.lengths.max() > room:
            _check_room(room)
            left = self.side == "left"
            tokens = Tokens.of([ids[max(len(ids) - room, 0) :] if left else ids[:room]
                                for ids in tokens.rows()])  # fmt: skip
        before, after, kinds = self._frame
        # All in one array, of which each sequence has a part.
        ends = np.zeros(len(tokens.lengths) + 1, np.int64)
        np.cumsum(tokens.lengths + len(before) + len(after), out=ends[1:])
        whole = np.empty(ends[-1], np.int64)
        types = np.full(len(whole), kinds[1], np.int64)
        own = np.ones(len(whole), np.bool_)
        rows = ((before, ends[:-1], kinds[0]), (after, ends[1:] - len(after), kinds[2]))
        for special, starts, kind in rows:
            for i, token in enumerate(special):
                whole[starts + i] = token
                types[starts + i] = kind
                own[starts + i] = False
        whole[own] = tokens.ids
        return self._split(whole, types, ends.tolist())

    def join(self, first: Encoding, second: Encoding | None = None) -> Encoding:
        """Put the special tokens around one or two encodings."""
        return self.tokenizer.post_process(first, second)

    def fit(self, first: Encoding, max_length: int) -> Encoding:
        """Tokens of a text with special ones, cut to `max_length` in all."""
        self.cut(first, max_length - self.special_tokens())
        return self.join(first)

    def ids(self, text: str) -> NDArray[np.int64]:
        """The same as :meth:`encode`, ids only, for :meth:`pair`."""
        return np.array(self.encode(text).ids, np.int64)

    def pair(
        self,
        first: NDArray[np.int64],
        second: NDArray[np.int64],
        max_length: int,
        only_first: bool = False,
    ) -> Features:
        """What the model takes of two texts, joined as the tokenizer joins them.

        Texts are given as :meth:`ids`, so that one that is part of many pairs is tokenized once.

        Args:
            first, second: the texts' tokens; cut to fit: the longer one, until they are equally
                long, then both.
            max_length: tokens in all.
            only_first: cut the first one alone.

        Raises:
            InputError: no token of a text that is cut would be left; or as for :meth:`features`.
        """
        room = max_length - self.special_tokens(pair=True)
        lengths = _shares(len(first), len(second), room, only_first)
        taken = [self._head(tokens, n) for tokens, n in zip((first, second), lengths, strict=True)]
        ids, types = [], []
        for part, kind in self._template:
            tokens = taken[part] if isinstance(part, int) else part
            ids.append(tokens)
            types.append(np.full(len(tokens), kind, np.int64))
        return self._features(np.concatenate(ids), np.concatenate(types))

    def _head(self, tokens: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        """What :meth:`cut` leaves."""
        if len(tokens) > length:
            _check_room(length)
        return tokens[:length] if self.side == "right" else tokens[max(0, len(tokens) - length) :]

    @cached_property
    def _template(self) -> list[tuple[int | NDArray[np.int64], int]]:
        """How the tokenizer joins a pair: parts in order, each 0 or 1 for the tokens of the first
        or the second text, or else special tokens; with their token type."""
        texts = itertools.chain("a0.", self.tokenizer.get_vocab())
        one = next((text for text in texts if len(self.encode(text))), None)
        if one is None:
            raise ModelError("the tokenizer makes no token of any text: it is damaged")
        joined = self.tokenizer.encode(one, one)
        rows = zip(joined.sequence_ids, joined.type_ids, joined.ids, strict=True)
        parts: list[tuple[int | NDArray[np.int64], int]] = []
        for (sequence, kind), group in itertools.groupby(rows, lambda row: row[:2]):
            special = np.array([row[2] for row in group], np.int64)
            parts.append((special if sequence is None else sequence, kind))
        return parts

    @cached_property
    def _frame(self) -> tuple[NDArray[np.int64], NDArray[np.int64], tuple[int, int, int]]:
        """Special tokens before and behind a single text; token types of those, with that of the
        text between."""
        texts = itertools.chain("a0.", self.tokenizer.get_vocab())
        one = next((text for text in texts if len(self.encode(text))), None)
        if one is None:
            raise ModelError("the tokenizer makes no token of any text: it is damaged")
        joined = self.tokenizer.encode(one)
        own = [i for i, number in enumerate(joined.sequence_ids) if number is not None]
        first, last = own[0], own[-1] + 1
        types = joined.type_ids
        kinds = (types[0], types[first], types[-1])
        ids = np.array(joined.ids, np.int64)
        return ids[:first], ids[last:], kinds

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Tokens as text."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        if self._clean:
            for found in _TIGHT:
                text = text.replace(found, found.strip())
        return text

    def join_words(self, tokens: Sequence[str]) -> str:
        """Tokens, by their spelling in the vocabulary, as text."""
        decoder = self.tokenizer.decoder
        text: str = " ".join(tokens) if decoder is None else decoder.decode(list(tokens))
        return text

    def cut(self, encoding: Encoding, length: int) -> None:
        """Keep `length` tokens: the first ones, or the last if the tokenizer cuts there.

        Raises:
            InputError: no token would be left.
        """
        if len(encoding) > length:
            _check_room(length)
            encoding.truncate(length, direction=self.side)

    def windows(self, encoding: Encoding, length: int, stride: int) -> list[tuple[int, Encoding]]:
        """An encoding in pieces of at most `length` tokens that overlap by `stride`.

        Returns:
            The index of each piece's first token, and the piece; in the text's order.  The last
            piece is shorter; the first, if the tokenizer cuts there.

        Raises:
            InputError: pieces would not advance.
        """
        total = len(encoding)
        if total <= length:
            return [(0, encoding)]
        if stride >= length:
            raise InputError(
                f"windows of {length} tokens cannot overlap by {stride}: use a larger "
                f"{setting('sequence_length')} or a smaller {setting('stride', option=True)}"
            )
        encoding.truncate(length, stride=stride, direction=self.side)
        pieces = [encoding, *encoding.overflowing]
        step = length - stride
        if self.side == "right":
            return [(k * step, piece) for k, piece in enumerate(pieces)]
        starts = [max(0, total - length - k * step) for k in range(len(pieces))]
        return list(zip(starts, pieces, strict=True))[::-1]

    def features(self, encoding: Encoding) -> Features:
        """What the model takes of an encoding.

        Raises:
            InputError: it has a token that the model does not know.
        """
        return self._features(
            np.array(encoding.ids, np.int64), np.array(encoding.type_ids, np.int64)
        )

    @property
    def vocabulary(self) -> int:
        """Tokens that the model has embeddings for; else those of the tokenizer."""
        return self._vocabulary or self.tokenizer.get_vocab_size()

    def features_of(self, ids: NDArray[np.int64]) -> Features:
        """What the model takes of the tokens of one text, special ones included, int64 ``[n]``.

        Raises:
            InputError: as for :meth:`features`.
        """
        return self._features(ids, np.zeros(len(ids), np.int64))

    def _features(self, ids: NDArray[np.int64], types: NDArray[np.int64]) -> Features:
        (found,) = self._split(ids, types, [0, len(ids)])
        return found

    def _split(
        self, ids: NDArray[np.int64], types: NDArray[np.int64], ends: Sequence[int]
    ) -> list[Features]:
        """The sequences of one array.

        Args:
            ends: where each ends, behind a 0.
        """
        places = list(itertools.pairwise(ends))
        rows = [ids[start:end] for start, end in places]
        if not self._all_known:
            for row in rows:
                self._check_known(row)
        columns: list[list[NDArray[np.int64]]] = []
        for role in self._roles:
            if role.kind == "ids":
                columns.append(rows)
            elif role.kind == "positions":
                columns.append([self._positions.of(row) for row in rows])
            else:
                whole = types if role.kind == "types" else np.ones(len(ids), np.int64)
                columns.append([whole[start:end] for start, end in places])
        names = [role.name for role in self._roles]
        return [
            Features(dict(zip(names, arrays, strict=True)), len(row))
            for row, *arrays in zip(rows, *columns, strict=True)
        ]

    def _check_known(self, ids: NDArray[np.int64]) -> None:
        size = self._vocabulary
        if size is not None and len(ids) and (worst := int(ids.max())) >= size:
            raise InputError(
                f"the text has the token {self.tokenizer.id_to_token(worst)!r} with the id "
                f"{worst}, and the model knows {size} tokens (vocab_size of config.json): the "
                f"token was added to the tokenizer and not to the model"
            )


def _check_room(length: int) -> None:
    if length < 1:
        raise InputError(
            f"{setting('sequence_length')} leaves no room for text beside the special tokens: use "
            f"a larger one"
        )


def _shares(first: int, second: int, room: int, only_first: bool) -> tuple[int, int]:
    """How many tokens of a pair of texts are kept; :meth:`Text.pair` has the rules."""
    if first + second <= room:
        return first, second
    if only_first:
        return room - second, second
    short, long = sorted((first, second))
    long = max(short, room - short) if short <= room else short
    if short + long > room:
        short, long = room // 2, room - room // 2
    return (short, long) if first <= second else (long, short)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a token is in its text.

    Attributes:
        start: its first character; white space that the token has before it is left out.
        end: behind its last one, without white space; `start` where there is nothing else.
        head: whether a word begins here.
    """

    start: int
    end: int
    head: bool


def places(encoding: Encoding, text: str, starts: Sequence[int] | None = None) -> list[Place]:
    """The places of all tokens.

    A word begins where the tokenizer's words do, and behind white space of any kind, which is not
    what all tokenizers part words at.

    Args:
        encoding: the tokens, of the text or of words.
        text: the text, or the words joined.
        starts: where each word starts in it, if the text came in words; those are the words then.
    """
    found = []
    last: int | None = None
    behind = 0
    rows = zip(
        encoding.tokens, encoding.offsets, encoding.word_ids, encoding.special_tokens_mask,
        strict=True,
    )  # fmt: skip
    for token, (start, end), word, special in rows:
        if special:
            found.append(Place(start, end, True))
            continue
        if starts is not None and word is not None:
            start, end = start + starts[word], end + starts[word]
        covered = text[start:end]
        if covered != token and not token.strip(_SPACES) and not covered.isspace():
            # A space that the tokenizer puts before the text counts as its first character.
            covered, end = "", start
        shown = covered.strip()
        if shown != covered:
            start = end - len(covered.lstrip())
            end = start + len(shown)
        parted = starts is None and any(c.isspace() for c in text[behind:start])
        found.append(Place(start, end, word is None or word != last or parted))
        # A lone space is the mark before a word, a lone line break is no part of the next one.
        alone = bool(covered.strip(" ")) and not shown
        last, behind = word, start - len(covered) if alone else end
    return found


def _keep_offsets(processor: dict[str, Any] | None) -> None:
    """Switch off that a post-processor takes white space out of offsets: `places` does, by the text
    and not by what a token is spelled like."""
    for part in (processor, *(processor or {}).get("processors", ())):
        if part and "trim_offsets" in part:
            part["trim_offsets"] = False
