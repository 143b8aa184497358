"""Sentences with people, places and organizations, and sentences without any."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import numpy as np

from examples.minilm.text import HERE as MINILM
from examples.minilm.text import read_lines
from examples.training.data import Example, Task
from examples.training.templates import Grammar, Span, split
from examples.training.words import ALL_NAMES, entities

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG", "I-ORG")

# The first three letters of an entity's slot are its label.
SLOTS = {
    "PER": [*["{first}"] * 4, *["{first} {last}"] * 5, "{last}", "{first} {initial}. {last}"]
    + ["{initial}. {last}", "{unknown}", "{first} {unknown}", "{first} {last}-{last}"],
    "PERF": [*["{first}"] * 8, "{unknown}"],
    "PERL": [*["{last}"] * 5, "{first} {last}", "{unknown}"],
    "LOC": [*["{city}"] * 6, *["{country}"] * 4, *["{region}"] * 3, "{nature}", "{unknown}"],
    "LOCC": [*["{city}"] * 9, "{unknown}"],
    "LOCN": [*["{country}"] * 4, "{region}"],
    "LOCT": ["{with_the}"],
    "ORG": [*["{company}"] * 7, *["{stem} {end}"] * 4, "{last} {end}", "{last} & {last}"]
    + ["{unknown}", "{unknown} {end}", "{stem} & {last}", "{city} {end}", "{stem} {stem}"]
    + ["University of {city}", "{city} University", "Bank of {country}", "{stem}"],
    "ORGI": [*["{institution}"] * 4, "University of {city}", "{country} Red Cross"]
    + ["Ministry of (Health|Finance|Defence|Education)", "{city} (City|Chamber of Commerce|Zoo)"],
}

PHRASES = {
    "p": [*["{PER}"] * 8, "{title} {PERL}", "{title} {PERL}"],
    "title": ["Mr.", "Mrs.", "Ms.", "Dr.", "Professor", "President", "Senator", "Captain", "Sir", "Judge", "Minister", "Mr", "Dr"],
    "place": [*["{LOC}"] * 9, "{LOCC}, {LOCN}", "the {LOCT}", "(northern|southern|rural) {LOCN}"]
    + ["downtown {LOCC}", "the (outskirts|suburbs|north|centre) of {LOC}"],
    "org": [*["{ORG}"] * 9, "the {ORGI}", "{ORGI}", "the {ORG}"],
    "relative": ["my", "his", "her", "our", "their", "your"],
    "kin": ["brother", "sister", "cousin", "uncle", "aunt", "boss", "neighbour", "friend", "wife", "husband", "son", "daughter"],
    "day": ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"],
    "month": ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"],
    "when": ["on {day}", "in {month}", "last {day}", "next week", "last year", "in {year}"]
    + ["yesterday", "tomorrow", "this morning", "at noon", "in the spring", "two years ago"]
    + ["on {month} {number}", "on {number} {month} {year}", "tonight", "soon", "at {number} pm"],
    "year": [str(y) for y in range(1895, 2030, 3)],
    "number": [str(n) for n in range(2, 31)],
    "amount": ["${number} million", "{number} billion dollars", "{number} euros", "{number}%"]
    + ["{number} thousand pounds", "nearly half"],
    "nationality": ["American", "British", "French", "German", "Kenyan", "Nigerian", "Chinese", "Japanese", "Indian", "Brazilian", "Mexican", "Italian", "Spanish", "Swedish", "Turkish", "Egyptian", "Korean", "Russian", "Dutch", "Greek", "Irish", "Polish", "African", "European", "Asian", "Arabic", "English", "Latin"],
    "job": ["teacher", "doctor", "nurse", "engineer", "lawyer", "painter", "singer", "farmer", "pilot", "chef", "journalist", "writer", "scientist", "actor", "actress", "president", "mayor", "minister", "architect", "director", "manager", "poet", "coach", "player", "captain", "professor", "student", "accountant", "waiter", "baker", "plumber", "judge", "detective"],
    "role": """chief executive|finance director|head of research|spokesman|spokeswoman|chairman|senior
        analyst|software engineer|founder|board member|sales manager|intern|lawyer""".replace(
        "\n        ", " "
    ).split("|"),
    "purpose": """visit a trade fair|visit {relative} {kin}|give a talk|look for work|study medicine
        |meet a client|see the museums|sign the contract|learn the language|start a new job
        |watch the final|take part in a workshop|celebrate {relative} birthday|sell the house
        |interview a witness|buy spare parts|run the marathon|present the results|have surgery
        |play in a concert|join the protest|teach for a year|get married|film a documentary
        |inspect the factory|negotiate a deal|report on the election""".replace(
        "\n        |", "|"
    ).split("|"),
    "said": "said announced explained claimed told reporters confirmed admitted warned hinted wrote".replace(
        "told reporters", "told_reporters"
    ).split(),
    "claim": """the weather would improve|sales had doubled|the plan was too expensive|the bridge was
        safe|nobody was hurt|prices will fall|the talks had failed|the new phone is late|it was a
        mistake|the results were better than expected|the strike would end {when}|taxes must rise
        |the software has a bug|the match was cancelled|there is no evidence|the book is finished
        """.replace("\n        ", " ").replace(" |", "|").strip().split("|"),
    "thing": """car|house|book|bicycle|painting|guitar|laptop|phone|dress|watch|camera|garden|dog|cat
        |boat|ticket|letter|recipe|song|film|report|contract|map|table|lamp|jacket|coat|piano|truck
        |tent|printer|sofa|kettle|radio|novel|poem|email|invoice|suitcase|umbrella""".replace(
        "\n        ", ""
    ).split("|"),
    "adj": ["old", "new", "small", "big", "red", "blue", "green", "expensive", "cheap", "beautiful", "broken", "heavy", "strange", "quiet", "famous", "popular", "empty", "warm", "cold", "wooden", "bright", "dirty", "clean", "modern", "ancient", "local", "early", "late", "public", "private", "national", "young", "happy"],
    "topic": """climate change|football|the economy|the election|inflation|education|health care
        |solar power|housing|artificial intelligence|immigration|trade|rising prices|gardening
        |water|poetry|chess|traffic|the pandemic|human rights|{adj} {thing}s|jazz""".replace(
        "\n        ", ""
    ).split("|"),
    "industry": ["car", "oil", "software", "steel", "food", "film", "shipping", "banking", "clothing", "drug", "phone", "toy"],
    "noun": """meeting|project|train|bus|flight|concert|exam|lesson|party|dinner|lunch|wedding|match
        |storm|accident|shop|restaurant|museum|hospital|factory|library|market|office|school|kitchen
        |airport|station|street|river|mountain|beach|forest|road|village|apartment|team|company
        |government|committee|police|court|bank|hotel|university|church|newspaper|army|king|queen"""
    .replace("\n        ", "").split("|"),
    "food": """bread|rice|soup|apples|an apple|chicken|turkey|fish|pasta|cheese|tea|coffee|orange juice
        |a sandwich|chocolate|beans|tomatoes|eggs|cake|salad|a burger|pizza""".replace(
        "\n        ", ""
    ).split("|"),
    "animal": ["dog", "cat", "horse", "cow", "lion", "jaguar", "puma", "elephant", "bird", "fox", "wolf", "bear", "turkey", "python"],
    "verbed": ["bought", "sold", "lost", "found", "painted", "repaired", "stole", "borrowed", "broke", "moved", "described", "forgot", "cleaned", "designed", "ordered", "returned", "hid", "photographed", "opened", "closed", "won"],
    "place_common": """the {noun}|a {adj} {noun}|the city|the countryside|home|the park|town|the mountains
        |the lake|the desert|the coast|the capital|the border|the island|the north|the garden|work
        |school|the {adj} {noun} near the {noun}""".replace("\n        ", "").split("|"),
    "who_common": """the {job}|a {job}|{relative} {kin}|the {adj} {job}|someone|nobody|everyone|we|they
        |she|he|the {nationality} {job}|a {nationality} {job}|children|the {noun}|one of the {job}s
        |a group of students|the {animal}|people""".replace("\n        ", "").split("|"),
}  # fmt: skip

WITH_NAMES = """
{p} (is flying|flew|will fly|travelled|is travelling|drove|took a train|moved|walked) from {place} to {place} to {purpose}.
{p} (is flying|flew|is going|went|is moving|drove|will travel) to {place} {when} to {purpose}
{p} (flew|sailed|cycled|drove|hitchhiked) from {LOC} to {LOC} {when}.
{when} {p} (left|arrived in|reached|visited|returned to|fled|toured) {place}.
{p} (was born|grew up|lives|died|works|studied|got married|is staying) in {place}.
{p}, who was born in {place} {when}, now lives in {place}.
{p} and {p} (met|live|work|got married|grew up|opened a restaurant) in {place}.
{p}, {p} and {p} (are|were) (late|here|invited|absent|in the {noun}).
(Is|Was) {p} (at home|in the {noun}|ready|still in {place}|a {job})?
(Have|Has) (you|she|he) (met|seen|called) {p}?
(I|we|she|he|they) (met|saw|called|know|like|miss|invited|asked) {p} {when}.
My name is {p} and I (am from|live in|work in|come from) {place}.
I am {p}, a {job} (from|in|at) {place}.
Hello, this is {p} from {org}.
{p} works (for|at) {org} in {place}.
{p} (joined|left|founded|runs|sued|leads|owns|advises|quit|works for|was hired by) {org} {when}.
{p} has been {role} (of|at) {org} since {year}.
{org} (named|appointed|hired|fired|promoted) {p} as {role} {when}.
{p}, {role} (of|at) {org}, {said} {claim}.
"We think {claim}," {said} {p}.
{p} {said} {when} that {claim}.
{org} {said} {when} that {claim}.
{org} {said} it (would|will|may) (open|close|build|buy) a {adj} {noun} in {place} {when}.
{org} (bought|acquired|sold|sued|took over|merged with|will invest in|competes with) {org} for {amount}.
{org} (shares|profits|sales|revenues) (rose|fell|jumped|dropped) {amount} {when}.
{org} is (based|headquartered) in {place}.
(Shares in|Profits at|Workers at|Customers of|Executives from|Lawyers for) {org} (rose|fell|protested|complained|left) {when}.
The headquarters of {org} (is|are) in {place}.
{org}, the {nationality} {industry} company, {said} {claim}.
The {industry} giant {org} (cut|added|announced) {number} thousand jobs in {place}.
A spokesman for {org} {said} {claim}.
{p} (studied|taught|teaches|studies) {topic} at {org}.
She got a job (at|with) {org} after leaving {org}.
They (live|stayed|met|settled|spent the summer|got lost) (in|near|outside) {place}.
The (capital|north|president|economy|people|history|climate) of {LOCN} is (changing|growing|famous|difficult).
(How far is|What time is the flight from|Is there a train from) {LOC} to {LOC}?
What is the (weather|time|population|traffic) (in|of) {place} {when}?
(I would like|we want|she hopes|they plan|he has decided) to (visit|see|travel to|live in|move to) {place}.
The (flight|train|bus|ship|ferry|road|pipeline) from {LOC} to {LOC} was (late|cancelled|full|closed).
The {noun} in {LOC} (opened|closed|burned down|was built|was sold) {when}.
A {adj} {noun} (hit|opened in|closed in|was found near) {place} {when}.
{number} people were (killed|injured|arrested|rescued) in {place} {when}.
{LOCN} and {LOCN} (signed|rejected|discussed) a (trade|peace|border) (deal|treaty) {when}.
{LOCN} (beat|lost to|drew with|will play) {LOCN} {when}.
{LOCN} (exports|imports|produces) {food} and {food}.
The {LOCT} (is|are|was|were) (beautiful|frozen|polluted|crowded|far away) {when}.
We (crossed|sailed|flew over|photographed) the {LOCT} on the way to {place}.
{p} climbed {LOC} (with {p}|alone|twice|{when}).
Dear {PERF}, thank you for the {thing}. See you in {place}. Best wishes, {PERF}
{PERF}'s {kin} {verbed} a {adj} {thing} (in {place}|from {org}|{when}).
{p}'s {adj} {thing} (is|was) (broken|lost|for sale|in {place}).
{p} (ate|cooked|ordered|hates|likes) {food} (with {p}|in {place}|{when}).
{p} {verbed} (a|the) {adj} {thing} {when}.
(the|a) {job} {verbed} the {thing} of {p} in {place}.
{relative} {kin} {PERF} (works for {org}|lives in {place}|is a {job}|likes {topic}).
{relative} {kin} (works|worked) (for|at) {org}.
{p} (wrote|published|is reading|reviewed) a {adj} book (about|on) {place}.
The novel by {p} is set in {place} {when}.
The {nationality} {job} {p} (won|lost|cancelled|opened) the {noun} in {place}.
{job} {p} (was arrested|gave a concert|spoke|retired) in {place} {when}.
(please|can you|remember to) (call|email|ask|tell|remind) {p} (about the {noun}|{when}|at {org}).
(please|can you) (send|ship|bring) the {thing} to {p} (in {place}|at {org}).
{p} (told|asked|reminded|promised|warned) {p} that {claim}.
{p} gave {p} a {adj} {thing} {when}.
{p} (married|divorced|loves|hates|trusts|thanked|replaced|defeated) {p} {when}.
{p} talked (to|with) {p} about {topic}.
The {noun} (was won|was led|was opened|was designed) by {p} of {org}.
The {ORGI} (approved|rejected|criticised|published|discussed) the {thing} {when}.
The {ORGI} (sent|will send) {amount} to {place}.
Members of the {ORGI} met {p} in {place}.
{p} plays for {org}.
{org} (opened|closed|has) (an office|a factory|a shop|a branch) in {LOC} and (one|another) in {LOC}.
{org} makes {adj} {thing}s in {place}.
I bought (a|this|my) {thing} from {org} {when}.
I (use|hate|love|recommend) {org} for {topic}.
(The|A) {org} {thing} is (better|worse|cheaper) than the {ORG} one.
{LOC} is (a|the) (largest|old|beautiful|major|small) (city|town|country|region) in {place}.
{LOC}, {when}: {claim}, {p} {said}.
{LOC} - {p} {said} {claim}.
{LOCC}, {LOCN}
{p} ({org})
{place} {noun} {noun}
{p} vs {p}
from {LOC} via {LOC} to {LOC}
After {number} years in {LOC}, {p} (moved|returned|fled) to {LOC} with {p}.
When {p} came back from {place}, the {noun} was {adj}.
If {p} does not (call|come|pay) {when}, {p} will (leave|cancel|sue {org}).
Although {who_common} {verbed} the {thing}, {p} stayed in {place}.
{who_common} (met|saw|found|called|helped|arrested) {p} (at|near|behind) {place_common}.
{who_common} (came|moved|travelled|wrote) from {place} {when}.
{who_common} {verbed} a {thing} (in|near|outside) {LOC}.
{who_common} (worked|works|interviewed {p}|protested) at {org}.
{p} (walked|went|drove|ran|hurried) (to|from|past) {place_common}.
The {noun} between {p} and {org} (ended|began|was settled) {when}.
(Both|Neither) {PERF} (and|nor) {PERF} (speak|speaks) {nationality}.
{p} speaks {nationality}, {nationality} and a little {nationality}.
{p} was (elected|named|chosen) {job} of {place} {when}.
{p} (is|was|became) the first {job} from {place} to (win|join) the {noun}.
The mayor of {LOCC}, {p}, {said} {claim}.
(Prime Minister|President|Chancellor|King|Queen|Secretary) {PERL} (visited|met|addressed|resigned in) {place}.
Tourists (love|avoid|return to) {LOC}, {LOC} and {LOC}.
{org}, {org} and {org} (agreed|refused) to (share|publish) the {thing}.
{p} has worked for {org}, {org} and {org}.
The {adj} {noun} that {p} {verbed} {when} came from {place}.
(Where|When|Why) did {p} (go|study|travel|leave {place}|meet {p})?
(who|what) is {p}?
(Tell me|I know nothing|Let us talk) about {p}.
Who is the {role} of {org}?
{p} bought a ticket from {LOC} to {LOC} with {org}.
{org} flies from {LOC} to {LOC}.
(My|Her|His) flight from {LOC} to {LOC} with {org} was {adj}.
The {thing} is (in|from) {LOC}, not in {LOC}.
{p} is a {nationality} {job} who (works for {org}|lives in {place}).
{p} ({year} - {year}) was a {nationality} {job}.
{p} is not {p}.
According to {p}, {claim}.
According to {org}, {claim}.
""".strip().splitlines()  # noqa: E501

WITHOUT = """
{who_common} {verbed} (a|the) {adj} {thing} {when}.
{who_common} (ate|cooked|ordered|hates|likes) {food} and {food} {when}.
{who_common} (walked|went|drove|ran|hurried|flew) (to|from|past) {place_common} {when}.
{who_common} (is flying|travelled|moved) from {place_common} to {place_common} to {purpose}.
The {noun} (was|is) {adj} {when}.
The {noun} will (open|close|start|end) {when}.
(I|we|they) (talked|argued|read|wrote) about {topic} {when}.
{claim}.
{who_common} {said} {claim}.
Is the {noun} near the {noun} {adj}?
How much (is|was) the {adj} {thing}?
Where is the nearest {noun}?
The {nationality} {job} (speaks|teaches|learned) {nationality}.
(may|could|can|will) I (borrow|see|have) the {thing}?
It (may|might|will) (rain|snow|be {adj}) in {month}.
In {month} {year} the {noun} was {adj}.
The {animal} (chased|ate|saw) the {animal} near {place_common}.
(turn|walk|drive) (left|right) at the {noun}, then (go|continue) to the {noun}.
{number} {adj} {thing}s (and|or) {number} {thing}s
(please|do not) (close|open|clean|sell|move) the {adj} {thing}.
{who_common} (hopes|wants|plans|tried) to {purpose} {when}.
(Will|Can|Did) {who_common} {purpose} {when}?
The {adj} {job} gave {who_common} a {thing} and a {thing}.
This {thing} (costs|is worth) {amount}.
The {noun} and the {noun} are on the {adj} street.
I (hate|love|miss) {month} because of the {adj} {noun}.
(I have|there was) (an apple|a jaguar|a shell|a target|an amazon|a rose|a mark|a bill) in the {noun}.
(reading|walking|shopping|swimming) in the {noun} is {adj}.
She will (mark|reading|grace|frank) the {thing} {when}.
The {industry} company {said} {claim}.
{topic}
the {adj} {thing} of the {job}
Every {day} {who_common} (go|goes|walk|walks) to {place_common}.
Thank you for the {adj} {thing}.
What a {adj} {noun}!
""".strip().splitlines()  # noqa: E501

# Shares of examples: with names, without, and plain sentences of examples/minilm without names.
SHARES = (0.78, 0.14, 0.08)
OTHER_WORDS = 0.3  # of the sentences get some words that make no sense, so that names count too


@cache
def plain_sentences(held_out: bool) -> list[str]:
    """Lines of examples/minilm/calibration.txt in which only the first word is capitalized."""
    lines = read_lines(MINILM / "calibration.txt")
    words = {w for line in lines for w in re.findall(r"(?<![.!?] )(?<!^)\b[a-z]+", line)}
    names = {part.lower() for name in ALL_NAMES for part in name.split()}
    common = words - names
    kept = []
    for line in lines:
        first, *rest = re.findall(r"[\w']+", line)
        capitals = [w for w in rest if w[0].isupper() and w != "I"]
        if not capitals and first.lower() in common and not names & {w.lower() for w in rest}:
            kept.append(line)
    return split(kept, held_out)


@cache
def grammar(held_out: bool) -> Grammar:
    """The lists of one half."""
    lists = entities(held_out)
    phrases = {**PHRASES, **lists, "said": [s.replace("_", " ") for s in PHRASES["said"]]}
    return Grammar(SLOTS, phrases)


@cache
def templates(held_out: bool) -> tuple[list[str], list[str]]:
    """Templates with and without names, of one half."""
    return split(WITH_NAMES, held_out), split(WITHOUT, held_out)


@cache
def common_words() -> list[str]:
    """Words that are never part of a name, to put in place of others."""
    text = " ".join(w for words in PHRASES.values() for w in words)
    names = {part.lower() for name in ALL_NAMES for part in name.split()}
    found = set(re.findall(r"(?<![{\w])[a-z]{3,}(?![}\w])", text))
    return sorted(found - names)


def with_other_words(
    text: str, spans: list[Span], rng: np.random.Generator
) -> tuple[str, list[Span]]:
    """Replace some words between the entities, and move the entities accordingly."""
    words, share = common_words(), 0.4 * rng.random()
    result, moved, end = "", [], 0

    def other(found: re.Match[str]) -> str:
        return words[int(rng.integers(len(words)))] if rng.random() < share else found[0]

    for span in spans:
        result += re.sub(r"\b[a-z]{4,}\b", other, text[end : span.start])
        name = text[span.start : span.end]
        moved.append(Span(len(result), len(result) + len(name), span.slot))
        result, end = result + name, span.end
    return result + re.sub(r"\b[a-z]{4,}\b", other, text[end:]), moved


def sample(rng: np.random.Generator, held_out: bool) -> Example:
    """One sentence, sometimes two."""
    named, unnamed = templates(held_out)
    kind = rng.choice(3, p=SHARES)
    if kind == 2:
        lines = plain_sentences(held_out)
        return Example(lines[int(rng.integers(len(lines)))])
    choices = unnamed if kind else named
    made = grammar(held_out).expand(choices[int(rng.integers(len(choices)))], rng)
    if rng.random() < 0.1:
        made.text += " "
        made.add(grammar(held_out).expand(named[int(rng.integers(len(named)))], rng))
    text, spans = made.text, made.spans
    if not held_out and rng.random() < OTHER_WORDS:
        text, spans = with_other_words(text, spans, rng)
    if rng.random() < 0.15:  # without the full stop
        text = text.removesuffix(".")
    # Case says nothing to the tokenizer: the sentence's first letter stays as it is.
    return Example(text, spans=tuple(Span(s.start, s.end, s.slot[:3]) for s in spans))


TASK = Task(
    folder=Path(__file__).resolve().parents[1] / "models" / "ner",
    head="token-classification",
    labels=LABELS,
    layers=3,
    pieces=11_000,
    words=tuple(ALL_NAMES),
    sample=sample,
    steps=900,
    sparse_steps=1100,
)
