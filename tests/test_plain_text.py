"""The shorter way of tokenizing ASCII gives what the long one gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers
from tokenizers.pre_tokenizers import BertPreTokenizer

from sparsec.serving._words import Words
from sparsec.serving.runner import roles
from sparsec.serving.text import Text, Tokens
from tests import pipelines_support

ASCII = st.text(st.characters(min_codepoint=0, max_codepoint=127), max_size=60)
WORDS = st.lists(
    st.sampled_from(["Mary", "FLYING", "[SEP]", "[sep]", " ", "\t", "é", "東", "<new>", "a\x00b"]),
    max_size=8,
).map(" ".join)


def _lists(tokens: Tokens) -> list[list[int]]:
    assert tokens.ids.dtype == np.int64
    return [row.tolist() for row in tokens.rows()]


@pytest.fixture(scope="module", params=[True, False], ids=["lower", "cased"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Text:
    path = pipelines_support.word_piece(tmp_path_factory.mktemp("plain") / "tokenizer.json")
    made = Tokenizer.from_file(str(path))
    made.no_truncation()
    made.no_padding()
    made.normalizer = normalizers.BertNormalizer(lowercase=request.param)
    made.add_tokens([AddedToken("<New>", normalized=True, lstrip=True)])
    return Text(made)


@given(st.lists(ASCII | WORDS | st.text(max_size=20), min_size=2, max_size=6))
def test_both_ways_give_the_same(tokenizer: Text, texts: list[str]) -> None:
    assert tokenizer._plain is not None
    assert _lists(tokenizer.all_ids(texts)) == [tokenizer.encode(text).ids for text in texts]
    plain = [text.isascii() and text.isprintable() and not set(text) & {"[", "<"} for text in texts]
    assert tokenizer._plain.ids(texts)[2].tolist() == plain


def test_words_are_forgotten_when_they_are_many(
    tokenizer: Text, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tokenizer._plain
    assert plain is not None
    monkeypatch.setattr(plain, "_room", 100)
    before = plain._words
    for i in range(9):
        texts = [f"mary flies {i} {j} york-{i + j}" for j in range(4)]
        assert _lists(tokenizer.all_ids(texts)) == [tokenizer.encode(text).ids for text in texts]
    assert plain._words is not before
    assert plain._room > 0


def test_which_tokenizers_have_it(tmp_path: Path) -> None:
    made = Tokenizer.from_file(str(pipelines_support.word_piece(tmp_path / "a.json")))
    assert Text(made)._plain is not None
    # Added tokens that begin with a letter may be anywhere in a text.
    made.add_tokens(["Acme"])
    assert Text(made)._plain is None
    other = Tokenizer.from_file(str(pipelines_support.byte_level(tmp_path / "b.json")))
    assert Text(other)._plain is None


def test_a_sequence_of_ids_is_what_the_tokenizer_makes(tmp_path: Path) -> None:
    """`singles` puts special tokens where the post-processor does, and cuts as `fit` does."""
    for kind in (pipelines_support.word_piece, pipelines_support.byte_level):
        made = Tokenizer.from_file(str(kind(tmp_path / "t.json")))
        made.no_truncation()
        made.no_padding()
        for left in (False, True):
            text = Text(made, cut_left=left)
            text._roles = roles(["input_ids", "attention_mask", "token_type_ids"])
            texts = ["", "mary is flying", "mary is flying to new york " * 5]
            kept = text.singles(text.all_ids(texts), 16)
            for words, one in zip(texts, kept, strict=True):
                whole = text.fit(text.encode(words), 16)
                assert one.length == len(whole)
                assert one.arrays["input_ids"].tolist() == whole.ids
                assert one.arrays["token_type_ids"].tolist() == whole.type_ids
                assert one.arrays["attention_mask"].tolist() == [1] * len(whole)


def test_ids_of_any_size_are_remembered() -> None:
    """Those between 0xD800 and 0xE000, too, which are no characters of their own."""
    vocabulary = {"[UNK]": 0, **{f"w{i}": i for i in range(1, 70_000)}}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), BertPreTokenizer()
    text = Text(made)
    assert text._plain is not None
    ids = [1, 255, 256, 0xD7FF, 0xD800, 0xDBFF, 0xDC00, 0xDFFF, 0xE000, 0xFFFF, 0x10000, 69_999]
    words = " ".join(f"w{i}" for i in ids)
    assert _lists(text.all_ids([words, "", "w7", words])) == [ids, [], [7], ids]


@given(
    st.lists(st.text(st.characters(max_codepoint=0x7F)) | st.text(max_size=9), max_size=9),
    st.booleans(),
    st.sampled_from(["", "[", "<[~"]),
)
def test_words_are_looked_up_as_a_dictionary_would(
    texts: list[str], lower: bool, marks: str
) -> None:
    """Tokens of any number, none included, in the order of the words."""
    words = Words(lower, marks)
    known: dict[str, list[int]] = {}
    plain = [t.isascii() and (not t or t.isprintable()) and not set(t) & set(marks) for t in texts]
    split = [
        (t.lower() if lower else t).split() for t, own in zip(texts, plain, strict=True) if own
    ]
    missing = words.look_up(texts)[3]
    assert missing == [word for row in split for word in row]
    for i, word in enumerate(missing):
        known.setdefault(word, [2**32 - 1 - i, *range(i)][: i % 4])
    words.add(list(known), list(known.values()))
    words.add(list(known), [[7]] * len(known))  # what is known stays
    ids, lengths, found, missing = words.look_up(texts)
    rows = [[token for word in row for token in known[word]] for row in split]
    assert missing == []
    assert found.tolist() == plain
    assert lengths.tolist() == list(map(len, rows))
    assert ids.tolist() == [token for row in rows for token in row]
    assert (ids.dtype, lengths.dtype, len(words)) == (np.int64, np.int64, len(known))


def test_many_words_are_looked_up() -> None:
    words = Words(True, "")
    names = [f"w{i * 7919:x}" * (1 + i % 5) for i in range(20_000)]
    words.add(names, [[i] * (i % 3) for i in range(len(names))])
    for _ in range(2):
        ids, lengths, _, missing = words.look_up([" ".join(names), "", " W0  w0 ", *names[:9]])
        assert missing == []
        assert lengths.tolist()[:3] == [sum(i % 3 for i in range(len(names))), 0, 0]
        assert ids[: lengths[0]].tolist() == [i for i in range(len(names)) for _ in range(i % 3)]


@pytest.mark.parametrize(
    ("word", "row", "error"),
    [("", [1], ValueError), ("a b", [1], ValueError), ("é", [1], UnicodeEncodeError),
     ("a", [2**32], OverflowError), ("a", [-1], OverflowError), ("a", ["1"], TypeError)],
)  # fmt: skip
def test_what_is_no_word_is_refused(word: str, row: list[int], error: type[Exception]) -> None:
    words = Words(False, "")
    with pytest.raises(error):
        words.add([word], [row])
    assert len(words) == 0
    with pytest.raises(TypeError):
        words.look_up([b"a"])  # type: ignore[list-item]
