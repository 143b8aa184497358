"""Toolchains, targets, and what the C compiler is made to do."""

from __future__ import annotations

import ctypes
import dataclasses
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_codegen import TABLE, Emission, emission
from test_runtime_cpu import NAMES as DETECTED

import sparsec
from sparsec import targets
from sparsec.cli import main
from sparsec.compiler import build, toolchain
from sparsec.compiler.codegen import bucket
from sparsec.compiler.toolchain import Runner, Toolchain
from sparsec.errors import HardwareError, InputError, ToolchainError
from sparsec.runtime import _engine
from sparsec.runtime.cpu import CpuInfo, detect

GENERIC = targets.get("generic")

COMPILERS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            not (importlib.util.find_spec("ziglang") if name == "zig" else shutil.which(name)),
            reason=f"{name} is not installed",
        ),
    )
    for name in ("gcc", "clang", "zig")
]


def cpu(*features: str, arch: str = "x86_64") -> CpuInfo:
    return CpuInfo(arch, "test", frozenset(features), {}, 1, 1)


def built(folder: Path, made: Emission, compiler: Toolchain, target: targets.Target) -> list[Path]:
    tree = build.write_tree(folder, made, compiler, target)  # type: ignore[arg-type]
    return list(build.compile_tree(tree, compiler, target, jobs=2))


def call(library: Path, ids: list[int]) -> np.ndarray:
    """Load a bucket by its path alone and run it on one sequence."""
    handle = ctypes.CDLL(str(library))
    array, out = np.array(ids, np.int64), np.zeros(len(ids), np.float32)
    inputs = (ctypes.c_void_p * 1)(array.ctypes.data)
    outputs = (ctypes.c_void_p * 1)(out.ctypes.data)
    assert handle.sparsec_run(inputs, outputs, ctypes.c_int64(1), None, None, None) == 0
    return out


@pytest.mark.parametrize("name", COMPILERS)
@pytest.mark.parametrize("weights", [True, False], ids=["weights", "no-weights"])
def test_buckets_run_and_find_their_weights_beside_them(
    tmp_path: Path, name: str, weights: bool
) -> None:
    libraries = built(tmp_path, emission(weights=weights), toolchain.find(name), GENERIC)
    assert len(libraries) == 2 + weights
    # Moved elsewhere, and loaded with no help from LD_LIBRARY_PATH.
    moved = tmp_path / "moved"
    moved.mkdir()
    for library in libraries:
        library.rename(moved / library.name)
    ids = [3, 255, 0, 256 + 7]
    got = call(moved / "bucket_4.so", ids)
    np.testing.assert_array_equal(got, TABLE[[3, 255, 0, 7]])


@pytest.mark.parametrize("name", COMPILERS)
def test_same_bytes_wherever_it_is_built(tmp_path: Path, name: str) -> None:
    compiler = toolchain.find(name)
    first, second = tmp_path / "a", tmp_path / "somewhere" / "much" / "deeper"
    made = emission()
    one = built(first, made, compiler, GENERIC)
    two = built(second, made, compiler, GENERIC)
    assert [path.name for path in one] == [path.name for path in two]
    for a, b in zip(one, two, strict=True):
        assert a.read_bytes() == b.read_bytes(), a.name
        assert str(tmp_path).encode() not in a.read_bytes()
    assert (first / "Makefile").read_text() == (second / "Makefile").read_text()


def test_weights_library_is_named_after_its_bytes(tmp_path: Path) -> None:
    compiler = toolchain.find()
    made = emission()
    other = Emission(made.buckets, made.weights[::-1], made.layers)
    (first, *_) = built(tmp_path / "a", made, compiler, GENERIC)
    (second, *_) = built(tmp_path / "b", other, compiler, GENERIC)
    assert first.name != second.name
    assert first.name.startswith("weights-") and len(first.stem) == len("weights-") + 12
    handle = ctypes.CDLL(str(first))
    symbol = "sparsec_weights_" + first.stem.removeprefix("weights-")
    address = ctypes.addressof(ctypes.c_char.in_dll(handle, symbol))
    assert address % build.WEIGHTS_ALIGNMENT == 0
    assert ctypes.string_at(address, len(made.weights)) == made.weights


@pytest.mark.skipif(not shutil.which("readelf"), reason="readelf is not installed")
def test_libraries_need_nothing_but_libc_and_libm(tmp_path: Path) -> None:
    for library in built(tmp_path, emission(), toolchain.find(), GENERIC):
        text = subprocess.run(
            ["readelf", "-dW", library], capture_output=True, text=True, check=True
        ).stdout
        needed = {line.split("[")[1].rstrip("]") for line in text.splitlines() if "NEEDED" in line}
        weights = {name for name in needed if name.startswith("weights-")}
        assert needed - weights <= {"libc.so.6", "libm.so.6"}
        assert ("$ORIGIN" in text) == bool(weights) == library.name.startswith("bucket_")
        assert f"[{library.name}]" in text  # the soname
        assert str(tmp_path) not in text


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_emitted_tree_builds_itself_to_the_same_bytes(tmp_path: Path) -> None:
    compiler = toolchain.find()
    built(tmp_path / "ours", emission(), compiler, GENERIC)
    tree = build.write_tree(tmp_path / "theirs", emission(), compiler, GENERIC)  # type: ignore[arg-type]
    env = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL")}
    command = ["make", "-s", "-j2", f"CC={shlex.join(compiler.command)}"]
    subprocess.run(command, cwd=tree.folder, env=env, check=True)
    for library in tree.libraries:
        ours = (tmp_path / "ours" / library).read_bytes()
        assert (tree.folder / library).read_bytes() == ours


@pytest.mark.parametrize("name", COMPILERS)
@pytest.mark.parametrize(
    "target",
    [
        *(t for t in targets.TARGETS if t.arch),
        dataclasses.replace(targets.TARGETS[0], name="all", features=tuple(DETECTED.split())),
    ],
    ids=lambda t: t.name,
)
def test_every_target_compiles_on_any_machine(
    tmp_path: Path, name: str, target: targets.Target
) -> None:
    if targets.host_arch() != target.arch:
        pytest.skip(f"compilers here do not build for {target.arch}")
    macros = "\n".join(
        f"#ifndef __{feature.upper()}__\n#error {feature} is off\n#endif"
        for feature in target.features
    )
    forbidden = "#ifdef __AVX512F__\n#error on\n#endif" if target.lanes < 16 else ""
    (tmp_path / "a.c").write_text(f"{macros}\n{forbidden}\nint a;\n")
    compiler = toolchain.find(name)
    Runner(tmp_path).run(compiler.compile_command("a.c", "a.o", target))
    assert (tmp_path / "a.o").stat().st_size


@pytest.mark.parametrize("name", COMPILERS)
def test_products_and_sums_are_not_fused_by_the_compiler(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.c").write_text(
        '__attribute__((visibility("default"))) float f(float a, float b, float c)'
        " { return a * b + c; }\n"
    )
    target = targets.get("avx2")
    if not target.runs_on(detect().arch, detect().features):
        pytest.skip("no FMA here")
    compiler = toolchain.find(name)
    Runner(tmp_path).run(compiler.compile_command("a.c", "a.o", target))
    Runner(tmp_path).run(compiler.link_command(["a.o"], "a.so"))
    f = ctypes.CDLL(str(tmp_path / "a.so")).f
    f.argtypes, f.restype = [ctypes.c_float] * 3, ctypes.c_float
    one = np.float32(1) + np.float32(2**-23)
    assert f(one, one, -1.0 - 2**-22) == 0.0  # fused, it would be 2**-46


def test_compile_failure_shows_what_the_compiler_said(tmp_path: Path) -> None:
    made = emission((4,))
    bad = type(made.buckets[0])(4, {"model.c": "int f(void) { return nonsense; }\n"}, ())
    with pytest.raises(ToolchainError) as info:
        built(tmp_path, Emission((bad,), b"", ()), toolchain.find(), GENERIC)
    assert "nonsense" in str(info.value) and "bucket_4/model.c" in str(info.value)
    assert "emit_c" in str(info.value)
    tree = build.write_tree(
        tmp_path,
        Emission((bad,), b"", ()),  # type: ignore[arg-type]
        toolchain.find(),
        GENERIC,
    )
    with pytest.raises(ToolchainError, match="the C is in kept"):
        build.compile_tree(tree, toolchain.find(), GENERIC, kept=Path("kept"))


def test_failure_stops_the_other_compilers(tmp_path: Path) -> None:
    """Nobody waits for a long compilation whose result is not wanted any more."""
    slow = script(
        tmp_path / "cc",
        'case "$*" in *--version*) echo gcc;; *-dumpfullversion*) echo 12.2.0;;\n'
        "*lookup.c*) sleep 1; echo nonsense >&2; exit 1;;\n"
        f'*model.c*) sleep 60 & echo $! > "{tmp_path}/child"; wait;; esac\n',
    )
    start = time.monotonic()
    with pytest.raises(ToolchainError, match="nonsense"):
        built(tmp_path / "c", emission((4,), weights=False), toolchain.find(slow), GENERIC)
    assert time.monotonic() - start < 30
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        if "Z" in Path(f"/proc/{child}/stat").read_text().rpartition(")")[2]:
            return  # dead; whoever adopted it has not looked yet
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists()


def test_missing_symbol_fails_at_link_time(tmp_path: Path) -> None:
    made = emission((4,))
    files = {k: v for k, v in made.buckets[0].files.items() if k != "lookup.c"}
    bad = Emission((type(made.buckets[0])(4, files, ()),), made.weights, ())
    with pytest.raises(ToolchainError, match="lookup"):
        built(tmp_path, bad, toolchain.find(), GENERIC)


def test_progress_names_every_unit_and_library(tmp_path: Path) -> None:
    lines: list[str] = []
    compiler = toolchain.find()
    tree = build.write_tree(tmp_path, emission(), compiler, GENERIC)  # type: ignore[arg-type]
    build.compile_tree(tree, compiler, GENERIC, jobs=1, progress=lines.append)
    assert sum(line.startswith("compiled ") for line in lines) == 5
    assert [line for line in lines if line.startswith("linked ")] == [
        f"linked {name}" for name in tree.libraries
    ]


# ---- finding a compiler --------------------------------------------------------------------------


def no_compilers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


def test_no_compiler_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    no_compilers(monkeypatch, tmp_path)
    with pytest.raises(ToolchainError, match=r'gcc or clang.*pip install "sparsec\[cc\]"'):
        toolchain.find()


def test_compiler_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ToolchainError, match=r"cc names .no-such-cc."):
        toolchain.find("no-such-cc")
    monkeypatch.setenv("CC", "no-such-cc")
    with pytest.raises(ToolchainError, match=r"\$CC names 'no-such-cc'"):
        toolchain.find()


def script(path: Path, text: str) -> str:
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return str(path)


def test_program_that_is_no_compiler(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match="neither gcc, clang nor zig"):
        toolchain.find(script(tmp_path / "cc", "echo frobnicator 3\n"))
    with pytest.raises(ToolchainError, match="failed: out of order"):
        toolchain.find(script(tmp_path / "cc", "echo out of order >&2; exit 1\n"))


def test_compilers_are_known_by_their_words(tmp_path: Path) -> None:
    clang = toolchain.find(script(tmp_path / "cc", "echo 'Debian clang version 14.0.6'\n"))
    assert (clang.kind, clang.version) == ("clang", "14.0.6")
    gcc = toolchain.find(
        script(tmp_path / "gcc-9", '[ "$1" = --version ] && echo "gcc-9 (X) 9.4.0" || echo 9.4.0\n')
    )
    assert (gcc.kind, gcc.version) == ("gcc", "9.4.0")


def test_order_of_search(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    no_compilers(monkeypatch, tmp_path)
    script(tmp_path / "clang", "echo clang version 17.0.1\n")
    assert toolchain.find().command == ("clang",)
    script(tmp_path / "gcc", "echo 13.1.0\n")
    assert toolchain.find().command == ("gcc",)
    script(tmp_path / "cc", "echo 13.1.0\n")
    assert toolchain.find().command == ("cc",)
    monkeypatch.setenv("CC", "clang")
    assert toolchain.find().command == ("clang",)
    assert toolchain.find("gcc").command == ("gcc",)


def test_a_path_with_spaces_is_one_command(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    answer = 'case "$*" in *--version*) echo gcc;; *) echo 12.2.0;; esac'
    path = script(tmp_path / "a b" / "my gcc", answer)
    assert toolchain.find(path).command == (path,)
    assert toolchain.find(f"'{path}' -m64").command == (path, "-m64")
    with pytest.raises(ToolchainError, match="is no command: No closing quotation"):
        toolchain.find(f"'{path}")


@pytest.mark.skipif(not importlib.util.find_spec("ziglang"), reason="ziglang is not installed")
def test_zig_wheel_is_the_last_resort(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    found = toolchain.find()
    program, word = found.command
    assert (found.kind, word) == ("zig", "cc")
    assert Path(program).is_file() and Path(program).parent.name == "ziglang"


# ---- targets -------------------------------------------------------------------------------------


def test_auto_takes_the_best_target_that_runs() -> None:
    avx512 = targets.get("avx512_vnni").features
    assert targets.choose("auto", cpu(*avx512, "avxvnni")).name == "avx512_vnni"
    assert targets.choose("auto", cpu("avx2", "fma", "avxvnni")).name == "avx_vnni"
    assert targets.choose("auto", cpu("avx2", "fma")).name == "avx2"
    assert targets.choose("auto", cpu("avx2")).name == "generic"
    assert targets.choose("auto", cpu(arch="aarch64")).name == "generic"


def test_each_missing_feature_rules_a_target_out() -> None:
    for target in targets.TARGETS:
        for feature in target.features:
            rest = [f for f in target.features if f != feature]
            assert target.missing(rest) == (feature,)
            assert target not in targets.running_on(cpu(*rest))


def test_named_target_need_not_run_here() -> None:
    assert targets.choose("avx512_vnni", cpu()).name == "avx512_vnni"
    with pytest.raises(HardwareError, match="avx2 is for x86_64"):
        targets.choose("avx2", cpu(arch="aarch64"))
    with pytest.raises(InputError, match=r"no target 'sse'.*avx2"):
        targets.choose("sse", cpu())


def test_a_machine_lists_its_targets_fastest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system refuses none of them."""
    rows = tuple(dataclasses.replace(t, prepare=None) for t in targets.TARGETS)
    monkeypatch.setattr(targets, "TARGETS", rows)
    features = sorted({f for t in targets.TARGETS for f in t.features} | {"f16c"})
    for target in targets.TARGETS:
        machine = cpu(*target.features, "f16c")
        assert machine.targets()[0] == targets.choose("auto", machine).name == target.name
    assert cpu(*features).targets() == targets.NAMES
    assert cpu(*features, arch="aarch64").targets() == ("generic",)


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(targets.Target)])
def test_a_target_that_lacks_a_fact_cannot_be_made(field: str) -> None:
    facts = {f.name: getattr(GENERIC, f.name) for f in dataclasses.fields(GENERIC)}
    assert targets.Target(**facts) == GENERIC
    del facts[field]
    with pytest.raises(TypeError, match=field):
        targets.Target(**facts)


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"costs": "generic"}, "x is like 'generic', which has no cost factors"),
        (
            {"costs": targets.Costs(i8=(1.0,), f32=(1.0,), matrix=())},
            "x does not have 11 cost factors",
        ),
        ({"name": "generic"}, "two targets have one name"),
        (
            {"matrix": targets.Matrix(header="x.h", weights=1, sweep=1, kept=1)},
            "x does not have 6 cost factors of products of tiles",
        ),
        (
            {"vectors": dataclasses.replace(GENERIC.vectors, lanes=3)},
            "x has 3 lanes, which do not divide 16 rows",
        ),
    ],
    ids=["alike", "factors", "name", "matrix", "lanes"],
)
def test_rows_that_do_not_fit_the_table(changes: dict[str, Any], match: str) -> None:
    row = dataclasses.replace(GENERIC, **{"name": "x", **changes})
    with pytest.raises(ValueError, match=match):
        targets.table(row, *targets.TARGETS)


def test_the_last_target_runs_everywhere() -> None:
    with pytest.raises(ValueError, match="the last target must run everywhere"):
        targets.table(*targets.TARGETS[:-1])


def test_adding_a_target_is_a_row_and_a_header(
    tiny_model: Path,
    tiny_artifact: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing but what docs/adding.md says: every command then knows it, and its code runs."""
    prepared: list[int] = []
    header = "/* Made up. */\n" + bucket.read_template(f"lanes/{GENERIC.vectors.header}")
    files = {"lanes/vec_made_up.h": header}
    read = bucket.read_template
    monkeypatch.setattr(bucket, "read_template", lambda name: files.get(name) or read(name))
    row = dataclasses.replace(
        GENERIC,
        name="made_up",
        vectors=dataclasses.replace(GENERIC.vectors, header="vec_made_up.h"),
        tiles=dataclasses.replace(GENERIC.tiles, sparse=(1,), dense=8, keys=2, query=8),
        costs="avx512_vnni",
        prepare=lambda: prepared.append(1),
    )
    table = targets.table(row, *targets.TARGETS)
    monkeypatch.setattr(targets, "TARGETS", table)
    monkeypatch.setattr(targets, "NAMES", tuple(t.name for t in table))
    assert main(["check-hardware"]) == 0
    assert "made_up" in capsys.readouterr().out and prepared
    prepared.clear()
    model, output, c = tiny_model / "model.onnx", tmp_path / "a.sparsec", tmp_path / "c"
    command = ["compile", str(model), "--buckets", "8", "-o", str(output), "--emit-c", str(c)]
    assert main([*command, "--target", "made_up"]) == 0
    assert [p.read_text() for p in c.rglob("vec_isa.h")] == [header]
    inputs = sparsec.generate_random_inputs(model, batch_size=3, length=8)
    assert not prepared
    with sparsec.Engine(output) as made, sparsec.Engine(tiny_artifact) as plain:
        assert made.artifact.manifest.target.name == "made_up" and prepared == [1]
        for x, y in zip(made.run(inputs), plain.run(inputs), strict=True):
            np.testing.assert_array_equal(x, y)


def test_a_target_that_the_system_refuses(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`auto` takes the next; an artifact for it says why before its code is loaded."""
    answer: list[str] = []

    def prepare() -> None:
        if answer:
            raise HardwareError(answer[0])

    this = detect()
    next_one = targets.choose("auto", this)
    row = dataclasses.replace(GENERIC, name="made_up", costs="avx512_vnni", prepare=prepare)
    table = targets.table(row, *targets.TARGETS)
    monkeypatch.setattr(targets, "TARGETS", table)
    monkeypatch.setattr(targets, "NAMES", tuple(t.name for t in table))
    assert targets.choose("auto", this) is row and this.targets()[0] == "made_up"
    made = sparsec.compile(tiny_model / "model.onnx", buckets=[8], output=tmp_path / "a.sparsec")
    assert made.manifest.target.name == "made_up"

    answer.append("the system is against it")
    assert targets.choose("auto", this) is next_one and "made_up" not in this.targets()
    monkeypatch.setattr(_engine, "load", lambda *_: pytest.fail("loaded"))
    with pytest.raises(
        HardwareError, match=r"target made_up cannot run: the system is against it\. "
    ):
        sparsec.Engine(made)
    assert main(["check-hardware"]) == 0
    assert re.search(r"(?m)^    made_up +the system is against it; ", capsys.readouterr().out)
    assert main(["check-hardware", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["targets"]
    assert [(r["runs"], r["refused"]) for r in rows if r["name"] == "made_up"] == [
        (False, answer[0])
    ]
    assert all(r["refused"] is None for r in rows if r["name"] != "made_up")
    assert main(["inspect", str(made.path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert not report["runs_here"] and answer[0] in report["why_not"]
