"""Where a run keeps what it has done so far, and how its result comes to be whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from sparsec.arguments import argument
from sparsec.compiler.artifact import staging, writing
from sparsec.errors import ArtifactError, InputError
from sparsec.paths import flush
from sparsec.pruning.layers import Layer
from sparsec.pruning.oneshot import Compressed
from sparsec.pruning.planner import Plan
from sparsec.pruning.ranges import Range
from sparsec.pruning.reorder import Order
from sparsec.pruning.structure import Site
from sparsec.pruning.survey import Surveyed
from sparsec.pruning.units import SurveyedSite, shapes_of

REPORT = "report.json"

_SETTINGS = "settings.json"
_SURVEY = "survey.json"
_SITES = "sites.json"
_PLAN = "plan.json"
_ORDERS = "orders.json"
_START = "start.json"


def check_output(output: Path, force: bool) -> None:
    """Refuse early what could not be published at the end.

    Raises:
        InputError: it exists and is not to be replaced, or is no result of this command.
        ArtifactError: nothing can be written there.
    """
    parent = next(p for p in output.absolute().parents if p.is_symlink() or p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ArtifactError(
            f"cannot write {output}: {parent} is no folder that can be written; choose another "
            f"{argument('output')}"
        )
    if output.is_symlink() or output.exists():
        if output.is_symlink() or not (output / REPORT).is_file():
            raise InputError(
                f"{output} exists and was not made by sparsec sparsify; choose another "
                f"{argument('output')}"
            )
        if not force:
            raise InputError(
                f"{output} exists; replace it with {argument('force', True)}, or choose another "
                f"{argument('output')}"
            )


@contextlib.contextmanager
def publishing(output: Path, force: bool) -> Iterator[Path]:
    """A folder that becomes `output` when the block ends well; else nothing is left of it.

    Raises:
        ArtifactError: the disk is full, or another failure to write.
        InputError: something has come to be there meanwhile.
    """
    with staging(output) as stage:
        folder = stage / "result"
        folder.mkdir()
        yield folder
        with writing(output):
            for path in (*folder.iterdir(), folder):
                flush(path)
            check_output(output, force)
            old = stage / "old"
            if output.exists():
                output.rename(old)
            try:
                folder.rename(output)
            except BaseException:
                if old.exists():
                    old.rename(output)
                raise
            flush(output.absolute().parent)


@contextlib.contextmanager
def publishing_nowhere(output: Path) -> Iterator[Path]:
    """A folder beside the output for models that are only looked at."""
    with staging(output) as stage:
        folder = stage / "looked-at"
        folder.mkdir()
        yield folder


class Workspace:
    """What a run has done so far, in a folder beside its output.

    Attributes:
        folder: ``.OUT.sparsify``.
        fingerprint: of all that the result depends on.
        resumed: whether an earlier run has left something.
    """

    def __init__(self, output: Path, settings: Mapping[str, Any], force: bool) -> None:
        """
        Args:
            settings: JSON values: all that the result depends on.
            force: start anew where other settings have left something.

        Raises:
            InputError: the folder is that of a run with other settings.
            ArtifactError: it cannot be written.
        """
        self.folder = output.absolute().parent / f".{output.name}.sparsify"
        self.fingerprint = json.dumps(settings, sort_keys=True)
        known = self.folder / _SETTINGS
        self.resumed = known.is_file()
        if self.resumed and known.read_text(encoding="utf-8") != self.fingerprint:
            if not force:
                raise InputError(
                    f"{self.folder} has the work of an earlier run with another model, other texts "
                    f"or options: repeat that to go on with it, or remove the folder (or give "
                    f"{argument('force', True)}) to start anew"
                )
            self.remove()
            self.resumed = False
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if not self.resumed:
                _write(known, self.fingerprint.encode())

    def remove(self) -> None:
        """Remove the folder: the result is there, or is not wanted."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def keep_orders(self, found: Sequence[Order]) -> None:
        """Keep the orders of channels: sums of other threads would not give the same again."""
        rows = [
            {
                "moves": [[*axis, places] for axis, places in one.moves.items()],
                "outputs": one.outputs,
                "back": one.back,
            }
            for one in found
        ]
        with writing(self.folder):
            _write(self.folder / _ORDERS, json.dumps(rows).encode())

    def orders(self) -> list[Order] | None:
        """The orders of channels that are there."""
        path = self.folder / _ORDERS
        if not path.is_file():
            return None
        return [
            Order(
                {(name, axis): tuple(places) for name, axis, places in row["moves"]},
                tuple((name, axis) for name, axis in row["outputs"]),
                tuple(row["back"]),
            )
            for row in json.loads(path.read_text(encoding="utf-8"))
        ]

    def keep_survey(self, found: Mapping[str, Surveyed]) -> None:
        """Keep the survey of the layers so far."""
        rows = [
            {**asdict(one), "errors": [[s, e] for s, e in one.errors.items()]}
            for one in found.values()
        ]
        with writing(self.folder):
            _write(self.folder / _SURVEY, json.dumps(rows).encode())

    def survey(self) -> dict[str, Surveyed]:
        """The survey of layers that is there."""
        path = self.folder / _SURVEY
        if not path.is_file():
            return {}
        rows = json.loads(path.read_text(encoding="utf-8"))
        return {
            row["name"]: Surveyed(row["name"], row["outputs"], row["inputs"], dict(row["errors"]))
            for row in rows
        }

    def keep_sites(self, found: Mapping[str, SurveyedSite]) -> None:
        """Keep the survey of heads and channels so far, by reader."""
        rows = {
            name: {"order": one.order, "errors": [[n, e] for n, e in one.errors.items()]}
            for name, one in found.items()
        }
        with writing(self.folder):
            _write(self.folder / _SITES, json.dumps(rows).encode())

    def sites(self, sites: Sequence[Site], layers: Sequence[Layer]) -> dict[str, SurveyedSite]:
        """The survey of heads and channels that is there, of these sites between these layers."""
        path = self.folder / _SITES
        if not path.is_file():
            return {}
        rows = json.loads(path.read_text(encoding="utf-8"))
        return {
            site.reader: SurveyedSite(
                site, tuple(row["order"]), dict(row["errors"]), shapes_of(site, layers)
            )
            for site in sites
            for row in [rows.get(site.reader)]
            if row is not None
        }

    def keep_plan(self, chosen: Plan) -> None:
        """Keep what is to become of layers: measured times would not give the same again."""
        with writing(self.folder):
            _write(self.folder / _PLAN, json.dumps(asdict(chosen)).encode())

    def plan(self) -> Plan | None:
        """The plan that is there."""
        path = self.folder / _PLAN
        if not path.is_file():
            return None
        row = json.loads(path.read_text(encoding="utf-8"))
        return Plan(**{**row, "kept": {name: tuple(units) for name, units in row["kept"].items()}})

    def keep_start(self, share: float) -> None:
        """Keep the share of the final sparsity that a training begins with: measured times would
        not give the same again."""
        with writing(self.folder):
            _write(self.folder / _START, json.dumps(share).encode())

    def start(self) -> float | None:
        """The share that is there."""
        path = self.folder / _START
        return float(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None

    def layers(self, plan: str) -> Layers:
        """What layers have become, under a plan of what is to become of them."""
        folder = self.folder / "layers"
        known = folder / "plan.json"
        if known.is_file() and known.read_text(encoding="utf-8") != plan:
            shutil.rmtree(folder)
        with writing(self.folder):
            folder.mkdir(exist_ok=True)
            _write(known, plan.encode())
        return Layers(folder)


class Layers:
    """Layers that are done, a file each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0

    def read(self) -> dict[str, Compressed]:
        """Those that are there."""
        found = {}
        for path in sorted(self.folder.glob("*.pt")):
            row = torch.load(path, weights_only=True)
            ends = None if row["range"] is None else Range(*row["range"])
            found[row["name"]] = Compressed(
                row["name"], row["weights"], row["scale"], row["bias"], ends, row["error"],
                row["factors"],
            )  # fmt: skip
        return found

    def keep(self, made: Compressed) -> None:
        """Keep a layer.

        Raises:
            ArtifactError: the disk is full; what was there stays.
        """
        ends = made.range
        row = {
            "name": made.name,
            "weights": made.weights,
            "scale": made.scale,
            "bias": made.bias,
            "range": None
            if ends is None
            else [ends.scale, ends.zero_point, ends.low, ends.high, ends.error],
            "error": made.error,
            "factors": made.factors,
        }
        path = self.folder / f"{self.count:04d}.pt"
        self.count += 1
        partial = path.with_suffix(".part")
        with writing(self.folder):
            try:
                torch.save(row, partial)
                partial.replace(path)
            except RuntimeError as error:  # torch's own for a full disk
                raise OSError(None, f"{error}") from error
            finally:
                partial.unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    """A file written whole or not at all."""
    partial = path.with_name(path.name + ".part")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
