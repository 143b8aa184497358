"""Small models for sparsec's tasks: folders with ``model.onnx``, ``tokenizer.json`` and
``config.json``.  Which is whose is in ``sparsec.serving.defaults``."""

from pathlib import Path

FOLDER = Path(__file__).resolve().parent
