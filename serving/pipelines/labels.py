"""Labels of tokens: which of their beginnings are prefixes that say where an entity begins or ends.

B- and I- always are.  E- and S-, or L- and U-, are where the labels as a whole follow the scheme
that has them (BIOES, BILOU): ``S-BAHN`` among B-LOC and I-LOC is a name, beside B-BAHN it is the
single word of that kind.  Everything else is the name, as ``e-mail`` or ``ZIP-CODE``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# What no entity is.
OUTSIDE = "O"

# Letters of an entity's last word, and of its only one, in the schemes that have them.
_SCHEMES = (("E", "S"), ("L", "U"))


@dataclass(frozen=True)
class Label:
    """A label.

    Attributes:
        name: as the model's configuration has it.
        entity: without the prefix.
        prefix: one of B, I, E, S, L, U; empty where there is none.
    """

    name: str
    entity: str
    prefix: str

    @property
    def hides_outside(self) -> bool:
        """Whether an entity has the name of what is none: B-O is not O."""
        return self.entity == OUTSIDE and self.name != OUTSIDE

    def continues(self, last: Label) -> bool:
        """Whether a token of this label goes on with the entity of the one before it."""
        return (
            self.entity == last.entity
            and self.hides_outside == last.hides_outside
            and self.prefix not in ("B", "S", "U")
            and last.prefix not in ("E", "S", "L", "U")
        )


def parse(names: Sequence[str]) -> list[Label]:
    """All labels of a model."""
    kinds: dict[str, set[str]] = {}
    for name in names:
        letter, entity = _split(name)
        kinds.setdefault(letter, set()).add(entity)
    begun = kinds.get("B", set()) | kinds.get("I", set())
    prefixes = {"B", "I"}
    for last, only in _SCHEMES:
        if begun & (kinds.get(last, set()) | kinds.get(only, set())):
            prefixes |= {last, only}
    labels = []
    for name in names:
        letter, entity = _split(name)
        known = letter in prefixes
        labels.append(Label(name, entity if known else name, letter if known else ""))
    return labels


def _split(name: str) -> tuple[str, str]:
    """(what stands before the first dash, what stands behind it), both empty if one is."""
    letter, _, entity = name.partition("-")
    return (letter, entity) if letter and entity else ("", "")
