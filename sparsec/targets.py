"""ISA targets: all that the compiler and the runtime know about each, in one table.

Adding one is a row in :data:`TARGETS`, and a header of vector operations where none of those that
are there fits.  No field has a default: a row that lacks one cannot be made.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from sparsec import tile_registers
from sparsec.arguments import argument
from sparsec.errors import HardwareError, InputError


class Machine(Protocol):
    """What is asked of a machine, such as :class:`sparsec.runtime.CpuInfo`."""

    @property
    def arch(self) -> str:
        """As in :func:`host_arch`."""

    @property
    def features(self) -> Collection[str]:
        """CPU features, by their names in ``runtime/cpu.c``."""


def host_arch() -> str:
    """The machine's architecture under the name that manifests use, e.g. ``x86_64``."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """A header of vector operations, and what generated C has to know about it.

    Attributes:
        header: the file in ``templates/lanes/``.
        lanes: float32 (and int32) elements in one vector; divides 16, the rows of a block.
        decay: how its ``vf_decay`` looks up e^(-c * d), d a byte: the product of one factor of each
            table, given as (step between entries, entries).  A table shorter than a vector repeats.
    """

    header: str
    lanes: int
    decay: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """How much of a kernel's work is in registers together.

    Attributes:
        sparse: blocks of 16 rows that sparse linear layers take at a time: the candidates.
        dense: rows that dense ones take at a time, at most, by two vectors of channels.
        query: packs of 4 channels of a query that attention on bytes keeps in registers: a head
            with more loads them again for each key.
        keys: groups of 4 keys whose byte scores are computed side by side.
        out_i8, out_f32: channels of attention's output that are summed side by side.
    """

    sparse: tuple[int, ...]
    dense: int
    query: int
    keys: int
    out_i8: int
    out_f32: int


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A unit that multiplies tiles of 16 x 64 bytes.

    Attributes:
        header: the file in ``templates/lanes/`` with its operations.
        weights: bytes of weights that layers keep in the first-level cache while they meet rows.
        sweep: blocks of 16 rows that weights meet each time they come from further away.
        kept: bytes of all weights of a model up to which they are still in the second-level cache
            at its next run.
    """

    header: str
    weights: int
    sweep: int
    kept: int


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Factors of the cost model in nanoseconds; only their ratios matter.

    Attributes:
        i8, f32: of ``lowering.tiling.features``, for layers with products of bytes, and of floats.
        matrix: of ``lowering.tiling.matrix_features``; empty where there is no such unit.
    """

    i8: tuple[float, ...]
    f32: tuple[float, ...]
    matrix: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Loops:
    """How the loops of sparse layers bring weights and offsets into registers.

    Attributes:
        own, shared: how many of the 4 weights of a step are loaded to all lanes one by one; the
            others are spread by shuffles from one load.  In steps whose activations one channel
            has for itself, and in those whose activations two channels share.
        offsets: "cut": 4 are loaded at once and cut out; "load": each is loaded.
        chains: sums of a channel that take steps in turns, in tiles of one vector.
    """

    own: int
    shared: int
    offsets: Literal["cut", "load"]
    chains: int


#: Fewest loads: for cores on which they are the limit.
SPREAD = Loops(own=0, shared=0, offsets="cut", chains=1)


@dataclass(frozen=True, kw_only=True)
class Target:
    """One ISA target.

    Attributes:
        name: as given to ``--target`` and recorded in the manifest.
        arch: the architecture its code runs on; empty: whichever the compiler builds for.
        features: CPU features the code needs, by the names that ``runtime/cpu.c`` detects and the
            manifest records; compilers make their flags of them (``toolchain.py``).
        tuning: extra compiler flags that change speed, never meaning.
        vectors: its vector operations.
        tiles: how much its registers hold.
        matrix: its unit for products of tiles, or None.
        bf16: CPU features that it needs besides for products of bfloat16; none where portable C
            makes them, None where there are no such instructions, so that they would gain nothing.
        precision: of products of floats: "fp32", or "bf16" (:func:`at`).
        adds_pairs: whether its byte products are fastest by VPMADDUBSW, which adds pairs in 16
            bits.
        costs: factors of the cost model, which benchmarks/cost_model.py fits; or the name of the
            target that its loops are most like, where it was not measured.
        loops: the form of its sparse loops.
        tuned_for: the microarchitecture that `costs` and `loops` are for (microarchitectures.py).
        prepare: what a process must do before any of its threads runs the code; None: nothing.
            Called before libraries are loaded, each time: it must not matter when it is done again.
            It raises HardwareError where the system refuses, and then ``auto`` takes another one.
            What each thread must do, the code does where a thread enters it.
        summary: one line for people.
    """

    name: str
    arch: str
    features: tuple[str, ...]
    tuning: tuple[str, ...]
    vectors: Vectors
    tiles: Tiles
    matrix: Matrix | None
    bf16: tuple[str, ...] | None
    precision: str
    adds_pairs: bool
    costs: Costs | str
    loops: Loops
    tuned_for: str
    prepare: Callable[[], None] | None
    summary: str

    @property
    def lanes(self) -> int:
        """Float32 (and int32) elements in one vector."""
        return self.vectors.lanes

    @property
    def unit(self) -> int:
        """Rows that sparse layers compute or leave out together: a vector's, 8 at least."""
        return max(8, self.lanes)

    def runs_on(self, arch: str, features: Collection[str]) -> bool:
        """Whether a machine of this architecture and with these CPU features can run its code."""
        return self.arch in ("", arch) and not self.missing(features)

    def missing(self, features: Collection[str]) -> tuple[str, ...]:
        """The needed CPU features that are not among `features`."""
        return tuple(f for f in self.features if f not in features)


AVX512 = Vectors(header="vec_avx512.h", lanes=16, decay=((16, 16), (1, 16)))
AVX2 = Vectors(header="vec_avx2.h", lanes=8, decay=((32, 8), (4, 8), (1, 4)))
GENERIC = Vectors(header="vec_generic.h", lanes=4, decay=((1, 256),))

REGISTERS_32 = Tiles(sparse=(1, 2, 3, 4), dense=8, query=20, keys=2, out_i8=16, out_f32=16)
REGISTERS_16 = Tiles(sparse=(1, 2), dense=6, query=0, keys=1, out_i8=8, out_f32=8)


def table(*rows: Target) -> tuple[Target, ...]:
    """The rows, once it is sure that nothing which is looked up by them is missing.

    Raises:
        ValueError: what is wrong with which row.
    """
    measured = {row.name: row.costs for row in rows if not isinstance(row.costs, str)}
    if len({row.name for row in rows}) < len(rows):
        raise ValueError("two targets have one name")
    for row in rows:
        if isinstance(row.costs, str) and row.costs not in measured:
            raise ValueError(f"{row.name} is like {row.costs!r}, which has no cost factors")
        if not isinstance(row.costs, str) and {len(row.costs.i8), len(row.costs.f32)} != {11}:
            raise ValueError(f"{row.name} does not have 11 cost factors of each kind")
        costs = measured[row.costs] if isinstance(row.costs, str) else row.costs
        if row.matrix is not None and len(costs.matrix) != 6:
            raise ValueError(f"{row.name} does not have 6 cost factors of products of tiles")
        if 16 % row.lanes:
            raise ValueError(f"{row.name} has {row.lanes} lanes, which do not divide 16 rows")
    if rows[-1].arch or rows[-1].features:
        raise ValueError("the last target must run everywhere")
    return rows


#: Who the factors of the rows are for, where nothing is known of the machine.
UNKNOWN = "generic"

AVX512_VNNI = (
    *("avx2", "fma", "bmi"),
    *("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni"),
)

# Of a Zen 4 core at 3.7 GHz.  There, what the model chooses takes 1.6 % (int8 and float) longer
# than the best of all tilings, on average over 90 layers and sizes.
ZEN_4 = Costs(
    i8=(0.309, 0.249, 0.066, 0.341, 1.81, 1.25, 2.47, 0.285, 0.5, 3.0, 0.0),
    f32=(0.308, 0.308, 0.0570, 0.159, 1.18, 1.14, 5.88, 0.25, 0.5, 3.0, 0.5),
    matrix=(),
)

# Of products of tiles, on an Emerald Rapids core; see microarchitectures.py.
TILES = (8.5, 0.0, 42.0, 1.0, 350.0, 13.0)

# Fastest first: `auto` takes the first that runs.
TARGETS: tuple[Target, ...] = table(
    Target(
        name="amx",
        arch="x86_64",
        # Each CPU with tiles has VBMI2, which makes tiles of masked weights, and multiplies
        # bfloat16, of which floats are sums.
        features=(*AVX512_VNNI, "avx512vbmi2", "amx_tile", "amx_int8", "amx_bf16"),
        tuning=("-mprefer-vector-width=512",),
        vectors=AVX512,
        tiles=REGISTERS_32,
        matrix=Matrix(header="tiles_amx.h", weights=16 << 10, sweep=16, kept=1 << 20),
        bf16=("avx512bf16",),
        precision="fp32",
        adds_pairs=False,
        costs=replace(ZEN_4, matrix=TILES),
        loops=SPREAD,
        tuned_for=UNKNOWN,
        prepare=tile_registers.request,
        summary="tiles of bytes (AMX) and 64-byte vectors: Intel servers since Sapphire Rapids",
    ),
    Target(
        name="avx512_vnni",
        arch="x86_64",
        features=AVX512_VNNI,
        tuning=("-mprefer-vector-width=512",),
        vectors=AVX512,
        tiles=REGISTERS_32,
        matrix=None,
        bf16=("avx512bf16",),
        precision="fp32",
        adds_pairs=False,
        costs=ZEN_4,
        loops=SPREAD,
        tuned_for=UNKNOWN,
        prepare=None,
        summary="64-byte vectors with VPDPBUSD: Intel servers since Ice Lake, AMD since Zen 4",
    ),
    Target(
        name="avx_vnni",
        arch="x86_64",
        features=("avx2", "fma", "avxvnni"),
        tuning=("-mprefer-vector-width=256",),
        vectors=AVX2,
        tiles=REGISTERS_16,
        matrix=None,
        bf16=None,
        precision="fp32",
        adds_pairs=False,
        costs="avx512_vnni",
        loops=SPREAD,
        tuned_for=UNKNOWN,
        prepare=None,
        summary="32-byte vectors with VPDPBUSD: Intel since Alder Lake, AMD since Zen 5",
    ),
    Target(
        name="avx2",
        arch="x86_64",
        features=("avx2", "fma"),
        tuning=("-mprefer-vector-width=256",),
        vectors=AVX2,
        tiles=REGISTERS_16,
        matrix=None,
        bf16=None,
        precision="fp32",
        adds_pairs=True,
        costs=Costs(
            i8=(0.336, 0.292, 0.0691, 0.149, 2.98, 0.599, 1.44, 0.2, 0.0, 0.0, 0.0),
            f32=(0.189, 0.189, 0.0503, 0.0, 0.0, 0.759, 4.59, 0.14, 0.3, 3.0, 0.5),
            matrix=(),
        ),
        loops=SPREAD,
        tuned_for=UNKNOWN,
        prepare=None,
        summary="32-byte vectors: any x86-64 since 2015",
    ),
    Target(
        name="generic",
        arch="",
        features=(),
        tuning=(),
        vectors=GENERIC,
        tiles=REGISTERS_16,
        matrix=None,
        bf16=(),
        precision="fp32",
        adds_pairs=False,
        costs="avx2",
        loops=SPREAD,
        tuned_for=UNKNOWN,
        prepare=None,
        summary="portable C: any architecture, slow",
    ),
)

#: Of products of floats; what is fp32 stays exact.
PRECISIONS = ("fp32", "bf16")

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


def costs(target: Target) -> Costs:
    """Cost factors of a target: its own, or those of the one that it is like."""
    return costs(get(target.costs)) if isinstance(target.costs, str) else target.costs


def prepare(name: str) -> None:
    """Let this process run code for a target; of one that is not in the table nothing is known.

    Raises:
        HardwareError: the system does not allow it; says why.
    """
    for target in TARGETS:
        if target.name == name and (reason := refusal(target)):
            raise HardwareError(
                f"target {name} cannot run: {reason}. Compile the model again with another "
                f"{argument('target')}; `sparsec check-hardware` lists those that run here"
            )


def refusal(target: Target) -> str | None:
    """Why the system does not let this process run code for a target; None: now it does."""
    try:
        if target.prepare is not None:
            target.prepare()
    except HardwareError as error:
        return str(error)
    return None


def running_on(cpu: Machine) -> tuple[Target, ...]:
    """The targets whose code this CPU and process can run, fastest first."""
    return tuple(
        target
        for target in TARGETS
        if target.runs_on(cpu.arch, cpu.features) and refusal(target) is None
    )


def at(target: Target, precision: str) -> Target:
    """A target whose code multiplies floats at a precision.

    Raises:
        InputError: there is no such precision, or the target has no instructions for it.
    """
    if precision not in PRECISIONS:
        raise InputError(f"there is no precision {precision!r}; choose {' or '.join(PRECISIONS)}")
    if precision == target.precision:
        return target
    if target.bf16 is None:
        able = ", ".join(t.name for t in TARGETS if t.bf16 is not None)
        raise InputError(
            f"target {target.name} has no products of bfloat16, which would be slower there than "
            f"those of float32: leave out {argument('precision', 'bf16')}, or compile for one of "
            f"{able}"
        )
    features = tuple(dict.fromkeys((*target.features, *target.bf16)))
    return replace(target, features=features, precision=precision)


def _fastest_at(precision: str, cpu: Machine) -> Target:
    """What ``auto`` means: the fastest target that runs here and multiplies at a precision."""
    found = running_on(cpu)
    if precision == "fp32" or precision not in PRECISIONS:
        return at(found[0], precision)
    for target in found:
        if target.bf16 and not at(target, precision).missing(cpu.features):
            return at(target, precision)
    raise HardwareError(
        "this CPU has no products of bfloat16 (avx512bf16, amx_bf16), so that "
        f"{argument('precision', 'bf16')} would gain nothing here: leave it out, or name the "
        f"{argument('target')} of the machine that is to run the model; generic computes it "
        "anywhere, slowly"
    )


def choose(name: str, cpu: Machine, precision: str = "fp32") -> Target:
    """The target called `name`, or for ``auto`` the fastest that runs on the given CPU.

    A named target need not run on it: an artifact can be made for another machine.

    Raises:
        InputError: there is no such target or precision, or the target does not have it.
        HardwareError: the target is for another architecture than compilers here build for, or no
            target that runs here has the precision.
    """
    if name == "auto":
        return _fastest_at(precision, cpu)
    target = at(get(name), precision)
    if target.arch not in ("", cpu.arch):
        raise HardwareError(
            f"target {name} is for {target.arch}, and compilers here build for {cpu.arch}; "
            f"compile on a {target.arch} machine, or use {argument('target', 'generic')}"
        )
    return target
