"""The tests, on every Python that the package is for and that is here.

    python -m release.pythons             # all that are found
    python -m release.pythons 3.12 3.14   # these; one that is missing is an error

Each gets an environment in `build/pythons`, kept for the next time, with the package installed from
the tree, and runs the subjects of :data:`SUBJECTS`: what depends on Python, not on the compiler's
numbers, which are the same everywhere.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# What is installed beside the package, as far as it can be: without `run` and without the others
# there are versions of Python that a library has no wheel for yet.
EXTRAS = "compile,serve,run,completion,grpc,otel"
TOOLS = ("pytest>=8", "hypothesis>=6.100", "httpx>=0.27", "onnxruntime>=1.17", "pytest-xdist>=3.5")

# A few minutes on one core.
SUBJECTS = (
    *("test_imports", "test_python_habits", "test_frontend_load", "test_passes_basic"),
    *("test_runtime_pool", "test_runtime_artifact", "test_runtime_engine", "test_plain_text"),
    *("test_tokenizer_files", "test_defaults", "test_server_units", "test_server_keys"),
)


def supported() -> list[str]:
    """The versions that the package's classifiers name, such as 3.10."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return re.findall(r'"Programming Language :: Python :: (3\.\d+)"', text)


def candidates(version: str) -> Iterator[str]:
    """Commands and paths that may be that Python."""
    home = Path.home()
    yield f"python{version}"
    short = version.replace(".", "")
    for folder, pattern in (
        (home / ".pyenv/versions", f"{version}.*"),
        (home / ".local/share/uv/python", f"cpython-{version}.*"),
        (Path("/opt/python"), f"cp{short}-cp{short}"),
    ):
        yield from (str(path / "bin/python3") for path in sorted(folder.glob(pattern)))


def found(versions: Sequence[str]) -> dict[str, str]:
    """Interpreters by version, of those that run here."""
    interpreters = {}
    for version in versions:
        for command in candidates(version):
            program = runs(command, version)
            if program:
                interpreters[version] = program
                break
    return interpreters


def runs(command: str, version: str) -> str | None:
    """The path of an interpreter, if it is there, is of that version and can make environments."""
    code = "import sys, sysconfig, venv, ensurepip; print('%d.%d' % sys.version_info[:2]); "
    code += "print(sys.executable)"
    try:
        done = subprocess.run([command, "-c", code], capture_output=True, text=True, check=False)
    except OSError:
        return None
    said = done.stdout.split("\n")
    return said[1] if done.returncode == 0 and said[0] == version else None


def call(command: Sequence[str], **variables: str) -> None:
    """Run a command in the tree.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}, check=True)


def prepare(version: str, interpreter: str) -> str:
    """The Python of an environment with the package and what tests need."""
    home = ROOT / "build" / "pythons" / version
    python = str(home / "bin" / "python")
    if not (home / "bin" / "python").exists():
        call([interpreter, "-m", "venv", str(home)])
    pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    call([*pip, "pip>=23", "setuptools>=77", "wheel", "Cython>=3.0", "argparse-manpage>=4.5"])
    call([*pip, *TOOLS])
    call([*pip, "--no-build-isolation", "--no-deps", "-e", "."])
    call([*pip, f"sparsec[{EXTRAS}]"])
    return python


def main() -> int:
    """Test; the number of versions that failed is the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("versions", nargs="*", help="such as 3.12; by default all that are here")
    parser.add_argument("--prepare", action="store_true", help="only install")
    args = parser.parse_args()
    asked = args.versions or supported()
    interpreters = found(asked)
    absent = [version for version in asked if version not in interpreters]
    print(f"not here: {', '.join(absent) or 'none'}", flush=True)
    failed = absent if args.versions else []
    for version, interpreter in interpreters.items():
        start = time.monotonic()
        python = prepare(version, interpreter)
        if args.prepare:
            continue
        tests = [f"tests/{name}.py" for name in SUBJECTS]
        command = [python, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider"]
        code = subprocess.run([*command, *tests], cwd=ROOT, check=False).returncode
        print(f"Python {version}: exit code {code}, {time.monotonic() - start:.0f} s", flush=True)
        failed += [version] if code else []
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
