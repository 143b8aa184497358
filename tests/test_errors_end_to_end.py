"""Every bad input of the command line ends in one clear error, its exit code, and no leftovers."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, external_data_helper, helper

import sparsec
from sparsec import targets
from sparsec.cli import main
from sparsec.compiler.frontend import load, load_model


def compile_fails(model: Path, code: int, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """Compile, expect the exit code, and return the message; nothing may be left behind."""
    folder = model if model.is_dir() else model.parent
    before = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    assert main(["compile", str(model), "--buckets", "8", "--target", "generic", *options]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("sparsec: error: ")
    assert "Traceback" not in captured.err
    after = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    assert after == before
    return captured.err


# ---- the model file ------------------------------------------------------------------------------


def empty(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("this is no model\n" * 100)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


def lfs_pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def edit(change: Callable[[onnx.ModelProto], None]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        model = onnx.load(path)
        change(model)
        path.write_bytes(model.SerializeToString())

    return damage


def absurd_shape(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = 1 << 50


def negative_shape(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = -1


def nobody_makes_it(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "nowhere"


def external(location: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        external_data_helper.set_external_data(tensor, location)
        tensor.ClearField("raw_data")

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (empty, "is empty"),
        (text, "is not an ONNX"),
        (truncated, "cut short"),
        (lfs_pointer, "git lfs pull"),
        (directory, "no .onnx file: export it, for example with `optimum-cli"),
        (edit(absurd_shape), "export"),
        (edit(negative_shape), "negative"),
        (edit(nobody_makes_it), "nowhere"),
        (edit(external("weights.bin")), "not in"),
        (edit(external("../secret.bin")), "outside the model's folder"),
        (edit(external("/etc/passwd")), "outside the model's folder"),
        (edit(external("link.bin")), "symbolic link"),
    ],
    ids=[
        "empty",
        "text",
        "truncated",
        "lfs",
        "directory",
        "absurd",
        "negative",
        "dangling",
        "missing",
        "parent",
        "absolute",
        "symlink",
    ],
)
def test_bad_model(
    micro_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    message: str,
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = folder / "m.onnx"
    shutil.copy(micro_model / "model.onnx", path)
    (tmp_path / "secret.bin").write_bytes(bytes(1 << 16))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    damage(path)
    assert message in compile_fails(path, 3, capsys)


def test_model_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "does not exist" in compile_fails(tmp_path / "no.onnx", 3, capsys)


def test_all_unsupported_nodes_are_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 3])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch"])
    nodes = [
        helper.make_node("Det", ["x"], ["a"], name="first/Det"),
        helper.make_node("Abs", ["a"], ["b"], name="fine/Abs"),
        helper.make_node("Acosh", ["b"], ["out"], name="second/Acosh"),
    ]
    graph = helper.make_graph(nodes, "g", [x], [out])
    path = tmp_path / "m.onnx"
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    error = compile_fails(path, 4, capsys)
    assert "first/Det" in error and "second/Acosh" in error and "fine/Abs" not in error
    with pytest.raises(sparsec.UnsupportedError) as info:
        sparsec.compile(path, target="generic")
    assert {node[:2] for node in info.value.nodes} == {
        ("first/Det", "Det"),
        ("second/Acosh", "Acosh"),
    }


# ---- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("buckets", "message"),
    [([], r"\(buckets\)"), ([8, 8], "twice"), ([0], "at least 1"), ([-3, 4], "at least 1")],
    ids=str,
)
def test_bad_buckets(micro_model: Path, tmp_path: Path, buckets: list[int], message: str) -> None:
    with pytest.raises(sparsec.InputError, match=message):
        sparsec.compile(micro_model, buckets=buckets, output=tmp_path / "m.sparsec")
    assert list(tmp_path.iterdir()) == []


def test_bad_numbers(micro_model: Path, tmp_path: Path) -> None:
    with pytest.raises(sparsec.InputError, match="batch_size"):
        sparsec.compile(micro_model, buckets=[8], batch_size=0, output=tmp_path / "m.sparsec")
    with pytest.raises(sparsec.InputError, match="jobs"):
        sparsec.compile(micro_model, buckets=[8], jobs=0, output=tmp_path / "m.sparsec")
    with pytest.raises(sparsec.InputError, match="no target 'sse'"):
        sparsec.compile(micro_model, buckets=[8], target="sse", output=tmp_path / "m.sparsec")


def test_bucket_longer_than_the_model_allows(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.onnx"
    shutil.copy(tiny_model / "model.onnx", path)
    error = compile_fails(path, 4, capsys, "--buckets", "600")
    assert "512" in error


# ---- the C compiler ------------------------------------------------------------------------------


def test_no_c_compiler(
    micro_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    error = compile_fails(micro_model, 5, capsys)
    assert 'pip install "sparsec[cc]"' in error and "gcc" in error


def test_c_compiler_that_fails(
    micro_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "gcc"
    broken.write_text(
        '#!/bin/sh\ncase "$1" in --version) echo gcc;; -dumpfullversion) echo 12.2.0;;'
        " *) echo cc1: out of memory >&2; exit 1;; esac\n"
    )
    broken.chmod(0o755)
    kept = tmp_path / "c"
    options = ["--cc", str(broken), "-o", str(tmp_path / "m.sparsec"), "--emit-c", str(kept)]
    error = compile_fails(micro_model, 5, capsys, *options)
    assert "cc1: out of memory" in error and str(kept) in error
    assert (kept / "bucket_8").is_dir()  # the C is there to look at
    assert not (tmp_path / "m.sparsec").exists()


# ---- the disk ------------------------------------------------------------------------------------


def test_full_disk(micro_model: Path, tmp_path: Path) -> None:
    """A limit on the size of files stops the build in the middle, as a full disk does."""
    script = (
        "import resource, signal, sys\n"
        "from sparsec.cli import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (700, resource.RLIM_INFINITY))\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    output = tmp_path / "m.sparsec"
    command = ["compile", str(micro_model), "--buckets", "8", "-o", str(output)]
    result = subprocess.run(
        [sys.executable, "-c", script, *command], capture_output=True, text=True
    )
    assert result.returncode == 6, result.stderr
    assert result.stderr.startswith("sparsec: error: cannot write")
    assert len(result.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 700  # ours is untouched


def test_output_in_a_file(
    micro_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "no" / "m.sparsec"
    (tmp_path / "no").touch()
    assert "is not a folder" in compile_fails(micro_model, 6, capsys, "-o", str(output))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"buckets": 16}, "buckets must be a list of integers, not 16"),
        ({"buckets": "16"}, "buckets must be a list of integers"),
        ({"buckets": [16.5]}, "each of buckets must be an integer, not 16.5"),
        ({"buckets": np.array([16.0])}, "each of buckets must be an integer"),
        ({"buckets": [8], "batch_size": 1.5}, "batch_size must be an integer"),
        ({"buckets": [8], "jobs": "2"}, "jobs must be an integer"),
    ],
)
def test_what_is_no_integer(
    micro_model: Path, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(sparsec.InputError, match=message):
        sparsec.compile(micro_model, output=tmp_path / "m.sparsec", **options)
    rest = {name: value for name, value in options.items() if name != "jobs"}
    if rest == options:
        with pytest.raises(sparsec.InputError):
            sparsec.Engine(micro_model, **options)


def test_integers_of_numpy(micro_model: Path, tmp_path: Path) -> None:
    artifact = sparsec.compile(
        micro_model, buckets=np.array([8, 4], np.int32), batch_size=np.int64(2), jobs=np.uint8(1),
        output=tmp_path / "m.sparsec", target="generic",
    )  # fmt: skip
    assert artifact.buckets == (4, 8)
    with sparsec.Engine(artifact, np.int16(1), buckets=np.array([4])) as engine:
        assert (engine.buckets, engine.num_cores) == ([4], 1)
    inputs = sparsec.generate_random_inputs(artifact, np.int64(3), np.int32(5), np.uint8(1))
    assert inputs[0].shape == (3, 5)
    for wrong in ({"batch_size": 0}, {"length": 1.5}, {"seed": -1}, {"length": 0}):
        with pytest.raises(sparsec.InputError):
            sparsec.generate_random_inputs(artifact, **wrong)


# ---- artifacts -----------------------------------------------------------------------------------


def flip_a_byte(folder: Path) -> None:
    library = next(folder.glob("bucket_16.so"))
    data = bytearray(library.read_bytes())
    data[len(data) // 2] ^= 1
    library.write_bytes(data)


def lose_a_file(folder: Path) -> None:
    next(folder.glob("weights-*.so")).unlink()


def cut_a_file(folder: Path) -> None:
    library = next(folder.glob("bucket_8.so"))
    library.write_bytes(library.read_bytes()[:100])


def manifest_change(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def break_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "code", "message"),
    [
        (flip_a_byte, 6, "damaged"),
        (lose_a_file, 6, "missing"),
        (cut_a_file, 6, "damaged"),
        (break_manifest, 6, "manifest.json"),
        (manifest_change(schema=99), 6, "upgrade sparsec"),
        (manifest_change(abi=99), 6, "upgrade sparsec"),
        (
            manifest_change(
                target={"name": "x", "arch": targets.host_arch(), "features": ["no_such_feature"]}
            ),
            7,
            "no_such_feature",
        ),
        (
            manifest_change(target={"name": "vax", "arch": "vax", "features": []}),
            7,
            "vax",
        ),
    ],
    ids=["flipped", "lost", "cut", "garbled", "schema", "abi", "cpu", "arch"],
)
def test_bad_artifact(
    tiny_artifact: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    code: int,
    message: str,
) -> None:
    copy = tmp_path / "copy.sparsec"
    shutil.copytree(tiny_artifact, copy)
    damage(copy)
    assert main(["benchmark", str(copy), "-t", "0", "-w", "0"]) == code
    error = capsys.readouterr().err
    assert error.startswith("sparsec: error: ") and message in error
    kind = {6: sparsec.ArtifactError, 7: sparsec.HardwareError}[code]
    with pytest.raises(kind, match=message):
        sparsec.Engine(copy)


def test_artifact_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path / "no.sparsec")]) == 6
    assert "does not exist" in capsys.readouterr().err


# ---- calls ---------------------------------------------------------------------------------------


def test_bad_calls(tiny_artifact: Path) -> None:
    good = sparsec.generate_random_inputs(tiny_artifact, 2, 5)
    with sparsec.Engine(tiny_artifact) as engine:
        for bad, message in (
            (good[:2], "3"),
            ([*good, good[0]], "3"),
            ([good[0].astype(np.float32), *good[1:]], "int64"),
            ([good[0][0], *good[1:]], "shape|rank|dimension"),
            (sparsec.generate_random_inputs(tiny_artifact, 1, 17), "16"),
        ):
            with pytest.raises(sparsec.InputError, match=message):
                engine.run(bad)
        engine.run(good)
    with pytest.raises(sparsec.EngineClosedError):
        engine.run(good)


# ---- the public API ------------------------------------------------------------------------------


def test_engine_compiles_into_the_cache_once(micro_model: Path, own_cache: Path) -> None:
    said: list[str] = []
    with sparsec.Engine(micro_model, 1, buckets=[8], progress=said.append) as engine:
        assert engine.buckets == [8] and engine.num_cores == 1
        inputs = sparsec.generate_random_inputs(micro_model, 2, 8)
        (first,) = engine(inputs)
    assert any(line.startswith("compiled") for line in said)
    entries = sorted((own_cache / "sparsec").glob("*.sparsec"))
    stamp = (entries[0] / "manifest.json").stat().st_mtime_ns
    said.clear()
    with sparsec.Engine(micro_model, buckets=[8], progress=said.append) as engine:
        (second,) = engine.run(inputs)
    assert said == []
    np.testing.assert_array_equal(first, second)

    # A damaged entry is made again.
    (entries[0] / "bucket_8.so").write_bytes(b"")
    with sparsec.Engine(micro_model, buckets=[8], progress=said.append) as engine:
        (third,) = engine.run(inputs)
    np.testing.assert_array_equal(first, third)
    assert (entries[0] / "manifest.json").stat().st_mtime_ns > stamp
    assert sorted((own_cache / "sparsec").glob("*.sparsec")) == entries


@pytest.mark.parametrize("file", ["", "model.onnx"])
def test_a_model_is_read_and_checked_once(
    micro_model: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    """Whether it has to be compiled or is in the cache already."""
    loads: list[Path] = []
    real = load._read
    monkeypatch.setattr(load, "_read", lambda path: loads.append(path) or real(path))
    for _ in ("compiled", "cached"):
        loads.clear()
        with sparsec.Engine(micro_model / file) as engine:
            assert engine.buckets == [16, 128, 512]
        assert loads == [micro_model / "model.onnx"]


def test_what_is_compiled_is_what_was_read(
    micro_model: Path, own_cache: Path, tmp_path: Path
) -> None:
    """A file that is replaced meanwhile does not get another's place in the cache."""
    from sparsec import cache

    path = tmp_path / "model.onnx"
    shutil.copy(micro_model / "model.onnx", path)
    loaded = load_model(path)
    path.write_bytes(b"another")
    entry = cache.compiled(loaded, buckets=[8], target="generic")
    assert sparsec.Artifact.load(entry).manifest.model.sha256 == loaded.sha256


def test_cache_key_is_everything_that_matters(
    micro_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparsec import cache

    def no_compile(model: object, *, output: Path, **options: object) -> None:
        made.append(output.name)

    made: list[str] = []
    monkeypatch.setattr(sparsec, "compile", no_compile, raising=False)
    other = tmp_path / "other"
    shutil.copytree(micro_model, other)
    (other / "config.json").write_text("{}")
    base = {"buckets": [8], "target": "generic"}
    cache.compiled(load_model(micro_model), **base)  # type: ignore[arg-type]
    for change in (
        {"buckets": [9]},
        {"batch_size": 2},
        {"target": "avx2"},
    ):
        cache.compiled(load_model(micro_model), **{**base, **change})  # type: ignore[arg-type]
    cache.compiled(load_model(other), **base)  # type: ignore[arg-type]
    cache.compiled(load_model(micro_model / "model.onnx"), **base)  # type: ignore[arg-type]
    monkeypatch.setattr(sparsec, "__version__", "99")
    cache.compiled(load_model(micro_model), **base)  # type: ignore[arg-type]
    assert len(set(made)) == len(made) == 7


def test_two_processes_want_the_same_model(micro_model: Path, own_cache: Path) -> None:
    script = (
        "import sys, sparsec\n"
        "said = []\n"
        "sparsec.Engine(sys.argv[1], buckets=[8], progress=said.append).close()\n"
        "print(len(said))\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(micro_model)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    lines = [int(process.communicate(timeout=120)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(lines)[0] == 0 < sorted(lines)[1]  # one compiled, the other waited
    assert len(list((own_cache / "sparsec").glob("*.sparsec"))) == 1


def test_unwritable_cache(micro_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    with pytest.raises(sparsec.ArtifactError, match="XDG_CACHE_HOME"):
        sparsec.Engine(micro_model, buckets=[8])


def test_compile_options_for_an_artifact(tiny_artifact: Path) -> None:
    with pytest.raises(sparsec.InputError, match="target cannot be changed"):
        sparsec.Engine(tiny_artifact, target="avx2")
    with sparsec.Engine(tiny_artifact, buckets=[16]) as engine:
        assert engine.buckets == [16]


def test_random_inputs_fit_the_model(tiny_model: Path, tiny_artifact: Path) -> None:
    for source in (tiny_model, tiny_artifact, sparsec.Artifact.load(tiny_artifact)):
        ids, mask, types = sparsec.generate_random_inputs(source, batch_size=64, length=16)
        assert ids.shape == mask.shape == types.shape == (64, 16)
        assert ids.dtype == np.int64 and ids.min() >= 0 and 400 < ids.max() < 500
        assert mask.min() == 1 and types.max() == 0
    assert sparsec.generate_random_inputs(tiny_artifact)[0].shape == (1, 16)
    assert sparsec.generate_random_inputs(tiny_model)[0].shape == (1, 128)


def test_public_names_exist() -> None:
    for name in sparsec.__all__:
        assert getattr(sparsec, name) is not None
        assert name in dir(sparsec)
    with pytest.raises(AttributeError, match="nonsense"):
        sparsec.nonsense  # noqa: B018


def test_every_error_has_an_exit_code_of_its_own() -> None:
    kinds = [getattr(sparsec, name) for name in sparsec.__all__ if name.endswith("Error")]
    codes = {kind.exit_code for kind in kinds}
    assert len(codes) == len(kinds) and 0 not in codes and 2 not in codes
