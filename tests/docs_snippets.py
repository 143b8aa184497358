"""Running the examples of a documentation page: what it says is printed is what is printed.

    python -m tests.docs_snippets docs/pipelines/*.md     writes the output into the pages

Python blocks of a page run in one namespace.  A ``text`` block after one holds its output; a
``console`` block holds ``$ sparsec ...`` lines and theirs.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

_BLOCK = re.compile(r"^```(python|console)\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.S | re.M)


def rendered(page: str) -> str:
    """The page with the output that its examples print now, run in the current folder.

    Raises:
        whatever an example raises; AssertionError for a command that fails.
    """
    namespace: dict[str, Any] = {"__name__": "docs"}

    def run(block: re.Match[str]) -> str:
        kind, code, output = block.groups()
        if kind == "console":
            shown = []
            for line in code.splitlines():
                if line.startswith("$ "):
                    shown += [line, *_command(line[2:]).splitlines()]
            text = "\n".join(shown)
            return f"```console\n{text}\n```\n"
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "<docs>", "exec"), namespace)
        if output is None:
            assert not printed.getvalue(), (
                f"output that the page does not show: {printed.getvalue()}"
            )
            return block.group()
        return f"```python\n{code}```\n\n```text\n{printed.getvalue()}```\n"

    return _BLOCK.sub(run, page)


def _command(line: str) -> str:
    from sparsec.cli import main

    program, *arguments = shlex.split(line)
    assert program == "sparsec", line
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(arguments) == 0, line
    return printed.getvalue()


def prepare(folder: Path) -> None:
    """What examples expect to find beside them: the examples."""
    (folder / "examples").symlink_to(ROOT / "examples")


def main(paths: list[str]) -> None:
    """Rewrite pages."""
    pages = [Path(path).resolve() for path in paths]
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        os.chdir(folder)
        for page in pages:
            page.write_text(rendered(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
