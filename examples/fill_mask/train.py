"""Train examples/models/fill_mask; see examples/training/train.py."""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.fill_mask.data import TASK
from examples.training.train import run

if __name__ == "__main__":
    run(TASK)
