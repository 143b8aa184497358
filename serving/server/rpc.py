"""The Open Inference Protocol, version 2, over gRPC: what `v2` is over HTTP, beside it in the same
worker, on the same endpoints and queues.

Each worker listens on the same port, and the kernel spreads connections over them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from sparsec import __version__
from sparsec.serving.server import errors, inference, metrics, oip, tensors, v2
from sparsec.serving.server.app import Service
from sparsec.serving.server.errors import HttpError
from sparsec.serving.server.registry import Endpoint
from sparsec.serving.server.rpc_messages import METHODS, SERVICE, message
from sparsec.serving.server.tracing import tracing

logger = logging.getLogger("sparsec.server")

# What needs no API key.
OPEN = ("ServerLive", "ServerReady", "ModelReady")

_STATUS = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    499: grpc.StatusCode.CANCELLED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}

# The field of InferTensorContents that has a datatype's elements; FP16 has none.
_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


@dataclass
class _Call:
    """A call that is being answered.

    Attributes:
        metadata: of the client, names in small letters.
        id: the request's, in logs and in the answer's metadata.
        trailing: metadata to send after the answer.
        status: how it ended, as HTTP has it.
    """

    metadata: dict[str, str]
    id: str
    trailing: dict[str, str] = field(default_factory=dict)
    status: int = 200
    endpoint: Endpoint | None = None


_Work = Callable[[Any, _Call], Awaitable[Any]]


class RpcServer:
    """The gRPC server of a worker.

    Args:
        service: what HTTP has too.
        address: host and port to listen on, which other processes may share.
    """

    def __init__(self, service: Service, address: str) -> None:
        self.service = service
        self._server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 1),
                ("grpc.max_receive_message_length", service.config.limits.body_bytes),
                ("grpc.max_send_message_length", -1),
            ]
        )
        works: dict[str, _Work] = {
            "ServerLive": self._live,
            "ServerReady": self._ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._metadata,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._infer,
            "RepositoryIndex": self._index,
        }
        handlers = {name: self._handler(name, works[name]) for name in METHODS}
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, handlers),)
        )
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._server.add_insecure_port(address)

    async def start(self) -> None:
        """Take calls; predictions once the service is ready."""
        await self.set_health(self.service.ready)
        await self._server.start()

    async def set_health(self, ready: bool) -> None:
        """What grpc.health.v1 says, of the server and of its service."""
        state = health_pb2.HealthCheckResponse
        for name in ("", SERVICE):
            await self._health.set(name, state.SERVING if ready else state.NOT_SERVING)

    async def stop(self, seconds: float) -> None:
        """Take no more calls; cancel those that are not answered after a time."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(seconds)

    # ---- any call --------------------------------------------------------------------------------

    def _handler(self, name: str, work: _Work) -> Any:
        async def answer(request: Any, context: Any) -> Any:
            metadata = _text(context.invocation_metadata())
            call = _Call(metadata, errors.presentable(metadata.get(errors.REQUEST_ID, "")))
            with tracing.request(f"{SERVICE}/{name}", metadata) as span:
                try:
                    return await self._answer(name, work, request, context, call)
                finally:
                    span.done(
                        call.status >= 500,
                        {
                            "rpc.system": "grpc",
                            "rpc.service": SERVICE,
                            "rpc.method": name,
                            "rpc.grpc.status_code": _code(call.status).value[0],
                            "sparsec.request_id": call.id,
                            **({"sparsec.endpoint": call.endpoint.name} if call.endpoint else {}),
                        },
                    )

        return grpc.unary_unary_rpc_method_handler(
            answer,
            request_deserializer=message(f"{name}Request").FromString,
            response_serializer=message(f"{name}Response").SerializeToString,
        )

    async def _answer(self, name: str, work: _Work, request: Any, context: Any, call: _Call) -> Any:
        service, start = self.service, perf_counter()
        shown: HttpError | None = None
        service.active += 1
        metrics.IN_FLIGHT.inc()
        try:
            if name not in OPEN and (why := service.keys.refusal(call.metadata.get)):
                raise HttpError(401, why)
            response = await work(request, call)
        except asyncio.CancelledError:
            shown = HttpError(499, "the client cancelled the call, or its deadline is over")
            raise
        except Exception as error:
            shown = errors.as_http(error)
            errors.log(error, shown, self._fields(name, call, shown.status))
        finally:
            service.active -= 1
            metrics.IN_FLIGHT.dec()
            counted = call.endpoint.metrics if call.endpoint else service.metrics
            call.status, code = (shown.status, shown.code) if shown else (200, "")
            counted.done(call.status, code, perf_counter() - start)
            if service.config.access_log:
                seconds = round(perf_counter() - start, 6)
                fields = {**self._fields(name, call, call.status), "seconds": seconds}
                logger.info("request", extra={"fields": {**fields, "client": context.peer()}})
        trailing = tuple({**call.trailing, errors.REQUEST_ID: call.id}.items())
        if shown is not None:
            more = tuple((key.lower(), value) for key, value in shown.headers.items())
            await context.abort(_code(shown.status), str(shown), trailing + more)
        context.set_trailing_metadata(trailing)
        return response

    def _fields(self, name: str, call: _Call, status: int) -> dict[str, Any]:
        return {
            "request_id": call.id,
            "method": "gRPC",
            "path": f"/{SERVICE}/{name}",
            "status": status,
            **({"endpoint": call.endpoint.name} if call.endpoint else {}),
        }

    # ---- the server ------------------------------------------------------------------------------

    async def _live(self, request: Any, call: _Call) -> Any:
        return message("ServerLiveResponse")(live=True)

    async def _ready(self, request: Any, call: _Call) -> Any:
        return message("ServerReadyResponse")(ready=self.service.ready)

    async def _metadata(self, request: Any, call: _Call) -> Any:
        return message("ServerMetadataResponse")(
            name="sparsec", version=__version__, extensions=["model_repository"]
        )

    async def _index(self, request: Any, call: _Call) -> Any:
        rows = v2.repository(self.service, request.ready)
        return message("RepositoryIndexResponse")(models=rows)

    # ---- a model ---------------------------------------------------------------------------------

    def _endpoint(self, name: str, version: str, call: _Call) -> Endpoint:
        call.endpoint = v2.model(self.service, name, version)
        return call.endpoint

    async def _model_ready(self, request: Any, call: _Call) -> Any:
        try:
            self._endpoint(request.name, request.version, call)
        except HttpError:
            return message("ModelReadyResponse")(ready=False)
        return message("ModelReadyResponse")(ready=self.service.ready)

    async def _model_metadata(self, request: Any, call: _Call) -> Any:
        endpoint = self._endpoint(request.name, request.version, call)

        def described(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
            return [{name: row[name] for name in ("name", "datatype", "shape")} for row in rows]

        return message("ModelMetadataResponse")(
            name=endpoint.name,
            versions=[v2.VERSION],
            platform="sparsec",
            inputs=described(tensors.inputs(endpoint.pipeline)),
            outputs=described(endpoint.tensors),
        )

    async def _infer(self, request: Any, call: _Call) -> Any:
        service = self.service
        endpoint = self._endpoint(request.model_name, request.model_version, call)
        service.registry.enter(endpoint)
        try:
            wanted = decode(request)
            inputs = tensors.to_inputs(endpoint.pipeline, wanted)
            found = await inference.predict(endpoint, inputs, service.config.limits, call.id)
            results = tensors.from_results(endpoint.pipeline, found.results)
        finally:
            service.registry.leave(endpoint)
        call.trailing |= found.headers
        return encode(endpoint.name, wanted, results)


def _code(status: int) -> Any:
    """gRPC's code for a status of HTTP."""
    if status < 400:
        return grpc.StatusCode.OK
    return _STATUS.get(status, grpc.StatusCode.INTERNAL)


def _text(metadata: Iterable[tuple[str, str | bytes]]) -> dict[str, str]:
    return {name.lower(): value for name, value in metadata if isinstance(value, str)}


def decode(request: Any) -> oip.InferRequest:
    """A ModelInferRequest's tensors.

    Raises:
        HttpError: 400, it is not as the protocol says.
    """
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise HttpError(
            400, f"raw_input_contents has {len(raw)} tensors for {len(request.inputs)} inputs"
        )
    if not request.inputs:
        raise HttpError(400, oip.NO_INPUTS)
    found: dict[str, oip.Array] = {}
    for i, tensor in enumerate(request.inputs):
        if tensor.name in found:
            raise HttpError(400, f"input {tensor.name} is given twice")
        found[tensor.name] = _tensor(tensor, raw[i] if raw else None)
    parameters = {name: _parameter(value) for name, value in request.parameters.items()}
    chosen = oip.chosen_once((output.name, bool(raw)) for output in request.outputs)
    return oip.InferRequest(request.id or None, found, chosen, bool(raw), parameters)


def _tensor(tensor: Any, raw: bytes | None) -> oip.Array:
    name, kind, shape = tensor.name, tensor.datatype, list(tensor.shape)
    filled = [row[0].name for row in tensor.contents.ListFields()]
    if raw is not None:
        if filled:
            raise HttpError(400, f"input {name} has contents beside raw_input_contents")
        return oip.from_bytes(name, kind, shape, raw)
    oip.check_datatype(name, kind)
    own = _CONTENTS.get(kind)
    if own is None:
        raise HttpError(400, f"input {name}: elements of {kind} go into raw_input_contents")
    wrong = [field for field in filled if field != own]
    if wrong:
        raise HttpError(400, f"input {name}: {kind} has its elements in {own}, not in {wrong[0]}")
    values = list(getattr(tensor.contents, own))
    if kind == "BYTES":
        try:
            values = [value.decode("utf-8") for value in values]
        except UnicodeDecodeError as error:
            raise HttpError(400, f"input {name}: an element is not UTF-8: {error}") from None
    return oip.from_values(name, kind, shape, values)


def _parameter(value: Any) -> Any:
    kind = value.WhichOneof("parameter_choice")
    return getattr(value, kind) if kind else None


def encode(model: str, request: oip.InferRequest, outputs: dict[str, oip.Array]) -> Any:
    """A ModelInferResponse: raw where the request was.

    Raises:
        HttpError: 400, an output is wanted that the model does not have.
    """
    response = message("ModelInferResponse")(
        model_name=model, model_version=v2.VERSION, id=request.id or ""
    )
    for name in oip.wanted(model, request, outputs):
        array = outputs[name]
        kind = oip.datatype(array)
        made = response.outputs.add(name=name, datatype=kind, shape=array.shape)
        if request.binary:
            response.raw_output_contents.append(oip.to_bytes(array))
            continue
        values = array.reshape(-1).tolist()
        if kind == "BYTES":
            values = [value.encode("utf-8") for value in values]
        getattr(made.contents, _CONTENTS[kind]).extend(values)
    return response
