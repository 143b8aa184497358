"""Files of texts, however many, through a pipeline: `sparsec run`."""

from __future__ import annotations

from sparsec.errors import InputError

try:
    import fsspec  # noqa: F401
    import orjson  # noqa: F401
    import pyarrow  # noqa: F401
except ModuleNotFoundError as missing:
    raise InputError(
        f"running files of texts needs {missing.name}, which is not installed: "
        f"pip install 'sparsec[run]'"
    ) from None

from sparsec.serving.bulk.drive import RunSummary, run
from sparsec.serving.bulk.progress import Progress

__all__ = ["Progress", "RunSummary", "run"]
