"""Loads artifacts and runs them.  Needs numpy, and neither the compiler nor ONNX."""

from __future__ import annotations

from sparsec.runtime._engine import Engine
from sparsec.runtime._loader import share
from sparsec.runtime.artifact import Artifact, Manifest, TensorSpec
from sparsec.runtime.cpu import CpuInfo, detect

__all__ = ["Artifact", "CpuInfo", "Engine", "Manifest", "TensorSpec", "detect", "share"]
