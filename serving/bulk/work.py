"""What is to be done with each part, as it is known before the first one is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sparsec.arguments import argument
from sparsec.serving.bulk.encoding import Encoded, Schema, encode
from sparsec.serving.bulk.files import Source
from sparsec.serving.bulk.worker import Pending


@dataclass(frozen=True)
class Work:
    """What every machine that works on a run needs to know beside the model.

    Attributes:
        sources: the files.
        columns: the column of each field that is read.
        schema: the form of the output.
        prefix: what the names of the answer's columns begin with.
        keep_bad: whether rows that cannot be answered are put aside.
    """

    sources: Sequence[Source]
    columns: Mapping[str, str]
    schema: Schema
    prefix: str
    keep_bad: bool

    def encoded(self, pending: Pending) -> Encoded:
        """A part as it is written.

        Raises:
            InputError: a row is bad, and is not to be kept.
        """
        found = pending.result()
        if found.bad and not self.keep_bad:
            first = found.bad[0]
            name = self.sources[found.rows.source(first.index)].name
            raise type(first.error)(
                f"{name}, row {found.rows.number(first.index)}: {first.error} "
                f"({argument('bad_rows')} puts such rows aside)"
            )
        found.columns = {self.prefix + name: values for name, values in found.columns.items()}
        return encode(found, self.schema, self.sources)
