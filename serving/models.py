"""Finding a model's files: artifact or ONNX, tokenizer, configuration; on disk or on a hub."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sparsec import hub, sentence_files
from sparsec.arguments import argument
from sparsec.errors import InputError, ModelError
from sparsec.paths import TOKENIZERS, around, find_onnx, input_path, user_path
from sparsec.positions import Positions, positions
from sparsec.serving.sentence import SentenceSettings

Progress = Callable[[str], None]


@dataclass(frozen=True)
class ModelFiles:
    """A model on disk.

    Attributes:
        path: what an Engine takes: an artifact, an .onnx file, or a folder with ``model.onnx``.
        tokenizer: ``tokenizer.json`` or ``vocab.txt``.
        config: contents of ``config.json``; empty where there is none.
    """

    path: Path
    tokenizer: Path
    config: Mapping[str, Any]

    @classmethod
    def find(
        cls,
        model: str | os.PathLike[str],
        *,
        tokenizer: str | os.PathLike[str] | None = None,
        config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
        zoo_dir: str | os.PathLike[str] | None = None,
        progress: Progress | None = None,
    ) -> ModelFiles:
        """Find a model; arguments are those of :meth:`Pipeline.create`.

        Raises:
            ModelError: the model, its tokenizer or its configuration is missing or damaged.
            InputError: the model has to be downloaded and that is not possible.
        """
        tell = progress or (lambda _: None)
        name = os.fspath(model)
        if name.startswith("zoo:"):
            path = _zoo(name, zoo_dir, tell)
        elif hub.is_name(name):
            path = hub.fetch(name, tell)
        else:
            path = input_path(name)
        if not path.exists():
            raise ModelError(f"{path} does not exist")
        path, folders = _places(path, artifacts=not hub.is_name(name))
        return cls(path, _tokenizer(tokenizer, folders), _config(config, folders))

    @classmethod
    def find_tokenizer(
        cls, tokenizer: str | os.PathLike[str] | None, model: str | os.PathLike[str] | None
    ) -> ModelFiles:
        """What is needed to count tokens: of a model, or of a tokenizer alone.

        Raises:
            ModelError: as for :meth:`find`.
        """
        if model is not None:
            return cls.find(model, tokenizer=tokenizer)
        path = _tokenizer(tokenizer, [])
        return cls(path.parent, path, _config(None, [path.parent]))

    @property
    def is_artifact(self) -> bool:
        """Whether the model is compiled already."""
        from sparsec.facade import is_artifact

        return is_artifact(self.path)

    def digest(self) -> str:
        """sha256, in hexadecimal digits, of everything that a pipeline reads of these files: equal
        ones answer alike.

        Raises:
            ModelError: a file cannot be read.
        """
        from sparsec.interface import MANIFEST

        whole = hashlib.sha256(json.dumps(dict(self.config), sort_keys=True).encode())
        # The manifest has the sha256 of every file of an artifact.
        if self.is_artifact:
            files = [self.path / MANIFEST]
        else:
            from sparsec import cache
            from sparsec.compiler.frontend import load_model

            parts = cache.content(load_model(self.path))
            whole.update(json.dumps(parts, sort_keys=True).encode())
            files = []
        beside = ("tokenizer_config.json", "special_tokens_map.json")
        files += [self.tokenizer, *(self.tokenizer.with_name(name) for name in beside)]
        if self.sentence.folder:
            files += sentence_files.all_files(self.sentence.folder).values()
        for file in files:
            try:
                data = file.read_bytes()
            except FileNotFoundError:
                data = b""
            except OSError as error:
                raise ModelError(f"{file} cannot be read: {error.strerror}") from error
            whole.update(hashlib.sha256(data).digest())
        return whole.hexdigest()

    @property
    def onnx(self) -> Path:
        """The .onnx file.

        Raises:
            ModelError: the model is an artifact.
        """
        if self.is_artifact:
            raise ModelError(
                f"{self.path} is compiled already: this needs the ONNX model that it was made from"
            )
        return find_onnx(self.path) if self.path.is_dir() else self.path

    @cached_property
    def sentence_folder(self) -> Path | None:
        """Where the files of sentence-transformers are; None if there are none."""
        folders = (
            self.tokenizer.parent,
            *around(self.path),
            self.tokenizer.absolute().parent.parent,
        )
        found = (folder for folder in folders if (folder / sentence_files.MODULES).is_file())
        return next(found, None)

    @cached_property
    def sentence(self) -> SentenceSettings:
        """What the files of sentence-transformers say; the defaults where there are none.

        Raises:
            ModelError: one is damaged, or asks for what cannot be done.
        """
        return SentenceSettings.load(self.sentence_folder)

    @cached_property
    def positions(self) -> Positions:
        """How the model counts positions, as far as its configuration says."""
        try:
            settings = json.loads(self.tokenizer.with_name("tokenizer_config.json").read_bytes())
        except (OSError, ValueError):
            settings = {}
        longest = settings.get("model_max_length") if isinstance(settings, dict) else None
        return positions(self.config, longest)

    @property
    def vocabulary(self) -> int | None:
        """Tokens that the model has embeddings for, as far as its configuration says."""
        value = self.config.get("vocab_size")
        return value if type(value) is int and value > 0 else None

    def labels(self, count: int) -> list[str]:
        """Names of a head's outputs, from ``id2label``; LABEL_0 and so on where it says nothing.

        Raises:
            ModelError: the names are not for that many outputs.
        """
        table = self.config.get("id2label")
        if not table:
            return [f"LABEL_{i}" for i in range(count)]
        try:
            names = {int(key): str(value) for key, value in dict(table).items()}
        except (TypeError, ValueError):
            raise ModelError("config.json: id2label must map numbers to names") from None
        if sorted(names) != list(range(count)):
            raise ModelError(
                f"config.json names {len(names)} labels (id2label), the model has {count} outputs: "
                f"the files do not belong together"
            )
        return [names[i] for i in range(count)]


def _places(path: Path, artifacts: bool) -> tuple[Path, list[Path]]:
    """(the model, folders to look for its companions in)."""
    from sparsec.facade import is_artifact

    if artifacts and is_artifact(path):
        # One that was made of a file alone may lie beside what belongs to that.
        alone = not any((path / name).is_file() for name in TOKENIZERS)
        return path, [path, *around(path.parent)] if alone else [path]
    given = path
    if path.is_dir():
        try:
            path = find_onnx(path)
        except ModelError as error:
            found = sorted(p for p in path.iterdir() if artifacts and is_artifact(p))
            if len(found) == 1:
                return found[0], [found[0], path]
            hint = f"; it has {', '.join(p.name for p in found)}: name one" if found else ""
            raise ModelError(
                f"{path} is neither an artifact nor a folder with a model: {error}{hint}"
            ) from None
    # The folder is what has the companions too, if the file is what it stands for.
    whole = artifacts and path.name == "model.onnx" and not is_artifact(path.parent)
    folders = [*around(path), *around(given), path.absolute().parent.parent]
    return (path.parent if whole else path), list(dict.fromkeys(folders))


def _tokenizer(given: str | os.PathLike[str] | None, folders: list[Path]) -> Path:
    if given is not None:
        path = input_path(given)
        if path.is_file():
            return path
        folders = [path]
    for folder in folders:
        for name in TOKENIZERS:
            if (folder / name).is_file():
                return folder / name
    raise ModelError(
        f"{folders[0]} has no tokenizer.json: put it beside the model, or give "
        f"{argument('tokenizer')}"
    )


def _config(
    given: str | os.PathLike[str] | Mapping[str, Any] | None, folders: list[Path]
) -> Mapping[str, Any]:
    if isinstance(given, Mapping):
        return MappingProxyType(dict(given))
    if given is not None:
        path = input_path(given)
        folders = [path] if path.is_dir() else []
        if not path.exists():
            raise ModelError(f"{path} does not exist")
    else:
        path = folders[0] / "config.json"
    for folder in folders:
        path = folder / "config.json"
        if path.is_file():
            break
    else:
        if given is None:
            return MappingProxyType({})
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is not a configuration: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} is not a configuration: it must be a JSON object")
    return MappingProxyType(config)


def _zoo(stub: str, zoo_dir: str | os.PathLike[str] | None, tell: Progress) -> Path:
    """A model of the former SparseZoo, where the user keeps those."""
    given = zoo_dir if zoo_dir is not None else os.environ.get("SPARSEZOO_MODELS_PATH")
    root = user_path(given) if given else None
    gone = "SparseZoo is gone: zoo: stubs are looked up on this machine only"
    if not root:
        raise InputError(
            f"{gone}; set SPARSEZOO_MODELS_PATH to the folder that has {stub.removeprefix('zoo:')}"
        )
    tell(gone)
    name = stub.removeprefix("zoo:").strip("/")
    parts = Path(name).parts
    if not parts or ".." in parts or Path(name).is_absolute():
        raise InputError(f"{stub!r} is no stub of a model")
    candidates = [Path(root, name), Path(root, name.replace("/", "-")), Path(root, parts[-1])]
    for folder in candidates:
        for path in (folder, folder / "deployment"):
            if path.is_dir() and any(path.glob("*.onnx")):
                return path
        if (folder / "onnx").is_dir():
            return folder
    raise ModelError(
        f"{gone}, and {root} has no model {name} (looked for {name}/model.onnx and "
        f"{name}/deployment/model.onnx)"
    )
