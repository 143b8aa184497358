"""From emissions to the libraries of an artifact, and what its manifest says of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsec.compiler import artifact, build, fat
from sparsec.compiler.fat import Variant
from sparsec.compiler.toolchain import Toolchain
from sparsec.targets import host_arch

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Built:
    """Libraries of an artifact.

    Attributes:
        files: the libraries.
        rows: for each target, fastest first, its part of the manifest.
    """

    files: tuple[Path, ...]
    rows: tuple[dict[str, Any], ...]


def libraries_of(
    folder: Path,
    variants: Sequence[Variant],
    toolchain: Toolchain,
    *,
    jobs: int | None = None,
    progress: Progress | None = None,
    kept: Path | None = None,
) -> Built:
    """Write the C of one target or several, and compile it.

    Args:
        folder: for the C; made.
        variants: fastest target first.
        toolchain: the compiler.
        jobs: compilers to run at once; as many as there are usable cores when absent.
        progress: told about each library.
        kept: where to copy the C to.

    Raises:
        ToolchainError: the compiler or linker failed.
        ArtifactError: the copy cannot be written.
    """
    (first, *others) = variants
    if not others:
        tree = build.write_tree(folder, first.emission, toolchain, first.target)
        trees = [(tree, first.target)]
        libraries = {first.target.name: [(length, name) for length, name, _ in tree.buckets]}
        needs = {first.target.name: [f"{tree.weights}.so"] if tree.weights else []}
    else:
        made = fat.write_tree(folder, variants, toolchain)
        trees = list(made.trees)
        libraries = {name: list(rows) for name, rows in made.libraries.items()}
        needs = {name: list(names) for name, names in made.needs.items()}
    if kept is not None:
        with artifact.writing(kept):
            shutil.copytree(folder, kept, dirs_exist_ok=True)
    files: list[Path] = []
    for tree, target in trees:
        place = kept / tree.folder.relative_to(folder) if kept else None
        files += build.compile_tree(
            tree, toolchain, target, jobs=jobs, progress=progress, kept=place
        )
    rows = [_row(v, toolchain, libraries[v.target.name], needs[v.target.name]) for v in variants]
    return Built(tuple(files), tuple(rows))


def _row(
    variant: Variant,
    toolchain: Toolchain,
    libraries: Sequence[tuple[int, str]],
    needs: Sequence[str],
) -> dict[str, Any]:
    """What the manifest says of a target: the fields of `sparsec.interface.PER_TARGET`."""
    isa, emission = variant.target, variant.emission
    return {
        "target": {
            "name": isa.name,
            "arch": isa.arch or host_arch(),
            "features": sorted(isa.features),
            "tuned_for": isa.tuned_for,
            "precision": isa.precision,
        },
        "toolchain": {
            "compiler": toolchain.kind,
            "version": toolchain.version,
            "flags": list(toolchain.flags(isa)),
        },
        "supports_lengths": all(source.supports_lengths for source in emission.buckets),
        "buckets": [
            {
                "length": length,
                "file": library,
                "needs": list(needs),
                "kernels": list(source.kernels),
            }
            for (length, library), source in zip(libraries, emission.buckets, strict=True)
        ],
        "layers": [dict(layer) for layer in emission.layers],
    }
