"""Names of people, places and organizations, and the halves they are divided into.

Names are of all parts of the world, common ones and some that are words as well (Rose, Mark,
Jordan, Amazon, Shell, Reading): context must decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from examples.training.templates import read_lists, split

LISTS = read_lists(Path(__file__).resolve().parent / "names.txt")
ALL_NAMES = tuple(dict.fromkeys(name for names in LISTS.values() for name in names))

# The sentence that the examples are shown with must be news to the model.
_ALWAYS_HELD_OUT = ("Mary", "Nairobi", "New York")

# What companies are called by: no names, so both halves have all of them.
_UNDIVIDED = ("end",)

_ONSETS = "b br ch d dr f g gr h j k kl l m n p r s sh st t th tr v w y z"
_VOWELS = "a e i o u ai ea ou"
_CODAS = "- - - l n r s m nd x rt"  # a dash: none


def invented(index: int) -> str:
    """A word that is no name yet: the index-th of a fixed series."""
    result = ""
    # A multiplicative hash, so that neighbours look different.
    state = (index + 1) * 2654435761 % 2**32
    for _ in range(2):
        for parts in (_ONSETS.split(), _VOWELS.split(), _CODAS.split()):
            state = (state * 1664525 + 1013904223) % 2**32
            result += parts[(state >> 16) % len(parts)].strip("-")
    return result.capitalize()


def names(items: Sequence[str], held_out: bool) -> list[str]:
    """The half of a list that is for training, or the one for testing (a sixth)."""
    chosen = [n for n in items if n not in _ALWAYS_HELD_OUT]
    kept = split(sorted(set(chosen)), held_out)
    return kept + [n for n in items if n in _ALWAYS_HELD_OUT] if held_out else kept


def entities(held_out: bool) -> dict[str, list[str]]:
    """The lists of names of one half, with initials and names that nobody has."""
    divided = {
        kind: items if kind in _UNDIVIDED else names(items, held_out)
        for kind, items in LISTS.items()
    }
    unknown = [invented(i) for i in range(400)]
    return {**divided, "initial": list("ABCDEFGHJKLMNPRSTW"), "unknown": unknown[held_out::2]}
