"""What runs a model on tokenized sequences: batching, padding and trimming, in one place.

A pipeline hands over sequences without padding and gets each one's outputs without padding.
"""

from __future__ import annotations

import abc
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from sparsec import ort
from sparsec.arguments import argument, setting
from sparsec.errors import EngineClosedError, InputError, ModelError
from sparsec.facade import Engine, default_buckets, is_artifact
from sparsec.runtime import Artifact, cpu

Array = NDArray[Any]
Outputs = dict[str, Array]

# Rows (sequences x bucket) that one call may have: what bounds the memory of a large request.
MAX_ROWS = 1 << 14

_Self = TypeVar("_Self", bound="Runner")


class Features(NamedTuple):
    """One sequence for the model.

    Attributes:
        arrays: int64 ``[length]`` by the name of the model's input; no padding.
        length: tokens, special ones included.
    """

    arrays: dict[str, NDArray[np.int64]]
    length: int


def _finite(array: Array) -> bool:
    """Whether all are numbers.  What is none stays in a sum, which is read once; where a sum of
    numbers is too large, the least and the greatest say it, in both of which NaN wins."""
    if array.dtype.kind != "f" or not array.size:
        return True
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(np.add.reduce(array, None)):
            return True
    return bool(np.isfinite(array.min()) and np.isfinite(array.max()))


def nonfinite(outputs: Sequence[Outputs], names: Sequence[str]) -> str:
    """What is wrong with a model's outputs: how many of their values are NaN or infinite, in one
    line; empty if all are numbers.

    Args:
        outputs: of each sequence, padding left out.
        names: the outputs that matter.
    """
    found = []
    # Most are parts of what a call has returned: if all of that is numbers, they are.
    wholes: dict[int, bool] = {}
    for name in names:
        nan = infinite = items = 0
        for output in outputs:
            array = output[name]
            if isinstance(array.base, np.ndarray):
                whole = id(array.base)
                if whole not in wholes:
                    wholes[whole] = _finite(array.base)
                if wholes[whole]:
                    continue
            if _finite(array):
                continue
            items += 1
            nan += int(np.isnan(array).sum())
            infinite += int(np.isinf(array).sum())
        if items:
            found.append(
                f"{name} has {nan} NaN and {infinite} infinite values in {items} of "
                f"{len(outputs)} sequences"
            )
    return "; ".join(found)


@dataclass(frozen=True)
class Role:
    """What a model's input is for; `kind` is ids, mask, types or positions."""

    name: str
    kind: str


def roles(names: Sequence[str]) -> tuple[Role, ...]:
    """What each input of a text model is for, judged by its name.

    Raises:
        ModelError: a name says nothing, or there is no input for token ids.
    """
    found = []
    for name in names:
        text = name.lower()
        if "mask" in text:
            kind = "mask"
        elif "type" in text or "segment" in text:
            kind = "types"
        elif "position" in text:
            kind = "positions"
        elif "id" in text or "input" in text or "token" in text:
            kind = "ids"
        else:
            raise ModelError(
                f"the model's input {name!r} is none of input_ids, attention_mask, "
                f"token_type_ids, position_ids: pipelines cannot fill it"
            )
        found.append(Role(name, kind))
    kinds = [role.kind for role in found]
    if kinds.count("ids") != 1 or len(set(kinds)) < len(kinds):
        raise ModelError(
            f"the model's inputs {', '.join(names)} are not those of a text model: token ids, and "
            f"perhaps an attention mask, token types and positions, each once"
        )
    return tuple(found)


class Runner(abc.ABC):
    """Runs sequences through one model.  Safe to use from many threads.  A context manager."""

    @property
    @abc.abstractmethod
    def input_names(self) -> tuple[str, ...]:
        """The model's inputs, in order."""

    @property
    @abc.abstractmethod
    def output_names(self) -> tuple[str, ...]:
        """The model's outputs, in order."""

    @property
    @abc.abstractmethod
    def buckets(self) -> tuple[int, ...]:
        """Sequence lengths, ascending; the last is the longest sequence that can run."""

    @property
    def output_shapes(self) -> Mapping[str, tuple[int | str, ...]]:
        """Shape of each output, of extents, "batch" and "sequence"; empty if not known."""
        return {}

    @property
    def output_types(self) -> Mapping[str, np.dtype[Any]]:
        """Element type of each output; empty if not known."""
        return {}

    @abc.abstractmethod
    def infer(self, items: Sequence[Features]) -> list[Outputs]:
        """Run sequences of any lengths.

        Returns:
            For each item, its outputs by name: the batch axis is gone, token axes are as long as
            the item.

        Raises:
            InputError: an item is longer than the largest bucket.
            EngineClosedError: the runner was closed.
        """

    def padding(self, lengths: Sequence[int]) -> int:
        """How many padded tokens are computed when sequences of these lengths run together."""
        return 0

    @abc.abstractmethod
    def close(self) -> None:
        """Wait for running calls and give up the model.  Later calls raise EngineClosedError."""

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class BatchingRunner(Runner):
    """Forms batches and takes their outputs apart; a subclass makes the calls.

    Args:
        inputs: name and dtype of each input.
        outputs: name and shape of each output, of extents, "batch" and "sequence".
        buckets: sequence lengths.
        pad_id: what token ids are filled up with after a sequence's end.
        pad_position: what positions are filled up with.
        output_types: element type of each output; None: not known.
    """

    #: Whether padded tokens cost nothing, so that sequences of all lengths share a call.
    free_padding: bool = False

    def __init__(
        self,
        inputs: Mapping[str, np.dtype[Any]],
        outputs: Mapping[str, Sequence[int | str]],
        buckets: Sequence[int],
        pad_id: int = 0,
        pad_position: int = 0,
        output_types: Mapping[str, np.dtype[Any]] | None = None,
    ) -> None:
        self._inputs = dict(inputs)
        self._output_types = dict(output_types or {})
        self._outputs = {name: tuple(shape) for name, shape in outputs.items()}
        self._buckets = tuple(sorted(buckets))
        known = roles(list(inputs))
        pad = {"ids": pad_id, "positions": pad_position}
        self._pad = {role.name: pad.get(role.kind, 0) for role in known}
        self._masked = any(role.kind == "mask" for role in known)

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(self._inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        return tuple(self._outputs)

    @property
    def output_shapes(self) -> Mapping[str, tuple[int | str, ...]]:
        return self._outputs

    @property
    def output_types(self) -> Mapping[str, np.dtype[Any]]:
        return self._output_types

    @property
    def buckets(self) -> tuple[int, ...]:
        return self._buckets

    @abc.abstractmethod
    def _call(self, arrays: dict[str, Array]) -> Sequence[Array]:
        """Run one batch; arrays are ``[batch, length]``, outputs in the model's order."""

    def infer(self, items: Sequence[Features]) -> list[Outputs]:
        results: list[Outputs] = [{} for _ in items]
        for call in self._calls([item.length for item in items]):
            batch = [items[i] for i in call]
            for i, outputs in zip(call, self._run(batch), strict=True):
                results[i] = outputs
        return results

    def padding(self, lengths: Sequence[int]) -> int:
        if self.free_padding:
            return 0
        return sum(
            len(call) * self._computed(max(lengths[i] for i in call))
            - sum(lengths[i] for i in call)
            for call in self._calls(lengths)
        )

    def _computed(self, longest: int) -> int:
        """Tokens computed for each sequence of a call."""
        return self._bucket(longest)

    def _bucket(self, length: int) -> int:
        """The smallest bucket that fits."""
        for bucket in self._buckets:
            if bucket >= length:
                return bucket
        raise InputError(
            f"a sequence of {length} tokens is above the largest bucket, {self._buckets[-1]}: "
            f"truncate it or use a larger {setting('sequence_length')}"
        )

    def _calls(self, lengths: Sequence[int]) -> list[list[int]]:
        """Which items go into which call.

        Without an attention mask, padding would change results: equal lengths only.  Where padding
        is computed, one bucket only.  Where it costs nothing, whatever fits.
        """
        order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        calls: list[list[int]] = []
        for i in order:
            bucket = self._bucket(lengths[i])
            if calls:
                call = calls[-1]
                first = lengths[call[0]]
                if not self._masked:
                    shares = lengths[i] == first
                else:
                    shares = self.free_padding or bucket == self._bucket(first)
                if shares and (len(call) + 1) * self._bucket(first) <= MAX_ROWS:
                    call.append(i)
                    continue
            calls.append([i])
        return calls

    def _length(self, longest: int) -> int:
        """Extent to pad a batch to."""
        return longest

    def _run(self, batch: Sequence[Features]) -> list[Outputs]:
        """One call: pad, run, cut."""
        lengths = [item.length for item in batch]
        length = self._length(max(lengths))
        # All at once: a copy for each sequence takes longer than the copying.
        real = np.arange(length) < np.array(lengths)[:, None]
        arrays = {}
        for name, dtype in self._inputs.items():
            array = np.full((len(batch), length), self._pad[name], dtype)
            array[real] = np.concatenate([item.arrays[name] for item in batch])
            arrays[name] = array
        results: list[Outputs] = [{} for _ in batch]
        for (name, shape), output in zip(self._outputs.items(), self._call(arrays), strict=True):
            for row, cut in zip(results, _cut(output, shape, lengths), strict=True):
                row[name] = cut
        return results


def _cut(output: Array, shape: Sequence[int | str], lengths: Sequence[int]) -> list[Array]:
    """What of an output is each sequence's, without padding."""
    if shape[:1] == ("batch",) and "batch" not in shape[1:]:
        if "sequence" not in shape:
            return list(output)
        if shape.index("sequence") == 1 and "sequence" not in shape[2:]:
            return [one[:length] for one, length in zip(output, lengths, strict=True)]
    return [
        output[tuple(
            i if extent == "batch" else slice(length if extent == "sequence" else None)
            for extent in shape
        )]
        for i, length in enumerate(lengths)
    ]  # fmt: skip


class EngineRunner(BatchingRunner):
    """Runs an artifact, or an ONNX model that is compiled on first use, with sparsec's Engine.

    Padding is not computed where the artifact can leave it out.

    Args:
        model: as for :class:`sparsec.Engine`.
        buckets, longest: sequence lengths; as for :class:`sparsec.Engine`.
        batch_size: what the layers of an ONNX model are cut for; any batch runs.
        num_cores: threads that a call may use; None: all usable cores.
        pad_id: what token ids are filled up with after a sequence's end.
        pad_position: what positions are filled up with.
        progress: called with one line per stage when an ONNX model is compiled.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Artifact,
        *,
        buckets: Sequence[int] | None = None,
        longest: int | None = None,
        batch_size: int = 1,
        num_cores: int | None = None,
        pad_id: int = 0,
        pad_position: int = 0,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        compiled = isinstance(model, Artifact) or is_artifact(model)
        self._engine = Engine(
            model,
            num_cores,
            skip_padding=True,
            buckets=buckets,
            longest=longest,
            batch_size=None if compiled else batch_size,
            progress=progress,
        )
        if 0 in self._engine.buckets:
            raise ModelError("the model has no sequence axis: pipelines cannot run it")
        self.free_padding = self._engine.skip_padding
        super().__init__(
            {spec.name: np.dtype(spec.dtype) for spec in self._engine.inputs},
            {spec.name: spec.shape for spec in self._engine.outputs},
            self._engine.buckets,
            pad_id,
            pad_position,
            {spec.name: np.dtype(spec.dtype) for spec in self._engine.outputs},
        )
        # What is called a mask is one only where it was proved to keep padding out.
        self._masked = self._engine.artifact.manifest.mask_input is not None

    @property
    def engine(self) -> Engine:
        """The :class:`sparsec.Engine`."""
        return self._engine

    def _length(self, longest: int) -> int:
        # The engine fills a bucket up with zeros, which to such a model are tokens with positions.
        filled = self._masked and any(self._pad.values())
        return self._bucket(longest) if filled else longest

    def _call(self, arrays: dict[str, Array]) -> Sequence[Array]:
        return _once(self._engine.output_names, self._engine.run(arrays))

    def close(self) -> None:
        self._engine.close()


class OnnxRuntimeRunner(BatchingRunner):
    """Runs an ONNX model with ONNX Runtime, for comparison.

    Args:
        model: the .onnx file, or a folder with ``model.onnx``.
        buckets: sequence lengths; a sequence is padded to the longest of its batch, or to the only
            length that the model takes.
        longest: tokens of the longest sequence, where there are no buckets.
        num_cores: threads; None: all usable cores.
        pad_id: what token ids are filled up with after a sequence's end.
        pad_position: what positions are filled up with.

    Raises:
        InputError: ONNX Runtime is not installed, or the buckets do not fit a fixed length.
        ModelError: ONNX Runtime cannot load or run the model.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        buckets: Sequence[int] | None = None,
        longest: int | None = None,
        num_cores: int | None = None,
        pad_id: int = 0,
        pad_position: int = 0,
    ) -> None:
        self._session: Any = ort.session(model, num_cores or cpu.usable_cores()[0])
        inputs = {node.name: _numpy_type(node.type) for node in self._session.get_inputs()}
        shape = self._session.get_inputs()[0].shape
        self._batch, self._fixed = (d if isinstance(d, int) else None for d in shape[:2])
        if self._fixed is not None:
            if buckets and max(buckets) > self._fixed:
                raise InputError(
                    f"{model} was exported for {self._fixed} tokens: "
                    f"{argument('sequence_length')} cannot be {max(buckets)}"
                )
            buckets = buckets or (self._fixed,)
        types = {node.name: _numpy_type(node.type) for node in self._session.get_outputs()}
        names = [node.name for node in self._session.get_outputs()]
        super().__init__(
            inputs,
            dict(zip(names, self._output_shapes(inputs), strict=True)),
            buckets or default_buckets(longest),
            pad_id,
            pad_position,
            types,
        )

    def _output_shapes(self, inputs: Mapping[str, np.dtype[Any]]) -> list[tuple[int | str, ...]]:
        """Found by running at two lengths, so that no number is mistaken for a length."""

        def shapes(batch: int, length: int) -> list[tuple[int, ...]]:
            ones = {name: np.ones((batch, length), dtype) for name, dtype in inputs.items()}
            for role in roles(list(inputs)):
                if role.kind in ("types", "positions"):
                    ones[role.name][:] = 0
            try:
                return [output.shape for output in self._session.run(None, ones)]
            except Exception as error:
                raise ModelError(f"ONNX Runtime cannot run the model: {error}") from error

        batch = self._batch or 1
        lengths = (2, 3) if self._fixed is None else (self._fixed, self._fixed)
        found = []
        for one, two in zip(shapes(batch, lengths[0]), shapes(batch, lengths[1]), strict=True):
            extents: list[int | str] = []
            for axis, (a, b) in enumerate(zip(one, two, strict=True)):
                grows = (a, b) == lengths and (self._fixed is None or axis == 1)
                extents.append("batch" if axis == 0 else "sequence" if grows else a)
            found.append(tuple(extents))
        return found

    def _length(self, longest: int) -> int:
        return self._fixed or longest

    def _computed(self, longest: int) -> int:
        return self._length(longest)

    def _call(self, arrays: dict[str, Array]) -> Sequence[Array]:
        session = self._session
        if session is None:
            raise EngineClosedError("the runner is closed: create a new pipeline")
        count = len(next(iter(arrays.values())))
        names = [node.name for node in session.get_outputs()]
        if self._batch is None:
            return _once(names, session.run(None, arrays))
        # The model takes one batch size only: fill the last batch up with its last sequence.
        parts = []
        for start in range(0, count, self._batch):
            rows = np.minimum(np.arange(start, start + self._batch), count - 1)
            parts.append(session.run(None, {name: a[rows] for name, a in arrays.items()}))
        return _once(names, [np.concatenate(part)[:count] for part in zip(*parts, strict=True)])

    def close(self) -> None:
        self._session = None


def _once(names: Sequence[str], outputs: Sequence[Array]) -> list[Array]:
    """Each output once; a model may list one more often."""
    return list(dict(zip(names, outputs, strict=True)).values())


def _numpy_type(name: str) -> np.dtype[Any]:
    """``tensor(int64)`` and the like as a dtype."""
    kind = name.removeprefix("tensor(").removesuffix(")")
    return np.dtype({"float": "float32", "double": "float64"}.get(kind, kind))
