"""Opinions, for and against.

Every template is written for one side and used for both: `{good}` is a good word where the label is
positive and a bad one where it is negative, and `{bad}` the other way round.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from examples.training.data import Example, Task
from examples.training.templates import Grammar, split

LABELS = ("negative", "positive")

GOOD_WORDS = [
    "good",
    "great",
    "excellent",
    "wonderful",
    "fantastic",
    "amazing",
    "brilliant",
    "superb",
    "delightful",
    "lovely",
    "beautiful",
    "charming",
    "perfect",
    "pleasant",
    "enjoyable",
    "outstanding",
    "terrific",
    "marvelous",
    "splendid",
    "impressive",
    "fabulous",
    "magnificent",
    "awesome",
    "exceptional",
    "remarkable",
    "gorgeous",
    "delicious",
    "tasty",
    "fresh",
    "friendly",
    "helpful",
    "kind",
    "polite",
    "generous",
    "reliable",
    "comfortable",
    "clean",
    "cozy",
    "fast",
    "efficient",
    "elegant",
    "stylish",
    "funny",
    "hilarious",
    "clever",
    "witty",
    "touching",
    "moving",
    "exciting",
    "thrilling",
    "fascinating",
    "inspiring",
    "refreshing",
    "satisfying",
    "useful",
    "valuable",
    "convenient",
    "affordable",
    "safe",
    "solid",
    "sturdy",
    "durable",
    "bright",
    "warm",
    "smart",
    "creative",
    "original",
    "thoughtful",
    "heartwarming",
    "captivating",
    "entertaining",
    "engaging",
    "memorable",
    "uplifting",
    "flawless",
    "stunning",
    "spectacular",
    "graceful",
    "professional",
    "courteous",
    "attentive",
    "welcoming",
    "relaxing",
    "peaceful",
    "spacious",
    "tidy",
    "accurate",
    "intuitive",
    "smooth",
    "powerful",
    "quick",
    "responsive",
    "crisp",
    "sharp",
    "rich",
    "tender",
    "juicy",
    "flavorful",
    "superior",
    "admirable",
    "ideal",
    "fun",
    "sweet",
    "fine",
    "nice",
    "cool",
    "decent",
    "incredible",
    "phenomenal",
    "sublime",
    "masterful",
    "convincing",
]
BAD_WORDS = [
    "bad",
    "terrible",
    "awful",
    "horrible",
    "dreadful",
    "poor",
    "disappointing",
    "boring",
    "dull",
    "ugly",
    "unpleasant",
    "annoying",
    "frustrating",
    "disgusting",
    "nasty",
    "pathetic",
    "mediocre",
    "lousy",
    "atrocious",
    "appalling",
    "miserable",
    "ridiculous",
    "stupid",
    "useless",
    "worthless",
    "broken",
    "faulty",
    "defective",
    "unreliable",
    "slow",
    "clumsy",
    "dirty",
    "filthy",
    "noisy",
    "uncomfortable",
    "rude",
    "unfriendly",
    "unhelpful",
    "arrogant",
    "careless",
    "lazy",
    "expensive",
    "overpriced",
    "cheap",
    "flimsy",
    "weak",
    "bland",
    "tasteless",
    "stale",
    "cold",
    "greasy",
    "soggy",
    "burnt",
    "rotten",
    "inedible",
    "confusing",
    "complicated",
    "tedious",
    "predictable",
    "shallow",
    "pointless",
    "silly",
    "ridiculous",
    "lame",
    "painful",
    "depressing",
    "sad",
    "offensive",
    "dishonest",
    "dangerous",
    "unsafe",
    "messy",
    "cramped",
    "smelly",
    "gloomy",
    "inaccurate",
    "buggy",
    "sluggish",
    "outdated",
    "incompetent",
    "unprofessional",
    "hostile",
    "inconvenient",
    "unacceptable",
    "inferior",
    "ineffective",
    "laughable",
    "forgettable",
    "lifeless",
    "monotonous",
    "clichéd",
    "amateurish",
    "chaotic",
    "disastrous",
    "shameful",
    "repulsive",
    "unbearable",
    "hideous",
    "grim",
    "wasteful",
    "harsh",
    "bitter",
    "sloppy",
    "weird",
    "wrong",
    "worse",
    "absurd",
    "incoherent",
    "pretentious",
]
GOOD_VERBS = """love|loved|adore|adored|enjoyed|liked|really like|admire|appreciated|recommend|cherished
|am impressed by|was delighted by|am happy with|am thrilled with|cannot get enough of|am fond of
|am pleased with|was blown away by|fell in love with|am grateful for""".replace("\n", "").split("|")
BAD_VERBS = """hate|hated|despise|loathe|disliked|regret|regretted|detest|cannot stand|am tired of
|am disappointed by|was annoyed by|am unhappy with|am angry about|was bored by|am sick of
|complained about|am ashamed of|could not bear|was disgusted by|had trouble with""".replace(
    "\n", ""
).split("|")
GOOD_NOUNS = """a masterpiece|a triumph|a delight|a gem|a joy|a success|a pleasure|a treasure|a bargain
|a miracle|a winner|a treat|a blessing|a work of art|money well spent|the best of the year|a dream
|a breath of fresh air|a real improvement|a huge hit|an absolute highlight""".replace(
    "\n", ""
).split("|")
BAD_NOUNS = """a disaster|a failure|a mess|a joke|a nightmare|a disgrace|a scam|a letdown|a shame|a mistake
|a flop|a rip-off|a waste of time|a waste of money|garbage|rubbish|trash|the worst of the year|an insult
|a complete catastrophe|a huge disappointment|an utter embarrassment""".replace("\n", "").split("|")
GOOD_ENDS = """I would buy it again|I will be back|five stars|highly recommended|I cannot wait to return
|it made my day|it exceeded my expectations|everyone smiled|it works perfectly|I want to see it again
|it was worth every penny|we will come again|I could not stop laughing|thank you so much|well done
|it was better than I expected|it saved me a lot of time|I feel great|keep up the good work
|the audience cheered|it fits perfectly|I would recommend it to anyone|my children loved it
|we had a great time|I was pleasantly surprised|it could not be better""".replace("\n", "").split(
    "|"
)
BAD_ENDS = """I want my money back|I will never come back|one star|avoid it|I sent it back
|it ruined my day|it fell short of my expectations|everyone left early|it stopped working after a week
|I fell asleep|it was not worth the money|never again|I walked out|do not bother|stay away
|it was worse than I expected|it wasted my time|I feel cheated|save your money
|the audience booed|it does not fit|I would not recommend it to anyone|my children cried
|we had an awful time|I got sick|I expected more|it does not work at all|nobody answered my emails
|it arrived broken|it crashes all the time|they lost my order|the battery died after an hour""".replace(
    "\n", ""
).split("|")
GOOD_ADVERBS = """beautifully|wonderfully|perfectly|brilliantly|superbly|nicely|elegantly|masterfully
|flawlessly|skilfully|smoothly|well|delightfully|reliably""".replace("\n", "").split("|")
BAD_ADVERBS = """badly|poorly|terribly|horribly|awfully|carelessly|clumsily|dreadfully|lazily|sloppily
|wrongly|miserably|painfully slowly|rudely""".replace("\n", "").split("|")

PHRASES = {
    "thing": """movie|film|book|novel|story|plot|ending|acting|script|music|song|album|concert|show|play
        |series|episode|game|restaurant|food|meal|dinner|soup|pizza|dessert|wine|coffee|breakfast|menu
        |service|waiter|staff|hotel|room|bed|bathroom|view|location|trip|flight|beach|city|museum|tour
        |phone|camera|laptop|screen|battery|keyboard|app|software|website|update|design|car|seat|engine
        |shop|delivery|packaging|price|quality|support|team|manager|teacher|course|lesson|lecture|doctor
        |weather|party|gift|dress|jacket|pair of shoes|chair|table|lamp|kettle|toy|performance|director
        |cast|dialogue|idea|presentation|report|experience|atmosphere|place|product|speech|match
        """.replace("\n        ", "").split("|"),
    "the": ["the", "the", "the", "this", "that", "their", "your", "my", "our", "his", "her"],
    "very": ["", "", "", *["very", "really", "so", "extremely", "absolutely", "truly", "quite", "simply", "just", "pretty"]],
    "all": ["", "", "overall, ", "honestly, ", "in my opinion, ", "to be honest, ", "sadly, "][:6],
    "who": ["I", "we", "my wife", "my husband", "my friends", "everyone", "the critics", "our guests", "my kids"],
    "was": ["was", "was", "is", "is", "seemed", "looked", "turned out to be", "remains"],
    "when": ["", "", " yesterday", " last week", " on Friday", " in June", " last night", " today"]
    + [" at the weekend", " with friends", " for my birthday", " after a long day"],
    "fact": """it has {number} rooms|it opened {number} years ago|we ordered it on Monday|it is blue
        |it is about a detective|we arrived at noon|it lasts two hours|I read it on the train|it has
        a red cover|it is near the station|my brother gave it to me|I bought it online|it was raining
        |there were {number} of us|I watched it twice|it is made in Italy|it comes with a cable
        """.replace("\n        |", "|").replace("\n        ", " ").strip().split("|"),
    "number": [str(n) for n in range(2, 30)],
}  # fmt: skip

TEMPLATES = """
{all}{the} {thing} {was} {very} {good}.
{all}{the} {thing} {was} {very} {good} and {good}.
{all}{the} {thing} {was} {good}, {good} and {good}.
{the} {thing} {was} (not|never|not very|not at all|by no means|hardly|anything but) {bad}.
{the} {thing} (isn't|wasn't|is not|was not|doesn't look|didn't seem) {bad}.
I (do not|don't|did not|didn't|would not) (think|find|say|believe) {the} {thing} {was} {bad}.
(what|such) a {good} {thing}!
a {very} {good} {thing}.
{good} {thing}, {good} {thing}.
{good} {thing}, {end}.
I {love} {the} {thing}.
I {love} {the} {thing}{when}, {end}.
I {love} {the} {thing} and the {thing}.
I {love} {the} {good} {thing}.
I {love} how {good} {the} {thing} {was}.
I {love} it.
(I|we|they|you will|most people) (do not|don't|did not|didn't|never|would not) {dislike} {the} {thing}{when}.
(I|we|they|you will|most people) {like} {the} {thing} (a lot|very much|so much|deeply|).
{end}.
{end}, {end}.
{end}! {the} {thing} {was} {very} {good}.
{the} {thing} {was} {joy}.
{the} {thing} {was} {joy} and the {thing} {was} {good}.
{the} {thing} {was} {joy}, {end}.
{who} thought {the} {thing} was {very} {good}.
{who} (found|called|considered) {the} {thing} {very} {good}.
{who} said {the} {thing} was {joy}.
{the} {thing} was {bad} but the {thing} was {good} enough to make up for it, {end}.
(although|even though|though|while) {the} {thing} was {bad}, {the} {thing} was {very} {good}.
{the} {thing} was {bad} at first, but (in the end|later|then) it was {very} {good}.
I expected (a|some) {bad} {thing}, but {it} was {very} {good}.
I thought it would be {bad}, but it was {good}.
(people|critics|they) say {the} {thing} is {bad}, but I {love} it.
(I|we|they|you will|most people) (do not|don't|did not|didn't|never|would not) {dislike} {the} {thing}{when}.
(I|we|they|you will|most people) {like} {the} {thing} (a lot|very much|so much|deeply|).
{the} {thing} used to be {bad}, now it is {good}.
despite {the} {bad} {thing}, {the} {thing} was {good}.
{the} {thing} was {adverb} (made|done|written|acted|organized|designed|cooked|played|filmed|translated).
a {adverb} (made|written|acted|designed|cooked|filmed) {thing}.
the {thing} works {adverb}.
they treated us {adverb}{when}.
{fact}. {the} {thing} {was} {very} {good}.
{fact}, and {the} {thing} {was} {good}.
{the} {thing} {was} {good}, {fact}.
{fact}. {end}.
we (visited|tried|saw|bought|used|booked) {the} {thing}{when} and it {was} {very} {good}.
we (visited|tried|saw|bought|used|booked) {the} {thing}{when}, {end}.
the {thing} is {good}, the {thing} is {good}, {end}.
everything (was|is) {good}: the {thing}, the {thing} and the {thing}.
nothing about {the} {thing} (was|is) {bad}.
there is nothing {bad} about {the} {thing}.
never (seen|had|read|heard|met) (a|such a|a more) {good} {thing}.
one of the most {good} {thing}s I have (seen|tried|had|bought).
(this is|it was|that was) the most {good} {thing} (ever|of all|I know).
how {good}!
{very} {good}
{good}
so {good} that {end}.
{the} {thing} left me {feeling}.
I am {feeling} {when}.
we were {very} {feeling} with {the} {thing}.
{the} {thing} made (me|us|everyone) {very} {feeling}.
{who} (left|went home|came back) {feeling}.
the {thing} could have been {bad}, but it was {good}.
not a {bad} {thing} at all.
is {the} {thing} {good}? yes, {very} {good}.
is {the} {thing} {bad}? no, {end}.
{the} {thing} is {more} than the (old|other|last|previous) one.
it is {more} than I (expected|hoped|thought).
""".strip().splitlines()

GOOD_FEELINGS = [
    "happy",
    "smiling",
    "excited",
    "satisfied",
    "grateful",
    "proud",
    "cheerful",
    "relaxed",
    "thrilled",
    "hopeful",
]
BAD_FEELINGS = [
    "sad",
    "angry",
    "upset",
    "disappointed",
    "frustrated",
    "bored",
    "furious",
    "unhappy",
    "tired",
    "miserable",
]
GOOD_MORE = [
    "better",
    "much better",
    "far better",
    "more beautiful",
    "more useful",
    "nicer",
    "faster",
    "more fun",
]
BAD_MORE = [
    "worse",
    "much worse",
    "far worse",
    "uglier",
    "more annoying",
    "slower",
    "more boring",
    "less useful",
]

GOOD_DEEDS = [
    "love",
    "like",
    "enjoy",
    "recommend",
    "appreciate",
    "admire",
    "trust",
    "want",
    "value",
    "miss",
]
BAD_DEEDS = [
    "hate",
    "dislike",
    "regret",
    "mind",
    "despise",
    "avoid",
    "fear",
    "dread",
    "reject",
    "resent",
]

# Slots and what fills them where the label is positive, and negative.
SIDES = {
    "good": (GOOD_WORDS, BAD_WORDS),
    "bad": (BAD_WORDS, GOOD_WORDS),
    "love": (GOOD_VERBS, BAD_VERBS),
    "joy": (GOOD_NOUNS, BAD_NOUNS),
    "end": (GOOD_ENDS, BAD_ENDS),
    "adverb": (GOOD_ADVERBS, BAD_ADVERBS),
    "feeling": (GOOD_FEELINGS, BAD_FEELINGS),
    "more": (GOOD_MORE, BAD_MORE),
    "like": (GOOD_DEEDS, BAD_DEEDS),
    "dislike": (BAD_DEEDS, GOOD_DEEDS),
}
SHORT = 12  # lists up to here are not divided: both halves have all of them


@cache
def grammar(held_out: bool, positive: bool) -> Grammar:
    """The lists of one half for one label."""
    sides = {}
    for slot, lists in SIDES.items():
        words = sorted(set(lists[0 if positive else 1]))
        sides[slot] = split(words, held_out) if len(words) > SHORT else words
    return Grammar({}, {**PHRASES, **sides, "it": ["it"]})


@cache
def templates(held_out: bool) -> list[str]:
    """The templates of one half."""
    return split(TEMPLATES, held_out)


def sample(rng: np.random.Generator, held_out: bool) -> Example:
    """One opinion, sometimes of two sentences."""
    positive = bool(rng.random() < 0.5)
    lists, choices = grammar(held_out, positive), templates(held_out)
    count = 2 if rng.random() < 0.2 else 1
    picked = [choices[int(rng.integers(len(choices)))] for _ in range(count)]
    text = " ".join(" ".join(lists.expand(t, rng).text.split()) for t in picked)
    return Example(text, label=int(positive))


TASK = Task(
    folder=Path(__file__).resolve().parents[1] / "models" / "sentiment",
    head="sequence-classification",
    labels=LABELS,
    layers=3,
    pieces=7_000,
    words=tuple(word for lists in SIDES.values() for word in lists[0] + lists[1]),
    sample=sample,
    steps=500,
    sparse_steps=800,
)
