"""The exceptions sparsec raises on purpose, and the exit code each one has at the command line.

Every message says what happened, where, and what to do about it.  Anything that escapes as
another exception type is a defect.
"""

from __future__ import annotations


class SparsecError(Exception):
    """Base of every error that sparsec raises on purpose."""

    exit_code = 1


class ModelError(SparsecError):
    """The ONNX model cannot be read, is invalid, or is unsafe to load."""

    exit_code = 3


class UnsupportedError(ModelError):
    """The model is valid but holds nodes that sparsec cannot compile.

    Attributes:
        nodes: one ``(node name, op type, reason)`` for each offending node, all of them.
    """

    exit_code = 4

    def __init__(self, message: str, nodes: list[tuple[str, str, str]] | None = None) -> None:
        super().__init__(message)
        self.nodes: list[tuple[str, str, str]] = list(nodes or [])


class ToolchainError(SparsecError):
    """There is no usable C compiler, or it failed."""

    exit_code = 5


class ArtifactError(SparsecError):
    """An artifact is damaged, incomplete, of another schema, or cannot be written."""

    exit_code = 6


class HardwareError(SparsecError):
    """The artifact needs CPU features that this machine lacks, or its system withholds."""

    exit_code = 7


class InputError(SparsecError, ValueError):
    """An argument or input array has the wrong count, dtype, shape, or value."""

    exit_code = 8


class TooLongError(InputError):
    """A text has more tokens than the model takes, and nobody said that it may be cut."""

    exit_code = 11


class NonFiniteError(SparsecError):
    """A model's outputs hold NaN or infinity, and the pipeline was told to refuse that."""

    exit_code = 10


class EngineClosedError(SparsecError):
    """The engine was used after it was closed."""

    exit_code = 9
