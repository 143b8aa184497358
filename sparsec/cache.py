"""Artifacts of models that were given as ONNX files: compiled once, then kept for the user."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

import sparsec
from sparsec.arguments import whole, wholes
from sparsec.errors import ArtifactError, InputError

if TYPE_CHECKING:
    from sparsec.compiler.frontend import Model


def folder() -> Path:
    """Where compiled models are kept: ``$XDG_CACHE_HOME/sparsec`` or ``~/.cache/sparsec``.

    For a user without a home that can be written, as in containers, a folder of that user's own
    among the temporary ones.

    Raises:
        ArtifactError: there is no such place, or somebody else has made it.
    """
    if os.environ.get("XDG_CACHE_HOME", "").strip():
        return Path(platformdirs.user_cache_dir("sparsec", appauthor=False))
    try:
        home = Path.home()  # RuntimeError: no HOME, and a user id that nobody has a name for
        usual = Path(platformdirs.user_cache_dir("sparsec", appauthor=False))
        there = next(path for path in (usual, *usual.parents) if path.exists())
        if home.is_absolute() and os.access(there, os.W_OK | os.X_OK):
            return usual
    except RuntimeError:
        pass
    return _temporary_cache()


def _temporary_cache() -> Path:
    path = Path(tempfile.gettempdir(), f"sparsec-cache-{os.getuid()}")
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        made = path.lstat()
    except OSError as error:
        raise _no_cache(path, error.strerror or str(error)) from error
    # Code is loaded from there: it must not be a trap that somebody else has set.
    if not stat.S_ISDIR(made.st_mode) or made.st_uid != os.getuid() or made.st_mode & 0o022:
        raise _no_cache(path, "it belongs to somebody else")
    return path


def _no_cache(path: Path, reason: str) -> ArtifactError:
    return ArtifactError(
        f"cannot write the cache folder {path}: {reason}; set XDG_CACHE_HOME, or compile the model "
        f"yourself with `sparsec compile`"
    )


def compiled(
    model: Model,
    *,
    buckets: Sequence[int],
    batch_size: int = 1,
    target: str = "auto",
    precision: str = "fp32",
    cc: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """The artifact of a model, compiled now unless the cache has it.

    The key is everything that the artifact depends on: the model's bytes (external data and the
    files packed with it too), the options, the compiler and this version of sparsec.  Of several
    processes that want the same model, one compiles and the others wait.

    Raises:
        ArtifactError: the cache folder cannot be written; besides what ``sparsec.compile`` raises.
    """
    from sparsec import microarchitectures, targets
    from sparsec.compiler import toolchain
    from sparsec.runtime import Artifact, cpu

    lengths = wholes("buckets", buckets)
    batch_size = whole("batch_size", batch_size, 1)
    here = cpu.detect()
    isa = microarchitectures.choose("auto", target, targets.choose(target, here, precision), here)
    compiler = toolchain.find(cc)
    parts = {
        "sparsec": sparsec.__version__,
        "model": content(model),
        "buckets": sorted(lengths),
        "batch_size": batch_size,
        "target": isa.name,
        "tuned_for": isa.tuned_for,
        "precision": isa.precision,
        "compiler": [compiler.kind, compiler.version, *compiler.flags(isa)],
    }
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:20]
    root = folder()
    named = model.bundle or model.path
    entry = root / f"{named.absolute().stem}-{key}.sparsec"
    with _locked(root, entry.with_suffix(".lock")):
        if entry.exists():
            # A damaged entry is made again, like one that is not there.
            with contextlib.suppress(ArtifactError):
                Artifact.load(entry)
                return entry
        sparsec.compile(
            model,
            buckets=lengths,
            output=entry,
            batch_size=batch_size,
            target=isa.name,
            tune_for=isa.tuned_for,
            precision=isa.precision,
            cc=cc,
            force=True,
            progress=progress,
        )
    return entry


def cut(model: str | Path, layer: int | str) -> Path:
    """A model that ends at an encoder layer, as an .onnx file; made now unless the cache has it.

    Args:
        model: an ONNX file, or a folder with ``model.onnx``.
        layer: index of the layer, from the end if negative; or the name of an ONNX node.

    Returns:
        The file; the model itself if it gives that layer's output and nothing else.

    Raises:
        InputError: there is no such layer or node.
        ModelError: the model's layers are not found.
        ArtifactError: the cache folder cannot be written.
    """
    from sparsec.compiler import artifact
    from sparsec.compiler import cut as cutting
    from sparsec.compiler.frontend import load_model

    loaded = load_model(model)
    if not isinstance(layer, str):
        layer = whole("layer", layer)
    if isinstance(layer, str):
        tensor = cutting.tensor_of(loaded, layer)
    else:
        layers = cutting.encoder_layers(loaded)
        if not -len(layers) <= layer < len(layers):
            raise InputError(f"{loaded.path} has {len(layers)} layers: there is no layer {layer}")
        tensor = layers[layer]
    if [value.name for value in loaded.proto.graph.output] == [tensor]:
        return loaded.path
    parts = {
        "sparsec": sparsec.__version__,
        "model": model_content(loaded),
        "tensor": tensor,
    }
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:20]
    root = folder()
    entry = root / f"{loaded.name}-{key}.cut"
    with _locked(root, entry.with_suffix(".cut.lock")):
        if not entry.exists():
            with artifact.staging(entry) as stage:
                made = stage / "cut"
                made.mkdir()
                cutting.cut(loaded, tensor, made / f"{loaded.name}.onnx")
                made.rename(entry)
    return entry / f"{loaded.name}.onnx"


def content(model: Model) -> dict[str, str]:
    """sha256 of every file that goes into the artifact, by name."""
    from sparsec.compiler.artifact import companions_of, file_sha256

    hashes = {name: file_sha256(file) for name, file in sorted(companions_of(model).items())}
    return {**model_content(model), **hashes}


def model_content(model: Model) -> dict[str, str]:
    """The same without tokenizer and configuration."""
    from sparsec.compiler.artifact import file_sha256

    files = sorted(model.external_files().items())
    hashes = {name: file_sha256(file) for name, file in files}
    return {"": model.sha256, "name": model.name, **hashes}


@contextlib.contextmanager
def _locked(root: Path, lock: Path) -> Iterator[None]:
    """Hold an exclusive lock that the system drops if the process dies."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        stream = lock.open("w")
    except OSError as error:
        raise _no_cache(root, error.strerror or str(error)) from error
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
