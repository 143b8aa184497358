"""How a sentence-transformers model turns the states of a text's tokens into its vector.

What the files of the model's folder say is obeyed: pooling, dense layers, normalization, prompts,
the greatest length, the similarity that the model was trained for.  Definitions are those of the
package sentence-transformers (5.7), https://sbert.net.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from sparsec import sentence_files
from sparsec.errors import InputError, ModelError
from sparsec.runtime._rows import sum_each
from sparsec.sentence_files import Module

Vector = NDArray[np.float32]

# Poolings by the switches of older models, in the order in which several are joined.
_MODES = {
    "cls_token": "cls",
    "max_tokens": "max",
    "mean_tokens": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "weightedmean_tokens": "weightedmean",
    "lasttoken": "lasttoken",
}
MODES = tuple(_MODES.values())

SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")


class Step(Protocol):
    """A module behind the pooling: a vector to a vector."""

    def __call__(self, x: Vector) -> Vector: ...


@dataclass(frozen=True)
class Pooling:
    """The vector of a text from its tokens' states.

    Attributes:
        modes: of :data:`MODES`; the vectors of several are joined.
        include_prompt: whether the prompt's tokens count.
    """

    modes: tuple[str, ...] = ("mean",)
    include_prompt: bool = True

    def __call__(self, states: Sequence[NDArray[Any]], prompt: int = 0) -> Vector:
        """Pool.

        Args:
            states: of each text float ``[tokens, channels]``; no padding.
            prompt: tokens at the beginning of each that are the prompt's.

        Returns:
            float32 ``[texts, modes * channels]``.
        """
        channels = states[0].shape[-1]
        pooled = np.empty((len(states), len(self.modes) * channels), np.float32)
        counted = 0 if self.include_prompt else prompt
        if counted:
            first = [counted if counted < len(one) else 0 for one in states]
            states = [one[skipped:] for one, skipped in zip(states, first, strict=True)]
        else:
            first = [0] * len(states)
        for i, mode in enumerate(self.modes):
            _POOL[mode](states, first, pooled[:, i * channels : (i + 1) * channels])
        return pooled


def _mean(states: Sequence[NDArray[Any]], power: float, out: Vector) -> None:
    """Sums over tokens, divided by a power of how many they are."""
    sums = np.empty(out.shape, np.float32)
    sum_each(list(states), sums)
    out[:] = sums
    out /= np.array([len(one) ** power for one in states], np.float32)[:, None]


def _weighted(states: Sequence[NDArray[Any]], first: Sequence[int], out: Vector) -> None:
    """A token's weight is its place in the sequence, counted from 1."""
    for one, row, skipped in zip(states, out, first, strict=True):
        weights = np.arange(1, len(one) + 1, dtype=np.float64) + skipped
        row[:] = weights @ one.astype(np.float64) / weights.sum()


def _token(index: int) -> Pool:
    def pool(states: Sequence[NDArray[Any]], first: Sequence[int], out: Vector) -> None:
        for one, row in zip(states, out, strict=True):
            row[:] = one[index]

    return pool


def _max(states: Sequence[NDArray[Any]], first: Sequence[int], out: Vector) -> None:
    for one, row in zip(states, out, strict=True):
        np.maximum.reduce(one, 0, np.float32, row)


# From states of texts, ``[tokens, channels]`` each, behind so many tokens that are left out, to
# vectors ``[texts, channels]``, which are written in place: an array for each text takes longer
# than the sums.
Pool = Callable[[Sequence[NDArray[Any]], Sequence[int], Vector], None]

_POOL: Mapping[str, Pool] = {
    "cls": _token(0),
    "max": _max,
    "mean": lambda states, first, out: _mean(states, 1, out),
    "mean_sqrt_len_tokens": lambda states, first, out: _mean(states, 0.5, out),
    "weightedmean": _weighted,
    "lasttoken": _token(-1),
}


@dataclass(frozen=True, eq=False)
class Dense:
    """``activation(weight @ x + bias)``; weight is float32 ``[out, in]``."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    activation: str

    ACTIVATIONS: ClassVar[Mapping[str, Callable[[NDArray[np.float32]], Vector]]] = {
        "Identity": lambda x: x,
        "Tanh": np.tanh,
        "ReLU": lambda x: np.maximum(x, 0),
        "Sigmoid": lambda x: (0.5 * (1 + np.tanh(0.5 * x))).astype(np.float32),
    }

    def __call__(self, x: Vector) -> Vector:
        y = self.weight @ x
        return self.ACTIVATIONS[self.activation](y if self.bias is None else y + self.bias)


@dataclass(frozen=True, eq=False)
class LayerNorm:
    """Mean 0, variance 1, then scale and shift, float32 ``[channels]`` each."""

    scale: NDArray[np.float32]
    shift: NDArray[np.float32]

    def __call__(self, x: Vector) -> Vector:
        y = x.astype(np.float64)
        y = (y - y.mean()) / np.sqrt(y.var() + 1e-5)
        found: Vector = (y * self.scale + self.shift).astype(np.float32)
        return found


@dataclass(frozen=True)
class Normalize:
    """Length 1; zero stays zero."""

    def __call__(self, x: Vector) -> Vector:
        return unit(x)


def unit(x: NDArray[Any]) -> NDArray[np.float32]:
    """Vectors ``[..., channels]`` scaled to length 1; zero stays zero."""
    # In double precision no square of a float is too large or too small.
    length = np.linalg.norm(x.astype(np.float64), axis=-1, keepdims=True)
    return (x / np.where(length == 0, 1.0, length)).astype(np.float32)


@dataclass(frozen=True)
class Splade:
    """A weight for each token of the vocabulary from the logits of a masked language model:
    ``log(1 + relu(x))``, over the tokens of the text the largest, or their sum.

    Source: Formal et al., SPLADE v2, 2021 (max), and SPLADE, 2021 (sum).
    """

    pooling: str = "max"
    activation: str = "relu"

    def __call__(self, logits: NDArray[Any]) -> Vector:
        """float ``[tokens, vocabulary]`` -> float32 ``[vocabulary]``, none below 0."""
        x = np.asarray(logits, np.float32)
        if self.pooling == "max":
            return self._rise(x.max(axis=0))  # the same, since it only grows
        found: Vector = self._rise(x).sum(axis=0, dtype=np.float64).astype(np.float32)
        return found

    def _rise(self, x: NDArray[np.float32]) -> Vector:
        y: Vector = np.log1p(np.maximum(x, 0))
        return np.log1p(y) if self.activation == "log1p_relu" else y


@dataclass(frozen=True)
class SentenceSettings:
    """What a sentence-transformers model says of itself.

    Attributes:
        folder: what has its files; None: the model has none, and these are the defaults.
        pooling, steps: from states of tokens to a vector, in order.
        splade: from logits to a sparse vector; None where the model is not of that kind.
        prompts: what is put before a text, by name.
        default_prompt: which, where a call names none; None: nothing.
        max_length: tokens that the model was made for; None: not said.
        lower: whether texts are put into small letters first.
        similarity: of :data:`SIMILARITIES`.
    """

    folder: Path | None = None
    pooling: Pooling = Pooling()
    steps: tuple[Step, ...] = ()
    splade: Splade | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    max_length: int | None = None
    lower: bool = False
    similarity: str = "cosine"

    @classmethod
    def load(cls, folder: Path | None) -> SentenceSettings:
        """Read a model's files.

        Args:
            folder: what has modules.json; None, or a folder without: the defaults.

        Raises:
            ModelError: a file is damaged, or asks for what cannot be done.
        """
        rows = sentence_files.modules(folder) if folder else ()
        if not folder or not rows:
            return cls()
        settings = _settings(folder / sentence_files.SETTINGS)
        transformer = _transformer(folder, rows[0])
        length = transformer.get("max_seq_length")
        if length is not None and (type(length) is not int or length < 1):
            raise ModelError(f"{folder}: max_seq_length must be a number of tokens, not {length!r}")
        return replace(
            settings,
            folder=folder,
            max_length=length,
            lower=bool(transformer.get("do_lower_case", False)),
            **_modules(folder, rows[1:]),
        )

    @property
    def given(self) -> bool:
        """Whether a model has said this, and not only defaults."""
        return self.folder is not None

    def prompt(self, name: str | None, text: str | None = None) -> str:
        """What is put before a text: `text`, else the prompt of that name, else the default one.

        Raises:
            InputError: there is no prompt of that name.
        """
        if text is not None:
            return text
        name = self.default_prompt if name is None else name
        if name is None:
            return ""
        if name not in self.prompts:
            raise InputError(
                f"prompt_name: the model has no prompt {name!r}; it has "
                f"{', '.join(self.prompts) or 'none'}"
            )
        return self.prompts[name]

    def vector(self, states: NDArray[Any], prompt: int = 0) -> Vector:
        """The vector of a text, float32 ``[channels]``; see :meth:`vectors`."""
        found: Vector = self.vectors([states], prompt)[0]
        return found

    def vectors(self, states: Sequence[NDArray[Any]], prompt: int = 0) -> Vector:
        """The vectors of texts.

        Args:
            states: of each text float ``[tokens, channels]`` without padding; or vectors that the
                model has pooled itself, which are only scaled if the model says so.
            prompt: tokens at the beginning of each that are the prompt's.

        Returns:
            float32 ``[texts, channels]``.
        """
        if not states:
            return np.zeros((0, 0), np.float32)
        if states[0].ndim == 1:
            x = np.stack(states).astype(np.float32, copy=False)
            return unit(x) if any(isinstance(step, Normalize) for step in self.steps) else x
        x = self.pooling(states, prompt)
        for step in self.steps:
            x = step(x) if isinstance(step, Normalize) else np.stack([step(row) for row in x])
        return np.ascontiguousarray(x, np.float32)


def truncated(x: Vector, dimensions: int | None, normalize: bool) -> Vector:
    """The first so many elements of vectors ``[..., channels]``, as Matryoshka models allow; then
    scaled to length 1 if asked.

    Source: Kusupati et al., Matryoshka Representation Learning, 2022.

    Raises:
        InputError: the vectors are shorter.
    """
    if dimensions is not None:
        if not 1 <= dimensions <= x.shape[-1]:
            raise InputError(
                f"dimensions: the model's vectors have {x.shape[-1]} elements: {dimensions} are "
                f"not among them"
            )
        x = np.ascontiguousarray(x[..., :dimensions])
    return unit(x) if normalize else x


def similarity(kind: str, a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float32]:
    """How alike vectors are, the greater the more: distances are negative.

    Args:
        kind: of :data:`SIMILARITIES`.
        a: float ``[n, channels]``.
        b: float ``[m, channels]``.

    Returns:
        float32 ``[n, m]``.
    """
    one, two = (np.atleast_2d(np.asarray(x, np.float32)) for x in (a, b))
    if kind == "cosine":
        one, two = unit(one), unit(two)
    if kind in ("cosine", "dot"):
        found: NDArray[np.float32] = one @ two.T
        return found
    order = 2 if kind == "euclidean" else 1
    rows = [-np.linalg.norm(row - two, ord=order, axis=1) for row in one]
    return np.array(rows, np.float32).reshape(len(one), len(two))


# ---- the files -----------------------------------------------------------------------------------


def _object(file: Path | None) -> dict[str, Any]:
    """A JSON object; {} where there is no file."""
    if file is None or not file.is_file():
        return {}
    value = sentence_files.read_json(file)
    if not isinstance(value, dict):
        raise ModelError(f"{file} is damaged: it must be a JSON object")
    return value


def _settings(file: Path) -> SentenceSettings:
    """What is said of the whole model."""
    settings = _object(file)
    similarity = settings.get("similarity_fn_name") or "cosine"
    if similarity not in SIMILARITIES:
        raise ModelError(
            f"{file}: similarity_fn_name must be one of {', '.join(SIMILARITIES)}, not "
            f"{similarity!r}"
        )
    prompts = settings.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(p, str) for p in prompts.values()):
        raise ModelError(f"{file}: prompts must map names to texts")
    default = settings.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise ModelError(
            f"{file}: default_prompt_name is {default!r}, and prompts has "
            f"{', '.join(prompts) or 'none'}"
        )
    return SentenceSettings(prompts=prompts, default_prompt=default, similarity=similarity)


def _modules(folder: Path, rows: Sequence[Module]) -> dict[str, Any]:
    """What the modules behind the transformer are: fields of :class:`SentenceSettings`."""
    found: dict[str, Any] = {}
    steps: list[Step] = []
    for row in rows:
        if row.kind == "Pooling":
            found["pooling"] = _pooling(folder, row)
        elif row.kind == "SpladePooling":
            found["splade"] = _splade(folder, row)
        elif row.kind in _STEPS:
            steps.append(_STEPS[row.kind](folder, row))
        elif row.kind != "Dropout":
            raise ModelError(
                f"{folder / sentence_files.MODULES}: modules of the kind {row.kind} are not "
                f"known; there are Pooling, SpladePooling, Dropout, {', '.join(_STEPS)}"
            )
    return {**found, "steps": tuple(steps)}


def _transformer(folder: Path, row: Module) -> dict[str, Any]:
    """What is said of the first module."""
    if row.kind not in ("Transformer", "MLMTransformer"):
        raise ModelError(
            f"{folder / sentence_files.MODULES} begins with a module of the kind {row.kind}: it "
            f"must be a Transformer"
        )
    for name in sentence_files.TRANSFORMER:
        if file := sentence_files.part(folder, row, name):
            return _object(file)
    return {}


def _pooling(folder: Path, row: Module) -> Pooling:
    file = sentence_files.part(folder, row, "config.json")
    config = _object(file)
    named = config.get("pooling_mode")
    if named is not None:
        modes = (named,) if isinstance(named, str) else tuple(named)
    else:
        modes = tuple(mode for key, mode in _MODES.items() if config.get(f"pooling_mode_{key}"))
        modes = modes or ("mean",)
    unknown = [mode for mode in modes if mode not in MODES]
    if unknown or not modes:
        raise ModelError(
            f"{file}: pooling must be one or several of {', '.join(MODES)}, not "
            f"{', '.join(map(str, unknown)) or 'none'}"
        )
    return Pooling(modes, bool(config.get("include_prompt", True)))


def _splade(folder: Path, row: Module) -> Splade:
    file = sentence_files.part(folder, row, "config.json")
    config = _object(file)
    made = Splade(config.get("pooling_strategy", "max"), config.get("activation_function", "relu"))
    if made.pooling not in ("max", "sum") or made.activation not in ("relu", "log1p_relu"):
        raise ModelError(
            f"{file}: pooling_strategy must be max or sum, activation_function relu or log1p_relu"
        )
    return made


def _dense(folder: Path, row: Module) -> Dense:
    file = sentence_files.part(folder, row, "config.json")
    activation = str(_object(file).get("activation_function", "Tanh")).rpartition(".")[2]
    if activation not in Dense.ACTIVATIONS:
        raise ModelError(
            f"{file}: activation_function must be one of {', '.join(Dense.ACTIVATIONS)}, not "
            f"{activation}"
        )
    tensors = _tensors(folder, row)
    weight, bias = tensors.get("linear.weight"), tensors.get("linear.bias")
    if weight is None or weight.ndim != 2 or (bias is not None and bias.shape != weight.shape[:1]):
        raise ModelError(f"{folder}: {row.path} has no matrix linear.weight that its bias fits")
    return Dense(weight, bias, activation)


def _layer_norm(folder: Path, row: Module) -> LayerNorm:
    tensors = _tensors(folder, row)
    scale, shift = tensors.get("norm.weight"), tensors.get("norm.bias")
    if scale is None or shift is None or scale.ndim != 1 or scale.shape != shift.shape:
        raise ModelError(f"{folder}: {row.path} has no norm.weight and norm.bias of equal length")
    return LayerNorm(scale, shift)


_STEPS: Mapping[str, Callable[[Path, Module], Step]] = {
    "Dense": _dense,
    "LayerNorm": _layer_norm,
    "Normalize": lambda folder, row: Normalize(),
}


def _tensors(folder: Path, row: Module) -> dict[str, NDArray[np.float32]]:
    """A module's weights as float32."""
    file = sentence_files.part(folder, row, "model.safetensors")
    if file is not None:
        try:
            from safetensors import SafetensorError
            from safetensors.numpy import load_file
        except ImportError:
            raise InputError(f"{file} needs safetensors: pip install 'sparsec[text]'") from None
        try:
            found = load_file(file)
        except (SafetensorError, OSError, ValueError, TypeError) as error:
            raise ModelError(f"{file} is damaged: {error}") from error
        return {name: np.asarray(array, np.float32) for name, array in found.items()}
    file = sentence_files.part(folder, row, "pytorch_model.bin")
    if file is None:
        raise ModelError(f"{folder}: {row.path} has no model.safetensors")
    try:
        import torch
    except ImportError:
        raise InputError(
            f"{file} needs torch to be read: convert it to model.safetensors, or install torch"
        ) from None
    try:
        states = torch.load(file, map_location="cpu", weights_only=True)
        return {name: tensor.float().numpy() for name, tensor in states.items()}
    except Exception as error:  # the library raises many kinds
        raise ModelError(f"{file} cannot be read: {error}") from error
