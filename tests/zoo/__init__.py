"""Tiny, randomly initialized encoders of every common architecture, in every common ONNX form.

`architectures` makes the networks, `exports` writes them as ONNX, `dialects` quantizes or fuses the
files, `check` compiles them and compares with ONNX Runtime, and `matrix` writes what came out into
docs/coverage.md.  The first two need the extra ``zoo``.
"""
