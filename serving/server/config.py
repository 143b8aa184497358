"""The server's settings: a YAML file or flags, checked; errors name the key and its line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from sparsec.arguments import speaking
from sparsec.errors import InputError
from sparsec.paths import user_path
from sparsec.serving.defaults import DEFAULT, default_model

# Paths that are the server's own, with everything below them.
RESERVED = (
    "/v1",
    "/v2",
    "/docs",
    "/openapi.json",
    "/health",
    "/ready",
    "/metrics",
    "/endpoints",
)

# Keys of DeepSparse's files that mean something else here, or nothing.
GONE = {
    "loggers": "use data_logging in an endpoint, and /metrics",
    "system_logging": "requests, latencies and batches are always in /metrics",
    "logging_config": "use data_logging",
    "middlewares": "there are none; put a proxy in front",
}

Statistic = Literal["input_characters", "input_tokens", "label_counts", "score_histogram"]
STATISTICS: tuple[Statistic, ...] = (
    "input_characters",
    "input_tokens",
    "label_counts",
    "score_histogram",
)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Batching(_Strict):
    """How requests for a model wait and run together."""

    max_batch: int = Field(
        default=32, ge=1, le=4096, description="sequences that run at once, at most"
    )
    max_delay_us: int = Field(
        default=0,
        ge=0,
        le=10_000_000,
        description="how long a batch that is not full waits for more",
    )
    queue_size: int = Field(
        default=256, ge=1, description="sequences that may wait; more get a 503"
    )


class DataLogging(_Strict):
    """Statistics of inputs and outputs; never the text itself, unless `text` asks for it."""

    statistics: tuple[Statistic, ...] = Field(default=STATISTICS, description="what is recorded")
    file: str | None = Field(default=None, description="a JSON-lines file; /metrics when absent")
    frequency: int = Field(default=1, ge=1, description="record every n-th request")
    text: bool = Field(default=False, description="write inputs and outputs to the file as well")

    @model_validator(mode="after")
    def _text_needs_a_file(self) -> DataLogging:
        if self.text and not self.file:
            raise ValueError("text goes to a file only: set file")
        return self


class Bucketing(_Strict):
    """DeepSparse's way to write `sequence_length`."""

    sequence_lengths: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)


class EndpointConfig(_Strict):
    """One task on one model."""

    name: str = Field(default="", description="used in /v2/models/NAME, metrics and logs")
    route: str = Field(default="", description="path that takes POST")
    task: str = Field(description="such as token-classification, or an alias")
    model: str = Field(
        default=DEFAULT,
        description="artifact, folder with model.onnx, ONNX file, or hf: name; by default the "
        "task's model of the package sparsec-models",
    )
    batch_size: int = Field(default=1, ge=1, description="batch size to cut layers for")
    sequence_length: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        default=None, description="a number of tokens, or a list of such buckets"
    )
    bucketing: Bucketing | None = Field(default=None, description="the same, as DeepSparse has it")
    batching: Batching = Batching()
    data_logging: DataLogging | None = None
    on_nonfinite: Literal["warn", "error", "ignore"] = Field(
        default="warn",
        description="NaN or infinity in the model's outputs: a line in the log, or a 500",
    )
    truncate: bool = Field(
        default=False,
        description="cut texts that are too long, unless a request says otherwise; else a 422",
    )
    kwargs: dict[str, Any] = Field(default_factory=dict, description="options of the task")

    @field_validator("sequence_length", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("name")
    @classmethod
    def _name_fits_urls(cls, value: str) -> str:
        if value and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", value):
            raise ValueError("letters, digits, dots, dashes and underscores only")
        return value

    @field_validator("route")
    @classmethod
    def _clean_route(cls, value: str) -> str:
        if not value:
            return value
        route = "/" + value.strip("/")
        if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", route):
            raise ValueError("must be a path such as /ner/predict")
        for taken in RESERVED:
            if route == taken or route.startswith(taken + "/"):
                raise ValueError(f"{taken} is the server's own")
        return route

    @field_validator("kwargs")
    @classmethod
    def _only_the_tasks(cls, kwargs: dict[str, Any]) -> dict[str, Any]:
        for name in ("task", "batch_size", "sequence_length", "on_nonfinite", "truncate"):
            if name in kwargs:
                raise ValueError(f"{name} is a key of the endpoint: move it out of kwargs")
        if "model_path" in kwargs:
            raise ValueError("model_path is the key model of the endpoint")
        for name in ("num_cores", "progress"):
            if name in kwargs:
                raise ValueError(f"{name} is the server's, not an endpoint's")
        return kwargs

    @model_validator(mode="after")
    def _lengths_once(self) -> EndpointConfig:
        if self.bucketing and self.sequence_length:
            raise ValueError("give sequence_length or bucketing, not both")
        return self

    @property
    def lengths(self) -> tuple[int, ...] | None:
        """The buckets, however they were written."""
        return self.bucketing.sequence_lengths if self.bucketing else self.sequence_length


class Limits(_Strict):
    """What a request may cost."""

    body_bytes: int = Field(default=4 << 20, ge=1, description="size of a request's body")
    input_characters: int = Field(default=100_000, ge=1, description="length of one text")
    items: int = Field(default=256, ge=1, description="sequences of one request, after splitting")
    heavy_requests: int = Field(
        default=32, ge=1, description="requests with long texts that wait to be tokenized"
    )
    request_timeout: float = Field(default=30.0, gt=0, description="seconds until a 504")
    drain_timeout: float = Field(
        default=30.0, gt=0, description="seconds to finish in after SIGTERM"
    )
    keep_alive: float = Field(
        default=75.0, gt=0, description="seconds that an idle connection lives"
    )


class ServerConfig(_Strict):
    """Everything about a server."""

    host: str = "127.0.0.1"
    port: int = Field(default=5543, ge=0, le=65535)
    grpc_port: int | None = Field(
        default=None, ge=0, le=65535, description="turns gRPC on, for the Open Inference Protocol"
    )
    root_path: str = Field(
        default="", description="path that a proxy serves this server under, such as /models"
    )
    num_cores: int | None = Field(default=None, ge=1, description="cores of all workers together")
    num_workers: int = Field(default=1, ge=1, le=256, description="processes that split the cores")
    endpoints: tuple[EndpointConfig, ...] = ()
    admin_token: str | None = Field(
        default=None, min_length=8, description="turns POST and DELETE /endpoints on"
    )
    api_keys: tuple[str, ...] = Field(
        default=(), description="keys that predictions need, one of them; none: nothing is needed"
    )
    api_keys_file: str | None = Field(
        default=None, description="more of them, a key a line; read again when it changes"
    )
    otlp_endpoint: str | None = Field(
        default=None, description="where traces go, such as http://localhost:4318"
    )
    limits: Limits = Limits()
    cors_origins: tuple[str, ...] = Field(
        default=(), description="origins that browsers may call from"
    )
    access_log: bool = Field(default=False, description="log every request, not only failures")
    integration: Literal["local"] = Field(
        default="local", description="DeepSparse's; nothing else here"
    )
    engine_thread_pinning: Literal["core", "numa", "none"] | None = Field(
        default=None, description="DeepSparse's; without effect: workers are pinned to their cores"
    )
    pytorch_num_threads: int | None = Field(
        default=None, description="DeepSparse's; without effect: there is no PyTorch here"
    )

    @field_validator("root_path")
    @classmethod
    def _clean_root(cls, value: str) -> str:
        prefix = clean_prefix(value)
        if prefix is None:
            raise ValueError("must be a path such as /models")
        return prefix

    @field_validator("api_keys")
    @classmethod
    def _are_keys(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(checked_keys(keys, "keys"))

    @field_validator("endpoints")
    @classmethod
    def _complete(cls, endpoints: tuple[EndpointConfig, ...]) -> tuple[EndpointConfig, ...]:
        return tuple(complete(endpoints))


def checked_keys(keys: Iterable[str], where: str) -> list[str]:
    """API keys as they may be.

    Raises:
        InputError: one is too short, or has other characters; it is not shown.
    """
    found = list(keys)
    for number, key in enumerate(found, 1):
        if not re.fullmatch(r"[!-~]{8,512}", key):
            raise InputError(
                f"{where}: key {number} must have 8 to 512 visible characters of ASCII, no spaces"
            )
    return found


def clean_prefix(value: str) -> str | None:
    """A path to put before others: empty, or one that begins with a slash and does not end with
    one; None if it is no such path."""
    prefix = "/" + value.strip().strip("/")
    if prefix == "/":
        return ""
    return prefix if re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", prefix) else None


def complete(endpoints: Sequence[EndpointConfig]) -> list[EndpointConfig]:
    """Endpoints with every name, route and model set.

    Names are ``TASK-NUMBER``.  The first endpoint without a route takes ``/predict`` unless another
    asks for it; the others take ``/predict/NAME``.

    Raises:
        ValueError: two have the same name or route; or one has no model, and its task none by
            default.
    """
    names = {e.name for e in endpoints if e.name}
    routes = {e.route for e in endpoints if e.route}
    done: list[EndpointConfig] = []
    for endpoint in endpoints:
        changes = {}
        name = endpoint.name
        if not name:
            stem = re.sub(r"[^A-Za-z0-9.-]+", "-", endpoint.task).strip("-.") or "endpoint"
            name = next(n for i in range(len(names) + 1) if (n := f"{stem}-{i}") not in names)
            names.add(name)
            changes["name"] = name
        if not endpoint.route:
            route = "/predict" if "/predict" not in routes else f"/predict/{name}"
            routes.add(route)
            changes["route"] = route
        if endpoint.model == DEFAULT:
            changes["model"] = _default_model(endpoint.task)
        done.append(endpoint.model_copy(update=changes) if changes else endpoint)
    for what in ("name", "route"):
        values = [getattr(endpoint, what) for endpoint in done]
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice:
            raise ValueError(f"two endpoints have the {what} {twice[0]}")
    return done


def _default_model(task: str) -> str:
    from sparsec.serving.pipelines import base

    return str(default_model(base.find(task).task))


Path_ = tuple[Any, ...]


def load(path: str | Path, **overrides: Any) -> ServerConfig:
    """Read a YAML file.

    Args:
        overrides: settings that replace the file's.

    Raises:
        InputError: the file cannot be read, is not YAML, or has a wrong key or value: each with
            its line.
    """
    try:
        text = user_path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the configuration {path}: {error}") from error
    data, lines = parse(text, str(path))
    if not isinstance(data, dict):
        raise InputError(f"{path}: must be a mapping with the key endpoints")
    with speaking("json"):  # of keys, which JSON and YAML write alike
        return check(data | overrides, str(path), lines)


def check(data: dict[str, Any], source: str, lines: dict[Path_, int] | None = None) -> ServerConfig:
    """Settings from plain data.

    Raises:
        InputError: wrong keys or values, all of them.
    """
    try:
        return ServerConfig.model_validate(data)
    except ValidationError as error:
        rows = [_explain(row, source, lines or {}) for row in error.errors(include_url=False)]
        raise InputError("\n".join(dict.fromkeys(rows))) from None


def parse(text: str, source: str) -> tuple[Any, dict[Path_, int]]:
    """YAML as plain data, and the line of every key and item by its path.

    Raises:
        InputError: it is not YAML, or a key is there twice.
    """
    lines: dict[Path_, int] = {}
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return {}, lines
        for path, line in _walk(loader, node, (), source):
            lines[path] = line
        return loader.construct_document(node), lines
    except InputError:  # which is a ValueError
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}" if mark else source
        raise InputError(f"{where}: {error.problem or error}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{source}: {error}") from None
    except RecursionError:
        raise InputError(f"{source}: nested too deeply") from None


def _walk(
    loader: yaml.SafeLoader, node: yaml.Node, path: Path_, source: str
) -> Iterator[tuple[Path_, int]]:
    if len(path) > 32:
        raise InputError(f"{source}:{node.start_mark.line + 1}: nested too deeply")
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    line = key.start_mark.line + 1
                    raise InputError(f"{source}:{line}: {key.value} is given twice")
                seen.add(key.value)
        loader.flatten_mapping(node)
        for key, value in node.value:
            where = (*path, key.value if isinstance(key.value, str) else str(key.value))
            yield where, key.start_mark.line + 1
            yield from _walk(loader, value, where, source)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield (*path, i), value.start_mark.line + 1
            yield from _walk(loader, value, (*path, i), source)


def _explain(row: ErrorDetails, source: str, lines: dict[Path_, int]) -> str:
    loc = tuple(row["loc"])
    where = source
    for end in range(len(loc), 0, -1):
        if loc[:end] in lines:
            where = f"{source}:{lines[loc[:end]]}"
            break
    name = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in loc).lstrip(".")
    if row["type"] == "extra_forbidden":
        key = str(loc[-1])
        if key in GONE:
            return f"{where}: {name}: not a key here: {GONE[key]}"
        known = sorted(_fields_at(loc[:-1]))
        close = difflib.get_close_matches(key, known, 1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
        return f"{where}: {name}: unknown key; {hint}"
    message = str(row["msg"]).removeprefix("Value error, ")
    if row["type"] == "missing":
        message = "is missing"
    return f"{where}: {name}: {message}" if name else f"{where}: {message}"


def _fields_at(path: Path_) -> set[str]:
    """The keys that a place in the configuration may have."""
    model: Any = ServerConfig
    nested = {
        "endpoints": EndpointConfig,
        "limits": Limits,
        "batching": Batching,
        "data_logging": DataLogging,
        "bucketing": Bucketing,
    }
    for part in path:
        if isinstance(part, str):
            model = nested.get(part, model)
    return set(model.model_fields)
