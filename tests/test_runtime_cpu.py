"""CPU detection against the kernel's view, and core counts in made-up /proc and /sys trees."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparsec import targets, tile_registers
from sparsec.errors import HardwareError
from sparsec.runtime import cpu, detect

# The kernel's names where they differ from the compilers'.
KERNEL_NAMES = {
    "avx512vnni": "avx512_vnni",
    "avx512vbmi2": "avx512_vbmi2",
    "avx512bf16": "avx512_bf16",
    "avxvnni": "avx_vnni",
    "bmi": "bmi1",
}
NAMES = (
    "sse4_2 popcnt avx avx2 fma f16c bmi bmi2 avxvnni avx512f avx512bw avx512dq avx512vl avx512cd "
    "avx512vnni avx512vbmi avx512vbmi2 avx512bf16 amx_tile amx_int8 amx_bf16"
)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or detect().arch != "x86_64", reason="x86 Linux only"
)
def test_features_are_those_that_the_kernel_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPARSEC_CPU_FEATURES", raising=False)
    text = Path("/proc/cpuinfo").read_text()
    flags = set(next(line for line in text.splitlines() if line.startswith("flags")).split())
    names = set(NAMES.split())
    wanted = {name for name in names if KERNEL_NAMES.get(name, name) in flags}
    found = detect().features
    assert found <= names
    assert found == wanted
    assert "sse4_2" in found


def test_caches_and_brand() -> None:
    info = detect()
    if info.arch != "x86_64":
        pytest.skip("CPUID is x86's")
    assert 8 << 10 <= info.caches["L1d"] <= 1 << 20
    assert info.brand == info.brand.strip() != ""
    size = Path("/sys/devices/system/cpu/cpu0/cache/index0/size")
    if size.exists():  # index 0 is the level 1 data cache
        assert info.caches["L1d"] == int(size.read_text().strip().rstrip("K")) << 10


def test_the_environment_only_removes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPARSEC_CPU_FEATURES", raising=False)
    everything = detect().features
    monkeypatch.setenv("SPARSEC_CPU_FEATURES", "avx2, FMA,avx999")
    assert detect().features == everything & {"avx2", "fma"}
    monkeypatch.setenv("SPARSEC_CPU_FEATURES", "none")
    assert detect().features == frozenset() and detect().targets() == ("generic",)
    monkeypatch.setenv("SPARSEC_CPU_FEATURES", "")
    assert detect().features == everything


def test_features_of_targets_are_detected() -> None:
    assert {f for target in targets.TARGETS for f in target.features} <= set(NAMES.split())


@pytest.mark.parametrize(
    "code, reason",
    [
        (errno.ENOSYS, "this system does not save them; Linux does from 5.16 on"),
        (errno.EINVAL, "this system does not save them"),
        (errno.EOPNOTSUPP, "this system does not save them"),
        (errno.EPERM, "something that confines this process (seccomp) forbids to ask"),
        (errno.ENOSPC, "a thread handles signals on a stack that is too small for them"),
        (errno.EIO, os.strerror(errno.EIO)),
    ],
)
def test_tiles_that_are_refused(code: int, reason: str) -> None:
    with pytest.raises(HardwareError, match=r"may not use tile registers \(AMX\): ") as refused:
        tile_registers.request(lambda: code)
    assert reason in str(refused.value)


def test_tiles_that_are_given() -> None:
    asked = []
    tile_registers.request(lambda: asked.append(1) or 0)
    assert asked


def test_this_system_gives_tiles_where_it_has_them() -> None:
    """In a process of its own, for this one could no longer take small signal stacks."""
    code = (
        "from sparsec.errors import HardwareError\n"
        "from sparsec import tile_registers\n"
        "try:\n    tile_registers.request(); tile_registers.request()\n"
        "except HardwareError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    given = "amx_tile" in detect().features
    assert (done.stdout == "") == given, done.stdout


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity masks here")
def test_affinity_is_honoured() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from sparsec.runtime import detect; print(detect().cores, detect().threads)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1"]


def with_cpus(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(n)), raising=False)


def test_hardware_threads_share_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_cpus(monkeypatch, 8)
    siblings = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    write(tmp_path, {siblings.format(c): f"{c % 4},{c % 4 + 4}\n" for c in range(8)})
    assert cpu.usable_cores(tmp_path) == (4, 8)
    with_cpus(monkeypatch, 3)
    assert cpu.usable_cores(tmp_path) == (3, 3)
    assert cpu.usable_cores(tmp_path / "nothing") == (3, 3)


@pytest.mark.parametrize(
    "files, quota, cores",
    [
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "150000 100000\n"}, 1.5, 2),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
                "sys/fs/cgroup/a/cpu.max": "300000 100000\n",
            },
            3,
            3,
        ),
        ({"proc/self/cgroup": "0::/host/path\n", "sys/fs/cgroup/cpu.max": "50000 100000"}, 0.5, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None, 8),
        (
            {
                "proc/self/cgroup": "5:memory:/x\n4:cpu,cpuacct:/docker/1\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/1/cpu.cfs_quota_us": "250000\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/1/cpu.cfs_period_us": "100000\n",
            },
            2.5,
            3,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/docker/1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            1,
            1,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
            8,
        ),
        ({"proc/self/cgroup": "garbage\n::\n"}, None, 8),
        ({}, None, 8),
    ],
)
def test_cgroup_quota(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: dict[str, str],
    quota: float | None,
    cores: int,
) -> None:
    with_cpus(monkeypatch, 8)
    write(tmp_path, files)
    assert cpu.cgroup_quota(tmp_path) == quota
    assert cpu.usable_cores(tmp_path) == (cores, cores)
