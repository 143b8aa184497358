"""A plain server around a library that embeds texts, for `benchmarks/embedding_servers.py`.

    python plain_embeddings.py KIND FOLDER PORT CORES

KIND is fastembed or sentence-transformers.  Runs in an environment of its own, so it imports
nothing of the project.  A plain `def` handler, which FastAPI runs in a pool of threads; each
request is a batch of its own.  The route and its JSON are OpenAI's.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel


class Inputs(BaseModel):
    """Texts."""

    input: list[str]


Embed = Callable[[list[str]], list[list[float]]]


def fastembed(folder: Path, cores: int) -> Embed:
    """By ONNX Runtime, from `model.onnx`."""
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    config = json.loads((folder / "config.json").read_text())
    TextEmbedding.add_custom_model(
        model="local",
        pooling=PoolingType.MEAN,
        normalization=True,
        sources=ModelSource(hf="local"),
        dim=config["hidden_size"],
        model_file="model.onnx",
    )
    model = TextEmbedding("local", specific_model_path=str(folder), threads=cores)
    return lambda texts: [vector.tolist() for vector in model.embed(texts)]


def sentence_transformers(folder: Path, cores: int) -> Embed:
    """By PyTorch."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(cores)
    model = SentenceTransformer(str(folder), device="cpu")
    return lambda texts: model.encode(texts, normalize_embeddings=True).tolist()


KINDS = {"fastembed": fastembed, "sentence-transformers": sentence_transformers}


def create(embed: Embed) -> FastAPI:
    """The application."""
    app = FastAPI()

    @app.get("/health")
    def health() -> dict[str, bool]:
        return {"live": True}

    @app.post("/embeddings")
    def embeddings(body: Inputs) -> dict[str, Any]:
        vectors = embed(body.input)
        return {"data": [{"index": i, "embedding": v} for i, v in enumerate(vectors)]}

    return app


if __name__ == "__main__":
    kind, folder, port, cores = sys.argv[1:]
    app = create(KINDS[kind](Path(folder), int(cores)))
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning")
