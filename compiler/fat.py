"""One artifact for several targets: its libraries, and the constants that they share.

Each target has libraries of its own, ``bucket_16-avx2.so``; constants that several targets store in
the same way are in one library for all of those, which is found by comparing bytes, so that nothing
has to be known of layouts.  ``bucket_16.so`` chooses among them for programs in C; the runtime
chooses by itself.  docs/adr/0028-fat-artifacts.md has the reasons.

A C tree has a folder for each library of constants, for each target, and for what chooses::

    Makefile  weights-3f.../  avx2/  avx512_vnni/  any/
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from sparsec import targets
from sparsec.compiler import build
from sparsec.compiler.templates import environment, read_template
from sparsec.compiler.toolchain import Toolchain
from sparsec.targets import Target

if TYPE_CHECKING:
    from sparsec.compiler.codegen import Emission

#: Folder of a C tree with the libraries that choose, which run everywhere.
ANY = "any"


@dataclass(frozen=True)
class Variant:
    """What a model becomes for one target."""

    target: Target
    emission: Emission


@dataclass(frozen=True)
class Constants:
    """Constants that some targets have in common.

    Attributes:
        data: their bytes.
        places: by target, where what it calls by an offset of its own is in `data`.
    """

    data: bytes
    places: Mapping[str, Mapping[int, int]]


def share(variants: Sequence[Variant]) -> tuple[Constants, ...]:
    """Put the constants of several targets together: one group for each set of targets that want
    the same ones, largest sets first."""
    arrays: dict[bytes, bytes] = {}
    offsets: dict[bytes, dict[str, int]] = {}
    for variant in variants:
        for offset, data in _parts(variant.emission):
            key = hashlib.sha256(data).digest()
            arrays.setdefault(key, data)
            offsets.setdefault(key, {})[variant.target.name] = offset
    names = [variant.target.name for variant in variants]
    groups: dict[tuple[str, ...], list[bytes]] = {}
    for key, users in offsets.items():
        groups.setdefault(tuple(name for name in names if name in users), []).append(key)
    made = []
    for users_of_group in sorted(groups, key=lambda g: (-len(g), g)):
        places: dict[str, dict[int, int]] = {name: {} for name in users_of_group}
        size = 0
        for key in groups[users_of_group]:
            for name in users_of_group:
                places[name][offsets[key][name]] = size
            size += len(arrays[key])
        made.append(Constants(b"".join(arrays[key] for key in groups[users_of_group]), places))
    return tuple(made)


def _parts(emission: Emission) -> list[tuple[int, bytes]]:
    """Arrays of an emission, with the offsets that its code has for them."""
    bounds = [*emission.parts, len(emission.weights)]
    return [(a, emission.weights[a:b]) for a, b in pairwise(bounds) if b > a]


@dataclass(frozen=True)
class Tree:
    """A C tree for several targets.

    Attributes:
        trees: what to compile, in this order, and for which target.
        libraries: of each target, its buckets' lengths and libraries.
        needs: of each target, the libraries of constants.
    """

    trees: tuple[tuple[build.CTree, Target], ...]
    libraries: Mapping[str, tuple[tuple[int, str], ...]]
    needs: Mapping[str, tuple[str, ...]]


def write_tree(folder: Path, variants: Sequence[Variant], toolchain: Toolchain) -> Tree:
    """Write the C of all targets, with Makefiles that build it without sparsec.

    Args:
        folder: where to; created, files in it are overwritten.
        variants: fastest target first.
        toolchain: what the Makefiles' flags are for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    portable = targets.TARGETS[-1]
    trees: list[tuple[build.CTree, Target]] = []
    symbols: list[tuple[str, str, Constants]] = []
    for constants in share(variants):
        tree, symbol = build.write_constants_tree(folder, constants.data, toolchain, portable)
        trees.append((tree, portable))
        symbols.append((f"{tree.weights}.so", symbol, constants))
    libraries: dict[str, tuple[tuple[int, str], ...]] = {}
    needs: dict[str, tuple[str, ...]] = {}
    for variant in variants:
        name = variant.target.name
        mine = [(library, symbol, c.places[name]) for library, symbol, c in symbols
                if name in c.places]  # fmt: skip
        needs[name] = tuple(library for library, _, _ in mine)
        placed = [(symbol, places) for _, symbol, places in mine]
        header = _weights_header(placed, variant.emission.parts)
        tree = build.write_variant_tree(
            folder / name,
            variant.emission.buckets,
            f"-{name}",
            header,
            tuple(f"../{Path(library).stem}/{library}" for library in needs[name]),
            toolchain,
            variant.target,
        )
        libraries[name] = tuple((length, library) for length, library, _ in tree.buckets)
        trees.append((tree, variant.target))
    trees.append((_write_choosers(folder / ANY, variants, libraries, toolchain), portable))
    build.write_common_makefile(folder, [tree for tree, _ in trees])
    return Tree(tuple(trees), libraries, needs)


def _weights_header(places: Sequence[tuple[str, Mapping[int, int]]], parts: Sequence[int]) -> str:
    """A header that says in which library and where the code finds what it calls by an offset."""
    known = {offset for _, where in places for offset in where}
    lines = ["/* Constants live in libraries of their own: some are other targets' as well. */"]
    for symbol, where in places:
        lines.append(
            f'extern const unsigned char {symbol}[] __attribute__((visibility("default")));'
        )
        lines += [f"#define SPARSEC_WEIGHT_{a} ({symbol} + {b})" for a, b in sorted(where.items())]
    empty = sorted(set(parts) - known)
    lines += [f"#define SPARSEC_WEIGHT_{offset} 0 /* has no elements */" for offset in empty]
    lines += ["#define SPARSEC_WEIGHT(offset) SPARSEC_WEIGHT_##offset", ""]
    return "\n".join(lines)


def _write_choosers(
    folder: Path,
    variants: Sequence[Variant],
    libraries: Mapping[str, Sequence[tuple[int, str]]],
    toolchain: Toolchain,
) -> build.CTree:
    """Write what C programs load: a library a bucket that loads the right one."""
    buckets = []
    for i, source in enumerate(variants[0].emission.buckets):
        choices = [
            {
                "library": libraries[variant.target.name][i][1],
                "needs": variant.target.features,
                "tiles": int(variant.target.matrix is not None),
            }
            for variant in variants
        ]
        text = (
            environment()
            .get_template("choose.c.j2")
            .render(
                library=f"bucket_{source.length}.so",
                length=source.length,
                choices=choices,
                most=max(len(variant.target.features) for variant in variants),
            )
        )
        files = {"choose.c": text, "cpu_features.h": read_template("cpu_features.h")}
        buckets.append(build.Sources(source.length, files))
    portable = targets.TARGETS[-1]
    return build.write_variant_tree(folder, buckets, "", "", ("-ldl",), toolchain, portable)
