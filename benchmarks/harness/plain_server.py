"""What people write first: FastAPI in front of ONNX Runtime, for `benchmarks/serve.py`.

    python plain_server.py FOLDER PORT CORES LENGTH

Runs in an environment of its own, so it imports nothing of the project.  A plain `def` handler,
which FastAPI runs in a pool of threads; each request is a batch of one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from tokenizers import Tokenizer


class Inputs(BaseModel):
    """A text."""

    inputs: str


def create(folder: Path, cores: int, length: int) -> FastAPI:
    """The application: labels and scores of all tokens."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores
    session = onnxruntime.InferenceSession(
        str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    names = [node.name for node in session.get_inputs()]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(length)
    labels = json.loads((folder / "config.json").read_text())["id2label"]
    app = FastAPI()

    @app.get("/health")
    def health() -> dict[str, bool]:
        return {"live": True}

    @app.post("/predict")
    def predict(body: Inputs) -> dict[str, Any]:
        encoding = tokenizer.encode(body.inputs)
        rows = {"mask": encoding.attention_mask, "type": encoding.type_ids, "ids": encoding.ids}
        feed = {
            name: np.array([next(row for kind, row in rows.items() if kind in name)], np.int64)
            for name in names
        }
        (logits, *_) = session.run(None, feed)
        scores = np.exp(logits[0] - logits[0].max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        best = scores.argmax(-1)
        found = [
            {
                "entity": labels[str(k)],
                "score": float(scores[i, k]),
                "word": encoding.tokens[i],
                "start": encoding.offsets[i][0],
                "end": encoding.offsets[i][1],
            }
            for i, k in enumerate(best)
            if not encoding.special_tokens_mask[i] and labels[str(k)] != "O"
        ]
        return {"predictions": [found]}

    return app


if __name__ == "__main__":
    folder, port, cores, length = sys.argv[1:]
    app = create(Path(folder), int(cores), int(length))
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning")
