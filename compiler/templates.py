"""The files of ``templates/``: as they are, or through Jinja2.

What decides and repeats stands on lines of its own, which begin with ``$`` and are indented as the
C around them; nothing is left of them::

        $ for r in range(4)
        sum{{ r }} += x[{{ r }}];
        $ endfor
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

from sparsec.errors import InputError

try:
    import jinja2
except ModuleNotFoundError:
    raise InputError(
        "compiling needs jinja2, which is not installed: pip install 'sparsec[compile]' (compiled "
        "models run without it)"
    ) from None

from sparsec.compiler.c_text import c_comment, c_string


@cache
def environment() -> jinja2.Environment:
    """The Jinja2 environment of all templates; a line that only decides leaves nothing behind."""
    made = jinja2.Environment(
        loader=jinja2.FunctionLoader(_with_tags),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {"c_string": c_string, "c_comment": c_comment}
    made.filters |= {"plus": plus, "times": times, "over": over, "more": more, "each": each}
    return made


def read_template(name: str) -> str:
    """A file of ``templates/`` as it is."""
    return resources.files("sparsec.templates").joinpath(name).read_text(encoding="utf-8")


def _with_tags(name: str) -> str:
    """A template with Jinja2's own tags on the lines that begin with ``$``.

    Its own line statements would take the empty lines behind them along.
    """
    return re.sub(r"^[ \t]*\$(-?) (.*)$", r"{%\1 \2 %}", read_template(name), flags=re.MULTILINE)


def plus(term: object) -> str:
    """What adds a term to the C expression in front of it: nothing where it is 0."""
    return "" if str(term) == "0" else f" + {term}"


def times(factor: object) -> str:
    """What multiplies the C expression in front of it by a factor: nothing where that is 1."""
    return "" if str(factor) == "1" else f" * {factor}"


def over(divisor: object) -> str:
    """What divides the C expression in front of it: nothing where the divisor is 1."""
    return "" if str(divisor) == "1" else f" / {divisor}"


def more(argument: str) -> str:
    """What passes one more argument behind those in front of it, if there is one."""
    return argument and f", {argument}"


def each(form: str, count: int, first: int = 0, lead: str = "") -> str:
    """C text for numbers from `first` on, with commas between; after `lead`, if there are any."""
    return lead * (count > 0) + ", ".join(form % i for i in range(first, first + count))
