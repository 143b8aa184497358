"""The ONNX standard's node tests, compiled and run.

``python -m tests.conformance --write`` runs them all and rewrites what is published:
``results.json`` here, and ``docs/operators.md``.  The tests in this folder fail where a published
case no longer passes.
"""
