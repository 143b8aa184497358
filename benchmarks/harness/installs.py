"""The Python environments of the peers: given, found, or made on first use."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Peer:
    """An engine to compare with.

    Attributes:
        packages: what pip installs into its environment.
        module: what must import; its name when empty.
        python: the version it needs, e.g. ``3.11``; empty for any.
    """

    name: str
    packages: tuple[str, ...]
    python: str = ""
    module: str = ""


PEERS = {
    peer.name: peer
    for peer in (
        # Its licence allows evaluation only: it is measured, and nothing depends on it.
        Peer("deepsparse", ("deepsparse==1.8.0",), "3.11"),
        Peer(
            "deepsparse-server",
            # With what its pipelines for text import, in versions that go with its old numpy.
            ("deepsparse[server,transformers]==1.8.0", "torch==2.13.0", "pyarrow<18"),
            "3.11",
            "deepsparse.transformers",
        ),
        Peer("fastapi", ("fastapi", "uvicorn[standard]", "onnxruntime", "tokenizers")),
        Peer("fastembed", ("fastembed", "fastapi", "uvicorn[standard]")),
        Peer(
            "infinity", ("torch==2.13.0", "infinity-emb[server,torch,optimum]"), "", "infinity_emb"
        ),
        Peer(
            "sentence-transformers",
            ("torch==2.13.0", "sentence-transformers", "fastapi", "uvicorn[standard]"),
            "",
            "sentence_transformers",
        ),
        Peer("openvino", ("openvino",)),
        Peer("onnxruntime", ("onnxruntime", "onnx")),
    )
}


class Unavailable(Exception):
    """A peer cannot be installed here; the message says why."""


def add_peers(
    parser: argparse.ArgumentParser, peers: Mapping[str, str], default: Iterable[str] = ()
) -> None:
    """Options that say which peers are measured, and where their environments are.

    Args:
        peers: the names that there are, each with its key in :data:`PEERS`.
        default: those that are measured if the command line names none.
    """

    def names(text: str) -> list[str]:
        found = [name for name in text.split(",") if name]
        if unknown := set(found) - set(peers):
            raise argparse.ArgumentTypeError(f"no such peer: {', '.join(sorted(unknown))}")
        return found

    parser.add_argument(
        "--peers", type=names, default=list(default), metavar="PEER,...",
        help=f"of {', '.join(peers)} (default: {', '.join(default) or 'none'})",
    )  # fmt: skip
    add_peer_python(parser, peers)


def add_peer_python(parser: argparse.ArgumentParser, peers: Iterable[str] = PEERS) -> None:
    """The option that says where environments of peers are.

    Args:
        peers: the names that there are.
    """

    def assignment(text: str) -> tuple[str, str]:
        name, _, python = text.partition("=")
        if name not in peers or not python:
            known = ", ".join(peers)
            raise argparse.ArgumentTypeError(f"{text!r}: PEER=PYTHON, PEER being {known}")
        return name, python

    parser.add_argument(
        "--peer-python", type=assignment, action="append", default=[], metavar="PEER=PYTHON",
        help="an environment that has the peer, instead of making one",
    )  # fmt: skip


def peer_pythons(
    peers: Mapping[str, str], cache: Path, given: Iterable[tuple[str, str]]
) -> tuple[dict[str, str], dict[str, str]]:
    """(the interpreter of each peer, why others have none), both by the peers' names.

    Args:
        peers: names, each with its key in :data:`PEERS`.
        given: names and interpreters, which are taken as they are.
    """
    pythons, skipped = {}, {}
    known = dict(given)
    for name, key in peers.items():
        try:
            there = {key: known[name]} if name in known else {}
            pythons[name] = peer_python(PEERS[key], cache, there)
        except Unavailable as reason:
            skipped[name] = str(reason)
    return pythons, skipped


def peer_python(peer: Peer, cache: Path, given: Mapping[str, str]) -> str:
    """The interpreter that can import the peer.

    Args:
        given: interpreters by peer, which are taken as they are.

    Raises:
        Unavailable: there is none and it could not be made.
    """
    if peer.name in given:
        python = given[peer.name]
    else:
        python = str(_venv(peer, (cache / f"venv-{peer.name}").absolute()))
    check = _call([python, "-c", f"import {peer.module or peer.name}"])
    if check:
        raise Unavailable(f"it does not import: {check}")
    return python


def _venv(peer: Peer, folder: Path) -> Path:
    python = folder / "bin" / "python"
    ready = folder / ".ready"
    if ready.exists():
        return python
    base = sys.executable
    if peer.python and not sys.version.startswith(peer.python + "."):
        found = shutil.which(f"python{peer.python}")
        if not found:
            raise Unavailable(f"it needs Python {peer.python}, which is not here")
        base = found
    print(f"installing {', '.join(peer.packages)}", file=sys.stderr)
    for command in (
        [base, "-m", "venv", "--clear", str(folder)],
        [str(python), "-m", "pip", "install", "-q", *peer.packages],
    ):
        failed = _call(command)
        if failed:
            raise Unavailable(failed)
    ready.touch()
    return python


def _call(command: list[str]) -> str:
    """Run a command; what went wrong, in one line, or nothing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except OSError as error:
        return f"cannot start Python: {error.strerror}"
    if not done.returncode:
        return ""
    lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
    errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:]
    return errors[0][:200]
