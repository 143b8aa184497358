"""Text as C source: names that a model brings, whatever they hold; and lines that are too long."""

from __future__ import annotations

import re

# What ends a literal or begins an escape in it; "?" begins trigraphs.
_ESCAPED = frozenset(b'"\\?')


def c_string(text: str) -> str:
    """What stands between the quotes of a C string literal whose bytes are the text in UTF-8.

    Other bytes than printable ASCII become escapes of three octal digits, which no following digit
    can lengthen.
    """
    data = text.encode("utf-8", "replace")
    return "".join(chr(b) if 0x20 <= b < 0x7F and b not in _ESCAPED else f"\\{b:03o}" for b in data)


def c_comment(text: str) -> str:
    """One line for a C comment: printable ASCII that neither ends nor begins a comment.

    A backslash at its end would continue a ``//`` comment, two question marks begin a trigraph.
    """
    safe = "".join(c if c.isascii() and c.isprintable() else "_" for c in text)
    return safe.replace("*/", "*_").replace("/*", "_*").replace("??", "?_").replace("\\", "_")


#: Columns of the C that people are to read.
WIDTH = 120

# What stands between spaces; spaces in literals do not count.
_WORD = re.compile(r'(?:"(?:[^"\\]|\\.)*"|[^ "])+|"')


def tidy(text: str) -> str:
    """C source without lines beyond :data:`WIDTH`, trailing blanks and runs of empty lines."""
    lines = [part for line in text.split("\n") for part in _fold(line.rstrip())]
    kept = [line for before, line in zip(["", *lines], lines, strict=False) if before or line]
    return "\n".join(kept).strip("\n") + "\n"


def _fold(line: str) -> list[str]:
    """A line of C as several that fit, where it has spaces to break at; directives stay whole."""
    if len(line) <= WIDTH or line.lstrip().startswith("#"):
        return [line]
    indent = line[: len(line) - len(line.lstrip())]
    comment = line.lstrip().startswith(("/*", "* "))
    more = f"{indent}{' ' * line.lstrip().startswith('/*')}* " if comment else indent + "    "
    words = line.split() if comment else _WORD.findall(line)
    lines, current = [], [indent + words[0]]
    for word in words[1:]:
        if len(" ".join([*current, word])) > WIDTH:
            kept = _ending(current)
            lines.append(" ".join(current[:kept]))
            current = [more + " ".join(current[kept:])] if kept < len(current) else []
            word = word if current else more + word
        current.append(word)
    return [*lines, " ".join(current)]


def _ending(words: list[str]) -> int:
    """How many words of a line to keep on it: up to its last comma, if that is not far ahead."""
    for kept in range(len(words), 0, -1):
        if len(" ".join(words[:kept])) < WIDTH / 2:
            break
        if words[kept - 1].endswith((",", ";")):
            return kept
    return len(words)
