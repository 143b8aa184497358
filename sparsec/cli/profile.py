"""``sparsec benchmark --profile``: where the time of a model goes, kernel by kernel.

The numbers come from counters that only an artifact compiled with ``--profile`` has.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

from sparsec.errors import InputError
from sparsec.runtime import Engine

# Row-major kernels that multiply bytes.
_INTEGER = frozenset(
    f"general_{op}" for op in ("matmul_integer", "conv_integer", "qlinear", "linear_integer")
)


#: Multiply-adds of 16 lanes (of 4 bytes, 2 bfloat16 or a float each) that products of tiles do in a
#: cycle, by kernel; for floats, six products of half as many are one.
TILES = {
    "linear_i8_tiles": 16,
    "linear_bf16_tiles": 16,
    "linear_f32_tiles": 16 * 2 / 6,
    "linear_f32_coded_tiles": 16 * 2 / 6,
}


@dataclass(frozen=True)
class Core:
    """What one core does at most, measured: clock in Hz, multiply-adds of 16 lanes a second."""

    clock: float
    dot4: float
    fma: float


@dataclass(frozen=True)
class Row:
    """One kernel call of one run.

    Attributes:
        name: ONNX node(s).
        kernel, shape, sparsity: as in the manifest; sparsity None where it means nothing.
        milliseconds: time in it, summed over threads, per run.
        rate: useful multiply-adds of 16 lanes a second and thread; None where nothing is counted.
        limit: `rate` as a share of what a core reaches from registers.
    """

    name: str
    kernel: str
    shape: str
    sparsity: float | None
    milliseconds: float
    rate: float | None
    limit: float | None


class Counters:
    """The counters in the library of one of an open Engine's buckets."""

    def __init__(self, engine: Engine, length: int) -> None:
        artifact = engine.artifact
        self._rows = next(b.kernels for b in artifact.manifest.buckets if b.length == length)
        self._length = length
        library = ctypes.CDLL(str(artifact.path), handle=engine.library_handle(length))
        try:
            self._read = library.sparsec_profile
            core = library.sparsec_profile_core
        except AttributeError:
            raise InputError(
                f"{artifact.path} has no counters: compile it with --profile, or profile the .onnx"
            ) from None
        numbers = [ctypes.c_double() for _ in range(3)]
        core(*[ctypes.byref(n) for n in numbers])
        self.core = Core(*[n.value for n in numbers])

    def reset(self) -> None:
        """Start counting from zero."""
        self._fetch(True)

    def _fetch(self, reset: bool) -> tuple[list[int], int]:
        spent = (ctypes.c_uint64 * len(self._rows))()
        runs = ctypes.c_uint64()
        self._read(spent, len(self._rows), ctypes.byref(runs), int(reset))
        return list(spent), runs.value

    def rows(self, batch: int) -> list[Row]:
        """Time of every kernel call per run since the reset, in the order of the calls."""
        spent, runs = self._fetch(False)
        made = []
        for row, nanoseconds in zip(self._rows, spent, strict=True):
            count = row.work_block * -(-batch * row.rows // 16)
            count += row.work_key * row.rows * batch * -(-row.rows // 16)
            count += row.work_sample * batch
            seconds = nanoseconds / max(runs, 1) / 1e9
            eight_bit = "_i8" in row.kernel or row.kernel in _INTEGER
            peak = self.core.dot4 if eight_bit else self.core.fma
            on_tiles = (rate for name, rate in TILES.items() if row.kernel.startswith(name))
            peak = next((rate * self.core.clock for rate in on_tiles), peak)
            rate = count / seconds if count and seconds else None
            made.append(
                Row(
                    name=row.source,
                    kernel=row.kernel,
                    shape=row.shape,
                    sparsity=row.sparsity if row.work_block else None,
                    milliseconds=seconds * 1e3,
                    rate=rate,
                    limit=None if rate is None else rate / peak,
                )
            )
        return made

    def table(self, batch: int) -> str:
        """The rows as text, the largest share of time visible in its own column."""
        rows = self.rows(batch)
        total = sum(r.milliseconds for r in rows) or 1.0
        width = max([len("ONNX name"), *(min(len(r.name), 48) for r in rows)])
        lines = [
            f"{'ONNX name':{width}}  {'kernel':42} {'shape':>10} {'sparse':>6} {'ms':>8} "
            f"{'share':>6} {'MAC/cycle':>9} {'limit':>6}"
        ]
        for r in rows:
            name = r.name if len(r.name) <= 48 else r.name[:45] + "..."
            sparsity = "" if r.sparsity is None else f"{r.sparsity:6.1%}"
            rate = "" if r.rate is None else f"{r.rate / self.core.clock:9.2f}"
            limit = "" if r.limit is None else f"{r.limit:6.1%}"
            lines.append(
                f"{name:{width}}  {r.kernel[:42]:42} {r.shape:>10} {sparsity:>6} "
                f"{r.milliseconds:8.3f} {r.milliseconds / total:6.1%} {rate:>9} {limit:>6}"
            )
        lines.append(
            f"{total:.3f} ms in kernels, summed over threads; MAC/cycle: multiply-adds of 16 lanes "
            f"(VPDPBUSD or FMA) for non-zero weights, of at most "
            f"{self.core.dot4 / self.core.clock:.2f} (8-bit) and "
            f"{self.core.fma / self.core.clock:.2f} (float), on tiles "
            f"{TILES['linear_i8_tiles']} and {TILES['linear_f32_tiles']:.2f}, at "
            f"{self.core.clock / 1e9:.2f} GHz"
        )
        return "\n".join(lines)

    def to_json(self, batch: int) -> list[dict[str, Any]]:
        """The rows for ``--export-path``."""
        return [vars(row) for row in self.rows(batch)]
