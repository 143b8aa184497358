"""Passages of facts, and questions about one of them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from examples.ner import data as ner
from examples.training.data import Example, Task
from examples.training.templates import Grammar, Span, Text, split
from examples.training.words import ALL_NAMES, entities

# A fact, then its questions as `question -> slot of the answer`.  Slots that differ in a final
# digit are filled from the same list.
FACTS = """
{person} was born in {city} (in|on) {date}.
Where was {person} born? -> city | When was {person} born? -> date | Who was born in {city}? -> person | What is the birthplace of {person}? -> city

{person}, a {nationality} {job}, (lives|lived) in {city}.
Where (does|did) {person} live? -> city | What is {person}'s (job|profession|occupation)? -> job | Who lives in {city}? -> person

In {date}, {person} moved from {city} to {city2} to {purpose}.
Where did {person} move to? -> city2 | Where did {person} come from? -> city | When did {person} move? -> date | Who moved to {city2}? -> person | Why did {person} move to {city2}? -> purpose

{person} is flying from {city} to {city2} to {purpose}.
Where is {person} flying to? -> city2 | Where is {person} flying from? -> city | Who is flying to {city2}? -> person | Why is {person} flying to {city2}? -> purpose

{company} was founded in {date} by {person} in {city}.
Who founded {company}? -> person | When was {company} founded? -> date | Where was {company} founded? -> city | What (company|did) (was founded by {person}|{person} found)? -> company | Who is the founder of {company}? -> person

{company} (has its headquarters|is based|is headquartered) in {city} and (employs|has) {count} people.
Where is {company} based? -> city | How many people does {company} employ? -> count | How many employees does {company} have? -> count | Where are the headquarters of {company}? -> city

{company} bought {company2} for {money} in {date}.
Who bought {company2}? -> company | How much did {company} pay for {company2}? -> money | When did {company} buy {company2}? -> date | What did {company} buy? -> company2

{person} works as a {job} (at|for) {company}.
Where does {person} work? -> company | Who does {person} work for? -> company | What does {person} do? -> job | Who works (at|for) {company}? -> person

{person} studied {subject} at the University of {city} (before|until) {date}.
What did {person} study? -> subject | What subject did {person} study? -> subject | Who studied {subject}? -> person

The {building} in {city} was designed by {person} and (opened|completed|built) in {date}.
Who designed the {building} in {city}? -> person | When was the {building} in {city} (opened|completed|built)? -> date | Where is the {building} designed by {person}? -> city | What did {person} design? -> building

{person} wrote the {work} in {date}.
Who wrote the {work}? -> person | When did {person} write the {work}? -> date | What did {person} write? -> work | Who is the author of the {work}? -> person

{person} (won|received) the {prize} in {date} for {reason}.
Who (won|received) the {prize}? -> person | When did {person} (win|receive) the {prize}? -> date | What did {person} (win|receive)? -> prize | Why did {person} (win|receive) the {prize}? -> reason

The (capital|largest city) of {country} is {city}, with {count} inhabitants.
How many inhabitants does {city} have? -> count | What is the population of {city}? -> count | Which country is {city} in? -> country

{river_city} lies on a river, {distance} (north|south|east|west) of {city}.
How far is {river_city} from {city}? -> distance | What lies {distance} from {city}? -> river_city

{person} married {person2} in {city} in {date}.
Who did {person} marry? -> person2 | Where did {person} marry {person2}? -> city | When did {person} marry {person2}? -> date | Who married {person2}? -> person

The {event} (took place|was held) in {city} on {day}.
Where (did the {event} take place|was the {event} held)? -> city | When (did the {event} take place|was the {event} held)? -> day | What (took place|was held) in {city}? -> event

The {event} will (begin|start) at {time} on {day} in the {room}.
When does the {event} (begin|start)? -> time | What time does the {event} (begin|start)? -> time | Where is the {event}? -> room | On which day is the {event}? -> day

{person} (paid|spent) {money} for a {object} in {city}.
How much did {person} (pay|spend)? -> money | What did {person} (buy|pay for)? -> object | Who bought a {object}? -> person | Where did {person} buy the {object}? -> city

{person} found a {object} in the {room}.
What did {person} find? -> object | Where did {person} find the {object}? -> room | Who found the {object}? -> person

{person} gave {person2} a {object} for {occasion}.
What did {person} give {person2}? -> object | Who gave {person2} a {object}? -> person | Who (got|received) the {object}? -> person2 | Who did {person} give the {object} to? -> person2

The {room} is painted {color}, and the {object} in it is {color2}.
What colo(u|)r is the {room}? -> color | What colo(u|)r is the {object}? -> color2

{person} was (elected|appointed) {office} of {country} in {date}.
Who was (elected|appointed) {office} of {country}? -> person | When was {person} (elected|appointed)? -> date | What was {person} (elected|appointed)? -> office | Who is the {office} of {country}? -> person

{company} makes {product} in a factory near {city}.
What does {company} (make|produce)? -> product | Where does {company} make {product}? -> city | Who makes {product}? -> company | Which company makes {product}? -> company

{company} lost {money} because of {reason}.
How much did {company} lose? -> money | Why did {company} lose money? -> reason | Who lost {money}? -> company

The {animal} weighs {weight} and eats {food}.
What does the {animal} eat? -> food | How (heavy is|much does) the {animal}( weigh|)? -> weight

{person} ran the {event} in {duration}.
How long did {person} need for the {event}? -> duration | Who ran the {event}? -> person | What did {person} run? -> event

The journey from {city} to {city2} takes {duration} by {vehicle}.
How long does (the journey|it take) from {city} to {city2}? -> duration | How long is the journey from {city} to {city2}? -> duration

{person} has {count} {kin} and lives with {person2} near {city}.
How many {kin} does {person} have? -> count | Who does {person} live with? -> person2 | Where does {person} live? -> city

{person} (arrived|came|landed) in {city} on {day} by {vehicle}.
When did {person} (arrive|come) in {city}? -> day | How did {person} (get to|come to|reach) {city}? -> vehicle | Where did {person} arrive? -> city | Who (arrived in|came to) {city}? -> person

My name is {person} and I live in {city}.
What is my name? -> person | Where do I live? -> city | Who am I? -> person

My {relative} {first} is {age} years old and works as a {job}.
How old is {first}? -> age | What is the name of my {relative}? -> first | What does my {relative} do? -> job

{person} discovered {discovery} while working in {city}.
Who discovered {discovery}? -> person | What did {person} discover? -> discovery | Where did {person} discover {discovery}? -> city

{person} played {count} matches for {team} and scored {count2} goals.
How many matches did {person} play? -> count | How many goals did {person} score? -> count2 | Which team did {person} play for? -> team | Who scored {count2} goals? -> person

{team} beat {team2} in {city} on {day}.
Who beat {team2}? -> team | Who did {team} beat? -> team2 | Where did {team} beat {team2}? -> city | When did {team} beat {team2}? -> day | Who lost to {team}? -> team2

The {object} belongs to {person}, who keeps it in the {room}.
Who does the {object} belong to? -> person | Where does {person} keep the {object}? -> room | Who owns the {object}? -> person | What belongs to {person}? -> object

{person} is {height} tall and speaks {nationality} and {nationality2}.
How tall is {person}? -> height | Who is {height} tall? -> person

The (temperature|air) in {city} (reached|fell to|rose to) {degrees} on {day}.
What was the temperature in {city}? -> degrees | Where did it (reach|get to) {degrees}? -> city | When did the temperature in {city} (reach|fall to|rise to) {degrees}? -> day

A {cause} destroyed the {building} in {city} in {date}, causing damage of {money}.
What destroyed the {building} in {city}? -> cause | When was the {building} in {city} destroyed? -> date | How much damage did the {cause} cause? -> money | Where was the {building} destroyed? -> city

(The police|Officers) arrested {person} in {city} for {crime}.
Who was arrested? -> person | Where was {person} arrested? -> city | Why was {person} arrested? -> crime | Who was arrested in {city}? -> person

{company} (announced|presented) {product} on {day}, and {person} (said|explained) that {claim}.
What did {company} (announce|present)? -> product | When did {company} (announce|present) {product}? -> day | Who (said|explained) that {claim}? -> person | What did {person} say? -> claim

{person} teaches {subject} at a school in {city}.
What does {person} teach? -> subject | Where does {person} teach? -> city | Who teaches {subject}? -> person

{person} directed the {work}, starring {person2}.
Who directed the {work}? -> person | Who starred in the {work}? -> person2 | What did {person} direct? -> work

{person} died in {city} at the age of {age}.
Where did {person} die? -> city | How old was {person}? -> age | Who died in {city}? -> person | At what age did {person} die? -> age

{country} exports {food} worth {money} a year.
What does {country} export? -> food | Which country exports {food}? -> country | How much are the exports of {country} worth? -> money

The {room} (key|keys) (is|are) (under|behind|in) the {object}.
Where (is|are) the {room} (key|keys)? -> object

The meeting with {person} was moved from {day} to {day2}.
When is the meeting with {person}? -> day2 | Who is the meeting with? -> person | When was the meeting with {person} before? -> day

{mountain} is {height2} high and was first climbed by {person} in {date}.
How high is {mountain}? -> height2 | Who first climbed {mountain}? -> person | When was {mountain} first climbed? -> date | Which mountain did {person} climb? -> mountain

{person} was born in {city}. (He|She) studied {subject} and became a {job} in {date}.
Where was {person} born? -> city | What did {person} study? -> subject | When did {person} become a {job}? -> date | What did {person} become? -> job

{person} joined {company} in {date}. Two years later (he|she) moved to {city} to {purpose}.
When did {person} join {company}? -> date | Where did {person} move( to|)? -> city | Why did {person} move to {city}? -> purpose | Which company did {person} join? -> company

{company} opened a {building} in {city} last year. It cost {money}.
Where did {company} open a {building}? -> city | How much did the {building} cost? -> money | What did {company} open? -> building | Who opened a {building} in {city}? -> company
""".strip()  # noqa: E501

PHRASES = {
    "job": ner.PHRASES["job"],
    "nationality": ner.PHRASES["nationality"],
    "purpose": ner.PHRASES["purpose"],
    "claim": [c for c in ner.PHRASES["claim"] if "{" not in c],
    "food": ["rice", "coffee", "tea", "bananas", "fish", "grass", "leaves", "meat", "apples"]
    + ["wheat", "cocoa", "fruit", "nuts", "insects", "wine", "oranges", "cheese", "corn"],
    "animal": [f"{a} {b}" for a in ("young", "old", "grey", "white", "male", "female") for b in
               ("elephant", "tiger", "bear", "wolf", "horse", "cow", "eagle", "goat", "camel")],
    "year": [str(y) for y in range(1801, 2026)],
    "month": ner.PHRASES["month"],
    "weekday": ner.PHRASES["day"],
    "n": [str(n) for n in range(2, 31)],
    "date": ["{year}"] * 5 + ["{month} {year}", "{month} {n}, {year}", "the spring of {year}"],
    "day": ["{weekday}", "{weekday}", "{month} {n}", "{n} {month} {year}", "{weekday}, {month} {n}"],
    "time": ["noon", "midnight", "{n} o'clock", "(7|8|9|10):(15|30|45) (am|pm)", "half past (six|ten)"],
    "count": ["{n}", "{n}", "{n}00", "{n},000", "about {n},500", "more than {n} million"]
    + ["two", "three", "four", "five", "six", "seven", "eight", "nine", "twelve", "twenty", "fifty"],
    "money": ["${n} million", "{n} billion dollars", "{n} euros", "${n}50", "{n},000 pounds"],
    "weight": ["{n} kilograms", "{n}0 kg", "{n} tonnes", "{n}00 pounds"],
    "height": ["1.{n} metres", "(five|six) feet", "(1|2) metres"],
    "height2": ["{n}00 metres", "{n},{n}0 feet", "{n} kilometres"],
    "distance": ["{n} kilometres", "{n}0 miles", "{n} km", "a few miles", "{n} miles"],
    "duration": ["{n} hours", "{n} minutes", "{n} days", "two and a half hours", "an hour", "a week"],
    "degrees": ["{n} degrees", "-{n} degrees", "{n} degrees Celsius", "zero"],
    "age": [str(n) for n in range(18, 99)],
    "vehicle": ["train", "bus", "car", "plane", "ship", "bicycle", "ferry", "taxi", "boat", "tram"],
    "subject": ["medicine", "physics", "law", "music", "history", "chemistry", "mathematics", "biology", "philosophy", "art", "economics", "geography", "literature", "engineering", "German", "French"] + ["computer science"],
    "adj": ["old", "new", "small", "big", "royal", "famous", "modern", "ancient", "grand", "national", "public", "secret"],
    "building": ["{adj} (museum|library|bridge|theatre|airport|hospital|palace|tower|stadium)"]
    + ["{adj} (church|station|factory|school|hotel|cathedral|prison|market|warehouse)"],
    "work": ["(novel|poem|song|film|book|play|opera|story) ({adj} |)\"The {adj} {object}\""]
    + ["(novel|poem|song|film|book|play|opera) about (a|the) {object}"],
    "prize": ["({adj} |)(prize|award|medal) for (peace|physics|poetry|music|science|bravery|design)"]
    + ["(gold|silver|bronze) medal", "{adj} (cup|trophy|scholarship)"],
    "reason": """a new vaccine|the design of a bridge|bad weather|the strike|rising prices
        |work on black holes|a book about the war|the discovery of a star|years of drought|a software bug
        |saving a child|poor planning|a method of storing energy|a fire in the warehouse|a late delivery
        |research on malaria|the fall of the currency""".replace("\n        ", "").split("|"),
    "event": """marathon|conference on (water|energy|trade|health)|film festival|chess tournament
        |book fair|wedding|trade fair|summit|concert|exam|lecture on (art|bees|robots)|auction
        |general meeting|half marathon|jazz festival|workshop""".replace("\n        ", ""),
    "room": "kitchen|attic|garden|cellar|garage|library|office|bathroom|bedroom|great hall|barn|"
    "main hall|shed|basement|living room|lobby|gym".replace("\n", ""),
    "object": "gold ring|silver watch|old map|bicycle|piano|red umbrella|guitar|wooden box|painting|"
    "black cat|letter|lamp|leather bag|vase|carpet|typewriter|camera|telescope|clock|violin|mirror|"
    "chair|diary|sword|necklace|rusty key|blue coat|laptop|tent|radio|horse|boat",
    "occasion": "(his|her) birthday|Christmas|their anniversary|the wedding|New Year|graduation",
    "color": ["red", "blue", "green", "yellow", "white", "black", "grey", "purple", "orange", "brown", "pink", "gold"],
    "office": ["president", "mayor", "governor", "chancellor", "king", "queen", "ambassador"]
    + ["prime minister", "minister of finance", "foreign minister"],
    "product": "electric cars|shoes|chocolate|laptops|solar panels|wind turbines|furniture|paper|"
    "bicycles|toys|medicines|a new phone|a small robot|glass bottles|batteries|pianos|tractors|"
    "a cheap camera|carpets|a payment app|watches|tyres|steel pipes",
    "kin": "brothers|sisters|children|cousins|grandchildren|cats|dogs|horses|friends",
    "relative": "brother|sister|uncle|aunt|father|mother|boss|neighbour|cousin|teacher",
    "discovery": "a (comet|new species of frog|lost city|vaccine|new element|cave|rare orchid|tomb)|"
    "the (structure of a protein|remains of a ship|cause of the disease|source of the river)|"
    "(gold|oil|fossils|a Roman coin)",
    "cause": "fire|flood|storm|earthquake|landslide|bomb|hurricane|falling tree",
    "crime": "theft|fraud|speeding|robbery|spying|smuggling|arson|stealing a car|tax evasion",
}  # fmt: skip

NAMES = {
    "person": ["{first} {last}"] * 6 + ["{first}", "{first} {initial}. {last}", "{first} {unknown}"],
    "city": [*["{town}"] * 9, "{unknown}"],
    "river_city": ["{town}", "{unknown}"],
    "company": ["{brand}"] * 5 + ["{stem} {end}"] * 4 + ["{last} & {last}", "{unknown} {end}"],
    "team": ["{town} (United|City|Rovers|FC)", "the {town} (Bulls|Bears|Eagles|Sharks|Giants)"],
    "mountain": ["Mount {last}", "Mount {unknown}"],
}  # fmt: skip


def _alternatives(items: str | list[str]) -> list[str]:
    """A list, or the parts of a text between bars that are not in parentheses."""
    if not isinstance(items, str):
        return items
    depth, parts = 0, [""]
    for c in items:
        depth += (c == "(") - (c == ")")
        if c == "|" and not depth:
            parts.append("")
        else:
            parts[-1] += c
    return parts


@cache
def facts(held_out: bool) -> list[tuple[str, list[tuple[str, str]]]]:
    """(sentence, [(question, slot of the answer)]) of one half."""
    result = []
    blocks = dict(block.split("\n") for block in FACTS.split("\n\n"))
    for sentence in split(list(blocks), held_out):
        pairs = [q.split(" -> ") for q in blocks[sentence].split(" | ")]
        result.append((sentence, [(q.strip(), slot.strip()) for q, slot in pairs]))
    return result


@cache
def grammar(held_out: bool) -> Grammar:
    """The lists of one half; slots of facts are entities, so that answers can be found."""
    lists = entities(held_out)
    lists["town"], lists["brand"] = lists["city"], lists["company"]
    inner = {**PHRASES, **lists}
    slots = {**{k: _alternatives(v) for k, v in inner.items()}, **NAMES}
    numbered = {f"{name}2": items for name, items in slots.items()}
    return Grammar({**numbered, **slots}, slots)


def sample(rng: np.random.Generator, held_out: bool) -> Example:
    """A question about one fact of a passage."""
    lists, choices = grammar(held_out), facts(held_out)
    plain = ner.plain_sentences(held_out)
    count = int(rng.integers(1, 6))
    asked = int(rng.integers(count))
    passage, seen = Text(), set[str]()
    question, answer = "", Span(0, 0, "")
    for i in range(count):
        sentence, questions = choices[int(rng.integers(len(choices)))]
        made = lists.expand(sentence, rng)
        names = {made.text[s.start : s.end] for s in made.spans}
        while names & seen:  # a question about two facts would have two answers
            made = lists.expand(sentence, rng)
            names = {made.text[s.start : s.end] for s in made.spans}
        seen |= names
        made.text = made.text[0].upper() + made.text[1:]
        if passage.text:
            passage.text += " "
        shift = len(passage.text)
        if i == asked:
            wanted, slot = questions[int(rng.integers(len(questions)))]
            given = {s.slot: made.text[s.start : s.end] for s in made.spans}
            question = lists.expand(wanted, rng, given).text
            found = next(s for s in made.spans if s.slot == slot)
            answer = Span(found.start + shift, found.end + shift, slot)
        passage.add(made)
        if rng.random() < 0.2:
            passage.text += " " + plain[int(rng.integers(len(plain)))]
    if rng.random() < 0.3:  # as people type
        question = question.removesuffix("?").lower()
    return Example(question, passage.text, (answer,))


TASK = Task(
    folder=Path(__file__).resolve().parents[1] / "models" / "qa",
    head="question-answering",
    labels=("LABEL_0", "LABEL_1"),
    layers=4,
    pieces=7_000,
    words=tuple(ALL_NAMES),
    sample=sample,
    steps=1400,
    sparse_steps=1400,
    batch=24,
)
