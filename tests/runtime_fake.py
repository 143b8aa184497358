"""Artifacts around the hand-written library runtime_model.c, and what they compute in numpy."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsec.interface import SCHEMA
from sparsec.runtime import _engine

HERE = Path(__file__).parent
ROOT = HERE.parent
Manifest = dict[str, Any]


#: The manifest's row of a bucket's only kernel.
KERNEL_ROW = {
    "name": "all",
    "kernel": "fake",
    "source": "n",
    "detail": "",
    "shape": "",
    "sparsity": 0.0,
    "rows": 0,
    "work_block": 0,
    "work_key": 0,
    "work_sample": 0,
}


def compile_c(output: Path, sources: Sequence[Path], *flags: str) -> None:
    """Build a program or library with gcc, or skip the test where that is not possible."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    command = ["gcc", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-g"]
    command += [f"-I{ROOT / 'runtime'}", f"-I{ROOT / 'templates'}", *map(str, sources)]
    done = subprocess.run(
        [*command, "-o", str(output), "-pthread", *flags], capture_output=True, text=True
    )
    if done.returncode and "sanitize" in " ".join(flags) and "cannot find" in done.stderr:
        pytest.skip(f"gcc has no sanitizer runtime: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr


def seal(folder: Path, manifest: Manifest) -> None:
    """Record all files of the folder and write the manifest."""
    manifest["files"] = {
        path.name: {
            "size": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in sorted(folder.iterdir())
        if path.name != "manifest.json"
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def edit(folder: Path, change: Callable[[Manifest], Any]) -> None:
    """Change the manifest and nothing else."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def make_artifact(
    folder: Path,
    buckets: Sequence[int] = (4, 16),
    *,
    mask: bool = True,
    supports_lengths: bool = True,
    padding: str = "masked",
    abi: int = _engine.ABI_VERSION,
) -> Path:
    """A fake artifact; bucket 0 means no sequence axis (4 tokens)."""
    folder.mkdir(parents=True)
    for length in buckets:
        compile_c(
            folder / f"bucket_{length}.so",
            [HERE / "runtime_model.c"],
            "-shared",
            "-fPIC",
            "-O1",
            f"-DLENGTH={length}",
            f"-DABI={abi}",
            f"-DMASK_INPUT={1 if mask else -1}",
            f"-DSUPPORTS_LENGTHS={int(supports_lengths)}",
            f"-DPADDING=SPARSEC_PADDING_{padding.upper()}",
        )
    tokens: int | str = "sequence" if buckets[0] else 4

    def spec(name: str, dtype: str, *shape: int | str) -> dict[str, Any]:
        return {"name": name, "dtype": dtype, "shape": list(shape)}

    seal(
        folder,
        {
            "format": "sparsec-artifact",
            "schema": SCHEMA,
            "abi": _engine.ABI_VERSION,
            "sparsec_version": "0.1.0",
            "model": {"name": "fake", "sha256": "0" * 64, "dialect": "fp32"},
            "target": {"name": "generic", "arch": machine(), "features": []},
            "toolchain": {"compiler": "gcc", "version": "12", "flags": ["-O1"]},
            "inputs": [
                spec("ids", "int64", "batch", tokens),
                spec("mask", "int64", "batch", tokens),
                spec("bias", "float32", 3),
            ],
            "outputs": [
                spec("hidden", "float32", "batch", tokens, 3),
                spec("pairs", "int64", "batch", tokens, tokens),
                spec("turned", "int32", tokens, "batch"),
                spec("seen", "int32", "batch", 3),
                spec("total", "int64"),
            ],
            "mask_input": "mask" if mask else None,
            "supports_lengths": supports_lengths,
            "padding": {"kind": padding, "reason": "" if padding == "masked" else "a reason"},
            "buckets": [
                {
                    "length": length,
                    "file": f"bucket_{length}.so",
                    "needs": [],
                    "kernels": [KERNEL_ROW],
                }
                for length in buckets
            ],
            "layers": [
                {
                    "name": "w",
                    "op": "linear",
                    "n": 3,
                    "k": 1,
                    "sparsity": 0.5,
                    "block4_sparsity": 0,
                    "kernel": "fake",
                }
            ],
        },
    )
    return folder


def machine() -> str:
    """The architecture as manifests name it."""
    name = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)


def inputs(rng: np.random.Generator, batch: int, length: int) -> list[np.ndarray]:
    """Random ids below 1000, a ragged mask with at least one token a row, a bias."""
    ids = rng.integers(1, 1000, (batch, length))
    real = rng.integers(1, length + 1, (batch, 1))
    mask = (np.arange(length) < real).astype(np.int64)
    return [ids, mask, rng.standard_normal(3).astype(np.float32)]


def expected(arrays: Sequence[np.ndarray], real: np.ndarray | None = None) -> list[np.ndarray]:
    """hidden, pairs, turned and total for these inputs; tokens from `real[b]` on are skipped."""
    ids, mask, bias = arrays
    batch, length = ids.shape
    if real is None:
        real = np.full(batch, length)
    keep = np.arange(length) < real[:, None]
    hidden = (ids * 2 + mask).astype(np.float32)[:, :, None] + bias
    pairs = ids[:, :, None] * 1000 + ids[:, None, :]
    return [
        np.where(keep[:, :, None], hidden, np.float32(0)),
        np.where(keep[:, :, None] & keep[:, None, :], pairs, 0),
        np.where(keep, ids + 1, 0).T.astype(np.int32),
        np.array((ids * keep).sum()),
    ]


def check(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> None:
    """Compare all outputs but `seen` exactly."""
    hidden, pairs, turned, _, total = found
    for got, want in zip((hidden, pairs, turned, total), wanted, strict=True):
        assert got.dtype == want.dtype and got.shape == want.shape
        np.testing.assert_array_equal(got, want)
