import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sparsec.runtime.artifact import Artifact, TensorSpec

ABI_VERSION: int
MAX_THREADS: int

_Self = TypeVar("_Self", bound="Engine")
_Inputs = Sequence[NDArray[Any]] | Mapping[str, NDArray[Any]]

class Engine:
    def __init__(
        self,
        path: str | os.PathLike[str] | Artifact,
        num_cores: int | None = None,
        *,
        skip_padding: bool = False,
        buckets: Sequence[int] | None = None,
    ) -> None: ...
    @property
    def artifact(self) -> Artifact: ...
    @property
    def input_names(self) -> list[str]: ...
    @property
    def output_names(self) -> list[str]: ...
    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...
    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...
    @property
    def buckets(self) -> list[int]: ...
    @property
    def num_cores(self) -> int: ...
    @property
    def skip_padding(self) -> bool: ...
    @property
    def closed(self) -> bool: ...
    def run(
        self, inputs: _Inputs, *, skip_padding: bool | None = None
    ) -> list[np.ndarray[Any, Any]]: ...
    def __call__(
        self, inputs: _Inputs, *, skip_padding: bool | None = None
    ) -> list[np.ndarray[Any, Any]]: ...
    def close(self) -> None: ...
    def __enter__(self: _Self) -> _Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

def cpu_probe() -> tuple[str, list[str], list[int]]: ...
def pool_workers() -> int: ...
def pool_stop() -> None: ...
