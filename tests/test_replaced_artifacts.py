"""Artifacts that are replaced, overwritten or lost while they are open: what was opened last
answers, and what is open stays as it was."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from runtime_fake import edit, seal

import sparsec
from sparsec.errors import ArtifactError
from sparsec.runtime import Artifact, Engine, _engine, _loader
from tests.frontend_support import FLOAT, model_proto, node

BUCKETS = (8, 16)


def compiled(factor: float, output: Path, force: bool = False) -> Path:
    """x -> factor * x; the factor is in the constants that the buckets share."""
    w = np.eye(16, dtype=np.float32) * np.float32(factor)
    proto = model_proto(
        [node("MatMul", "x w", "y")],
        [("x", FLOAT, ["batch", "sequence", 16])],
        [("y", FLOAT, [0, 0, 0])],
        {"w": w},
    )
    source = output.with_suffix(".onnx")
    onnx.save(proto, source)
    sparsec.compile(source, buckets=BUCKETS, output=output, target="generic", force=force)
    return output


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Artifacts by their factor."""
    folder = tmp_path_factory.mktemp("made")
    return {factor: compiled(factor, folder / f"x{factor}.sparsec") for factor in (2, 5)}


def factors(engine: Engine) -> list[float]:
    """What each bucket of an engine multiplies by."""
    found = []
    for length in engine.buckets:
        x = np.random.default_rng(length).standard_normal((2, length, 16)).astype(np.float32)
        (y,) = engine.run([x])
        (factor,) = {float(f) for f in np.unique(np.round(y / x, 3))}
        found.append(factor)
    return found


def by_renaming(new: Path, place: Path) -> None:
    shutil.copytree(new, place.with_name("next"))
    place.rename(place.with_name("old"))
    place.with_name("next").rename(place)


def by_removing(new: Path, place: Path) -> None:
    shutil.rmtree(place)
    shutil.copytree(new, place)


def by_overwriting(new: Path, place: Path) -> None:
    """As ``cp`` does: the files stay the same ones and get other bytes."""
    kept = {path.name: path.stat().st_ino for path in place.iterdir()}
    for path in place.iterdir():
        os.truncate(path, 0)
    shutil.copytree(new, place, dirs_exist_ok=True)
    assert all((place / name).stat().st_ino == inode for name, inode in kept.items())


@pytest.mark.parametrize("replace", [by_renaming, by_removing, by_overwriting])
def test_each_engine_runs_what_it_opened(
    replace: Callable[[Path, Path], None], made: dict[int, Path], tmp_path: Path
) -> None:
    place = shutil.copytree(made[2], tmp_path / "m.sparsec")
    with Engine(place) as first, Engine(place, buckets=[8]) as half:
        replace(made[5], place)
        with Engine(place) as second:
            assert (factors(first), factors(half), factors(second)) == ([2, 2], [2], [5, 5])
        with Engine(place, buckets=[16]) as third:
            assert (factors(first), factors(third)) == ([2, 2], [5])
    with Engine(place) as last:
        assert factors(last) == [5, 5]


def test_recompiled_with_force(made: dict[int, Path], tmp_path: Path) -> None:
    place = compiled(2, tmp_path / "m.sparsec")
    with Engine(place) as first:
        compiled(5, place, force=True)
        with Engine(place) as second:
            assert (factors(first), factors(second)) == ([2, 2], [5, 5])


def test_whatever_the_path_looks_like(
    made: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "with a space"
    (folder / "sub").mkdir(parents=True)
    place = shutil.copytree(made[2], folder / "m.sparsec")
    (folder / "link").symlink_to(place)
    monkeypatch.chdir(folder)
    paths = ["m.sparsec", "./m.sparsec", "sub/../m.sparsec", "link", "link/", place, "m.sparsec"]
    with Engine(paths[0]) as first:
        by_overwriting(made[5], place)
        for path in paths:
            with Engine(path) as engine:
                assert (factors(first), factors(engine)) == ([2, 2], [5, 5])
        by_renaming(made[2], place)
        for path in paths:
            with Engine(path) as engine:
                assert factors(engine) == [2, 2]


def test_a_link_that_is_moved(made: dict[int, Path], tmp_path: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to(made[2])
    with Engine(link) as first:
        link.unlink()
        link.symlink_to(made[5])
        with Engine(link) as second:
            assert (factors(first), factors(second)) == ([2, 2], [5, 5])


def test_constants_under_one_name(made: dict[int, Path], tmp_path: Path) -> None:
    """The loader goes by a library's soname: two with one name must not meet."""
    place = shutil.copytree(made[2], tmp_path / "m.sparsec")
    (constants,) = place.glob("weights-*.so")
    data = constants.read_bytes()
    two, three = (np.float32(f).tobytes() for f in (2, 3))
    assert data.count(two) >= 16
    constants.write_bytes(data.replace(two, three))
    edit(place, lambda manifest: seal(place, manifest))
    with Engine(made[2]) as first, Engine(place) as second, Engine(made[2]) as third:
        assert [factors(e) for e in (first, second, third)] == [[2, 2], [3, 3], [2, 2]]


def test_the_same_artifact_is_in_memory_once(made: dict[int, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(made[2], tmp_path / "copy.sparsec")
    with Engine(made[2]) as first, Engine(copy) as second, Engine(made[5]) as other:
        assert first.library_handle(8) == second.library_handle(8)
        assert first.library_handle(8) != other.library_handle(8)
        first.close()
        assert factors(second) == [2, 2]


def test_nothing_is_left_behind(made: dict[int, Path]) -> None:
    def held() -> tuple[int, int]:
        mapped = Path("/proc/self/maps").read_text().count("memfd:")
        return len(list(Path("/proc/self/fd").iterdir())), mapped

    before = held()
    with Engine(made[2]), Engine(made[5]):
        assert held()[1] > before[1]
    with pytest.raises(ArtifactError):
        Engine(shutil.copytree(made[2], made[2].with_name("broken"), ignore=_no_constants))
    assert held() == before


def _no_constants(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name.startswith("weights-")]


def test_what_is_loaded_is_what_was_verified(
    made: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = shutil.copytree(made[2], tmp_path / "m.sparsec")
    artifact = Artifact.load(place)
    library = artifact.library(8)
    data = bytearray(library.read_bytes())
    stamp = library.stat()
    data[-1] ^= 1
    library.write_bytes(data)
    os.utime(library, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    with pytest.raises(ArtifactError, match=r"bucket_8\.so is damaged: its sha256"):
        Engine(artifact)
    # Not even a file that says of itself that it did not change since it was verified.
    monkeypatch.setattr("sparsec.runtime.artifact._check_file", lambda *_: None)
    with pytest.raises(ArtifactError, match=r"bucket_8\.so is damaged: its sha256"):
        Engine(place)


def test_an_artifact_of_before(made: dict[int, Path], tmp_path: Path) -> None:
    place = shutil.copytree(made[2], tmp_path / "m.sparsec")
    artifact = Artifact.load(place)
    by_removing(made[5], place)
    with pytest.raises(ArtifactError, match="replaced after this Artifact was loaded"):
        Engine(artifact)
    with Engine(Artifact.load(place)) as engine:
        assert factors(engine) == [5, 5]


def test_replaced_in_the_middle_of_opening(
    made: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = shutil.copytree(made[2], tmp_path / "m.sparsec")
    calls = []

    def slow(artifact: Artifact, length: int) -> object:
        calls.append(length)
        if len(calls) == 2:
            by_removing(made[5], place)
        return _loader.load(artifact, length)

    monkeypatch.setattr(_engine, "load", slow)
    with Engine(place) as engine:
        assert factors(engine) == [5, 5]
    assert calls == [8, 16, 8, 16]


def test_the_file_is_not_read_while_it_runs(made: dict[int, Path], tmp_path: Path) -> None:
    """An overwritten file would end a process that has it mapped with SIGBUS."""
    place = shutil.copytree(made[2], tmp_path / "m.sparsec")
    done = threading.Event()
    with Engine(place, num_cores=1) as engine:

        def overwrite() -> None:
            for _ in range(20):
                for path in place.iterdir():
                    data = path.read_bytes()
                    path.write_bytes(b"")
                    path.write_bytes(data)
            done.set()

        thread = threading.Thread(target=overwrite)
        thread.start()
        while not done.is_set():
            assert factors(engine) == [2, 2]
        thread.join()


def test_a_process_that_closes_all_its_files(made: dict[int, Path]) -> None:
    """As daemons do: numbers of files are free again, and must not stand for two libraries."""
    program = """
import os, sys
import numpy as np
from sparsec.runtime import Engine
x = np.ones((1, 8, 16), np.float32)
engines = []
for path in sys.argv[1:]:
    engines.append(Engine(path))
    os.closerange(3, 256)
print([float(engine.run([x])[0][0, 0, 0]) for engine in engines])
held = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]
for engine in engines:
    engine.close()
for number in held:
    os.fstat(number)
"""
    paths = [str(made[factor]) for factor in (2, 5, 2)]
    done = subprocess.run(
        [sys.executable, "-c", program, *paths], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("[2.0, 5.0, 2.0]\n", "")


def test_a_fork_while_others_open(made: dict[int, Path]) -> None:
    program = """
import os, sys, threading
from sparsec.runtime import Engine
stop = False
def work():
    while not stop:
        Engine(sys.argv[1]).close()
thread = threading.Thread(target=work)
thread.start()
for _ in range(20):
    child = os.fork()
    if child == 0:
        Engine(sys.argv[1]).close()
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
stop = True
thread.join()
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, str(made[2])],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def refuse(name: str) -> object:
    raise OSError(1, f"no place for {name}")


def test_where_code_does_not_run_from_memory(
    made: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_loader, "_in_memory", refuse)
    with Engine(made[2]) as first, Engine(made[5]) as second:
        assert (factors(first), factors(second)) == ([2, 2], [5, 5])
        assert "memfd:" not in Path("/proc/self/maps").read_text()
    monkeypatch.setattr(_loader, "_in_a_file", refuse)
    with pytest.raises(ArtifactError, match="cannot be loaded: no place for weights"):
        Engine(made[2])


HOLD = """
import os, sys
from sparsec.runtime import Engine, share
share(sys.argv[1])
engines = [Engine(path) for path in sys.argv[2:]]
maps = open("/proc/self/maps").read().splitlines()
print(*sorted({line.split()[4] for line in maps if "memfd:weights-" in line}), flush=True)
sys.stdin.read()
"""


def test_processes_lend_each_other_the_constants(made: dict[int, Path], tmp_path: Path) -> None:
    def start(*paths: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path), *map(str, paths)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def inodes(process: subprocess.Popen[str]) -> list[str]:
        assert process.stdout is not None
        return process.stdout.readline().split()

    first = start(made[2])
    lent = inodes(first)
    second = start(made[2], made[5])
    assert len(lent) == 1 and set(lent) < set(inodes(second))
    first.communicate()
    third = start(made[2])  # the first lender is gone
    assert inodes(third) == lent
    for process in (second, third):
        process.communicate()
    # Offers of processes that are gone are no obstacle, nor is what is not what it claims to be.
    assert len(list(tmp_path.glob("*.by-*"))) == 4
    for offer in tmp_path.glob("*.by-*"):
        offer.write_text(str(tmp_path / "lie"))
    (tmp_path / "lie").write_bytes(b"no library")
    last = start(made[2])
    assert len(inodes(last)) == 1
    last.communicate()
