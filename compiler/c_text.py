"""Names that a model brings (of nodes, inputs, outputs, itself) as C source, whatever they hold."""

from __future__ import annotations

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
