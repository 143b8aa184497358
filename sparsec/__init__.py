"""Ahead-of-time compiler and runtime for pruned and quantized transformers on CPUs."""

from __future__ import annotations

__version__ = "0.1.0"
