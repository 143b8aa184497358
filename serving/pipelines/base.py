"""What all pipelines share: how one is made, found by its task's name, and called.

A pipeline turns inputs into sequences for the model (`prepare`) and the model's outputs into a
typed prediction (`finish`).  Both are plain CPU work without state, so that a server may batch the
sequences of several requests in between.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import inspect
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_type_hints, overload

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    AliasChoices,
    BaseModel,
    Field,
    PositiveInt,
    PydanticSchemaGenerationError,
    TypeAdapter,
    ValidationError,
)
from pydantic.fields import FieldInfo
from tokenizers import Encoding

from sparsec.arguments import anchored, argument, setting, speech
from sparsec.console import say
from sparsec.errors import (
    EngineClosedError,
    InputError,
    ModelError,
    NonFiniteError,
    TooLongError,
)
from sparsec.serving.defaults import DEFAULT, default_model
from sparsec.serving.models import ModelFiles
from sparsec.serving.pipelines.hub import HubForm
from sparsec.serving.runner import (
    EngineRunner,
    Features,
    OnnxRuntimeRunner,
    Outputs,
    Runner,
    nonfinite,
)
from sparsec.serving.text import Text

logger = logging.getLogger("sparsec")

P = TypeVar("P", bound="Pipeline")

# What to do about NaN and infinity in a model's outputs.
OnNonFinite = Literal["warn", "error", "ignore"]

# The field of a task's input that overrules the pipeline's `truncate`.
Truncate = Annotated[
    bool | None,
    Field(description="Whether texts that are too long are cut; by default as the pipeline says"),
]

# What a text is tried with.
SENTENCE = "Mary is flying from Nairobi to New York to attend a conference"

# What `engine_type` may be; the predecessor's name for its own engine means ours.
ENGINES = ("sparsec", "onnxruntime")
_ENGINE_ALIASES = {"deepsparse": "sparsec", "ort": "onnxruntime"}

# Arguments of DeepSparse's pipelines that have no meaning here, and why.
_GONE = {
    "scheduler": "any number of threads may call a pipeline at once",
    "context": "all pipelines of a process share one thread pool",
    "input_shapes": "use sequence_length",
    "executor": "call the pipeline from threads of your own; the GIL is released",
    "num_async_workers": "call the pipeline from threads of your own; the GIL is released",
    "trust_remote_code": "no code of a model is ever run",
    "pad_to_max_length": "padding is not computed",
    "benchmark": "use `sparsec benchmark`",
    "alias": "keep the pipeline in a variable of that name",
    "middleware_manager": "subclass the pipeline instead",
    "output_dir": "predictions are returned, not written",
    "model_size": "the model's outputs say how large they are",
}


def log_nonfinite(wrong: NonFiniteError) -> None:
    """Log what is wrong with a model's outputs."""
    logger.warning("%s", wrong)


@dataclass
class Job:
    """Inputs that are ready to run, and whatever the task needs afterwards (in subclasses).

    Attributes:
        items: sequences for the model, in order.
        truncate: whether texts that are too long may be cut.
        cut: how many texts were.
    """

    items: list[Features] = field(default_factory=list)
    truncate: bool = False
    cut: int = 0


class Pipeline(abc.ABC):
    """A task on a model: text in, typed predictions out.

    Make one with :meth:`create`.  Safe to call from many threads at once.  A context manager.

    A subclass is a task.  It sets the schemas, implements `prepare` and `finish`, takes its options
    as keyword-only arguments of ``__init__``, and is found by name once it is registered:

    >>> @Pipeline.register("shout", task_aliases=["yell"])         # doctest: +SKIP
    ... class Shout(Pipeline): ...

    The server learns all that it knows of a task from the class: the schemas, `example`, and the
    attributes below, which have defaults.

    Args:
        model: the model's files.
        text: its tokenizer.
        runner: what runs it.

    Attributes:
        label_fields, score_fields: fields of the output, at any depth, that hold predicted labels
            and scores; what is in others is text and numbers of other kinds.
        words_field: the field of the input, a switch, that makes a list of strings the words of one
            text; "" if there is none.
        hub: how the task looks in Hugging Face's JSON.
        reads: names of the model's outputs that predictions are made of; all, unless a task has
            fewer.
        on_nonfinite: what a call does about NaN and infinity in those; see :meth:`create`.
        truncate: whether texts of more than `max_length` tokens are cut; see :meth:`create`.
        max_length: tokens of the longest sequence, special ones included.
        arrays: whether vectors in predictions are numpy arrays, whatever the task's options say; a
            server writes those faster and shorter.
    """

    task: ClassVar[str] = ""
    aliases: ClassVar[tuple[str, ...]] = ()
    input_schema: ClassVar[type[BaseModel]]
    output_schema: ClassVar[type[BaseModel]]
    label_fields: ClassVar[tuple[str, ...]] = ("label", "labels")
    score_fields: ClassVar[tuple[str, ...]] = ("score", "scores")
    words_field: ClassVar[str] = ""
    hub: ClassVar[HubForm] = HubForm()
    runner: Runner
    _made_by: Mapping[str, Any] | None = None
    _closed: bool = False

    def __init__(self, model: ModelFiles, text: Text, runner: Runner) -> None:
        self.model = model
        self.text = text
        self.runner = runner
        limits = (runner.buckets[-1], model.positions.longest, text.max_length)
        self.max_length = min(limit for limit in limits if limit is not None)
        self.reads: tuple[str, ...] = runner.output_names
        self.on_nonfinite: OnNonFinite = "warn"
        self.truncate = False
        self.arrays = False
        text.check_inputs(runner.input_names, model)

    # ---- making one ------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        task: str | type[Pipeline],
        model_path: str | os.PathLike[str] | None = None,
        *,
        batch_size: int | None = 1,
        sequence_length: int | Sequence[int] | None = None,
        num_cores: int | None = None,
        engine_type: str = "sparsec",
        tokenizer: str | os.PathLike[str] | None = None,
        config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
        zoo_dir: str | os.PathLike[str] | None = None,
        on_nonfinite: OnNonFinite = "warn",
        truncate: bool = False,
        progress: Callable[[str], None] | None = None,
        **kwargs: Any,
    ) -> Pipeline:
        """A pipeline for a task.

        Args:
            task: name or alias, dashes and underscores alike, in any case; or a subclass, which
                need not be registered.
            model_path: an artifact; a folder with ``model.onnx``, ``tokenizer.json`` and
                ``config.json``, or with the model in ``onnx/``; an .onnx file beside those;
                ``hf:org/name[@revision]`` or ``hf:org/name/onnx/file.onnx[@revision]``; or a
                ``zoo:`` stub of a model that is in `zoo_dir`.  ONNX is compiled on first use.
                None or ``default``: the task's model in the package ``sparsec-models``.
            batch_size: sequences that run together most often, which the layers of an ONNX model
                are cut for; None means 1.  Any number runs.
            sequence_length: tokens, or a list of such buckets: a text goes to the smallest that
                fits.  None: all buckets of an artifact; of an ONNX model 16, 128, 512, and what it
                takes at most.
            num_cores: threads that a call may use; None: all usable cores.
            engine_type: ``sparsec`` or ``onnxruntime``.
            tokenizer: ``tokenizer.json``, or its folder, if it is not beside the model.
            config: ``config.json``, its folder or its contents, if it is not beside the model.
            zoo_dir: where models of the former SparseZoo are; ``$SPARSEZOO_MODELS_PATH`` if absent.
            on_nonfinite: what a call does if the model's outputs hold NaN or infinity: ``warn``
                (one line through :mod:`logging`, logger ``sparsec``), ``error`` (NonFiniteError),
                or ``ignore``.
            truncate: what becomes of a text that is longer than the largest bucket, or than what
                the model was made for: True: it is cut, as DeepSparse does; False: TooLongError.
                The input of a call may say otherwise, in its field of the same name.
            progress: called with each line of progress of downloading and compiling.  None: a line
                on standard error when that begins.
            kwargs: options of the task.

        Raises:
            InputError: an unknown task or option, or a wrong value.
            ModelError: the model is missing, or is not one for this task.  Besides, what compiling
                and loading raise.
        """
        kind = task if isinstance(task, type) and issubclass(task, Pipeline) else find(task)
        made_by = {
            "model_path": anchored(model_path),
            "batch_size": batch_size,
            "sequence_length": sequence_length,
            "num_cores": num_cores,
            "engine_type": engine_type,
            "tokenizer": anchored(tokenizer),
            "config": anchored(config),
            "zoo_dir": anchored(zoo_dir),
            **kwargs,
        }
        options = check_options(kind, kwargs)
        batch_size = _typed("batch_size", PositiveInt | None, batch_size)
        num_cores = _typed("num_cores", PositiveInt | None, num_cores)
        model_path = _typed("model_path", str | Path | None, model_path)
        if model_path is None or str(model_path) == DEFAULT:
            model_path = default_model(kind.task)
        tokenizer = _typed("tokenizer", str | Path | None, tokenizer)
        zoo_dir = _typed("zoo_dir", str | Path | None, zoo_dir)
        on_nonfinite = _typed("on_nonfinite", OnNonFinite, on_nonfinite)
        truncate = _typed("truncate", bool, truncate)
        if not isinstance(config, Mapping):
            config = _typed("config", str | Path | None, config)
        engine = _ENGINE_ALIASES.get(str(engine_type).lower(), str(engine_type).lower())
        if engine not in ENGINES:
            raise InputError(
                f"engine_type must be one of {', '.join(ENGINES)}, not {engine_type!r}"
            )
        model = ModelFiles.find(
            model_path,
            tokenizer=tokenizer,
            config=config,
            zoo_dir=zoo_dir,
            progress=progress or say,
        )
        buckets = _buckets(sequence_length, model)
        text = Text.load(model)
        if sequence_length is not None:
            text.max_length = None  # said by the caller, as transformers' max_length
        elif (most := model.sentence.max_length) is not None:
            text.max_length = min(most, text.max_length or most)
        limits = (model.positions.longest, text.max_length)
        longest = min((limit for limit in limits if limit is not None), default=None)
        once = _Once(model)
        model = kind.adapt(model, **options)
        runner: Runner
        if engine == "sparsec":
            runner = EngineRunner(
                model.path,
                buckets=buckets,
                longest=longest,
                batch_size=batch_size or 1,
                num_cores=num_cores,
                progress=progress or once,
                **_padding(model, text),
            )
        else:
            runner = OnnxRuntimeRunner(
                model.onnx,
                buckets=buckets,
                longest=longest,
                num_cores=num_cores,
                **_padding(model, text),
            )
        try:
            pipeline = kind(model, text, runner, **options)
        except BaseException:
            runner.close()
            raise
        pipeline.on_nonfinite = on_nonfinite
        pipeline.truncate = truncate
        pipeline._made_by = made_by
        return pipeline

    @classmethod
    def adapt(cls, model: ModelFiles, **options: Any) -> ModelFiles:
        """The model to run, before it is compiled; the given one unless a task changes it."""
        return model

    def leaves_open(self, option: str) -> bool:
        """Whether whoever made it left an option of the task at its default."""
        if option in (self._made_by or {}):
            return False
        default = options_of(type(self))[option].default
        return bool(getattr(self, option, default) == default)

    def varied(self: P, **options: Any) -> P:
        """The same model under other options of the task; what is not named stays.

        It runs on this pipeline's runner, and is over when this one is closed.

        Raises:
            InputError: an option is unknown, or has a wrong value.
        """
        kind = type(self)
        known = options_of(kind)
        made = {name: value for name, value in (self._made_by or {}).items() if name in known}
        made |= options
        other = kind(self.model, self.text, self.runner, **check_options(kind, made))
        other.on_nonfinite, other.truncate = self.on_nonfinite, self.truncate
        other.arrays = self.arrays
        other._made_by = self._made_by and {**self._made_by, **made}
        return other

    @overload
    @staticmethod
    def register(
        task: str, *, task_aliases: Sequence[str] = ()
    ) -> Callable[[type[P]], type[P]]: ...

    @overload
    @staticmethod
    def register(task: type[P]) -> type[P]: ...

    @staticmethod
    def register(
        task: str | type[P], *, task_aliases: Sequence[str] = ()
    ) -> type[P] | Callable[[type[P]], type[P]]:
        """Class decorator that makes a task known to :meth:`create`.

        Args:
            task: the task's name, or the class if its `task` and `aliases` are set.
            task_aliases: other names.

        Raises:
            InputError: a name is taken by another class.
        """
        if isinstance(task, type):
            return _register(task, task.task, task.aliases)
        name, others = task, tuple(task_aliases)

        def decorate(kind: type[P]) -> type[P]:
            return _register(kind, name, others)

        return decorate

    # ---- using one -------------------------------------------------------------------------------

    def parse(self, *args: Any, **kwargs: Any) -> BaseModel:
        """What a call was given, as `input_schema`.

        Takes an `input_schema`, a mapping of its fields, the first field alone, several values as a
        list of the first, or the fields by keyword.

        Raises:
            InputError: they do not fit.
        """
        if len(args) == 1 and not kwargs:
            if isinstance(args[0], self.input_schema):
                return args[0]
            if isinstance(args[0], Mapping):
                return self.validate(args[0])
        if not args:
            return self.validate(kwargs)
        first = next(iter(self.input_schema.model_fields))
        value = args[0] if len(args) == 1 else list(args)
        if first in kwargs:
            raise InputError(f"{first} is given twice: by position and by name")
        return self.validate({first: value, **kwargs})

    def validate(self, fields: Mapping[str, Any]) -> BaseModel:
        """Fields, from JSON for example, as `input_schema`.

        Raises:
            InputError: naming every wrong field.
        """
        try:
            return self.input_schema.model_validate(dict(fields))
        except ValidationError as error:
            raise InputError(f"{self.task}: {explain(error)}") from error

    def spelled(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Fields of the input under the names that they are validated under."""
        known = self.input_schema.model_fields
        return {
            spellings(name, known[name])[0] if name in known else name: value
            for name, value in fields.items()
        }

    def example(self) -> dict[str, Any]:
        """Fields of an input that this pipeline can answer; what its form in ``/docs`` starts with.

        Unless a task has its own: :data:`SENTENCE` in each field that is required.
        """
        fields = self.input_schema.model_fields
        needed = [name for name, entry in fields.items() if entry.is_required()]
        names = needed or [next(iter(fields))]
        return {spellings(name, fields[name])[0]: SENTENCE for name in names}

    def count(self, inputs: BaseModel) -> int:
        """How many sequences `prepare` will make, or the least number: a server refuses too many
        before it tokenizes them."""
        first = getattr(inputs, next(iter(self.input_schema.model_fields)))
        return len(first) if isinstance(first, list) else 1

    @abc.abstractmethod
    def prepare(self, inputs: BaseModel) -> Job:
        """Tokenize.

        Raises:
            InputError: the inputs make no sense for the task.
            TooLongError: a text has too many tokens, and must not be cut.
        """

    def may_cut(self, inputs: BaseModel) -> bool:
        """Whether texts that are too long may be cut: what the input says, else the pipeline."""
        asked: bool | None = getattr(inputs, "truncate", None)
        return self.truncate if asked is None else asked

    def fit(self, job: Job, encoding: Encoding, where: str = "") -> Encoding:
        """Tokens of a text with special ones, cut to `max_length` if the job may.

        Args:
            job: what the text belongs to; it counts what is cut.
            encoding: the text's tokens.
            where: what names the text in an error, such as ``inputs.3``.

        Raises:
            TooLongError: there are more, and the job may not cut them.
        """
        self.admit(job, len(encoding) + self.text.special_tokens(), where)
        return self.text.fit(encoding, self.max_length)

    def sequences(self, job: Job, texts: Sequence[str], where: str) -> None:
        """Add an item for each text to a job, cut to `max_length` if the job may.

        Args:
            texts: the texts.
            where: what names them in an error, such as ``inputs``.

        Raises:
            TooLongError: as for :meth:`fit`.
        """
        special = self.text.special_tokens()
        tokens = self.text.all_ids(texts)
        lengths = tokens.lengths + special
        for i in np.flatnonzero(lengths > self.max_length).tolist():
            self.admit(job, int(lengths[i]), f"{where}.{i}")
        job.items += self.text.singles(tokens, self.max_length)

    def pair(
        self,
        job: Job,
        first: NDArray[np.int64],
        second: NDArray[np.int64],
        where: str = "",
        *,
        only_first: bool = False,
    ) -> Features:
        """What the model takes of two texts, cut as :meth:`Text.pair` does it if the job may.

        Raises:
            TooLongError: as for :meth:`fit`.
        """
        self.admit(job, len(first) + len(second) + self.text.special_tokens(pair=True), where)
        return self.text.pair(first, second, self.max_length, only_first)

    def admit(self, job: Job, length: int, where: str = "") -> None:
        """Let a sequence of so many tokens, special ones included, into a job; count it as cut if
        it has to be.

        Raises:
            TooLongError: it is too long, and the job may not cut it.
        """
        if length <= self.max_length:
            return
        if not job.truncate:
            raise TooLongError(
                f"{where}: the text has {length} tokens and {self.max_length} fit: "
                f"{self._cutting()} cuts it{self._more_room()}".removeprefix(": ")
            )
        job.cut += 1

    def _cutting(self) -> str:
        """What lets texts be cut: the call's, if the task's input has that, else the pipeline's."""
        named = argument if "truncate" in self.input_schema.model_fields else setting
        return named("truncate", True)

    def _more_room(self) -> str:
        """What else to do about a text that is too long."""
        if self.max_length == self.runner.buckets[-1] != self.model.positions.longest:
            return f", a larger {setting('sequence_length')} takes all of it"
        return ""

    @abc.abstractmethod
    def finish(self, job: Job, outputs: list[Outputs]) -> BaseModel:
        """The prediction, an `output_schema`.

        Args:
            job: from `prepare`.
            outputs: from the runner, one for each of ``job.items``.
        """

    def conclude(
        self,
        jobs: Sequence[Job],
        outputs: list[Outputs],
        warn: Callable[[NonFiniteError], None] = log_nonfinite,
    ) -> list[BaseModel]:
        """The predictions of jobs whose items have run together, each an `output_schema`.

        Args:
            jobs: from `prepare`.
            outputs: from the runner, one for each item of the jobs, in order.
            warn: told what is wrong where the outputs hold NaN or infinity, and that is neither an
                error nor ignored.

        Raises:
            NonFiniteError: they do, and `on_nonfinite` is ``error``.
        """
        if wrong := self.examine(outputs):
            if self.on_nonfinite == "error":
                raise wrong
            warn(wrong)
        return self._finished(jobs, outputs)

    def _finished(self, jobs: Sequence[Job], outputs: list[Outputs]) -> list[BaseModel]:
        results, start = [], 0
        for job in jobs:
            end = start + len(job.items)
            results.append(self.finish(job, outputs[start:end]))
            start = end
        return results

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Predict; returns an `output_schema`.  Arguments are those of :meth:`parse`.

        Raises:
            InputError: the arguments do not fit, or make no sense for the task.
            NonFiniteError: the model's outputs hold NaN or infinity, and `on_nonfinite` is
                ``error``.
        """
        job = self.prepare(self.parse(*args, **kwargs))
        (prediction,) = self.conclude([job], self.runner.infer(job.items))
        return prediction

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        """The same as a call, for ``await``: other tasks of the event loop go on meanwhile.

        It runs in a thread, as :func:`asyncio.to_thread` has it: as many calls at once as the event
        loop's executor has threads.  A cancelled one still ends its work, and nobody gets it.

        Raises: what a call raises.
        """
        return await asyncio.to_thread(self, *args, **kwargs)

    def examine(self, outputs: Sequence[Outputs]) -> NonFiniteError | None:
        """What is wrong with outputs that hold NaN or infinity; None if nothing is, or if that is
        to be ignored."""
        found = "" if self.on_nonfinite == "ignore" else nonfinite(outputs, self.reads)
        if not found:
            return None
        return NonFiniteError(
            f"{self.task} on {self.model.path.name}: {found}; its predictions mean nothing: check "
            f"the model, its quantization first ({setting('on_nonfinite')} sets whether this is an "
            f"error)"
        )

    def close(self) -> None:
        """Give up the model.  Later calls raise EngineClosedError."""
        self.runner.close()
        self._closed = True

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as the arguments of :meth:`create`, paths absolute: whoever reads it, a spawned
        process for example, makes the pipeline again from the model that is there then."""
        if self._closed:
            raise EngineClosedError("the pipeline is closed: create a new one")
        if self._made_by is None:
            raise InputError(
                f"only pipelines made by Pipeline.create can be pickled or copied: create this "
                f"{type(self).__name__} where it is used"
            )
        return _create_again, (
            type(self),
            {
                **self._made_by,
                "on_nonfinite": self.on_nonfinite,
                "truncate": self.truncate,
            },
        )

    def __enter__(self: P) -> P:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {self.task!r} on {self.model.path}, "
            f"buckets {list(self.runner.buckets)}>"
        )


def _create_again(kind: type[Pipeline], arguments: Mapping[str, Any]) -> Pipeline:
    return Pipeline.create(kind, **arguments)


def spellings(name: str, entry: FieldInfo) -> list[str]:
    """The names that a field of a schema goes by in JSON, the one it is validated under first."""
    alias = entry.validation_alias
    if isinstance(alias, AliasChoices):
        return [choice for choice in alias.choices if isinstance(choice, str)]
    return [alias] if isinstance(alias, str) else [name]


def output_named(runner: Runner, *parts: str, rank: int | None = None) -> str:
    """The first output with one of `parts` in its name, tried in order; else the first of all,
    of `rank` if there is one such.  What holds no scores, such as ids, comes last."""
    names = sorted(
        runner.output_names,
        key=lambda name: (
            runner.output_types.get(name, np.dtype(np.float32)).kind != "f",
            rank is not None and len(runner.output_shapes.get(name, (0,) * rank)) != rank,
        ),
    )
    for part in parts:
        for name in names:
            if part in name.lower():
                return name
    return names[0]


def width(runner: Runner, name: str, rank: int) -> int | None:
    """Extent of an output's last axis, None if it is not known.

    Raises:
        ModelError: the output does not have that rank.
    """
    shape = runner.output_shapes.get(name)
    if shape is None:
        return None
    if len(shape) != rank:
        raise ModelError(
            f"the model's output {name} has the shape [{', '.join(map(str, shape))}], which is not "
            f"what this task needs: rank {rank}"
        )
    return shape[-1] if isinstance(shape[-1], int) else None


def softmax(x: NDArray[Any]) -> NDArray[np.float64]:
    """Over the last axis.  Infinity takes all, in equal parts if there are several; NaN stays."""
    x = np.asarray(x, np.float64)
    top = x.max(axis=-1, keepdims=True)
    # In the limit: all that is less than infinity is nothing beside it.
    x = np.where(top == np.inf, np.where(x == np.inf, 0.0, -np.inf), x)
    powers = np.exp(x - np.where(np.isinf(top), 0.0, top))
    with np.errstate(invalid="ignore"):
        total: NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
    return total


def best_first(scores: NDArray[Any]) -> NDArray[np.int64]:
    """Indices, the highest score first, the first of equal ones first, NaN last."""
    order: NDArray[np.int64] = np.argsort(-np.asarray(scores, np.float64), kind="stable")
    return order


# ---- the registry --------------------------------------------------------------------------------

_tasks: dict[str, type[Pipeline]] = {}


def _key(name: str) -> str:
    return name.strip().lower().replace("_", "-")


def _register(kind: type[P], task: str, aliases: tuple[str, ...]) -> type[P]:
    names = [_key(name) for name in (task, *aliases)]
    if not names[0]:
        raise InputError(f"{kind.__name__} has no task name")
    for name in names:
        other = _tasks.get(name)
        # A class that is defined again, in a notebook for example, replaces itself.
        if other and (other.__module__, other.__name__) != (kind.__module__, kind.__name__):
            raise InputError(f"the task name {name!r} belongs to {other.__name__}")
    kind.task, kind.aliases = task, aliases
    _tasks.update(dict.fromkeys(names, kind))
    return kind


def tasks() -> dict[str, type[Pipeline]]:
    """All registered tasks by name, aliases left out; importing the package has registered ours."""
    return {kind.task: kind for kind in sorted(set(_tasks.values()), key=lambda k: k.task)}


def find(task: str) -> type[Pipeline]:
    """The class of a task.

    Raises:
        InputError: there is none of that name.
    """
    known = tasks()
    if not isinstance(task, str) or _key(task) not in _tasks:
        raise InputError(f"unknown task {task!r}; there are {', '.join(known)}")
    return _tasks[_key(task)]


def options_of(kind: type[Pipeline]) -> dict[str, inspect.Parameter]:
    """The options of a task: keyword-only parameters of its class and their defaults."""
    return {
        name: parameter
        for name, parameter in inspect.signature(kind.__init__).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def check_options(kind: type[Pipeline], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a task, of the types that its class declares.

    Raises:
        InputError: the task has no such option, or it is of another type.
    """
    known = options_of(kind)
    try:
        hints = get_type_hints(kind.__init__)
    except NameError:  # a task of somebody else's, with names that are not there at run time
        hints = {}
    checked = {}
    for name, value in options.items():
        if name in known:
            checked[name] = _typed(name, hints.get(name, Any), value)
        elif name in _GONE:
            raise InputError(f"{name} is an argument of DeepSparse only: {_GONE[name]}")
        else:
            common = (
                "what has a flag of its own"
                if speech() == "flags"
                else "those of all pipelines: batch_size, sequence_length, num_cores, engine_type, "
                "tokenizer, config, zoo_dir, on_nonfinite, truncate, progress"
            )
            raise InputError(
                f"{kind.task} has no option {name!r}; it has {', '.join(known) or 'none'}, besides "
                f"{common}"
            )
    return checked


def parse_options(kind: type[Pipeline], given: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Options of a task that were written as text: JSON where that is of the option's type, else
    the text itself, else its parts between commas.

    Raises:
        InputError: as for :func:`check_options`, or one is given twice.
    """
    parsed: dict[str, Any] = {}
    for name, text in given:
        if name in parsed:
            raise InputError(f"the option {name} is given twice")
        readings: list[Any] = [text, *([text.split(",")] if "," in text else [])]
        with contextlib.suppress(ValueError):
            readings.insert(0, json.loads(text))
        wrong = None
        for reading in readings:
            try:
                parsed |= check_options(kind, {name: reading})
                break
            except InputError as error:
                wrong = wrong or error
        else:
            assert wrong is not None
            raise wrong
    return parsed


def plain(value: Any) -> Any:
    """A value with numpy's numbers and arrays as Python's, in lists and mappings too."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return type(value)(map(plain, value)) if type(value) in (list, tuple) else value
    return {k: plain(v) for k, v in value.items()} if type(value) is dict else value


def _typed(name: str, hint: Any, value: Any) -> Any:
    """An argument as its type."""
    value = plain(value)
    kinds = get_args(hint) or (hint,)
    # A flag in a number's place is a mistake, though Python takes it for 0 or 1.
    if isinstance(value, bool) and bool not in kinds and Any not in kinds:
        raise InputError(f"{name} is no switch: {value} is neither a number nor a text")
    try:
        adapter = TypeAdapter(hint)
    except PydanticSchemaGenerationError:  # a class that only the task knows
        return value
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        raise InputError(f"{name}: {explain(error)}") from None


def _padding(model: ModelFiles, text: Text) -> dict[str, int]:
    """What a runner fills sequences up with."""
    behind = model.positions.padding
    if behind is not None:
        return {"pad_id": behind, "pad_position": behind}
    pad = text.special_id("pad")
    if pad is None:
        pad = model.config.get("pad_token_id")
    # A tokenizer may have got a padding token that the model has no embedding for.
    known = isinstance(pad, int) and 0 <= pad < (model.vocabulary or pad + 1)
    return {"pad_id": pad if known and pad is not None else 0}


class _Once:
    """Says that a model is being compiled, in one line."""

    def __init__(self, model: ModelFiles) -> None:
        self.model = model
        self.said = False

    def __call__(self, line: str) -> None:
        if not self.said:
            say(f"compiling {self.model.path}; this is done once")
        self.said = True


def _buckets(
    sequence_length: int | Sequence[int] | None, model: ModelFiles
) -> tuple[int, ...] | None:
    longest = model.positions.longest
    if sequence_length is None:
        return None
    given = plain(sequence_length)
    many = isinstance(given, Iterable) and not isinstance(given, (str, bytes, Mapping))
    given = tuple(map(plain, given)) if many else (given,)
    if not given or any(type(n) is not int or n < 1 for n in given):
        raise InputError(
            f"{argument('sequence_length')} must be a number of tokens or a list of such, not "
            f"{sequence_length!r}"
        )
    if longest is not None and max(given) > longest:
        raise InputError(
            f"{argument('sequence_length')} {max(given)} is too long: {model.positions.why()}"
        )
    return tuple(sorted(set(given)))


# What pydantic puts into the place of an error where a value may have several forms.
_FORM = re.compile(
    r"(str|int|float|bool|none|list|dict|tuple)(\[.*\])?|(constrained|function|lax-or|json-or)-.*|_?[A-Z].*"
)


def explain(error: ValidationError) -> str:
    """What is wrong, field by field, in one line.  Of a value that may have several forms, what is
    wrong with the one that it comes nearest to."""
    seen: dict[str, None] = {}
    forms: dict[tuple[str | int, ...], list[tuple[list[str | int], Any]]] = {}
    for row in error.errors(include_url=False, include_context=False, include_input=False):
        where = row["loc"]
        form = next((i for i, part in enumerate(where) if _is_form(part)), None)
        if form is None:
            seen[_said(where, row["msg"])] = None
            continue
        inside = [part for part in where[form:] if not _is_form(part)]
        forms.setdefault(where[:form], []).append((inside, row))
    for where, rows in forms.items():
        inside, messages = _nearest(rows)
        seen[_said((*where, *inside), messages)] = None
    return "; ".join(seen)


def _is_form(part: str | int) -> bool:
    return isinstance(part, str) and _FORM.fullmatch(part) is not None


def _said(where: Sequence[str | int], message: str) -> str:
    place = ".".join(map(str, where))
    return f"{place}: {message}" if place else message


def _nearest(rows: Sequence[tuple[list[str | int], Any]]) -> tuple[list[str | int], str]:
    """Where the form that fits furthest is wrong, and why: any of several of another type."""
    furthest = max((inside for inside, _ in rows), key=lambda inside: [_rank(p) for p in inside])
    there = [row for inside, row in rows if inside == furthest]
    valued = [row for row in there if not row["type"].endswith("_type")]
    first, *others = dict.fromkeys(row["msg"] for row in valued or there)
    more = [message.removeprefix("Input should be ") for message in others]
    return furthest, " or ".join([first, *more])


def _rank(part: str | int) -> tuple[int, str]:
    return (part, "") if isinstance(part, int) else (0, part)


__all__ = [
    "Features",
    "Job",
    "ModelFiles",
    "Outputs",
    "Pipeline",
    "Runner",
    "Text",
    "explain",
    "find",
    "options_of",
    "tasks",
]
