"""Models on the Hugging Face Hub, by names such as ``hf:org/name``: which file one stands for, and
how it comes into the hub's own cache.

What is downloaded is an .onnx file and what belongs to it, never an artifact: those are machine
code, and a repository may be anybody's.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparsec.errors import InputError, ModelError
from sparsec.paths import PLACES, choose_onnx, find_onnx, no_onnx

PREFIX = "hf:"

Progress = Callable[[str], None]

# What is fetched besides the model: tokenizers and configurations.
_COMPANIONS = ("*.json", "*.txt", "*_Dense/model.safetensors", "*_LayerNorm/model.safetensors")

# Data of a model that is not named after its file.
_DATA = "*model.data"

_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


def is_name(model: object) -> bool:
    """Whether a model is named as one on the hub."""
    return isinstance(model, (str, os.PathLike)) and os.fspath(model).startswith(PREFIX)


def local(
    model: str | os.PathLike[str], progress: Progress | None = None
) -> str | os.PathLike[str]:
    """A model's path: what was given, unless it is a name on the hub, which is fetched.

    Raises: as :func:`fetch` does.
    """
    return fetch(os.fspath(model), progress) if is_name(model) else model


def artifact_path(name: str) -> Path:
    """Where the artifact of a model on the hub is written that no output is named for: the
    repository's name with the suffix ``.sparsec``, in the working directory."""
    return Path(_parts(name)[0].rpartition("/")[2] + ".sparsec")


def fetch(name: str, progress: Progress | None = None) -> Path:
    """Download a model into the hub's own cache, unless it is there already.

    Args:
        name: ``hf:org/name[/path/file.onnx][@revision]``; without a file, the one that
            :func:`sparsec.paths.choose_onnx` takes of the repository's.
        progress: called with a line before that, and with one where the file has no usual name.

    Returns:
        The .onnx file, in the cache; the tokenizer and the configuration lie in its folder or in
        the one above.

    Raises:
        InputError: it is no name of a model, or huggingface_hub is not installed.
        ModelError: there is no such repository, revision or file, it may not be read, or neither
            the hub can be reached nor the cache has it.
    """
    tell = progress or (lambda _: None)
    hub = _library(name)
    repository, file, revision = _parts(name)
    tell(f"fetching {repository} from the Hugging Face Hub")
    files = _listed(hub, repository, revision)
    chosen = file
    if not file and files is not None:
        chosen = _choose(repository, files, tell)
    models = [f"{chosen}*"] if chosen else [f"{place}*" for place in PLACES]
    folder = _snapshot(hub, name, repository, revision, [*_COMPANIONS, *models, _DATA])
    if not chosen:  # nobody knows what the hub has
        return find_onnx(folder)
    if not (folder / chosen).is_file():
        where = "on the Hugging Face Hub"
        if files is None:
            where = "in the cache, and the Hugging Face Hub cannot be asked for it"
        listed = f"; it has {_some(_models(files))}" if files else ""
        raise ModelError(f"{repository} has no file {chosen} {where}{listed}")
    return folder / chosen


def _library(name: str) -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise InputError(
            f"{name} needs huggingface_hub: pip install 'sparsec[hub]', or download the model "
            f"yourself and give its folder"
        ) from None
    return huggingface_hub


def _parts(name: str) -> tuple[str, str, str]:
    """Repository, file and revision; the latter two may be ""."""
    path, at, revision = name.removeprefix(PREFIX).partition("@")
    parts = path.split("/")
    file = "/".join(parts[2:])
    wrong = len(parts) < 2 or "" in parts or ".." in parts or bool(at) != bool(revision)
    if wrong or (file and not file.endswith(".onnx")):
        raise InputError(
            f"{name!r} is no name of a model: they are like hf:org/name, "
            f"hf:org/name/onnx/model_int8.onnx, hf:org/name@revision"
        )
    return "/".join(parts[:2]), file, revision


def _listed(hub: Any, repository: str, revision: str) -> list[str] | None:
    """The repository's files; None if the hub does not tell: what the cache has must do."""
    try:
        return list(hub.list_repo_files(repository, revision=revision or None))
    except Exception:  # besides its own, those of whatever HTTP client it uses
        return None


def _models(files: list[str]) -> list[str]:
    return sorted(file for file in files if file.endswith(".onnx"))


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (" ..." if len(names) > 8 else "")


def _choose(repository: str, files: list[str], tell: Progress) -> str:
    models = _models(files)
    chosen = choose_onnx(files)
    if chosen is None:
        if models:
            hint = f"it has {_some(models)}: name one, as {PREFIX}{repository}/{models[0]}"
        else:
            hint = no_onnx(repository)
        raise ModelError(f"{repository} on the Hugging Face Hub has no model.onnx; {hint}")
    if chosen not in PLACES and len(models) > 1:
        others = _some([file for file in models if file != chosen])
        tell(
            f"{repository} has no model.onnx: {chosen} it is; others are {others}, to be named as "
            f"{PREFIX}{repository}/{models[0]}"
        )
    return chosen


def _snapshot(hub: Any, name: str, repository: str, revision: str, patterns: list[str]) -> Path:
    """The folder in the cache with the files of a repository that fit."""
    from huggingface_hub import errors

    at = f" at {revision}" if revision else ""
    try:
        return Path(
            hub.snapshot_download(repository, revision=revision or None, allow_patterns=patterns)
        )
    except errors.HFValidationError as error:
        raise InputError(f"{name!r} is no name of a model: {error}") from error
    except errors.GatedRepoError as error:
        why = f"its owner decides who may read it: ask on its page, then {_LOG_IN}"
        raise _failed(repository, at, why) from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(
            f"{repository} on the Hugging Face Hub has no revision {revision or 'main'}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise _failed(repository, at, f"there is none, or it is private: {_LOG_IN}") from error
    except errors.LocalEntryNotFoundError as error:
        why = "HF_HUB_OFFLINE is set" if hub.constants.HF_HUB_OFFLINE else "it cannot be reached"
        raise _failed(repository, at, f"{why}, and the cache does not have the model") from error
    except Exception as error:  # those of the HTTP client
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise _failed(repository, at, lines[0]) from error


def _failed(repository: str, at: str, why: str) -> ModelError:
    return ModelError(f"cannot fetch {repository}{at} from the Hugging Face Hub: {why}")
