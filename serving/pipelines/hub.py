"""Hugging Face's JSON: ``{"inputs": ..., "parameters": {...}}`` in, what its pipelines answer out.

A task says how it looks there by a :class:`HubForm`, its attribute `hub`; :func:`read` turns a body
into inputs of the task.

Source: https://github.com/huggingface/huggingface.js (packages/tasks), the specifications of tasks,
and the pipelines of transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import BaseModel

from sparsec.errors import InputError
from sparsec.serving.text import Text

# What clients send beside the inputs to any task, which changes no answer here.
IGNORED = ("padding", "max_length", "clean_up_tokenization_spaces")

# What `truncation` of transformers' tokenizers may be, and whether texts may be cut then.
_TRUNCATION = {
    True: True, "longest_first": True, "only_first": True, "only_second": True,
    False: False, "do_not_truncate": False,
}  # fmt: skip


def _rows(given: Any, output: BaseModel) -> list[Any]:
    """The output's first field, which has a row for each text."""
    value = getattr(output, next(iter(type(output).model_fields)))
    return list(value)


def _fields(given: Any) -> Mapping[str, Any] | None:
    return given if isinstance(given, Mapping) else None


@dataclass(frozen=True)
class HubForm:
    """A task as Hugging Face has it.

    Attributes:
        names: what the task is called there; its own names are known too.
        parameters: of a request, and the option of the task or the field of its input that each is.
        defaults: options where neither the pipeline's maker nor the request says anything, as far
            as Hugging Face's differ.
        fixed: parameters that may have this value only.
        fields: the request's inputs as fields of the task's input; None: they are its first field.
        rows: the request's inputs and the prediction as the answer for each text.
        nested: whether the answer to a single text is a list of one as well.
        alone: whether each of a list of inputs is one of its own.
    """

    names: tuple[str, ...] = ()
    parameters: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    fields: Callable[[Any], Mapping[str, Any] | None] = _fields
    rows: Callable[[Any, BaseModel], list[Any]] = _rows
    nested: bool = False
    alone: bool = False


class Task(Protocol):
    """What is asked of a pipeline; `base.Pipeline` has it."""

    text: Text

    @property
    def hub(self) -> HubForm: ...

    @property
    def input_schema(self) -> type[BaseModel]: ...

    def leaves_open(self, option: str) -> bool: ...

    def spelled(self, fields: Mapping[str, Any]) -> dict[str, Any]: ...

    def validate(self, fields: Mapping[str, Any]) -> BaseModel: ...


@dataclass(frozen=True)
class HubRequest:
    """What a body asks of a pipeline.

    Attributes:
        given: the inputs as they came, one for each of `inputs`.
        inputs: the same as the task's.
        options: of the task, other than the pipeline's own.
        many: whether the answer is a list of those to each of `given`.
    """

    form: HubForm
    given: Sequence[Any]
    inputs: list[BaseModel]
    options: dict[str, Any]
    many: bool

    def answer(self, results: Sequence[BaseModel]) -> Any:
        """The results as Hugging Face has them."""
        answers = [
            _shaped(given, self.form.rows(given, result), self.form.nested)
            for given, result in zip(self.given, results, strict=True)
        ]
        return answers if self.many else answers[0]

    def answers(self, results: Sequence[BaseModel]) -> list[Any]:
        """An answer to each of `given`, in no more lists than it needs."""
        return [
            _shaped(given, self.form.rows(given, result), False)
            for given, result in zip(self.given, results, strict=True)
        ]


def _shaped(given: Any, rows: list[Any], nested: bool) -> Any:
    if isinstance(given, list) or (nested and not isinstance(given, Mapping)):
        return rows
    return rows[0]


def is_one(body: Any) -> bool:
    """Whether a body can only be meant in this form."""
    if not isinstance(body, dict) or "inputs" not in body:
        return False
    return "parameters" in body or "options" in body or isinstance(body["inputs"], dict)


def read(pipeline: Task, body: Any) -> HubRequest:
    """A body, with parameters inside `parameters` or beside the inputs.

    Raises:
        InputError: it is not as the task has it.
    """
    if not isinstance(body, dict) or "inputs" not in body:
        raise InputError('send {"inputs": ..., "parameters": {...}}')
    parameters = body.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise InputError("parameters must be an object")
    others = {k: v for k, v in body.items() if k not in ("inputs", "parameters", "options")}
    given = body["inputs"]
    many = pipeline.hub.alone and isinstance(given, list)
    return of_values(pipeline, given if many else [given], {**others, **parameters}, many)


def of_values(
    pipeline: Task, values: Sequence[Any], parameters: Mapping[str, Any], many: bool = True
) -> HubRequest:
    """Each value as inputs of its own, under the same parameters.

    Raises:
        InputError: a value or a parameter is not as the task has it; there is no value.
    """
    if not values:
        raise InputError("inputs: there are none")
    form, schema = pipeline.hub, pipeline.input_schema
    shared, options = _sorted(pipeline, parameters)
    first = next(iter(schema.model_fields))
    inputs = []
    for value in values:
        fields = form.fields(value)
        own = {first: value} if fields is None else fields
        inputs.append(pipeline.validate({**pipeline.spelled(own), **pipeline.spelled(shared)}))
    return HubRequest(form, values, inputs, options, many)


# Fields of an input that every task may take as a parameter.
_COMMON = ("truncate",)


def _sorted(pipeline: Task, parameters: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters as fields of the task's input, and as its options."""
    form, known = pipeline.hub, pipeline.input_schema.model_fields
    fields: dict[str, Any] = {}
    options = {n: value for n, value in form.defaults.items() if pipeline.leaves_open(n)}
    names = {**{name: name for name in _COMMON if name in known}, **form.parameters}
    for name, value in parameters.items():
        if value is None or name in IGNORED or _is_settled(pipeline, name, value):
            continue
        if name == "truncation" and "truncate" in known:
            fields["truncate"] = _truncates(value)
        elif name not in names:
            raise InputError(f"parameters.{name} is not known here; there are {', '.join(names)}")
        else:
            ours = names[name]
            (fields if ours in known else options)[ours] = value
    # A field that an option gives the default of.
    for name in set(options) & set(known):
        value = options.pop(name)
        fields.setdefault(name, value)
    return fields, options


def _is_settled(pipeline: Task, name: str, value: Any) -> bool:
    """Whether a parameter says what is so in any case.

    Raises:
        InputError: it asks for something else.
    """
    if name == "truncation_direction":
        side = pipeline.text.side
        if str(value).lower() != side:
            raise InputError(
                f"truncation_direction: this model's tokenizer cuts {side} (its "
                f"truncation_side), not {value!r}"
            )
        return True
    if name in pipeline.hub.fixed:
        if value != pipeline.hub.fixed[name]:
            raise InputError(f"parameters.{name} can only be {pipeline.hub.fixed[name]} here")
        return True
    return False


def _truncates(value: Any) -> bool:
    if not isinstance(value, (bool, str)) or value not in _TRUNCATION:
        raise InputError(
            f"parameters.truncation must be one of {', '.join(map(str, _TRUNCATION))}, "
            f"not {value!r}"
        )
    return _TRUNCATION[value]


__all__ = ["HubForm", "HubRequest", "is_one", "of_values", "read"]
