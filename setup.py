"""Build script: maps the top-level folders into the `sparsec` package, builds the runtime's
extension, and writes the man pages.  Everything that is plain metadata is in pyproject.toml."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup

# isort: split
from distutils.command.install_data import (
    install_data,
)  # setuptools brings it where Python has none

HERE = Path(__file__).resolve().parent

# Folders of the tree that are packages inside `sparsec`.
MAPPED = ("compiler", "templates", "runtime", "serving")


def packages() -> tuple[list[str], dict[str, str]]:
    """All packages and where they live."""
    names = ["sparsec"] + ["sparsec." + name for name in find_packages("sparsec")]
    where = {"sparsec": "sparsec"}
    for folder in MAPPED:
        if (HERE / folder / "__init__.py").exists():
            names.append(f"sparsec.{folder}")
            names += [f"sparsec.{folder}.{name}" for name in find_packages(folder)]
            where[f"sparsec.{folder}"] = folder
    return names, where


def extensions() -> list[Extension]:
    """The runtime's engine: thin Cython over the C thread pool and CPU detection."""
    from Cython.Build import cythonize

    engine = Extension(
        "sparsec.runtime._engine",
        sources=["runtime/_engine.pyx", "runtime/pool.c", "runtime/cpu.c"],
        depends=["runtime/pool.h", "runtime/cpu.h", "templates/sparsec.h"],
        include_dirs=["runtime", "templates"],
        extra_compile_args=["-O3", "-std=gnu11", "-fvisibility=hidden"],
        extra_link_args=["-pthread"],
        libraries=["dl"],
    )
    return cythonize([engine], language_level=3)


class InstallManPages(install_data):
    """Writes a man page for `sparsec` and one for each command, and installs them as data."""

    def run(self) -> None:
        pages = write_man_pages(HERE / "build" / "man")
        self.data_files = [("share/man/man1", [os.path.relpath(p, HERE) for p in pages])]
        super().run()


def write_man_pages(folder: Path) -> list[Path]:
    """Render the argument parsers with argparse-manpage; needs no run-time requirement."""
    from argparse_manpage.manpage import Manpage

    sys.path.insert(0, str(HERE))
    import sparsec

    # Before it is installed, the package's sub-packages are the folders of the tree.
    sparsec.__path__.append(str(HERE))
    from sparsec.cli import all_parsers

    folder.mkdir(parents=True, exist_ok=True)
    pages = []
    for parser in all_parsers():
        page = folder / (parser.prog.replace(" ", "-") + ".1")
        about = {
            "project_name": "sparsec",
            "version": sparsec.__version__,
            "manual_title": "sparsec",
            "description": str(parser.description).splitlines()[0].rstrip("."),
        }
        page.write_text(str(Manpage(parser, _data=about)), encoding="utf-8")
        pages.append(page)
    return pages


PACKAGES, PACKAGE_DIR = packages()

setup(
    packages=PACKAGES,
    package_dir=PACKAGE_DIR,
    package_data={
        "sparsec": ["py.typed"],
        "sparsec.templates": ["**/*.j2", "**/*.h"],
        "sparsec.runtime": ["*.pyi", "py.typed"],
    },
    include_package_data=False,
    ext_modules=extensions(),
    data_files=[("share/man/man1", [])],
    cmdclass={"install_data": InstallManPages},
)
