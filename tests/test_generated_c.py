"""The generated C itself: it builds without sparsec, is clean, stays inside its buffers, and is
readable and the same wherever it is made."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest

import sparsec
from examples.encoders import FORMS, EncoderConfig, Export, Form, Model, write_random
from examples.encoders.reference import LOWEST
from sparsec import targets
from sparsec.compiler import toolchain
from sparsec.runtime import cpu
from sparsec.targets import Target
from tests import stand_ins

HERE = Path(__file__).parent

#: Nothing is a multiple of a vector or of a block.  Its mask turns hostile values into NaN.
ODD = EncoderConfig(
    layers=1, hidden=36, heads=3, intermediate=100, vocab=50, max_position=40, head="pooler",
    mask_value=LOWEST,
)  # fmt: skip
LENGTH = 21

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")


@dataclass(frozen=True)
class Tree:
    """A model, its artifact and the C it was made of."""

    model: Model
    artifact: sparsec.Artifact
    folder: Path


def compile_tree(
    folder: Path, config: EncoderConfig, form: Form, target: str, buckets: list[int]
) -> Tree:
    model = write_random(folder / "model.onnx", config, form, Export(), seed=5, sparsity=0.6)
    tree = folder / "c"
    artifact = sparsec.compile(model.path, buckets=buckets, target=target, emit_c=tree)
    return Tree(model, artifact, tree)


def best_target() -> Target:
    return targets.choose("auto", cpu.detect())


@pytest.fixture(scope="module", params=FORMS)
def tree(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """Every form, for the best target of this machine."""
    folder = tmp_path_factory.mktemp("tree")
    return compile_tree(folder, ODD, request.param, best_target().name, [8, LENGTH])


def test_makefile_builds_the_same_libraries(tree: Tree, tmp_path: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("needs make")
    copy = tmp_path / "elsewhere"
    shutil.copytree(tree.folder, copy)
    cc = toolchain.find()
    command = ["make", "-s", "-j2", f"CC={shlex.join(cc.command)}"]
    subprocess.run(command, cwd=copy, check=True, capture_output=True)
    libraries = sorted(p.name for p in copy.glob("*.so"))
    assert libraries == sorted(p.name for p in tree.artifact.path.glob("*.so"))
    for name in libraries:
        assert (copy / name).read_bytes() == (tree.artifact.path / name).read_bytes(), name


@needs_gcc
def test_no_warnings(tree: Tree, tmp_path: Path) -> None:
    """What gcc finds worth a warning, at the level that looks at data flow too."""
    quiet = ["-Wno-psabi"]  # the ABI of vectors in inline functions
    flags = toolchain.find("gcc").target_flags(best_target())
    command = ["gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra", *quiet, "-Werror", *flags]
    for source in sorted(tree.folder.glob("bucket_*/*.c")):
        done = subprocess.run(
            [*command, "-I.", "-c", str(source), "-o", str(tmp_path / "x.o")],
            cwd=tree.folder,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[:4000]


def test_calls_are_named_after_onnx_nodes(tree: Tree) -> None:
    """Above every call stands which ONNX nodes it computes; together they are most of the model."""
    graph = onnx.load(tree.model.path).graph
    nodes = {node.name for node in graph.node}
    values = {name for node in graph.node for name in node.output}
    for bucket in tree.artifact.manifest.buckets:
        text = (tree.folder / f"bucket_{bucket.length}" / "bucket.c").read_text()
        named: set[str] = set()
        flat = text.replace("\n * ", " ")  # comments of several lines
        found = re.findall(r"/\* (.*?): .*? \*/\nstatic void call_\d+_\w+\(", flat)
        assert len(found) == len(re.findall(r"^static void call_\d+", text, re.MULTILINE)) > 8
        for comment in found:
            names = set(comment.split(", "))
            assert names & (nodes | values), comment
            named |= names & nodes
        products = {n for n in nodes if re.search(r"/(MatMul|MatMulInteger|Gemm)(_\d+)?$", n)}
        assert products <= named


def test_c_is_for_people(tree: Tree) -> None:
    """No line is long, ends in blanks or follows on two empty ones; nothing is added that is 0."""
    for source in tree.folder.glob("bucket_*/*.[ch]"):
        text = source.read_text()
        assert max(map(len, text.split("\n"))) <= 120, source
        assert not re.search(r"[ \t]$|\n\n\n|\{%|\{\{ ", text, re.MULTILINE), source
        assert not re.search(
            r"^[^/*\n]*( \+ 0\b(?![.x])| \* 1\b(?!\.)| \+ \(0\))", text, re.MULTILINE
        ), source
        assert not text.startswith("\n") and text.endswith("\n"), source


def test_artifact_is_the_same_wherever_it_is_made(tree: Tree, tmp_path: Path) -> None:
    other = tmp_path / "a much longer place" / "with spaces"
    other.mkdir(parents=True)
    shutil.copy(tree.model.path, other / "model.onnx")
    again = sparsec.compile(other / "model.onnx", buckets=[LENGTH, 8], target=best_target().name)
    files = sorted(p.name for p in tree.artifact.path.iterdir())
    assert files == sorted(p.name for p in again.path.iterdir())
    for name in files:
        assert (again.path / name).read_bytes() == (tree.artifact.path / name).read_bytes(), name


@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf")
def test_libraries_need_only_libc_and_libm(tree: Tree) -> None:
    own = {p.name for p in tree.artifact.path.glob("weights-*.so")}
    assert len(own) == 1
    for library in tree.artifact.path.glob("*.so"):
        text = subprocess.run(
            ["readelf", "-d", str(library)], check=True, capture_output=True, text=True
        ).stdout
        needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", text))
        assert needed <= {"libc.so.6", "libm.so.6", "ld-linux-x86-64.so.2", *own}
        assert library.name in own or own <= needed
        assert str(tree.folder.parent) not in text


# ---- inside its buffers --------------------------------------------------------------------------


def compile_sanitized(tree: Tree, target: Target, output: Path) -> None:
    """The bucket, its weights as heap memory, and the driver, with both sanitizers."""
    level = "-O1" if target.features else "-O0"  # portable C takes a compiler long
    command = ["gcc", "-std=gnu11", level, "-g1", "-fsanitize=address,undefined"]
    command += ["-fno-sanitize-recover=all", *toolchain.SEMANTICS]
    command += toolchain.find("gcc").target_flags(target)
    command += ["-include", str(HERE / "generated_c_weights.h"), f"-I{tree.folder}"]
    sources = [tree.folder / f"bucket_{LENGTH}" / "bucket.c", HERE / "generated_c_driver.c"]
    command += [*map(str, sources), "-o", str(output), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:4000]


def sanitized_cases() -> list[Any]:
    """Every form for every target; what is like another one only in the slow tests, and what is
    emulated in one form, since it takes the compiler long."""
    best = best_target()
    cases = []
    for target in map(stand_ins.here, targets.NAMES):
        skip = pytest.mark.skipif(
            not stand_ins.runs(target), reason=f"this CPU cannot run {target.name}"
        )
        emulated = stand_ins.emulates_vectors(target)
        for form in ("sparseml",) if emulated else FORMS:
            alike = emulated or (form != "sparseml" and target != best)
            marks = [skip, pytest.mark.slow] if alike else [skip]
            cases.append(pytest.param(form, target, marks=marks, id=f"{form}-{target.name}"))
    return cases


@needs_gcc
@pytest.mark.parametrize(("form", "target"), sanitized_cases())
def test_stays_inside_its_buffers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Form, target: Target
) -> None:
    """AddressSanitizer and UBSan around inputs, outputs, workspace and weights of exact sizes:
    batches of 1, 3 and 17, all lengths, ragged and absent ones, hostile ids, masks and arguments,
    pieces of parallel loops in another order."""
    stand_ins.install(monkeypatch)
    tree = compile_tree(tmp_path, ODD, form, target.name, [LENGTH])
    program = tmp_path / "driver"
    compile_sanitized(tree, target, program)
    done = subprocess.run(
        [str(program), str(tree.folder / "weights.bin")],
        capture_output=True,
        text=True,
        env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"},
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[:6000]
    assert done.stdout.startswith("ok, ")


# ---- for another machine -------------------------------------------------------------------------


def test_cross_compiled_artifact_is_refused_before_loading(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine without the target's features compiles for it, but does not load the result."""
    if cpu.detect().arch != "x86_64":
        pytest.skip("targets with features are for x86-64")
    monkeypatch.setenv("SPARSEC_CPU_FEATURES", "avx2,fma")
    for name in ("avx512_vnni", "avx_vnni"):
        output = tmp_path / f"{name}.sparsec"
        artifact = sparsec.compile(tiny_model, buckets=[8], target=name, output=output)
        assert artifact.manifest.target.name == name
        with pytest.raises(sparsec.HardwareError) as info:
            sparsec.Engine(output)
        assert "avx512vnni" in str(info.value) or "avxvnni" in str(info.value)
        assert str(output) not in Path("/proc/self/maps").read_text()
    for name in ("avx2", "generic"):
        assert targets.get(name).runs_on("x86_64", {"avx2", "fma"})
