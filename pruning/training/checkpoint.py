"""The state of a training on disk: written whole or not at all, and read only where it fits."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sparsec.errors import InputError

NAME = "training.pt"

_FORMAT = 2


def write(folder: Path, fingerprint: str, state: Mapping[str, Any]) -> None:
    """Write a state beside the one that is there, then put it in its place.

    Args:
        folder: made if it is not there.
        fingerprint: of all that the training depends on: model, texts, options.
        state: tensors, numbers, texts, and lists and mappings of them.

    Raises:
        OSError: it cannot be written, a full disk for example; what was there stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    torch.save({"format": _FORMAT, "fingerprint": fingerprint, "state": dict(state)}, buffer)
    partial = folder / f"{NAME}.part"
    try:
        with partial.open("wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        partial.replace(folder / NAME)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def read(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """The state that was written for the same training; None: there is none.

    Raises:
        InputError: it is that of another training, or damaged: the message says what to do.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        # Only tensors and plain values: a checkpoint runs no code.
        found = torch.load(path, map_location="cpu", weights_only=True)
        known = found["format"], found["fingerprint"]
        state: dict[str, Any] = found["state"]
    except Exception as error:  # what torch raises on damaged files has no common base
        raise InputError(
            f"{path} is damaged ({error}): remove it, and the training starts anew"
        ) from error
    if known != (_FORMAT, fingerprint):
        raise InputError(
            f"{path} belongs to a training of another model, other texts or other options: remove "
            f"it to start anew, or give the same as before to go on"
        )
    return state
