"""The files of ``templates/``: as they are, or through Jinja2.

What decides and repeats stands on lines of its own, which begin with ``$`` and are indented as the
C around them::

        $ for r in range(4)
        sum{{ r }} += x[{{ r }}];
        $ endfor
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources

import jinja2

from sparsec.compiler.c_text import c_comment, c_string


@cache
def environment() -> jinja2.Environment:
    """The Jinja2 environment of all templates; a line that only decides leaves nothing behind."""
    made = jinja2.Environment(
        loader=jinja2.FunctionLoader(read_template),
        undefined=jinja2.StrictUndefined,
        line_statement_prefix="$",
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {"c_string": c_string, "c_comment": c_comment, "lines": indent_lines}
    return made


def read_template(name: str) -> str:
    """A file of ``templates/`` as it is."""
    return resources.files("sparsec.templates").joinpath(name).read_text(encoding="utf-8")


def indent_lines(lines: Sequence[str], width: int) -> str:
    """Statements, one a line, indented by `width`; the template places the first one."""
    return ("\n" + " " * width).join(lines)
