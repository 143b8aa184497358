"""What is known of the speed of processors, by microarchitecture: a row each.

A target says which instructions there are; what they cost differs between cores that have the same
ones.  A row replaces what the target's own row takes for granted: the factors of the cost model,
which benchmarks/cost_model.py fits and prints as they stand here, and the form of the sparse loops.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from sparsec import targets
from sparsec.errors import InputError
from sparsec.targets import UNKNOWN, Costs, Loops, Target

AMD, INTEL = "AuthenticAMD", "GenuineIntel"


class Processor(Protocol):
    """What is asked of a machine, such as :class:`sparsec.runtime.CpuInfo`."""

    @property
    def vendor(self) -> str:
        """As CPUID says it."""

    @property
    def family(self) -> int:
        """As Linux counts it."""

    @property
    def model(self) -> int:
        """As Linux counts it."""


@dataclass(frozen=True, kw_only=True)
class Microarchitecture:
    """One kind of core.

    Attributes:
        name: as for gcc's -mtune, where gcc has it.
        vendor: who makes it, as CPUID says.
        family: of its processors.
        models: of them; empty: all that no other row names.
        costs: factors of the cost model by target; of others, those of the target's own row.
        loops: forms of sparse loops by target, likewise.
        source: where these come from.
    """

    name: str
    vendor: str
    family: int
    models: tuple[int, ...]
    costs: Mapping[str, Costs]
    loops: Mapping[str, Loops]
    source: str


def models(*ranges: tuple[int, int]) -> tuple[int, ...]:
    """The numbers of some ranges, ends included."""
    return tuple(number for first, last in ranges for number in range(first, last + 1))


# Two VPDPBUSD a cycle on ports 0 and 5, two loads of 64 bytes; shuffles on port 5 alone, six
# instructions a cycle.  With every weight by a shuffle and offsets cut out, a step of 8 products is
# 38 instructions and 12 uses of two ports: 0.79 cycles a product, as measured.  Half of the
# weights by loads and offsets by the third port's small loads make it 30 and 10.  The latency of 5
# cycles wants ten sums in flight, which a tile of one block has not without a second set.
GOLDEN_COVE_LOOPS = Loops(own=2, shared=4, offsets="load", chains=2)

# Of an Emerald Rapids core (family 6, model 207), which a neighbour slows down for seconds.  Floats
# are the fit of the best of four rounds: its choices take 3.4 % longer than the best of all
# tilings, on average.  Bytes are a fit (1.7 %) times 0.9, as undisturbed layers took, and steps are
# set by hand, as tiles are: to layers of 768 and 3072 inputs whose weights come from the third
# level cache, 16 to 128 rows, in undisturbed moments.  A product of tiles takes 8.5 ns with its
# loads, the bytes of a tile 42 to arrive, which products hide little of, and a tile is made of
# masks in 13.  BERT-base, 128 tokens, two threads: at 80 % of zeros masks take 6.9 ms, plain tiles
# 7.6, the sparse loop 8.7; at 90 % masks 6.5, the loop 5.6.
GOLDEN_COVE_I8 = (0.233, 0.15, 0.0335, 0.848, 5.79, 0.57, 1.59, 0.166, 0.114, 0.114, 1.83)
GOLDEN_COVE_F32 = (0.154, 0.197, 0.0636, 1.38, 0.0, 1.31, 1.83, 0.184, 2.37, 0.0, 0.0)
GOLDEN_COVE = {
    target: Costs(i8=GOLDEN_COVE_I8, f32=GOLDEN_COVE_F32, matrix=matrix)
    for target, matrix in (("amx", targets.TILES), ("avx512_vnni", ()))
}

# Of a Zen 4 core whose AVX-512 the system hides (family 25, model 17).  There, what the model
# chooses takes 1.3 % (int8) longer than the best of all tilings, on average over 72 layers and
# sizes.
ZEN_4_AVX2 = replace(
    targets.costs(targets.get("avx2")),
    i8=(0.416, 0.388, 0.139, 0.0347, 6.47, 0.505, 1.67, 0.306, 0.0671, 0.0, 0.0),
)

# Two VPDPBUSD and two loads a cycle at 4.1 GHz: one row over T vectors takes (T + 1) / (2 T) cycles
# a product, of which loops reached 60 %.
ZEN_5_I8 = (0.146, 0.13, 0.066, 0.58, 1.81, 1.25, 2.47, 0.13, 0.122, 0.0, 0.0)

TABLE: tuple[Microarchitecture, ...] = (
    Microarchitecture(
        name="znver4",
        vendor=AMD,
        family=25,
        models=models((0x10, 0x1F), (0x60, 0x7F), (0xA0, 0xAF)),
        costs={"avx512_vnni": targets.ZEN_4, "avx2": ZEN_4_AVX2},
        loops={},
        source="fitted",
    ),
    Microarchitecture(
        name="znver5",
        vendor=AMD,
        family=26,
        models=(),
        costs={"avx512_vnni": replace(targets.ZEN_4, i8=ZEN_5_I8)},
        loops={},
        source="derived from rates of loads and products",
    ),
    Microarchitecture(
        name="sapphirerapids",
        vendor=INTEL,
        family=6,
        models=(0x8F,),
        costs=GOLDEN_COVE,
        loops={"amx": GOLDEN_COVE_LOOPS, "avx512_vnni": GOLDEN_COVE_LOOPS},
        source="as emeraldrapids, the same core",
    ),
    Microarchitecture(
        name="emeraldrapids",
        vendor=INTEL,
        family=6,
        models=(0xCF,),
        costs=GOLDEN_COVE,
        loops={"amx": GOLDEN_COVE_LOOPS, "avx512_vnni": GOLDEN_COVE_LOOPS},
        source="fitted, those of tiles and steps set by measured layers",
    ),
    Microarchitecture(
        name="graniterapids",
        vendor=INTEL,
        family=6,
        models=(0xAD, 0xAE),
        costs=GOLDEN_COVE,
        loops={"amx": GOLDEN_COVE_LOOPS, "avx512_vnni": GOLDEN_COVE_LOOPS},
        source="as emeraldrapids, the core before",
    ),
    Microarchitecture(
        name="icelake-server",
        vendor=INTEL,
        family=6,
        models=(0x6A, 0x6C),
        costs={"avx512_vnni": GOLDEN_COVE["avx512_vnni"]},
        loops={"avx512_vnni": replace(GOLDEN_COVE_LOOPS, offsets="cut")},
        source="as emeraldrapids, whose ports it has, but no third one for loads",
    ),
    Microarchitecture(
        name="haswell",
        vendor=INTEL,
        family=6,
        models=(0x3C, 0x3F, 0x45, 0x46, 0x3D, 0x47, 0x4F, 0x56),
        costs={},
        loops={},
        source="not measured",
    ),
    Microarchitecture(
        name="skylake",
        vendor=INTEL,
        family=6,
        models=(0x4E, 0x5E, 0x55, 0x8E, 0x9E, 0xA5, 0xA6),
        costs={},
        loops={},
        source="not measured",
    ),
    Microarchitecture(
        name="alderlake",
        vendor=INTEL,
        family=6,
        models=(0x97, 0x9A, 0xB7, 0xBA, 0xBF),
        costs={},
        loops={},
        source="not measured",
    ),
    Microarchitecture(
        name="znver2",
        vendor=AMD,
        family=23,
        models=models((0x30, 0xFF)),
        costs={},
        loops={},
        source="not measured",
    ),
    Microarchitecture(
        name="znver3",
        vendor=AMD,
        family=25,
        models=(),
        costs={},
        loops={},
        source="not measured",
    ),
)

NAMES = (UNKNOWN, *(row.name for row in TABLE))


def of(cpu: Processor) -> str:
    """The name of a processor's microarchitecture; "generic" where it is not in the table."""
    mine = [row for row in TABLE if (row.vendor, row.family) == (cpu.vendor, cpu.family)]
    exact = [row for row in mine if cpu.model in row.models]
    rest = [row for row in mine if not row.models]
    return next((row.name for row in exact + rest), UNKNOWN)


def tuned(target: Target, name: str) -> Target:
    """A target with what is known of its speed on a microarchitecture.

    Args:
        name: of the table, or "generic".

    Raises:
        InputError: there is no such microarchitecture.
    """
    if name == UNKNOWN:
        return target
    row = next((row for row in TABLE if row.name == name), None)
    if row is None:
        raise InputError(
            f"there is no microarchitecture {name!r}; choose auto, native or one of "
            f"{', '.join(NAMES)}"
        )
    like = target.costs if isinstance(target.costs, str) else target.name
    return replace(
        target,
        costs=row.costs.get(target.name, row.costs.get(like, target.costs)),
        loops=row.loops.get(target.name, target.loops),
        tuned_for=name,
    )


def source(name: str, target: str) -> str:
    """Where the factors come from that code for a target is made by, in a few words."""
    row = next((row for row in TABLE if row.name == name), None)
    if row is None or not row.costs.keys() & {target, targets.get(target).costs}:
        return "those of the target"
    return row.source


def choose(tune_for: str, target: str, isa: Target, cpu: Processor) -> Target:
    """The target that code is made for, tuned.

    Args:
        tune_for: a microarchitecture, "generic", "native" for that of `cpu`, or "auto": native
            where the target was chosen for this machine, else generic, so that what is made for
            others does not depend on where.
        target: as asked for, perhaps "auto".
        isa: what that means here.

    Raises:
        InputError: there is no such microarchitecture.
    """
    if tune_for == "native" or (tune_for == "auto" and target == "auto"):
        return tuned(isa, of(cpu))
    return tuned(isa, UNKNOWN if tune_for == "auto" else tune_for)
