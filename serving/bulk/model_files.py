"""A compiled model as bytes, for machines that have none of its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsec import sentence_files
from sparsec.arguments import argument
from sparsec.errors import InputError, ModelError
from sparsec.scratch import temporary
from sparsec.serving.models import ModelFiles
from sparsec.serving.pipelines import Pipeline
from sparsec.serving.runner import EngineRunner

_ARTIFACT = "model.sparsec"

# Of options, what says where files are, or how to compile them.
_PLACES = ("tokenizer", "config", "zoo_dir", "batch_size", "engine_type")


@dataclass(frozen=True)
class Packed:
    """A pipeline that can be made anywhere.

    Attributes:
        kind: its class.
        files: contents by path.
        tokenizer: which of them is the tokenizer.
        config: of config.json.
        options: of :meth:`Pipeline.create`, without those of places.
    """

    kind: type[Pipeline]
    files: Mapping[str, bytes]
    tokenizer: str
    config: Mapping[str, Any]
    options: Mapping[str, Any]

    @classmethod
    def of(cls, pipeline: Pipeline, options: Mapping[str, Any]) -> Packed:
        """What a pipeline is made of, compiled.

        Args:
            options: what it was made with.

        Raises:
            InputError: another engine runs it.
            ModelError: a file cannot be read.
        """
        if not isinstance(pipeline.runner, EngineRunner):
            raise InputError(
                f"other machines run models with sparsec only: leave {argument('engine_type')} out"
            )
        artifact = pipeline.runner.engine.artifact.path
        model = pipeline.model
        found = {
            f"{_ARTIFACT}/{file.relative_to(artifact)}": file
            for file in artifact.rglob("*")
            if file.is_file()
        }
        names = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
        beside = [model.tokenizer, *(model.tokenizer.with_name(name) for name in names)]
        found |= {f"tokenizer/{file.name}": file for file in beside if file.is_file()}
        if model.sentence.folder is not None:
            files = sentence_files.all_files(model.sentence.folder)
            found |= {f"tokenizer/{name}": file for name, file in files.items()}
        try:
            data = {name: file.read_bytes() for name, file in found.items()}
        except OSError as error:
            raise ModelError(f"{error.filename} cannot be read: {error.strerror}") from error
        kept = {name: value for name, value in options.items() if name not in _PLACES}
        tokenizer = f"tokenizer/{model.tokenizer.name}"
        return cls(type(pipeline), data, tokenizer, dict(model.config), kept)

    def make(self, num_cores: int) -> Pipeline:
        """The pipeline, on this machine.

        Raises:
            HardwareError: its processor lacks what the model was compiled for.
        """

        def as_it_is(kind: type[Pipeline], /, model: ModelFiles, **options: Any) -> ModelFiles:
            return model  # it was cut before it was compiled

        members = {"adapt": classmethod(as_it_is), "__module__": self.kind.__module__}
        kind: type[Pipeline] = type(self.kind.__name__, (self.kind,), members)
        with temporary("sparsec-model-") as folder:
            for name, data in self.files.items():
                file = folder / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(data)
            # The engine keeps copies in memory: the files may go.
            return Pipeline.create(
                kind,
                folder / _ARTIFACT,
                tokenizer=folder / Path(self.tokenizer),
                config=self.config,
                num_cores=num_cores,
                **self.options,
            )
