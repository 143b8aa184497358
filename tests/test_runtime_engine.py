"""The Engine on hand-written libraries: buckets, padding, inputs, threads, closing, loading."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runtime_fake import check, compile_c, edit, expected, inputs, make_artifact, seal

from sparsec.errors import (
    ArtifactError,
    EngineClosedError,
    HardwareError,
    InputError,
    SparsecError,
)
from sparsec.runtime import Artifact, Engine, _engine, detect


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Buckets 4, 16 and 64, with a mask and lengths."""
    return make_artifact(tmp_path_factory.mktemp("engine") / "fake.sparsec", (4, 16, 64))


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    with Engine(folder, num_cores=2) as engine:
        yield engine


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def seen(outputs: list[np.ndarray]) -> tuple[list[int], int, int]:
    """The lengths (-1: none given), the bucket and the threads that the library saw."""
    array = outputs[3]
    return array[:, 0].tolist(), int(array[0, 1]), int(array[0, 2])


# ---- buckets, padding, lengths -------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    batch=st.sampled_from([1, 2, 3, 17]),
    length=st.integers(1, 64),
    skip=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_batch_and_length(
    engine: Engine, batch: int, length: int, skip: bool, seed: int
) -> None:
    arrays = inputs(np.random.default_rng(seed), batch, length)
    outputs = engine.run(arrays, skip_padding=skip)
    real = arrays[1].sum(axis=1) if skip else np.full(batch, length)
    check(outputs, expected(arrays, real))
    lengths, bucket, threads = seen(outputs)
    assert bucket == min(b for b in engine.buckets if b >= length)
    assert lengths == ([-1] * batch if (real == bucket).all() else real.tolist())
    assert threads == 2
    assert outputs[0].flags.c_contiguous


def test_without_lengths_the_padding_is_computed(tmp_path: Path, rng: np.random.Generator) -> None:
    path = make_artifact(tmp_path / "m", (16,), supports_lengths=False)
    with Engine(path, skip_padding=True) as engine:
        assert engine.skip_padding is False
        for batch in (1, 3):
            arrays = inputs(rng, batch, 5)
            outputs = engine.run(arrays)
            check(outputs, expected(arrays))
            assert seen(outputs)[0] == [5] * batch  # where indices do not matter


def test_padding_that_is_seen_is_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    path = make_artifact(
        tmp_path / "m", (4, 16), supports_lengths=False, mask=False, padding="exact"
    )
    with Engine(path) as engine:
        arrays = inputs(rng, 2, 4)
        check(engine.run(arrays), expected(arrays))
        with pytest.raises(InputError, match=r"length 5 to the bucket 16 would.*a reason"):
            engine.run(inputs(rng, 2, 5))


def test_a_model_without_sequence_axis(tmp_path: Path, rng: np.random.Generator) -> None:
    with Engine(make_artifact(tmp_path / "m", (0,))) as engine:
        assert engine.buckets == [0]
        arrays = inputs(rng, 3, 4)
        check(engine.run(arrays), expected(arrays))
        with pytest.raises(InputError, match="axis 1 must be 4"):
            engine.run(inputs(rng, 3, 5))


def test_an_index_outside_its_table(folder: Path, rng: np.random.Generator) -> None:
    """The error has the caller's coordinates, in the whole batch, whatever bucket it ran in."""
    ids, mask, bias = inputs(rng, 3, 5)
    mask[:] = 1
    ids[2, 3] = 1_000_123
    said = (
        r"input 'ids' has 1000123 at \[2, 3\], outside the table 'words' of 1000000 "
        r"\(node 'look up'\): valid are -1000000 to 999999"
    )
    with Engine(folder, num_cores=2) as engine:
        with pytest.raises(InputError, match=said):
            engine.run([ids, mask, bias])
        mask[2, 3:] = 0  # padding that is skipped may hold anything
        real = mask.sum(axis=1)
        check(engine.run([ids, mask, bias], skip_padding=True), expected([ids, mask, bias], real))
        with pytest.raises(InputError, match=said):
            engine.run([ids, mask, bias], skip_padding=False)
        ids[2, 3] = 1
        engine.run([ids, mask, bias])


def test_skip_padding_reads_the_mask(folder: Path, rng: np.random.Generator) -> None:
    ids, mask, bias = inputs(rng, 4, 10)
    mask[:] = 0
    mask[0, :3] = 1
    mask[1, 9] = 1  # padded on the left: up to the last token nothing is skipped
    mask[2, [0, 5]] = 1  # a hole is no padding
    real = np.array([3, 10, 6, 10])  # no token at all: all of them are computed
    with Engine(folder, skip_padding=True) as engine:
        assert engine.skip_padding is True
        outputs = engine.run([ids, mask, bias])
        assert seen(outputs)[0] == real.tolist()
        check(outputs, expected([ids, mask, bias], real))
        assert seen(engine.run([ids, mask, bias], skip_padding=False))[0] == [10] * 4
        # Nothing to skip: the library may take its way for whole sequences.
        full = np.ones((2, 16), np.int64)
        assert seen(engine.run([full, full, bias]))[0] == [-1, -1]


@pytest.mark.parametrize("dtype", ["int64", "int32", "float32", "float64", "uint8", "int8", "bool"])
def test_masks_of_every_dtype(tmp_path: Path, dtype: str) -> None:
    """The mask's dtype decides how it is scanned; the library tells what was found."""
    source = tmp_path / "model.c"
    numbers = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "bool": 9}
    source.write_text(
        f"""
        #include "sparsec.h"
        static const sparsec_tensor in = {{"mask", {numbers.get(dtype, 11)}, 2, {{-1, -2}}}};
        static const sparsec_tensor out = {{"seen", 6, 1, {{-1}}}};
        static const sparsec_info info = {{
            SPARSEC_ABI_VERSION, 8, "m", "generic", 1, 1, &in, &out, 1, 0, 0
        }};
        const sparsec_info *sparsec_model_info(void) {{ return &info; }}
        size_t sparsec_workspace_size(int64_t b, int32_t t) {{ return (size_t)(b + t); }}
        int sparsec_run(const void *const *in, void *const *out, int64_t batch,
                        const int32_t *lengths, void *ws, const sparsec_parallel *p)
        {{
            (void)in, (void)ws, (void)p;
            for (int64_t b = 0; b < batch; b++)
                ((int32_t *)out[0])[b] = lengths ? lengths[b] : -1;
            return 0;
        }}
        int sparsec_bad_index(const void *ws, sparsec_index_error *e) {{ return !ws || !e; }}
        """
    )
    path = make_artifact(tmp_path / "m", (8,))
    compile_c(path / "bucket_8.so", [source], "-shared", "-fPIC")

    def change(manifest: dict) -> None:
        manifest["inputs"] = [{"name": "mask", "dtype": dtype, "shape": ["batch", "sequence"]}]
        manifest["outputs"] = [{"name": "seen", "dtype": "int32", "shape": ["batch"]}]

    edit(path, change)
    reseal(path)
    mask = np.zeros((3, 7), dtype)
    mask[0, :2] = 1
    mask[1, :7] = 1
    with Engine(path, skip_padding=True) as engine:
        assert engine.run([mask])[0].tolist() == [2, 7, 7]


# ---- what inputs are taken -----------------------------------------------------------------------


def test_dict_and_call(engine: Engine, rng: np.random.Generator) -> None:
    arrays = inputs(rng, 2, 9)
    named = dict(zip(["bias", "mask", "ids"], arrays[::-1], strict=True))
    check(engine.run(named), expected(arrays))
    check(engine(tuple(arrays)), expected(arrays))


def test_whole_arrays_are_not_copied(engine: Engine, rng: np.random.Generator) -> None:
    arrays = inputs(rng, 2, 16)
    for array in arrays:
        array.flags.writeable = False
    check(engine.run(arrays), expected(arrays))


def test_layouts_and_safe_conversions(engine: Engine, rng: np.random.Generator) -> None:
    for batch, length in ((1, 16), (3, 11)):
        ids, mask, bias = arrays = inputs(rng, batch, length)
        unaligned = np.frombuffer(b"x" + ids.tobytes(), np.int64, offset=1).reshape(ids.shape)
        strided = np.repeat(ids, 2, axis=1)[:, ::2]
        for variant in (
            unaligned,
            strided,
            np.asfortranarray(ids),
            ids[::-1][::-1],
            ids.astype(np.int32),
            ids.astype(np.uint16),
            ids.astype(np.uint64),
            ids.astype(">i8"),
        ):
            check(engine.run([variant, mask.astype(bool), bias]), expected(arrays))
        half = bias.astype(np.float16)
        check(engine.run([ids, mask, half]), expected([ids, mask, half.astype(np.float32)]))


def wrong_inputs() -> list:
    ids, mask, bias = inputs(np.random.default_rng(0), 2, 5)
    cases: list[tuple[str, object, str]] = [
        ("too few", [ids, mask], r"takes 3 inputs \(ids, mask, bias\), not 2"),
        ("too many", [ids, mask, bias, bias], "takes 3 inputs"),
        ("an array", ids, "a list of arrays or a dict"),
        ("missing name", {"ids": ids, "mask": mask}, "missing: bias"),
        ("unknown name", {"ids": ids, "mask": mask, "bias": bias, "x": ids}, "unknown: x"),
        ("no array", [None, mask, bias], "'ids' must be an array, a tensor or lists"),
        ("floats for ints", [ids.astype(np.float32), mask, bias], "'ids' must be int64, not float"),
        ("doubles for floats", [ids, mask, bias.astype(float)], r"'bias' .*astype\('float32'\)"),
        ("ints for floats", [ids, mask, np.array([1, 2, 3])], "'bias' must be float32, not int64"),
        ("strings", [ids.astype(str), mask, bias], "'ids' must be int64"),
        ("objects", [ids.astype(object), mask, bias], "'ids' must be int64"),
        ("too large", [ids.astype(np.uint64) + 2**63, mask, bias], "values that int64 cannot"),
        ("rank", [ids[0], mask, bias], r"ids: int64\[batch, sequence\] has rank 2, not 1"),
        ("fixed extent", [ids, mask, bias[:2]], r"bias: float32\[3\], not \[2\]: axis 0 must be 3"),
        ("empty batch", [ids[:0], mask[:0], bias], "empty batch"),
        ("length 0", [ids[:, :0], mask[:, :0], bias], "length 0"),
        ("batches", [ids, mask[:1], bias], r"disagree.*'batch': ids \[2, 5\], mask \[1, 5\]"),
        ("lengths", [ids, mask[:, :4], bias], r"disagree.*'sequence': ids \[2, 5\], mask \[2, 4\]"),
        ("too long", [np.ones((1, 65), int)] * 2 + [bias], "65 is above the largest bucket, 64"),
    ]
    return [pytest.param(given, message, id=name) for name, given, message in cases]


@pytest.mark.parametrize("given, message", wrong_inputs())
def test_wrong_inputs(
    engine: Engine, rng: np.random.Generator, given: object, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        engine.run(given)  # type: ignore[arg-type]
    arrays = inputs(rng, 2, 5)  # and the engine goes on as before
    check(engine.run(arrays), expected(arrays))


def test_a_library_that_refuses(engine: Engine, rng: np.random.Generator) -> None:
    with pytest.raises(SparsecError, match=r"status 1.*batch of 666"):
        engine.run(inputs(rng, 666, 3))


# ---- the object ----------------------------------------------------------------------------------


def test_properties(folder: Path, engine: Engine) -> None:
    assert engine.input_names == ["ids", "mask", "bias"]
    assert engine.output_names == ["hidden", "pairs", "turned", "seen", "total"]
    assert engine.buckets == [4, 16, 64]
    assert engine.num_cores == 2
    assert engine.artifact.path == folder
    assert engine.inputs == engine.artifact.inputs and engine.outputs == engine.artifact.outputs
    assert not engine.closed and "buckets [4, 16, 64]" in repr(engine)


def test_num_cores(folder: Path, rng: np.random.Generator) -> None:
    with Engine(folder) as engine:
        assert engine.num_cores == detect().cores
    with Engine(folder, np.int64(1)) as engine:  # type: ignore[arg-type]
        arrays = inputs(rng, 3, 4)
        outputs = engine.run(arrays)
        check(outputs, expected(arrays))
        assert seen(outputs)[2] == 0  # no parallel_for at all
    for wrong in (0, -1, _engine.MAX_THREADS + 1, 1.5, "2"):
        with pytest.raises(InputError, match="num_cores"):
            Engine(folder, wrong)  # type: ignore[arg-type]


def test_only_some_buckets(folder: Path, rng: np.random.Generator) -> None:
    with Engine(folder, buckets=[64, 16]) as engine:
        assert engine.buckets == [16, 64]
        assert seen(engine.run(inputs(rng, 1, 2)))[1] == 16
    for wrong in ([], [5]):
        with pytest.raises(InputError, match=r"has buckets \[4, 16, 64\]"):
            Engine(folder, buckets=wrong)


def test_spin_setting(
    folder: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    monkeypatch.setenv("SPARSEC_SPIN_US", "0")
    with Engine(folder, 2) as engine:
        arrays = inputs(rng, 8, 4)
        check(engine.run(arrays), expected(arrays))
    monkeypatch.setenv("SPARSEC_SPIN_US", "fast")
    with pytest.raises(InputError, match="SPARSEC_SPIN_US"):
        Engine(folder)
    monkeypatch.delenv("SPARSEC_SPIN_US")
    Engine(folder).close()


def test_subclass_and_collection(folder: Path, rng: np.random.Generator) -> None:
    class Mine(Engine):
        def __init__(self, name: Path) -> None:
            super().__init__(Artifact.load(name), num_cores=1)
            self.name = name

    mine = Mine(folder)
    arrays = inputs(rng, 1, 3)
    check(mine(arrays), expected(arrays))
    assert "Mine" in repr(mine) and mine.name == folder
    with pytest.raises(SparsecError, match="twice"):
        mine.__init__(folder)  # type: ignore[misc]
    gone = weakref.ref(mine)
    del mine
    gc.collect()
    assert gone() is None


def test_an_engine_that_never_came_to_be(tmp_path: Path) -> None:
    broken = Engine.__new__(Engine)
    with pytest.raises(EngineClosedError):
        broken.run([])
    broken.close()
    with pytest.raises(ArtifactError):
        Engine(tmp_path / "nothing")


def test_inputs_are_let_go(engine: Engine, rng: np.random.Generator) -> None:
    arrays = inputs(rng, 2, 16)
    before = [sys.getrefcount(array) for array in arrays]
    for _ in range(3):
        engine.run(arrays)
        with pytest.raises(InputError):
            engine.run([*arrays[:2], arrays[2][:1]])
    assert [sys.getrefcount(array) for array in arrays] == before


def test_memory_does_not_grow(folder: Path, rng: np.random.Generator) -> None:
    def resident() -> int:
        pages = Path("/proc/self/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    arrays = inputs(rng, 64, 40)
    with Engine(folder, 2) as engine:
        for _ in range(20):
            engine.run(arrays)
        before = resident()
        for i in range(300):
            engine.run([array[: 1 + i % 64] if array.ndim == 2 else array for array in arrays])
            with pytest.raises(InputError):
                engine.run([*arrays[:2], arrays[2][:1]])
    assert resident() - before < 8 << 20


# ---- threads, closing, forking -------------------------------------------------------------------


def test_many_threads_and_engines(folder: Path) -> None:
    engines = [Engine(folder, cores) for cores in (1, 2, 4)]
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            for _ in range(60):
                arrays = inputs(rng, int(rng.integers(1, 9)), int(rng.integers(1, 65)))
                check(engines[rng.integers(3)].run(arrays), expected(arrays))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for engine in engines:
        engine.close()
    assert not failures


def slow(rng: np.random.Generator, microseconds: int) -> list[np.ndarray]:
    ids, mask, bias = inputs(rng, 1, 4)
    bias[2] = microseconds
    return [ids, mask, bias]


def test_the_gil_is_released(engine: Engine, rng: np.random.Generator) -> None:
    arrays = slow(rng, 250_000)
    threads = [threading.Thread(target=engine.run, args=(arrays,)) for _ in range(4)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.perf_counter() - start < 0.8  # one after the other they take a second


def test_close_waits_for_running_calls(folder: Path, rng: np.random.Generator) -> None:
    engine = Engine(folder, 1)
    arrays = slow(rng, 400_000)
    results: list[list[np.ndarray]] = []
    runner = threading.Thread(target=lambda: results.append(engine.run(arrays)))
    start = time.perf_counter()
    runner.start()
    time.sleep(0.1)
    closers = [threading.Thread(target=engine.close) for _ in range(2)]
    for closer in closers:
        closer.start()
    while not engine.closed:
        time.sleep(0.001)
    with pytest.raises(EngineClosedError, match="closed"):
        engine.run(arrays)
    for closer in closers:
        closer.join()
    assert time.perf_counter() - start > 0.4
    runner.join()
    check(results[0], expected(arrays))
    engine.close()
    assert engine.closed and "closed" in repr(engine)
    with pytest.raises(EngineClosedError), engine:
        pass


def test_close_races_with_calls(folder: Path, rng: np.random.Generator) -> None:
    arrays = inputs(rng, 2, 9)
    wanted = expected(arrays)
    failures: list[BaseException] = []

    def work(engine: Engine, barrier: threading.Barrier) -> None:
        barrier.wait()
        try:
            while True:
                check(engine.run(arrays), wanted)
        except EngineClosedError:
            pass
        except BaseException as error:
            failures.append(error)

    for _ in range(15):
        barrier = threading.Barrier(4)
        engine = Engine(folder, 2)
        threads = [threading.Thread(target=work, args=(engine, barrier)) for _ in range(3)]
        for thread in threads:
            thread.start()
        barrier.wait()
        time.sleep(0.002)
        engine.close()
        for thread in threads:
            thread.join()
    assert not failures


def test_fork(folder: Path, rng: np.random.Generator) -> None:
    arrays = inputs(rng, 8, 9)
    busy = slow(rng, 300_000)
    with Engine(folder, 2) as engine:
        check(engine.run(arrays), expected(arrays))
        assert _engine.pool_workers() >= 1
        runner = threading.Thread(target=engine.run, args=(busy,))
        runner.start()
        time.sleep(0.05)
        child = os.fork()
        if child == 0:  # the running call is the parent's: the child neither waits for it nor fails
            status = 1
            try:
                assert _engine.pool_workers() == 0
                check(engine.run(arrays), expected(arrays))
                assert _engine.pool_workers() >= 1
                engine.close()
                status = 0
            finally:
                os._exit(status)
        deadline = time.monotonic() + 20
        pid = 0
        while not pid and time.monotonic() < deadline:
            pid, status = os.waitpid(child, os.WNOHANG)
            time.sleep(0.01)
        if not pid:
            os.kill(child, 9)
        assert pid == child and status == 0
        runner.join()
        check(engine.run(arrays), expected(arrays))


def test_the_interpreter_ends_with_an_open_engine(folder: Path) -> None:
    """Neither parked workers, nor spinning ones, nor a daemon thread inside a call hold it up."""
    code = f"""
import threading
import numpy as np
from sparsec.runtime import Engine
engine = Engine({str(folder)!r}, 2)
ids = np.ones((8, 16), np.int64)
arrays = [ids, ids, np.zeros(3, np.float32)]
def work():
    while True:
        engine.run(arrays)
threading.Thread(target=work, daemon=True).start()
for _ in range(200):
    engine.run(arrays)
print("done", flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "done\n" and done.stderr == ""


def test_pool_stop(engine: Engine, rng: np.random.Generator) -> None:
    arrays = inputs(rng, 8, 9)
    check(engine.run(arrays), expected(arrays))
    _engine.pool_stop()
    assert _engine.pool_workers() == 0
    check(engine.run(arrays), expected(arrays))
    assert _engine.pool_workers() >= 1


# ---- loading -------------------------------------------------------------------------------------


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy.sparsec"))


def reseal(folder: Path) -> None:
    """Make the checksums those of the files again."""
    edit(folder, lambda manifest: seal(folder, manifest))


def test_a_file_that_is_no_library(copy: Path) -> None:
    (copy / "bucket_4.so").write_bytes(b"no library")
    reseal(copy)
    with pytest.raises(ArtifactError, match=r"bucket_4\.so cannot be loaded: .*"):
        Engine(copy)


def test_a_library_without_the_interface(copy: Path, tmp_path: Path) -> None:
    source = tmp_path / "other.c"
    source.write_text("int sparsec_model_info(void) { return 0; }\n")
    compile_c(copy / "bucket_16.so", [source], "-shared", "-fPIC")
    reseal(copy)
    with pytest.raises(ArtifactError, match=r"bucket_16\.so .*has no sparsec_workspace_size"):
        Engine(copy)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda m: m["inputs"].reverse(), "input 0"),
        (lambda m: m["outputs"][0].update(dtype="int32"), "output 0"),
        (lambda m: m["outputs"][0]["shape"].pop(), "output 0"),
        (lambda m: m["inputs"].pop(), "inputs"),
        (lambda m: m["buckets"][0].update(length=5), "length"),
        (lambda m: m.update(supports_lengths=False), "supports_lengths"),
        (lambda m: m.update(mask_input="ids"), "mask_input"),
    ],
)
def test_a_library_that_does_not_fit_its_manifest(copy: Path, change, message: str) -> None:
    edit(copy, change)
    with pytest.raises(ArtifactError, match=rf"\.so does not fit the manifest: .*{message}"):
        Engine(copy)


def test_a_library_of_another_abi(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"bucket_4\.so has ABI 9"):
        Engine(make_artifact(tmp_path / "m", (4,), abi=9))


def test_missing_features_are_found_before_loading(copy: Path) -> None:
    for path in copy.glob("*.so"):
        path.write_bytes(b"must not be opened")
    reseal(copy)
    edit(copy, lambda m: m["target"].update(features=["avx999"]))
    with pytest.raises(HardwareError, match="avx999"):
        Engine(copy)
