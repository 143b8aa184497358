"""The models of examples/models, which an sdist leaves out."""

from __future__ import annotations

from pathlib import Path

import pytest

MODELS = Path(__file__).resolve().parents[1] / "examples" / "models"


def shipped(name: str) -> Path:
    """The folder of a model; the test is skipped where its .onnx file is not."""
    folder = MODELS / name
    if not (folder / "model.onnx").is_file():
        pytest.skip(
            f"examples/models/{name}/model.onnx comes with a git clone, not with an sdist; "
            "`make examples-models` trains it"
        )
    return folder
