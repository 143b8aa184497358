"""Drives the C compiler: from the emitted sources to one library per bucket and one of weights.

The C tree is written to a folder and compiled there with relative paths only::

    sparsec.h  weights.h  weights.S  weights.bin  Makefile
    bucket_16/*.c *.h
    bucket_128/*.c *.h

`weights.S` pulls the bytes in with ``.incbin``: constants never go through the C parser.  The
weights library is named after the hash of its bytes, and so is its one symbol, so libraries of
different models never meet under one name in a process.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sparsec.compiler.templates import read_template
from sparsec.compiler.toolchain import Runner, Toolchain
from sparsec.progress import Step
from sparsec.runtime.cpu import usable_cores
from sparsec.targets import Target

if TYPE_CHECKING:
    from sparsec.compiler.codegen import BucketSource, Emission

Progress = Callable[[str], None]

# Page-aligned, so that the kernel maps the constants straight from the file.
WEIGHTS_ALIGNMENT = 4096


@dataclass(frozen=True)
class CTree:
    """A C tree on disk.

    Attributes:
        folder: its root.
        weights: stem of the weights library (``weights-<12 hex digits>``), None without constants.
        buckets: ``(length, library's file name, translation units)``.
        needs: libraries of constants elsewhere, as seen from `folder`, or flags such as ``-ldl``.
    """

    folder: Path
    weights: str | None
    buckets: tuple[tuple[int, str, tuple[str, ...]], ...]
    needs: tuple[str, ...] = ()

    @property
    def libraries(self) -> tuple[str, ...]:
        """File names of the libraries it builds."""
        weights = (f"{self.weights}.so",) if self.weights else ()
        return (*weights, *(library for _, library, _ in self.buckets))


@dataclass(frozen=True)
class Sources:
    """C files of a bucket's library by name, and the bucket's length."""

    length: int
    files: Mapping[str, str]


def public_header() -> str:
    """The text of sparsec.h, the interface of every bucket library."""
    return read_template("sparsec.h")


def abi_version() -> int:
    """SPARSEC_ABI_VERSION of sparsec.h."""
    match = re.search(r"#define SPARSEC_ABI_VERSION (\d+)", public_header())
    if match is None:
        raise RuntimeError("sparsec.h does not define SPARSEC_ABI_VERSION")
    return int(match.group(1))


def write_tree(folder: Path, emission: Emission, toolchain: Toolchain, target: Target) -> CTree:
    """Write the C tree of an emission, with a Makefile that builds it without sparsec.

    Args:
        folder: where to; created, files in it are overwritten.
        emission: what code generation made.
        toolchain, target: what the Makefile's flags are for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "sparsec.h", public_header())
    weights = None
    if emission.weights:
        weights, symbol = write_constants(folder, emission.weights)
        _write(folder / "weights.h", _weights_header(symbol))
    else:
        _write(folder / "weights.h", "/* This model has no constants. */\n")
    tree = CTree(folder, weights, _write_buckets(folder, emission.buckets))
    _write(folder / "Makefile", _makefile(tree, toolchain, target))
    return tree


def write_constants(folder: Path, data: bytes) -> tuple[str, str]:
    """Write constants to a folder as what a library is made of; its stem, and its symbol."""
    digest = hashlib.sha256(data).hexdigest()[:12]
    symbol = f"sparsec_weights_{digest}"
    (folder / "weights.bin").write_bytes(data)
    _write(folder / "weights.S", _weights_assembly(symbol, len(data)))
    return f"weights-{digest}", symbol


def write_constants_tree(
    folder: Path, data: bytes, toolchain: Toolchain, target: Target
) -> tuple[CTree, str]:
    """Write a C tree of nothing but constants, in a folder inside of `folder` that is called as the
    library; the tree, and the constants' symbol."""
    stem = f"weights-{hashlib.sha256(data).hexdigest()[:12]}"
    (folder / stem).mkdir(exist_ok=True)
    stem, symbol = write_constants(folder / stem, data)
    tree = CTree(folder / stem, stem, ())
    _write(tree.folder / "Makefile", _makefile(tree, toolchain, target))
    return tree, symbol


def write_variant_tree(
    folder: Path,
    sources: Sequence[Sources | BucketSource],
    suffix: str,
    weights: str,
    needs: tuple[str, ...],
    toolchain: Toolchain,
    target: Target,
) -> CTree:
    """Write the C tree of a target whose constants are in libraries elsewhere.

    Args:
        folder: where to; created, files in it are overwritten.
        sources: of its buckets.
        suffix: of the names of the buckets' libraries.
        weights: text of ``weights.h``.
        needs: as for :class:`CTree`.
        toolchain, target: what the Makefile's flags are for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "sparsec.h", public_header())
    _write(folder / "weights.h", weights)
    tree = CTree(folder, None, _write_buckets(folder, sources, suffix), needs)
    _write(folder / "Makefile", _makefile(tree, toolchain, target))
    return tree


def write_common_makefile(folder: Path, trees: Sequence[CTree]) -> None:
    """Write a Makefile that builds trees, in this order, and collects their libraries."""
    lines = ["# Builds the libraries of all targets.", "all:"]
    for tree in trees:
        name = tree.folder.name
        lines.append(f"\t$(MAKE) -C {name}")
        lines += [f"\tcp {name}/{library} ." for library in tree.libraries]
    _write(folder / "Makefile", "\n".join([*lines, "", ".PHONY: all", ""]))


def _write_buckets(
    folder: Path, sources: Sequence[Sources | BucketSource], suffix: str = ""
) -> tuple[tuple[int, str, tuple[str, ...]], ...]:
    """Write the C of buckets; `CTree.buckets`."""
    buckets = []
    for bucket in sources:
        name = f"bucket_{bucket.length}{suffix}"
        (folder / name).mkdir(exist_ok=True)
        for file, text in bucket.files.items():
            _write(folder / name / file, text)
        units = tuple(f"{name}/{file}" for file in sorted(bucket.files) if file.endswith(".c"))
        buckets.append((bucket.length, f"{name}.so", units))
    return tuple(buckets)


def compile_tree(
    tree: CTree,
    toolchain: Toolchain,
    target: Target,
    *,
    jobs: int | None = None,
    progress: Progress | None = None,
    kept: Path | None = None,
) -> tuple[Path, ...]:
    """Compile and link a C tree in place.

    Args:
        tree: from :func:`write_tree`.
        toolchain: the compiler.
        target: the ISA target.
        jobs: compilers to run at once; as many as there are usable cores when absent.
        progress: told about each library.
        kept: where the user finds a copy of the tree, for messages.

    Returns:
        The libraries, weights first.

    Raises:
        ToolchainError: the compiler or linker failed.
    """
    tell = progress or (lambda _: None)
    units = [unit for _, _, bucket_units in tree.buckets for unit in bucket_units]
    if tree.weights:
        units.insert(0, "weights.S")
    links = _links(tree)
    parts = len(units) + len(links)
    workers = jobs or usable_cores()[1]
    runner = Runner(tree.folder, kept)
    with ThreadPoolExecutor(max_workers=max(1, min(workers, len(units)))) as pool:
        try:
            waiting = {
                pool.submit(
                    runner.run, toolchain.compile_command(unit, _object(unit), target)
                ): unit
                for unit in units
            }
            for done, future in enumerate(as_completed(waiting), start=1):
                future.result()
                line = f"compiled {waiting[future]} ({done} of {len(units)})"
                tell(Step(line, "compiling C", done, parts))
            for done, (library, objects, needed) in enumerate(links, start=len(units) + 1):
                link = toolchain.link_command(objects, library, needed)
                pool.submit(runner.run, link).result()
                tell(Step(f"linked {library}", "compiling C", done, parts))
        except BaseException:
            runner.stop()
            raise
    return tuple(tree.folder / library for library in tree.libraries)


def _links(tree: CTree) -> list[tuple[str, list[str], list[str]]]:
    """(library, its objects, libraries it needs), in the order to link them."""
    links: list[tuple[str, list[str], list[str]]] = []
    needed = list(tree.needs)
    if tree.weights:
        needed = [f"{tree.weights}.so"]
        links.append((needed[0], [_object("weights.S")], []))
    for _, library, units in tree.buckets:
        links.append((library, [_object(unit) for unit in units], needed))
    return links


def _object(unit: str) -> str:
    return unit.rpartition(".")[0] + ".o"


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _weights_assembly(symbol: str, size: int) -> str:
    return f"""\
/* The constants of all buckets, as they are in weights.bin. */
    .section .rodata,"a",%progbits
    .balign {WEIGHTS_ALIGNMENT}
    .globl {symbol}
    .type {symbol}, %object
    .size {symbol}, {size}
{symbol}:
    .incbin "weights.bin"
    .section .note.GNU-stack,"",%progbits
"""


def _weights_header(symbol: str) -> str:
    return f"""\
#ifndef SPARSEC_WEIGHTS
/* The constants of all buckets; lives in a library of its own beside the bucket's. */
extern const unsigned char {symbol}[] __attribute__((visibility("default")));
#define SPARSEC_WEIGHTS {symbol}
#define SPARSEC_WEIGHT(offset) (SPARSEC_WEIGHTS + (offset))
#endif
"""


def _makefile(tree: CTree, toolchain: Toolchain, target: Target) -> str:
    """A Makefile with the same commands that sparsec runs."""

    def recipe(command: Sequence[str]) -> str:
        head = len(toolchain.command)
        return "\t$(CC) " + shlex.join(command[head:]).replace("$", "$$")

    lines = [
        f"# Builds the libraries of {target.name} as sparsec does, with {toolchain.kind}.",
        "ifeq ($(origin CC),default)",
        f"CC = {shlex.join([Path(toolchain.command[0]).name, *toolchain.command[1:]])}",
        "endif",
        "",
        "all: " + " ".join(tree.libraries),
        "",
        ".PHONY: all",
    ]
    for library, objects, needed in _links(tree):
        files = [name for name in (*objects, *needed) if not name.startswith("-")]
        lines += ["", f"{library}: {' '.join(files)}"]
        lines += [recipe(toolchain.link_command(objects, library, needed))]
    if tree.weights:
        lines += ["", "weights.o: weights.S weights.bin"]
        lines += [recipe(toolchain.compile_command("weights.S", "weights.o", target))]
    for _, _, units in tree.buckets:
        for unit in units:
            headers = f"$(wildcard {Path(unit).parent}/*.h) sparsec.h weights.h"
            lines += ["", f"{_object(unit)}: {unit} {headers}"]
            lines += [recipe(toolchain.compile_command(unit, _object(unit), target))]
    return "\n".join([*lines, ""])
