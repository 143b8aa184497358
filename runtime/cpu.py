"""What this machine can run: CPU features, caches, and the cores that this process may use."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from sparsec import targets


@dataclass(frozen=True)
class CpuInfo:
    """A processor as this process sees it.

    Attributes:
        arch: "x86_64", "aarch64", ...
        brand: the processor's name, "" when unknown.
        features: the names of runtime/cpu.c ("avx512vnni"); empty where the arch is not x86.
        caches: bytes by level, "L1d", "L2", "L3", as far as known.
        cores: physical cores that this process may use at once: affinity and cgroup quota count.
        threads: the same with hardware threads (SMT) counted one by one.
        vendor: who made it, as CPUID says ("GenuineIntel"); "" when unknown.
        family, model: as Linux counts them; 0 when unknown.
    """

    arch: str
    brand: str
    features: frozenset[str]
    caches: Mapping[str, int]
    cores: int
    threads: int
    vendor: str = ""
    family: int = 0
    model: int = 0

    def targets(self) -> tuple[str, ...]:
        """ISA targets whose code runs here, best first."""
        return tuple(target.name for target in targets.running_on(self))


def detect() -> CpuInfo:
    """Ask the CPU (CPUID, XCR0) and the operating system.

    The environment variable SPARSEC_CPU_FEATURES, a comma-separated list, keeps only the features
    it names; it cannot add any ("none" leaves nothing).
    """
    from sparsec.runtime._engine import cpu_identity, cpu_probe

    brand, names, sizes = cpu_probe()
    vendor, family, model = cpu_identity()
    features = frozenset(names)
    allowed = os.environ.get("SPARSEC_CPU_FEATURES", "")
    if allowed.strip():
        features &= {name.strip().lower() for name in allowed.split(",")}
    cores, threads = usable_cores()
    return CpuInfo(
        arch=targets.host_arch(),
        brand=" ".join(brand.split()),
        features=features,
        caches=MappingProxyType(
            {level: size for level, size in zip(("L1d", "L2", "L3"), sizes, strict=True) if size}
        ),
        cores=cores,
        threads=threads,
        vendor=vendor,
        family=family,
        model=model,
    )


def usable_cores(root: Path = Path("/")) -> tuple[int, int]:
    """Physical cores and hardware threads that this process may use at once, each at least 1.

    The affinity mask says which; a cgroup CPU quota, rounded up, limits how many.

    Args:
        root: where /proc and /sys are looked for.
    """
    try:
        cpus: Iterable[int] = os.sched_getaffinity(0)
    except AttributeError:  # not Linux
        cpus = range(os.cpu_count() or 1)
    cpus = sorted(cpus)
    siblings = {_read(root, f"sys/devices/system/cpu/cpu{c}/topology/thread_siblings_list") or c
                for c in cpus}  # fmt: skip
    quota = cgroup_quota(root)
    limit = math.ceil(quota) if quota is not None else len(cpus)
    return max(1, min(len(siblings), limit)), max(1, min(len(cpus), limit))


def cgroup_quota(root: Path = Path("/")) -> float | None:
    """The CPU time limit of this process's cgroup (v1 or v2) and its parents, in CPUs, or None."""
    quotas = []
    for line in (_read(root, "proc/self/cgroup") or "").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        parts = [part for part in path.split("/") if part]
        # In a container the path may be the host's; then only the mount point itself exists.
        for depth in range(len(parts), -1, -1):
            folder = "/".join(parts[:depth])
            if not controllers:
                text = _read(root, f"sys/fs/cgroup/{folder}/cpu.max") or ""
            elif "cpu" in controllers.split(","):
                base = f"sys/fs/cgroup/{{}}/{folder}/cpu.cfs_"
                text = " ".join(
                    _read(root, base.format("cpu") + name)
                    or _read(root, base.format(controllers) + name)
                    or ""
                    for name in ("quota_us", "period_us")
                )
            else:
                break
            try:
                quota, period = (float(field) for field in text.split())
            except ValueError:  # "max", or no such file
                continue
            if quota > 0 and period > 0:
                quotas.append(quota / period)
    return min(quotas, default=None)


def _read(root: Path, name: str) -> str | None:
    try:
        return (root / name).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
