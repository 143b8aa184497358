"""``InferenceSession``: an Engine behind the calls of ONNX Runtime's sessions, for programs written
for those."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from numpy.typing import NDArray

from sparsec.arguments import whole
from sparsec.errors import InputError
from sparsec.facade import Engine
from sparsec.runtime import Artifact, TensorSpec

#: What ONNX Runtime calls element types that are not called as numpy calls them.
_TYPES = {"float32": "float", "float64": "double"}

#: Providers that a program may ask for and gets: there is a CPU.
_PROVIDERS = ("CPUExecutionProvider", "SparsecExecutionProvider")


@dataclass(frozen=True)
class NodeArg:
    """An input or output, as ``get_inputs()`` and ``get_outputs()`` give it.

    Attributes:
        name: of the tensor.
        shape: extents; "batch" and "sequence" are the caller's.
        type: such as ``tensor(int64)`` or ``tensor(float)``.
    """

    name: str
    shape: list[int | str]
    type: str


@dataclass(frozen=True)
class ModelMetadata:
    """What ``get_modelmeta()`` gives."""

    graph_name: str
    producer_name: str = "sparsec"
    domain: str = ""
    description: str = ""
    graph_description: str = ""
    version: int = 0
    custom_metadata_map: dict[str, str] = field(default_factory=dict)


class InferenceSession:
    """A model behind the interface of ``onnxruntime.InferenceSession``.

    >>> session = sparsec.InferenceSession("model.sparsec")               # doctest: +SKIP
    >>> session.run(None, {"input_ids": ids, "attention_mask": mask})     # doctest: +SKIP

    What asks for something that is not there is refused: bindings of memory, other devices than the
    CPU, custom operators, profiles.

    Args:
        path_or_bytes: an artifact, an ONNX file or a folder with ``model.onnx``; not bytes.
        sess_options: ONNX Runtime's ``SessionOptions``: ``intra_op_num_threads`` is the number of
            cores (0: all usable ones); what else they say is how ONNX Runtime does its work, and is
            ignored.
        providers: those that the program knows; the CPU must be among them.
        provider_options: ignored.
        options: those of :class:`sparsec.Engine`: ``buckets``, ``target``, ``skip_padding`` ...

    Raises:
        InputError: the model is given as bytes, or no provider of the CPU is asked for.  Besides,
            what :class:`sparsec.Engine` raises.
    """

    def __init__(
        self,
        path_or_bytes: str | os.PathLike[str] | Artifact,
        sess_options: Any = None,
        providers: Sequence[Any] | None = None,
        provider_options: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> None:
        if isinstance(path_or_bytes, (bytes, bytearray, memoryview)):
            raise InputError("the model is given as bytes: write it to a file and give its path")
        _check_providers(providers)
        self._options = sess_options
        self.engine = Engine(path_or_bytes, _cores(sess_options), **options)

    def run(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Any],
        run_options: Any = None,
    ) -> list[NDArray[Any]]:
        """Run the model.

        Args:
            output_names: outputs to return, in this order; None: all.
            input_feed: an array per input, by name; of what may be one see
                :meth:`sparsec.Engine.run`.
            run_options: ONNX Runtime's ``RunOptions``: names and levels for its log are ignored; a
                run that is to be terminated is refused.

        Raises:
            InputError: the inputs do not fit the model, there is no such output, or the options ask
                for something that is not there.
        """
        if getattr(run_options, "terminate", False):
            raise InputError("run_options.terminate is set: runs are not interrupted here")
        if not isinstance(input_feed, Mapping):
            raise InputError(
                f"input_feed must be a dict of arrays by name, not {type(input_feed).__name__}"
            )
        return self.engine.run(output_names, input_feed)

    def get_inputs(self) -> list[NodeArg]:
        """The model's inputs, in order."""
        return [_node(spec) for spec in self.engine.inputs]

    def get_outputs(self) -> list[NodeArg]:
        """The model's outputs, in order."""
        return [_node(spec) for spec in self.engine.outputs]

    def get_overridable_initializers(self) -> list[NodeArg]:
        """None: constants are compiled in."""
        return []

    def get_providers(self) -> list[str]:
        """What runs the model, under the name that programs look for."""
        return [_PROVIDERS[0]]

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        """None of the provider's."""
        return {_PROVIDERS[0]: {}}

    def set_providers(
        self, providers: Sequence[Any] | None = None, provider_options: Any = None
    ) -> None:
        """Nothing changes, as long as the CPU is among them.

        Raises:
            InputError: it is not.
        """
        _check_providers(providers)

    def get_session_options(self) -> Any:
        """What the session was made with."""
        return self._options

    def get_modelmeta(self) -> ModelMetadata:
        """The model's name, and its sha256 and what compiled it as custom metadata."""
        manifest = self.engine.artifact.manifest
        known = {
            "sha256": manifest.model.sha256,
            "sparsec_version": manifest.sparsec_version,
            "target": manifest.target.name,
        }
        return ModelMetadata(manifest.model.name, custom_metadata_map=known)

    def disable_fallback(self) -> None:
        """There is nothing to fall back to."""

    def enable_fallback(self) -> None:
        """There is nothing to fall back to."""

    def io_binding(self) -> NoReturn:
        """Refused.

        Raises:
            InputError: always.
        """
        raise _absent("io_binding")

    def run_with_iobinding(self, iobinding: Any, run_options: Any = None) -> NoReturn:
        """Refused.

        Raises:
            InputError: always.
        """
        raise _absent("run_with_iobinding")

    def run_with_ort_values(
        self, output_names: Any, input_dict_ort_values: Any, run_options: Any = None
    ) -> NoReturn:
        """Refused.

        Raises:
            InputError: always.
        """
        raise _absent("run_with_ort_values")

    def run_async(self, *arguments: Any, **options: Any) -> NoReturn:
        """Refused.

        Raises:
            InputError: always.
        """
        raise InputError(
            "there is no run_async: call run from a thread, as asyncio.to_thread does; any number "
            "of threads may call it at once"
        )

    def end_profiling(self) -> NoReturn:
        """Refused.

        Raises:
            InputError: always.
        """
        raise InputError("there is no end_profiling: `sparsec benchmark --profile` makes profiles")


def _absent(name: str) -> InputError:
    return InputError(
        f"there is no {name}: arrays are in the memory of the CPU, and run() reads contiguous ones "
        f"where they are"
    )


def _node(spec: TensorSpec) -> NodeArg:
    return NodeArg(spec.name, list(spec.shape), f"tensor({_TYPES.get(spec.dtype, spec.dtype)})")


def _cores(sess_options: Any) -> int | None:
    """Threads that options of ONNX Runtime ask for."""
    asked = getattr(sess_options, "intra_op_num_threads", 0)
    return whole("sess_options.intra_op_num_threads", asked, 0) or None


def _check_providers(providers: Sequence[Any] | None) -> None:
    names = [p[0] if isinstance(p, tuple) else p for p in providers or ()]
    if names and not set(names) & set(_PROVIDERS):
        raise InputError(
            f"sparsec runs on CPUs only: providers must have {_PROVIDERS[0]}, "
            f"not just {', '.join(map(str, names))}"
        )
