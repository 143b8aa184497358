"""docs/kernels.md, made of the table of kernels.

python -m tests.docs_kernels        writes the page
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path

from sparsec.compiler.codegen.table import ELEMENTWISE, KERNELS, Kernel
from sparsec.targets import TARGETS, Target

PAGE = Path(__file__).resolve().parents[1] / "docs" / "kernels.md"

HEAD = """\
# Kernels

All kernels of the compiler: the table in `compiler/codegen/table.py`, written here by
`python -m tests.docs_kernels`. `sparsec inspect` names them, with their families, for a model and
for an artifact. A kernel of the family `general` works row by row on the values of any graph; the
others have [16 rows in lanes](architecture.md#how-the-compiled-code-is-laid-out), and take the
elementwise work around them along. What a kernel computes is what the references of its ops say
([core IR](architecture.md#core-ir)).

Where nothing is said of targets, all have it. *Tiles* are the numbers of blocks of 16 rows (of
layers), or of channels (of attention), that can be in registers together.
"""


def page() -> str:
    """The page."""
    families = dict.fromkeys(row.family for row in KERNELS.values())
    return "\n".join([HEAD, *(line for family in families for line in _family(family))])


def _family(family: str) -> Iterator[str]:
    yield f"## {family.capitalize()}\n"
    for row in KERNELS.values():
        if row.family == family:
            yield from _row(row)
    yield ""


def _row(row: Kernel) -> Iterator[str]:
    ops = [f"`{op}`" for op in row.ops if op not in ELEMENTWISE]
    others = [f"`{op}`" for op in ELEMENTWISE if op not in row.ops]
    if len(others) < len(ELEMENTWISE):
        but = f" but {', '.join(others)}" if others else ""
        ops.append(f"all elementwise ops{but}")
    about = [f"**`{row.name}`**: {', '.join(ops) or 'moves values to row-major buffers'}"]
    if row.targets != TARGETS:
        about.append(f"on {', '.join(f'`{target.name}`' for target in row.targets)}")
    if row.packing is not None:
        about.append(f"weights: {row.packing.layout}")
    about += _tiles(row)
    about.append(", ".join(f"`templates/{name}`" for name in row.templates))
    text = ". ".join(part[0].upper() + part[1:] if part[0].isalpha() else part for part in about)
    yield from textwrap.wrap(
        f"- {text}", 100, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def _tiles(row: Kernel) -> Iterator[str]:
    found: dict[tuple[int, ...], list[Target]] = {}
    for target in row.targets:
        found.setdefault(row.tilings(target), []).append(target)
    tiles = [
        f"{', '.join(map(str, sizes))} ({', '.join(f'`{t.name}`' for t in on)})"
        for sizes, on in found.items()
        if sizes
    ]
    if tiles:
        yield f"tiles: {'; '.join(tiles)}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
