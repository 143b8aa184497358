"""The examples of docs/server.md against a real server.

    python -m tests.docs_server        writes what they print into the page

``console`` blocks hold ``$ curl ...`` lines and what they print.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path

import yaml

from tests.server_support import Server

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "server.md"

# What differs from run to run, and what is kept of it.
_VOLATILE = re.compile(r'("request_id": )"(?!my-id)[^"]*"')


def rendered(page: str, folder: Path) -> str:
    """The page with what its commands print now, with the server of its YAML block.

    Args:
        folder: to run in; gets the examples.
    """
    (folder / "examples").symlink_to(ROOT / "examples")
    found = re.search(r"^```yaml\n(.*?)^```", page, re.S | re.M)
    assert found
    with Server(folder / "server", yaml.safe_load(found[1]), cwd=folder) as server:
        address = server.url.removeprefix("http://")

        def run(block: re.Match[str]) -> str:
            shown = []
            for line in block[1].splitlines():
                if line.startswith("$ "):
                    done = subprocess.run(
                        line[2:].replace("localhost:5543", address),
                        shell=True, capture_output=True, text=True, check=True, cwd=folder,
                    )  # fmt: skip
                    shown += [line, *_shown(done.stdout).splitlines()]
            return "```console\n" + "\n".join(shown) + "\n```\n"

        return re.sub(r"^```console\n(.*?)^```\n", run, page, flags=re.S | re.M)


def _shown(output: str) -> str:
    return _VOLATILE.sub(r'\1"1f0e9ad22ee1a0a4"', output)


def rounded(text: str) -> str:
    """Numbers with three digits: the last ones differ between instruction sets."""
    return re.sub(r"\d\.\d{4,}", lambda number: f"{float(number[0]):.2f}", text)


def main() -> None:
    """Rewrite the page."""
    os.environ.setdefault("XDG_CACHE_HOME", tempfile.mkdtemp())
    with tempfile.TemporaryDirectory() as folder:
        PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8"), Path(folder)), encoding="utf-8")


if __name__ == "__main__":
    main()
