"""The messages of the Open Inference Protocol over gRPC, made at run time from the table below, so
that any protobuf will do.

Source: https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/
open_inference_grpc.proto; RepositoryIndex is Triton's model repository extension.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"

# Method -> its request and response are METHODRequest and METHODResponse.
METHODS = (
    "ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer",
    "RepositoryIndex",
)  # fmt: skip

# Message -> fields in the order of their numbers; "*" repeats, "parameters" maps names to
# InferParameter.  Messages inside of others stand behind them.
_FIELDS: dict[str, str] = {
    "InferParameter": "",  # below: it is one of several
    "InferTensorContents": "bool* bool_contents, int32* int_contents, int64* int64_contents, "
    "uint32* uint_contents, uint64* uint64_contents, float* fp32_contents, "
    "double* fp64_contents, bytes* bytes_contents",
    "ServerLiveRequest": "",
    "ServerLiveResponse": "bool live",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "bool ready",
    "ModelReadyRequest": "string name, string version",
    "ModelReadyResponse": "bool ready",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "string name, string version, string* extensions",
    "ModelMetadataRequest": "string name, string version",
    "ModelMetadataResponse": "string name, string* versions, string platform, "
    "ModelMetadataResponse.TensorMetadata* inputs, ModelMetadataResponse.TensorMetadata* outputs",
    "ModelMetadataResponse.TensorMetadata": "string name, string datatype, int64* shape",
    "ModelInferRequest": "string model_name, string model_version, string id, parameters, "
    "ModelInferRequest.InferInputTensor* inputs, "
    "ModelInferRequest.InferRequestedOutputTensor* outputs, bytes* raw_input_contents",
    "ModelInferRequest.InferInputTensor": "string name, string datatype, int64* shape, "
    "parameters, InferTensorContents contents",
    "ModelInferRequest.InferRequestedOutputTensor": "string name, parameters",
    "ModelInferResponse": "string model_name, string model_version, string id, parameters, "
    "ModelInferResponse.InferOutputTensor* outputs, bytes* raw_output_contents",
    "ModelInferResponse.InferOutputTensor": "string name, string datatype, int64* shape, "
    "parameters, InferTensorContents contents",
    "RepositoryIndexRequest": "string repository_name, bool ready",
    "RepositoryIndexResponse": "RepositoryIndexResponse.ModelIndex* models",
    "RepositoryIndexResponse.ModelIndex": "string name, string version, string state, "
    "string reason",
}

# Which of these an InferParameter is.
PARAMETERS = (
    "bool bool_param, int64 int64_param, string string_param, double double_param, "
    "uint64 uint64_param"
)

_Field = descriptor_pb2.FieldDescriptorProto


def _file() -> descriptor_pb2.FileDescriptorProto:
    made = descriptor_pb2.FileDescriptorProto(
        name="open_inference.proto", package=PACKAGE, syntax="proto3"
    )
    known: dict[str, Any] = {}
    for name, fields in _FIELDS.items():
        outer, _, inner = name.rpartition(".")
        owner = known[outer].nested_type if outer else made.message_type
        known[name] = message = owner.add(name=inner or name)
        for number, field in enumerate(filter(None, fields.split(", ")), 1):
            _add(message, name, number, field)
    one = known["InferParameter"]
    one.oneof_decl.add(name="parameter_choice")
    for number, field in enumerate(PARAMETERS.split(", "), 1):
        kind, name = field.split()
        one.field.add(
            name=name, number=number, type=_type(kind), label=_Field.LABEL_OPTIONAL, oneof_index=0
        )
    return made


def _add(message: Any, owner: str, number: int, field: str) -> None:
    """A field to a message; a map is what protobuf makes of one: a list of entries."""
    if field == "parameters":
        entry = message.nested_type.add(name="ParametersEntry")
        entry.options.map_entry = True
        _add(entry, owner, 1, "string key")
        _add(entry, owner, 2, "InferParameter value")
        field = f"{owner}.ParametersEntry* parameters"
    kind, name = field.split()
    many = kind.endswith("*")
    kind = kind.removesuffix("*")
    label = _Field.LABEL_REPEATED if many else _Field.LABEL_OPTIONAL
    if kind[0].isupper():
        message.field.add(
            name=name, number=number, label=label, type=_Field.TYPE_MESSAGE,
            type_name=f".{PACKAGE}.{kind}",
        )  # fmt: skip
    else:
        message.field.add(name=name, number=number, label=label, type=_type(kind))


def _type(kind: str) -> Any:
    return _Field.Type.Value(f"TYPE_{kind.upper()}")


# A pool of its own: another package may have messages of the same names.
_pool = descriptor_pool.DescriptorPool()
_pool.Add(_file())


def message(name: str) -> Any:
    """The class of a message."""
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))
