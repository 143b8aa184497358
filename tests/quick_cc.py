"""The C compiler of tests in which compiled models are a means, not what is tested: it optimizes
little, and what it has compiled once in a test run it gives again.

Started as ``quick_cc.py STORE COMPILER... -- ARGUMENT...``; needs nothing but the standard library.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

#: Beside what tests run here, portable C takes a compiler long, at any level but the lowest.
LEVELS = {True: "-O0", False: "-O1"}


def script(folder: Path, command: tuple[str, ...]) -> Path:
    """A program that starts this one; compiled files are kept in `folder`."""
    path = folder / "quick-cc"
    real = shlex.join(command)
    here = shlex.join([sys.executable, "-IS", str(Path(__file__)), str(folder), *command, "--"])
    part = folder / f"quick-cc.{os.getpid()}"
    part.write_text(
        f'#!/bin/sh\ncase "$*" in *" -c "*) exec {here} "$@";; *) exec {real} "$@";; esac\n'
    )
    part.chmod(0o755)
    part.replace(path)
    return path


def digest(arguments: list[str], source: Path) -> str:
    """Of all that the outcome depends on: the command, the source, and headers of its C tree."""
    found = hashlib.sha256(repr(arguments).encode())
    for file in [source, *sorted(source.parent.glob("*.h")), *sorted(Path().glob("*.h"))]:
        found.update(repr((file.name, file.stat().st_size)).encode() + file.read_bytes())
    return found.hexdigest()[:32]


def main(store: Path, compiler: list[str], arguments: list[str]) -> int:
    """Compile a file as sparsec asks for it; other commands are the compiler's own business."""
    # ..., -I., -c, SOURCE, -o, OUTPUT
    head, source, output = arguments[:-4], arguments[-3], arguments[-1]
    ours = arguments[-5:-3] + arguments[-2:-1] == ["-I.", "-c", "-o"] and source.endswith(".c")
    if not ours or "-O3" not in head:
        return subprocess.call([*compiler, *arguments])
    level = LEVELS[not any(word.startswith("-m") for word in head)]
    head = [level if word == "-O3" else word for word in head]
    kept = store / digest([*compiler, *head], Path(source))
    with kept.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            part = kept.with_suffix(".part")
            code = subprocess.call([*compiler, *head, "-c", source, "-o", str(part)])
            if code:
                return code
            part.replace(kept)
    shutil.copyfile(kept, output)
    return 0


if __name__ == "__main__":
    split = sys.argv.index("--")
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:split], sys.argv[split + 1 :]))
