"""What a result was measured on."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from sparsec.compiler import toolchain
from sparsec.runtime import cpu

ROOT = Path(__file__).resolve().parents[2]


def load_average() -> list[float]:
    """Over the last 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]


def commit() -> str:
    """The checked-out commit, with a + when files differ from it; empty outside git."""
    command = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run(
            [*command, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True
        )
        changed = subprocess.run([*command, "diff", "--quiet", "HEAD"], capture_output=True)
    except OSError:
        return ""
    return head.stdout.strip() + ("+" if head.stdout.strip() and changed.returncode else "")


def describe() -> dict[str, Any]:
    """CPU, operating system, compiler and versions, as JSON."""
    info = cpu.detect()
    release = platform.freedesktop_os_release() if Path("/etc/os-release").exists() else {}
    return {
        "cpu": info.brand,
        "arch": info.arch,
        "cores": info.cores,
        "threads": info.threads,
        "targets": list(info.targets()),
        "features": sorted(info.features),
        "caches": dict(info.caches),
        "system": f"{platform.system()} {platform.release()}",
        "distribution": release.get("PRETTY_NAME", ""),
        "python": platform.python_version(),
        "compiler": toolchain.find().name,
        "commit": commit(),
        "load_average": load_average(),
    }


def pick_cpus(count: int) -> list[int]:
    """CPUs for `count` threads, on cores of their own as long as there are any."""
    allowed = sorted(os.sched_getaffinity(0))
    first, second, seen = [], [], set()
    for number in allowed:
        path = Path(f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list")
        core = path.read_text() if path.exists() else str(number)
        (second if core in seen else first).append(number)
        seen.add(core)
    return (first + second)[:count]
