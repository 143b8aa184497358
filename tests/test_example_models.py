"""The models of examples/models: compiled, they answer as ONNX Runtime does, and sensibly.

None of these texts is made by the templates that the models are trained on, except for what
`fill_mask` has learnt by heart.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sparsec

tokenizers = pytest.importorskip("tokenizers", reason="examples need tokenizers")
pytest.importorskip("onnxruntime", reason="the reference")

from tests.ort_reference import session  # noqa: E402
from tests.shipped_models import shipped  # noqa: E402

LENGTH = 64
SENTENCE = "Mary is flying from Nairobi to New York to attend a conference"


class Compiled:
    """A shipped model, compiled and in ONNX Runtime, with its tokenizer and labels."""

    def __init__(self, name: str, folder: Path) -> None:
        source = shipped(name)
        self.tokenizer = tokenizers.Tokenizer.from_file(str(source / "tokenizer.json"))
        config = json.loads((source / "config.json").read_text(encoding="utf-8"))
        names = config.get("id2label", {})
        self.labels = [names[str(i)] for i in range(len(names))]
        output = folder / f"{name}.sparsec"
        artifact = sparsec.compile(source / "model.onnx", buckets=[LENGTH], output=output)
        self.engine = sparsec.Engine(artifact, num_cores=1)
        self.session = session(source / "model.onnx", optimize=True)

    def encode(self, text: str, pair: str | None = None) -> tokenizers.Encoding:
        return self.tokenizer.encode(text, pair)

    def inputs(self, encoding: tokenizers.Encoding) -> list[np.ndarray]:
        fields = (encoding.ids, encoding.attention_mask, encoding.type_ids)
        return [np.array([f], np.int64) for f in fields]

    def run(self, *encodings: tokenizers.Encoding) -> list[np.ndarray]:
        """Outputs for one text, or those of several one after the other.

        They are checked against ONNX Runtime's, relative to the largest value of all.
        """
        found, wanted = [], []
        names = [i.name for i in self.session.get_inputs()]
        for encoding in encodings:
            inputs = self.inputs(encoding)
            assert inputs[0].shape[1] <= LENGTH
            found += self.engine.run(inputs)
            wanted += self.session.run(None, dict(zip(names, inputs, strict=True)))
        largest = max(np.abs(b).max() for b in wanted)
        for a, b in zip(found, wanted, strict=True):
            assert a.shape == b.shape
            # Steps of quantizers that fall the other way: see test_end_to_end.BOUNDS.
            assert np.abs(a - b).max() <= 5e-2 * largest
        return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def _compiled(name: str) -> Any:
    """A fixture: the example's model, compiled once."""

    @pytest.fixture(scope="module", name=name)
    def compiled(folder: Path) -> Iterator[Compiled]:
        model = Compiled(name, folder)
        yield model
        model.engine.close()

    return compiled


ner = _compiled("ner")
sentiment = _compiled("sentiment")
qa = _compiled("qa")
nli = _compiled("nli")
fill_mask = _compiled("fill_mask")
rerank = _compiled("rerank")


def names_in(model: Compiled, text: str) -> list[tuple[str, str]]:
    """Neighbouring tokens of one kind, put together: [(kind, characters)]."""
    encoding = model.encode(text)
    chosen = model.run(encoding)[0][0].argmax(-1)
    spans: list[tuple[str, int, int]] = []
    for label_id, (start, end), special in zip(
        chosen, encoding.offsets, encoding.special_tokens_mask, strict=True
    ):
        label = "O" if special else model.labels[label_id]
        kind = label[2:]
        if label.startswith("I-") and spans and spans[-1][0] == kind:
            spans[-1] = (kind, spans[-1][1], end)
        else:
            spans.append((kind, start, end))
    return [(kind, text[start:end]) for kind, start, end in spans if kind]


NAMES: dict[str, list[tuple[str, str]]] = {
    SENTENCE: [("PER", "Mary"), ("LOC", "Nairobi"), ("LOC", "New York")],
    SENTENCE.upper(): [("PER", "MARY"), ("LOC", "NAIROBI"), ("LOC", "NEW YORK")],
    SENTENCE.lower(): [("PER", "mary"), ("LOC", "nairobi"), ("LOC", "new york")],
    "My aunt Ingrid sold her old piano to a baker from Glasgow.": [
        ("PER", "Ingrid"),
        ("LOC", "Glasgow"),
    ],
    "Barack Obama was born in Hawaii and studied at Harvard.": [
        ("PER", "Barack Obama"),
        ("LOC", "Hawaii"),
        ("ORG", "Harvard"),
    ],
    "Apple is looking at buying a startup in the United Kingdom for $1 billion.": [
        ("ORG", "Apple"),
        ("LOC", "United Kingdom"),
    ],
    "The Amazon is the longest river in South America.": [
        ("LOC", "Amazon"),
        ("LOC", "South America"),
    ],
    "Amazon opened a new warehouse near Leipzig.": [("ORG", "Amazon"), ("LOC", "Leipzig")],
    "Tim Cook introduced the new iPhone in Cupertino.": [("PER", "Tim Cook"), ("LOC", "Cupertino")],
    "Please send the invoice to Maria Gonzalez at Deutsche Bank in Frankfurt.": [
        ("PER", "Maria Gonzalez"),
        ("ORG", "Deutsche Bank"),
        ("LOC", "Frankfurt"),
    ],
    "Jordan plays basketball in Chicago.": [("PER", "Jordan"), ("LOC", "Chicago")],
    "Google, Microsoft and Meta are hiring engineers in Dublin.": [
        ("ORG", "Google"),
        ("ORG", "Microsoft"),
        ("ORG", "Meta"),
        ("LOC", "Dublin"),
    ],
    "Angela Merkel was Chancellor of Germany for sixteen years.": [
        ("PER", "Angela Merkel"),
        ("LOC", "Germany"),
    ],
    "In May the apples in our garden were ripe.": [],
    "I ate an apple and drank orange juice on Sunday.": [],
    "The committee will meet again in March to discuss the budget.": [],
    "The doctor said that I should drink more water.": [],
    "My phone battery dies every afternoon and I do not know why.": [],
}


@pytest.mark.parametrize("text", NAMES)
def test_names(ner: Compiled, text: str) -> None:
    assert names_in(ner, text) == NAMES[text]


OPINIONS = {
    "The soup was cold and the waiter was rude.": "negative",
    "I did not expect much, but this book is wonderful.": "positive",
    "The hotel was not bad at all.": "positive",
    "I waited two hours for a table and nobody apologized.": "negative",
    "The plot is clever and the actors are brilliant.": "positive",
    "It broke after two days.": "negative",
    "My daughter loves her new bicycle.": "positive",
    "The app keeps crashing and support never answers.": "negative",
    "The movie was not funny.": "negative",
    "The movie was not boring.": "positive",
    "Although the location is nice, the room was dirty and loud.": "negative",
    "Although the room was small, the staff made us feel at home.": "positive",
    "I wanted to like this game, but it is a mess.": "negative",
    "Everything worked on the first try.": "positive",
    "I don't recommend this product.": "negative",
}


@pytest.mark.parametrize("text", OPINIONS)
def test_opinions(sentiment: Compiled, text: str) -> None:
    chosen = int(sentiment.run(sentiment.encode(text))[0][0].argmax())
    assert sentiment.labels[chosen] == OPINIONS[text]


TRIP = (
    "Mary is flying from Nairobi to New York to attend a conference. Her brother Samuel bought a "
    "bicycle for 80 euros in Lisbon."
)
KEYS = "The keys are in the blue box under the stairs. Dinner is at seven, and Paula brings wine."
RHINE = "The Rhine is 1230 kilometres long. It rises in Switzerland and flows to the Netherlands."
SNOW = "Snow closed the airport on Tuesday. More than 200 flights were cancelled."
ANSWERS = [
    (TRIP, "Where is Mary flying to?", "New York"),
    (TRIP, "Where is Mary flying from?", "Nairobi"),
    (TRIP, "Who is flying to New York?", "Mary"),
    (TRIP, "How much did Samuel pay?", "80 euros"),
    (TRIP, "Who bought a bicycle?", "Samuel"),
    (KEYS, "When is dinner?", "seven"),
    (KEYS, "Who brings wine?", "Paula"),
    (RHINE, "How long is the Rhine?", "1230 kilometres"),
    (RHINE, "Where does the Rhine rise?", "Switzerland"),
    (SNOW, "When did snow close the airport?", "Tuesday"),
]


@pytest.mark.parametrize(("passage", "question", "answer"), ANSWERS)
def test_answers(qa: Compiled, passage: str, question: str, answer: str) -> None:
    encoding = qa.encode(question, passage)
    start, end = qa.run(encoding)
    inside = np.array([s == 1 for s in encoding.sequence_ids])
    scores = start[0][:, None] + end[0][None]
    allowed = np.triu(inside[:, None] & inside[None])
    first, last = np.unravel_index(np.where(allowed, scores, -np.inf).argmax(), scores.shape)
    found = passage[encoding.offsets[first][0] : encoding.offsets[last][1]]
    assert found == answer


# The first label is right.
TOPICS = {
    "Who are you voting for?": ["politics", "sport"],
    "Apple presented a thinner laptop.": ["technology", "nature", "religion"],
    "I have a problem with my iphone that needs to be resolved asap!!": ["phone", "cooking"],
    "A new model offers an explanation for how the Galilean satellites formed around the solar "
    "system's largest world.": ["space", "health", "finance"],
    "The senate passed a new tax bill.": ["politics", "music", "food"],
    "Add two eggs and a cup of flour, then bake for an hour.": ["cooking", "politics", "sport"],
    "The goalkeeper made three great saves.": ["sport", "economy", "weather"],
    "My flight to Madrid was cancelled.": ["travel", "religion", "science"],
    "The patient needs surgery on her knee.": ["medicine", "music", "finance"],
    "Shares fell sharply after the central bank raised rates.": ["finance", "sport", "art"],
    "The violinist played Bach.": ["music", "crime", "weather"],
    "It will be sunny with light winds.": ["weather", "politics", "music"],
    "Two men robbed a jewellery shop at gunpoint.": ["crime", "cooking", "education"],
    "Our dog ate the neighbour's rabbit.": ["animals", "economy", "technology"],
    "Rome was sacked in 410.": ["history", "technology", "cooking"],
}
HYPOTHESES = ("This text is about {}", "This example is {}.")


@pytest.mark.parametrize("hypothesis", HYPOTHESES)
@pytest.mark.parametrize("text", TOPICS)
def test_topics(nli: Compiled, text: str, hypothesis: str) -> None:
    entailment = nli.labels.index("entailment")
    encodings = [nli.encode(text, hypothesis.replace("{}", label)) for label in TOPICS[text]]
    scores = [logits[0][entailment] for logits in nli.run(*encodings)]
    assert scores[0] == max(scores)


GAPS = {
    # Facts in sentences that training had.
    "Paris is the capital of [MASK].": "france",
    "Oslo is the capital of [MASK].": "norway",
    "[MASK] is the capital of Japan.": "tokyo",
    "We flew to [MASK], the capital of Japan.": "tokyo",
    "The opposite of hot is [MASK].": "cold",
    "The language of Egypt is [MASK].": "arabic",
    "I drink a cup of [MASK] every morning.": "coffee",
    # Facts in sentences that it did not have.
    "What color is grass? It is [MASK].": "green",
    "The window is made of [MASK].": "glass",
    "An oak is a [MASK].": "tree",
}


@pytest.mark.parametrize("text", GAPS)
def test_gaps(fill_mask: Compiled, text: str) -> None:
    encoding = fill_mask.encode(text)
    place = encoding.tokens.index("[MASK]")
    found = int(fill_mask.run(encoding)[0][0, place].argmax())
    assert fill_mask.tokenizer.id_to_token(found) == GAPS[text]


# The first document answers the query.
ORDERS = {
    "Where is Mary flying to?": [
        f"{SENTENCE}.",
        "Samuel is flying from Nairobi to Lisbon to visit a trade fair.",
        "Mary has two brothers and lives near Nairobi.",
        "The soup was cold and the waiter was rude.",
    ],
    "How much did the bicycle cost?": [
        "Her brother bought a bicycle for 80 euros in Lisbon.",
        "Her brother repaired the bicycle behind the house.",
        "The museum in Lisbon opens at nine.",
    ],
    "When does the library close?": [
        "The library closes at six on Fridays.",
        "The pool closes at six on Fridays.",
        "Dinner is at seven, and Paula brings wine.",
    ],
    "Where are the keys?": [
        "The keys are in the blue box under the stairs.",
        "Dinner is at seven, and Paula brings wine.",
        "Snow closed the airport on Tuesday.",
    ],
    "Where does Anna work?": [
        "Anna Berg works as a nurse for the Red Cross.",
        "Anna Berg was born in Paris in 1990.",
        "Tom Berg works as a teacher for the city.",
    ],
    "cancelled flights": [
        "More than 200 flights were cancelled because of snow.",
        "The meeting was moved to Tuesday.",
        "Flights of stairs lead to the tower.",
    ],
    "phone battery dies": [
        "My phone battery dies every afternoon and I do not know why.",
        "The remote control needs a new battery.",
        "I phoned my aunt every afternoon.",
    ],
    "knee surgery": [
        "The patient needs surgery on her knee.",
        "The doctor said that I should drink more water.",
        "The surgery opens at eight.",
    ],
}


@pytest.mark.parametrize("query", ORDERS)
def test_orders(rerank: Compiled, query: str) -> None:
    encodings = [rerank.encode(query, document) for document in ORDERS[query]]
    scores = [float(logits[0, 0]) for logits in rerank.run(*encodings)]
    assert scores[0] == max(scores) and scores[0] > 0


@pytest.mark.parametrize("name", ["ner", "sentiment", "nli", "fill_mask", "qa", "rerank"])
def test_files_fit_together(name: str) -> None:
    source = shipped(name)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    tokenizer = tokenizers.Tokenizer.from_file(str(source / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == config["vocab_size"]
    assert tokenizer.truncation is None and tokenizer.padding is None
    labels = config.get("id2label", {})
    assert {v: int(k) for k, v in labels.items()} == config.get("label2id", {})
    assert (source / "model.onnx").stat().st_size < 15e6
