"""Build script: maps the top-level folders into the `sparsec` package, builds the runtime's
extension, and writes the man pages.  Everything that is plain metadata is in pyproject.toml."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import ClassVar

from setuptools import Command, Extension, find_packages, setup

# isort: split
from distutils.command.install_data import (
    install_data,
)  # setuptools brings it where Python has none

HERE = Path(__file__).resolve().parent

# Folders of the tree that are packages inside `sparsec`.
MAPPED = ("compiler", "templates", "runtime", "serving", "pruning")


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


# Python asks for debugging symbols, which are four fifths of a wheel's extensions.
COMPILE = ("-std=gnu11", "-fvisibility=hidden", "-g0")


def extensions() -> list[Extension]:
    """The runtime's engine (Cython over the C thread pool and CPU detection), its loader, sums of
    rows, and tokens of words."""
    from Cython.Build import cythonize

    engine = Extension(
        "sparsec.runtime._engine",
        sources=["runtime/_engine.pyx", "runtime/pool.c", "runtime/cpu.c"],
        depends=[
            *("runtime/pool.h", "runtime/cpu.h"),
            *("templates/sparsec.h", "templates/cpu_features.h"),
        ],
        include_dirs=["runtime", "templates"],
        extra_compile_args=[*COMPILE, "-O3"],
        extra_link_args=["-pthread"],
        libraries=["dl"],
    )
    loader = Extension(
        "sparsec.runtime._loader",
        sources=["runtime/_loader.pyx"],
        extra_compile_args=[*COMPILE, "-O2"],
        libraries=["dl"],
    )
    rows = Extension(
        "sparsec.runtime._rows",
        sources=["runtime/_rows.pyx"],
        extra_compile_args=[*COMPILE, "-O3"],
    )
    words = Extension(
        "sparsec.serving._words",
        sources=["serving/_words.pyx"],
        extra_compile_args=[*COMPILE, "-O3"],
    )
    return cythonize([engine, loader, rows, words], language_level=3)


class BuildManPages(Command):
    """Writes a man page for `sparsec` and one for each command to build/man."""

    description = "render the command line's parsers as man pages"
    user_options: ClassVar[list[tuple[str, str, str]]] = []

    def initialize_options(self) -> None:
        self.pages: list[str] = []

    def finalize_options(self) -> None:
        pass

    def run(self) -> None:
        from argparse_manpage.manpage import Manpage

        # These sources, whatever is installed.
        spec = importlib.util.spec_from_file_location(
            "sparsec",
            HERE / "sparsec" / "__init__.py",
            submodule_search_locations=[str(HERE / "sparsec"), str(HERE)],
        )
        assert spec and spec.loader
        sparsec = sys.modules["sparsec"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sparsec)
        from sparsec.cli import all_parsers

        folder = Path("build", "man")
        folder.mkdir(parents=True, exist_ok=True)
        for parser in all_parsers():
            name = parser.prog.replace(" ", "-")
            about = {
                "project_name": "sparsec",
                "version": sparsec.__version__,
                "manual_title": "sparsec",
                "description": parser.description,
            }
            page = Manpage(parser, _data=about)
            page.prog = name
            path = folder / f"{name}.1"
            path.write_text(str(page), encoding="utf-8")
            self.pages.append(str(path))


class InstallManPages(install_data):
    """Puts the man pages into share/man/man1."""

    def run(self) -> None:
        self.run_command("build_man")
        pages = self.get_finalized_command("build_man").pages
        self.data_files = [("share/man/man1", pages)]
        super().run()


def urls() -> dict[str, str]:
    """The project's pages, of whoever publishes it: SPARSEC_URL names the repository."""
    home = os.environ.get("SPARSEC_URL", "").rstrip("/")
    files = {"Documentation": "README.md", "Changelog": "CHANGELOG.md"}
    pages = {label: f"{home}/blob/main/{name}" for label, name in files.items()}
    return {"Source": home, "Issues": f"{home}/issues", **pages} if home else {}


PACKAGES, PACKAGE_DIR = packages()

setup(
    project_urls=urls(),
    packages=PACKAGES,
    package_dir=PACKAGE_DIR,
    package_data={
        "sparsec": ["py.typed"],
        "sparsec.templates": ["**/*.j2", "**/*.h"],
        "sparsec.runtime": ["*.pyi", "py.typed"],
        "sparsec.serving": ["*.pyi"],
        "sparsec.pruning": ["*.j2"],
        "sparsec.pruning.evaluation": ["*.j2"],
    },
    include_package_data=False,
    ext_modules=extensions(),
    data_files=[("share/man/man1", [])],
    cmdclass={"build_man": BuildManPages, "install_data": InstallManPages},
)
