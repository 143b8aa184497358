"""The time that no program can beat on this machine: arithmetic at its peak, or reading weights."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.models import Work
from examples.encoders import EncoderConfig
from sparsec import targets
from sparsec.compiler import toolchain
from sparsec.runtime import cpu

SOURCE = Path(__file__).with_name("peak.c")


@dataclass(frozen=True)
class Peak:
    """What peak.c measured.

    Attributes:
        lanes: tokens in one vector.
        vnni, fma: instructions per second and core; 0 where there are none.
        read: bytes per second, all cores together, for as many bytes as the weights have.
    """

    lanes: int
    vnni: float
    fma: float
    read: float


def weight_bytes(work: Work) -> int:
    """Bytes of the non-zero weights: whole words of four int8, or floats."""
    return 4 * (work.words if work.kind == "int8" else work.weights)


def measure_peak(cache: Path, cores: int, size: int) -> Peak:
    """Compile peak.c and run it.

    Args:
        size: bytes to measure the reading rate with: caches hold a small model, not a large one.
    """
    compiler = toolchain.find()
    target = targets.choose("auto", cpu.detect())
    cache.mkdir(parents=True, exist_ok=True)
    program = cache / "peak"
    flags = [*compiler.base_flags(), "-O3", *compiler.target_flags(target), "-pthread"]
    subprocess.run([*compiler.command, *flags, str(SOURCE), "-o", str(program)], check=True)
    command = [str(program.resolve()), str(cores), str(size)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Peak(**json.loads(done.stdout))


def limit_seconds(
    peak: Peak, config: EncoderConfig, work: Work, batch: int, length: int, cores: int
) -> float | None:
    """Seconds that the non-zero words and the attention products need at least.

    int8: VPDPBUSD instructions, `lanes` tokens times one word each; fp32: FMA instructions.
    None where the machine has no such instruction.
    """
    vectors = -(-batch * length // peak.lanes)
    keys = -(-length // peak.lanes)
    heads = config.layers * config.heads * batch
    if work.kind == "int8":
        rate = peak.vnni
        linear = work.words * vectors
        scores = length * -(-config.head_size // 4) * keys
        mixing = config.head_size * -(-length // 4) * keys
    else:
        rate = peak.fma
        linear = work.weights * vectors
        scores = mixing = length * config.head_size * keys
    if not rate:
        return None
    compute = (linear + heads * (scores + mixing)) / (rate * cores)
    return max(compute, weight_bytes(work) / peak.read)
