"""The thread pool, driven by a C program: stress, restart and fork, plain and under sanitizers."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from runtime_fake import HERE, ROOT, compile_c

BUILDS = {
    "plain": ["-O3"],
    "condvar": ["-O3", "-DSPARSEC_POOL_NO_FUTEX"],
    "thread-sanitizer": ["-O1", "-fsanitize=thread"],
    "thread-sanitizer-condvar": ["-O1", "-fsanitize=thread", "-DSPARSEC_POOL_NO_FUTEX"],
    "address-sanitizer": ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover"],
}
SPIN, NO_SPIN = "20000", "0"


@pytest.fixture(scope="module", params=BUILDS)
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pool") / request.param
    sources = [HERE / "runtime_pool.c", ROOT / "runtime" / "pool.c"]
    compile_c(path, sources, *BUILDS[request.param])
    return path


def run(program: Path, *arguments: str) -> str:
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.endswith("ok\n"), done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "callers, rounds, threads, cores, spin",
    [
        pytest.param("1", "2000", "2", "8", SPIN, id="one caller"),
        pytest.param("4", "400", "4", "64", SPIN, id="several callers"),
        pytest.param("4", "400", "4", "64", NO_SPIN, id="always asleep"),
        pytest.param("3", "400", "4", "1", SPIN, id="one core"),
        pytest.param("70", "15", "6", "256", SPIN, id="more callers than shared regions"),
    ],
)
def test_every_piece_runs_once(
    program: Path, callers: str, rounds: str, threads: str, cores: str, spin: str
) -> None:
    output = run(program, "stress", callers, rounds, threads, cores, spin)
    if callers == "1":  # workers take part, or this test would show nothing
        assert "did 0 pieces" not in output


def test_workers_stop_and_start_under_load(program: Path) -> None:
    run(program, "restart")


def test_fork_under_load(program: Path) -> None:
    if "thread-sanitizer" in program.name:
        pytest.skip("ThreadSanitizer does not support new threads in a child of a threaded process")
    run(program, "fork")
