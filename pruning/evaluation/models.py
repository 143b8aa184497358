"""The two models: found, compiled for the lengths of the texts, and run one text at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsec.errors import InputError, ModelError
from sparsec.pruning.evaluation.texts import Sample
from sparsec.runtime import Artifact
from sparsec.serving.buckets import DEFAULT, suggest
from sparsec.serving.models import ModelFiles
from sparsec.serving.pipelines import Pipeline
from sparsec.serving.runner import EngineRunner, Features, Outputs
from sparsec.serving.text import Text

MOST_BUCKETS = 3
"""Sequence lengths that a model is compiled for: each takes seconds."""

USUAL_LENGTH = 512
"""Tokens after which texts are cut where no model has a limit."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Found:
    """A model that is found and not loaded yet.

    Attributes:
        path: as the user gave it.
        files: where it is.
        text: its tokenizer.
        engine: what is to run it.
        fixed: the only length it takes; None: any.
        longest: the most tokens it takes; None: not known.
        outputs: name and shape of each output.
        file_bytes: size of the .onnx file with its external data; None: it is an artifact.
    """

    path: str
    files: ModelFiles
    text: Text
    engine: str
    fixed: int | None
    longest: int | None
    outputs: Mapping[str, tuple[int | str, ...]]
    file_bytes: int | None


def find(
    path: str,
    engine: str,
    tokenizer: str | Path | None = None,
    other: Found | None = None,
    progress: Progress | None = None,
) -> Found:
    """Find a model and read what it says of itself.

    Args:
        path: a folder, an .onnx file, an artifact, or a stub such as ``hf:org/name``.
        engine: ``sparsec`` or ``onnxruntime``.
        tokenizer: where its tokenizer is, if not beside it.
        other: a model whose tokenizer and configuration it has unless it has its own.
        progress: called with a line when something is downloaded.

    Raises:
        ModelError: the model or its tokenizer is missing or damaged.
        InputError: an artifact is to be run by ONNX Runtime.
    """
    files = _files(path, tokenizer, other, progress)
    if engine == "onnxruntime" and files.is_artifact:
        raise InputError(
            f"{path} is compiled: ONNX Runtime cannot run it; give the ONNX model, or let sparsec "
            f"run it"
        )
    text = Text.load(files)
    limits = [files.positions.longest, text.max_length]
    fixed = size = None
    if files.is_artifact:
        artifact = Artifact.load(files.path, verify=False)
        outputs = {spec.name: spec.shape for spec in artifact.outputs}
        limits.append(max(artifact.buckets))
    else:
        from sparsec.compiler import frontend

        loaded = frontend.load_model(files.onnx)
        parts = {loaded.path, *loaded.external_files().values()}
        size = sum(part.stat().st_size for part in parts)
        signature = frontend.signature(loaded)
        outputs = {spec.name: spec.shape for spec in signature.outputs}
        fixed = signature.fixed_length
        limits.append(fixed)
    longest = min((limit for limit in limits if limit), default=None)
    return Found(path, files, text, engine, fixed, longest, outputs, size)


def _files(
    path: str,
    tokenizer: str | Path | None,
    other: Found | None,
    progress: Progress | None,
) -> ModelFiles:
    try:
        files = ModelFiles.find(path, tokenizer=tokenizer, progress=progress)
    except ModelError as error:
        if other is None or tokenizer is not None or "no tokenizer" not in str(error):
            raise
        files = ModelFiles.find(path, tokenizer=other.files.tokenizer, progress=progress)
    if other is not None and not files.config:
        return ModelFiles(files.path, files.tokenizer, other.files.config)
    return files


def count_tokens(text: Text, samples: Sequence[Sample]) -> list[int]:
    """Tokens of each sample, special ones included, before anything is cut."""
    lengths = []
    for sample in samples:
        first = text.encode_words(sample.words) if sample.words else text.encode(sample.text)
        second = 0 if sample.pair is None else len(text.encode(sample.pair))
        lengths.append(len(first) + second + text.special_tokens(pair=sample.pair is not None))
    return lengths


class Contender:
    """A model that runs.  A context manager.

    Args:
        found: where it is.
        task: name of the pipeline's task, or its class.
        options: of the pipeline.
        lengths: tokens of the texts to come, for which an ONNX model is compiled.
        max_length: tokens after which texts are cut.
        num_cores: threads; None: all usable cores.
        progress: called with each line of progress; None: a line when compiling starts.

    Attributes:
        found, pipeline, text, max_length: what was given or made.
    """

    def __init__(
        self,
        found: Found,
        task: str | type[Pipeline],
        options: Mapping[str, Any],
        lengths: Sequence[int],
        max_length: int,
        num_cores: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.found = found
        buckets: tuple[int, ...] | None = None
        if not found.files.is_artifact and found.fixed is None:
            buckets = (max_length,)
            if found.engine == "sparsec":
                buckets = suggest(lengths, MOST_BUCKETS, DEFAULT, max_length)[-1].buckets
        self.pipeline = Pipeline.create(
            task,
            found.files.path,
            sequence_length=buckets,
            num_cores=num_cores,
            engine_type=found.engine,
            tokenizer=found.files.tokenizer,
            config=found.files.config,
            on_nonfinite="ignore",
            progress=progress,
            **options,
        )
        self.text = self.pipeline.text
        self.max_length = self.pipeline.max_length = min(max_length, self.pipeline.max_length)

    def features(self, first: str, second: str | None = None) -> Features:
        """What the model takes of a text or a pair, cut to fit."""
        if second is None:
            return self.text.features(self.text.fit(self.text.encode(first), self.max_length))
        return self.text.pair(self.text.ids(first), self.text.ids(second), self.max_length)

    def run(self, items: Sequence[Features]) -> list[Outputs]:
        """Outputs of sequences.  Each runs alone: what the others are then cannot matter."""
        return [self.pipeline.runner.infer([item])[0] for item in items]

    @property
    def buckets(self) -> tuple[int, ...]:
        """Lengths that it runs at; nothing where it runs at any."""
        runner = self.pipeline.runner
        any_length = not isinstance(runner, EngineRunner) and self.found.fixed is None
        return () if any_length else runner.buckets

    @property
    def artifact_bytes(self) -> int | None:
        """Size of the compiled folder."""
        runner = self.pipeline.runner
        if not isinstance(runner, EngineRunner):
            return None
        folder = runner.engine.artifact.path
        return sum(part.stat().st_size for part in folder.rglob("*") if part.is_file())

    def close(self) -> None:
        """Give up the model."""
        self.pipeline.close()

    def __enter__(self) -> Contender:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
