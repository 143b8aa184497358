"""What `import sparsec` offers beyond the compiler and the runtime: an Engine that takes either an
artifact or an ONNX model, and random inputs to try one with."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sparsec import cache, hub, runtime
from sparsec.arguments import anchored, whole
from sparsec.errors import InputError
from sparsec.interface import MANIFEST
from sparsec.paths import config_folder, input_path
from sparsec.positions import read_positions
from sparsec.runtime import Artifact

if TYPE_CHECKING:
    from sparsec.compiler.frontend import Model

# Buckets of a model that an Engine is asked to compile without saying which: those that are shorter
# than the longest text that it takes, and that.
DEFAULT_BUCKETS = (16, 128, 512)

# Tokens in random inputs for a model that takes any number of them.
DEFAULT_LENGTH = 128


class Engine(runtime.Engine):
    """Runs a compiled model; an ONNX model is compiled into the user's cache folder first.

    Args:
        model: an artifact's folder, an ``Artifact``, an ONNX file, a folder with ``model.onnx``,
            or ``hf:org/name``.
        num_cores: threads that a call may use, the caller included; None: all usable cores.
        skip_padding: do not compute padded tokens; see :class:`sparsec.runtime.Engine`.
        buckets: of an ONNX model, sequence lengths to compile for; when absent 16, 128, 512 and the
            longest that it takes, or the length that it was exported for.  Of an artifact, those to
            load, all when absent.
        longest: tokens of the longest text for an ONNX model without `buckets`; when absent, what
            its config.json has positions for, and 512 if that does not say.
        batch_size, target, precision, cc, progress: as for :func:`sparsec.compile`; only for an
            ONNX model.

    Raises:
        InputError: compile options for an artifact; besides what compiling and loading raise.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Artifact,
        num_cores: int | None = None,
        *,
        skip_padding: bool = False,
        buckets: Sequence[int] | None = None,
        longest: int | None = None,
        batch_size: int | None = None,
        target: str | None = None,
        precision: str | None = None,
        cc: str | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        given = {"batch_size": batch_size, "target": target, "precision": precision, "cc": cc}
        if isinstance(model, Artifact) or is_artifact(model):
            wrong = [name for name, value in given.items() if value is not None]
            if wrong:
                raise InputError(
                    f"{', '.join(wrong)} cannot be changed: {model} is compiled already"
                )
            super().__init__(model, num_cores, skip_padding=skip_padding, buckets=buckets)
            self._source = None
            return
        entry = _compiled(hub.local(model, progress), buckets, longest, given, progress)
        super().__init__(entry, num_cores, skip_padding=skip_padding)
        options: dict[str, Any] = {
            "skip_padding": skip_padding,
            "buckets": None if buckets is None else self.buckets,
            "longest": longest,
        }
        options |= given
        self._source = type(self), anchored(model), num_cores, options

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as the path of its model and options; a model is compiled again where needed."""
        opened = super().__reduce__()
        return opened if self._source is None else (opened[0], self._source)


def _compiled(
    path: str | os.PathLike[str],
    buckets: Sequence[int] | None,
    longest: int | None,
    options: Mapping[str, Any],
    progress: Callable[[str], None] | None,
) -> Path:
    """The artifact of an ONNX model in the cache; the file is read and checked once.

    Args:
        options: of :func:`cache.compiled`; None: its default.
    """
    from sparsec.compiler import frontend

    model = frontend.load_model(path)
    return cache.compiled(
        model,
        buckets=_buckets_of(model, longest) if buckets is None else buckets,
        progress=progress,
        **{name: value for name, value in options.items() if value is not None},
    )


def default_buckets(longest: int | None) -> tuple[int, ...]:
    """Sequence lengths for texts of up to so many tokens; None: nobody knows how many."""
    last = DEFAULT_BUCKETS[-1] if longest is None else longest
    return (*(n for n in DEFAULT_BUCKETS if n < last), last)


def _buckets_of(model: Model, longest: int | None) -> tuple[int, ...]:
    """What to compile an ONNX model for that nobody named lengths for."""
    dims = [value.type.tensor_type.shape.dim for value in model.inputs()]
    lengths = {d[1].dim_value if d[1].HasField("dim_value") else 0 for d in dims if len(d) == 2}
    # An export for one length may work for that one only.
    if len(lengths) == 1 and max(lengths) > 0:
        return tuple(lengths)
    if longest is None:
        longest = read_positions(config_folder(model.path)).longest
    return default_buckets(longest)


def is_artifact(path: str | os.PathLike[str]) -> bool:
    """Whether a path is meant as an artifact: a folder that is not a model's."""
    folder = input_path(path)
    if (folder / MANIFEST).exists():
        return True
    return folder.suffix == ".sparsec" and not (folder / "model.onnx").exists()


class _Spec(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> Any: ...
    @property
    def shape(self) -> Sequence[Any]: ...


def generate_random_inputs(
    model: str | os.PathLike[str] | Artifact,
    batch_size: int = 1,
    length: int | None = None,
    seed: int = 0,
) -> list[np.ndarray[Any, Any]]:
    """Random arrays that a model accepts, one per input.

    Token ids are inside the vocabulary, masks are all ones, segment ids all zeros, positions those
    of the architecture.

    Args:
        model: an artifact or an ONNX model, ``hf:org/name`` too.
        batch_size: extent of the batch axis.
        length: tokens per sequence; the largest bucket of an artifact when absent, 128 for an ONNX
            model, or as many as the model has positions for.
        seed: equal seeds give equal arrays.

    Raises:
        InputError: a number is wrong, or the model has no positions for that many tokens.  Besides,
            what reading the model raises.
    """
    batch_size = whole("batch_size", batch_size, 1)
    length = None if length is None else whole("length", length, 1)
    seed = whole("seed", seed, 0)
    fixed = None
    if isinstance(model, Artifact) or is_artifact(model):
        artifact = model if isinstance(model, Artifact) else Artifact.load(model, verify=False)
        specs: Sequence[_Spec] = artifact.inputs
        mask = artifact.manifest.mask_input
        usual = max(artifact.buckets)
        folder = artifact.path
        limits = _config_limits(folder)
    else:
        from sparsec.compiler import frontend

        loaded = frontend.load_model(hub.local(model))
        signature = frontend.signature(loaded)
        specs, mask = signature.inputs, signature.mask_input
        fixed, usual = signature.fixed_length, DEFAULT_LENGTH
        folder = config_folder(loaded.path)
        limits = {**_config_limits(folder), **_table_limits(loaded)}
    known = read_positions(folder)
    ends = [limits[s.name] - known.first for s in specs if _places(s.name) and s.name in limits]
    longest = min([n for n in (known.longest, *ends) if n is not None], default=None)
    if length is not None and longest is not None and length > longest:
        raise InputError(
            f"{length} tokens are too many: the model has positions for {longest}; give a length "
            f"of at most that"
        )
    length = length or fixed or min(usual, longest or usual)
    extents = {"batch": batch_size, "sequence": length}
    rng = np.random.default_rng(seed)
    made = {spec.name: _random(spec, mask, limits, extents, rng) for spec in specs}
    ids = [name for name, x in made.items() if x.dtype.kind in "iu" and "id" in name]
    for name in [spec.name for spec in specs if _places(spec.name)]:
        counted = [made[n] for n in ids if n != name and made[n].shape == made[name].shape]
        # Token ids come first; where there are none, no token is padding.
        of = counted[0] if counted else np.full(made[name].shape, -1)
        made[name] = known.of(of).astype(made[name].dtype)
    return list(made.values())


def _places(name: str) -> bool:
    """Whether an input is for positions, judged by its name."""
    return "position" in name


def _random(
    spec: _Spec,
    mask: str | None,
    limits: dict[str, int],
    extents: dict[str, int],
    rng: np.random.Generator,
) -> np.ndarray[Any, Any]:
    dtype = np.dtype(spec.dtype)
    shape = tuple(extents[d] if isinstance(d, str) else int(d) for d in spec.shape)
    if spec.name == mask or "mask" in spec.name or dtype == np.bool_:
        return np.ones(shape, dtype)
    if "type" in spec.name or "segment" in spec.name:
        return np.zeros(shape, dtype)
    if np.issubdtype(dtype, np.integer):
        known = limits.get(spec.name, limits.get("", 2))
        return np.asarray(rng.integers(0, min(known, np.iinfo(dtype).max), shape, dtype))
    return np.asarray(rng.standard_normal(shape), dtype)


def _config_limits(folder: Path) -> dict[str, int]:
    """Vocabulary size according to config.json, under the name of no input in particular."""
    try:
        size = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("vocab_size")
    except (OSError, ValueError, AttributeError):
        return {}
    return {"": size} if isinstance(size, int) and size > 0 else {}


# Which inputs of an op are a table and the indices of its rows.
_LOOKS_UP = {
    "EmbedLayerNormalization": ((2, 0), (4, 1), (3, 8)),
    "Gather": ((0, 1),),
    "GatherBlockQuantized": ((0, 1),),
    "QEmbedLayerNormalization": ((2, 0), (4, 1)),
}

# Ops that leave the number of a table's rows as it is, and those that leave indices as they are.
_SAME_ROWS = ("Cast", "DequantizeLinear", "Identity", "QuantizeLinear")
_SAME_INDICES = ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")


def _table_limits(model: Any) -> dict[str, int]:
    """Rows of the smallest table that each input indexes as it is, by input name."""
    graph = model.proto.graph
    rows = {tensor.name: tensor.dims[0] for tensor in graph.initializer if tensor.dims}
    source = {value.name: value.name for value in model.inputs()}
    limits: dict[str, int] = {}
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value" and attribute.t.dims:
                    rows[node.output[0]] = attribute.t.dims[0]
        along = next((a.i for a in node.attribute if a.name in ("axis", "gather_axis")), 0)
        for table, indices in _LOOKS_UP.get(node.op_type, ()) if along == 0 else ():
            if max(table, indices) < len(node.input):
                size, index = rows.get(node.input[table]), source.get(node.input[indices])
                if index is not None and size is not None:
                    limits[index] = min(size, limits.get(index, size))
        if node.op_type in _SAME_ROWS and node.input[0] in rows:
            rows[node.output[0]] = rows[node.input[0]]
        if node.op_type in _SAME_INDICES and node.input and node.input[0] in source:
            source[node.output[0]] = source[node.input[0]]
    return limits
