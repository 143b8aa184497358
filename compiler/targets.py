"""ISA targets: what the generated C may use, and how many rows fit one vector.

Adding one is a row in :data:`TARGETS`; compilers turn `features` into flags by themselves (see
``toolchain.py``), and the runtime checks the same names against the CPU before it loads a bucket.
"""

from __future__ import annotations

import platform
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparsec.errors import HardwareError, InputError

if TYPE_CHECKING:
    from sparsec.runtime.cpu import CpuInfo


def host_arch() -> str:
    """The machine's architecture under the name that manifests use, e.g. ``x86_64``."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


@dataclass(frozen=True)
class Target:
    """One ISA target.

    Attributes:
        name: as given to ``--target`` and recorded in the manifest.
        arch: the architecture its code runs on; empty: whichever the compiler builds for.
        features: CPU features the code needs, named as compilers and the runtime's CPU detection
            name them (``avx512vnni``, ``fma``).
        lanes: float32 (and int32) elements in one vector, which is the number of rows in a block.
        tuning: extra compiler flags that change speed, never meaning.
        summary: one line for people.
    """

    name: str
    arch: str
    features: tuple[str, ...]
    lanes: int
    tuning: tuple[str, ...] = ()
    summary: str = ""

    @property
    def adds_pairs(self) -> bool:
        """Whether its byte products are fastest by VPMADDUBSW, which adds pairs in 16 bits."""
        return "avx2" in self.features and not any(f.endswith("vnni") for f in self.features)

    def runs_on(self, arch: str, features: Collection[str]) -> bool:
        """Whether a machine of this architecture and with these CPU features can run its code."""
        return self.arch in ("", arch) and not self.missing(features)

    def missing(self, features: Collection[str]) -> tuple[str, ...]:
        """The needed CPU features that are not among `features`."""
        return tuple(f for f in self.features if f not in features)


# Fastest first: `auto` takes the first that runs.
TARGETS: tuple[Target, ...] = (
    Target(
        name="avx512_vnni",
        arch="x86_64",
        features=(
            *("avx2", "fma", "bmi"),
            *("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni"),
        ),
        lanes=16,
        tuning=("-mprefer-vector-width=512",),
        summary="64-byte vectors with VPDPBUSD: Intel servers since Ice Lake, AMD since Zen 4",
    ),
    Target(
        name="avx_vnni",
        arch="x86_64",
        features=("avx2", "fma", "avxvnni"),
        lanes=8,
        tuning=("-mprefer-vector-width=256",),
        summary="32-byte vectors with VPDPBUSD: Intel since Alder Lake, AMD since Zen 5",
    ),
    Target(
        name="avx2",
        arch="x86_64",
        features=("avx2", "fma"),
        lanes=8,
        tuning=("-mprefer-vector-width=256",),
        summary="32-byte vectors: any x86-64 since 2015",
    ),
    Target(
        name="generic",
        arch="",
        features=(),
        lanes=4,
        summary="portable C: any architecture, slow",
    ),
)

NAMES = tuple(target.name for target in TARGETS)


def get(name: str) -> Target:
    """The target of this name.

    Raises:
        InputError: there is none.
    """
    for target in TARGETS:
        if target.name == name:
            return target
    raise InputError(f"there is no target {name!r}; choose auto or one of {', '.join(NAMES)}")


def running_on(cpu: CpuInfo) -> tuple[Target, ...]:
    """The targets whose code this CPU can run, fastest first."""
    return tuple(target for target in TARGETS if target.runs_on(cpu.arch, cpu.features))


def choose(name: str, cpu: CpuInfo) -> Target:
    """The target called `name`, or for ``auto`` the fastest that runs on the given CPU.

    A named target need not run on it: an artifact can be made for another machine.

    Raises:
        InputError: there is no such target.
        HardwareError: the target is for another architecture than compilers here build for.
    """
    if name == "auto":
        return running_on(cpu)[0]
    target = get(name)
    if target.arch not in ("", cpu.arch):
        raise HardwareError(
            f"target {name} is for {target.arch}, and compilers here build for {cpu.arch}; "
            f"compile on a {target.arch} machine, or use --target generic"
        )
    return target
