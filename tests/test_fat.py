"""Artifacts for several targets: the runtime and C programs load one that runs, and constants are
stored once."""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sparsec
from sparsec import targets
from sparsec.cli import main
from sparsec.compiler import fat, toolchain, tuning
from sparsec.errors import ArtifactError, HardwareError, InputError
from sparsec.runtime import Artifact, cpu
from sparsec.runtime.artifact import VariantInfo

pytestmark = pytest.mark.skipif(targets.host_arch() != "x86_64", reason="two targets are needed")

ALL = ("avx512_vnni", "avx2", "generic")


@pytest.fixture(scope="module")
def made(micro_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model for three targets, and its C."""
    folder = tmp_path_factory.mktemp("fat")
    sparsec.compile(
        micro_model, buckets=[4], output=folder / "m.sparsec", emit_c=folder / "c",
        target="generic, avx512_vnni,avx2",
    )  # fmt: skip
    return folder


@pytest.fixture
def artifact(made: Path) -> Artifact:
    return Artifact.load(made / "m.sparsec")


def having(artifact: Artifact, *variants: VariantInfo) -> Artifact:
    """The artifact with other variants."""
    return replace(artifact, manifest=replace(artifact.manifest, variants=variants))


def machine(*features: str) -> cpu.CpuInfo:
    return replace(cpu.detect(), features=frozenset(features), arch="x86_64")


def needs(name: str) -> tuple[str, ...]:
    return targets.get(name).features


# ---- which target --------------------------------------------------------------------------------


def test_the_fastest_that_runs_is_chosen(artifact: Artifact) -> None:
    assert [variant.target.name for variant in artifact.manifest.variants] == list(ALL)
    assert artifact.target.name == "generic"  # what most can run, of those that do not choose
    for name in ALL:
        assert artifact.best(machine(*needs(name))).target.name == name
        assert artifact.best(machine(*needs(name), "sse4_2")).buckets == (4,)
    # One feature less, and the next one is taken.
    for better, name in itertools.pairwise(ALL):
        for missing in set(needs(better)) - set(needs(name)):
            chosen = artifact.best(machine(*(f for f in needs(better) if f != missing)))
            assert ALL.index(chosen.target.name) > ALL.index(better)


def test_a_target_that_the_system_refuses(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(name: str) -> None:
        if name == "amx":
            raise HardwareError("no tiles")

    monkeypatch.setattr(targets, "prepare", prepare)
    first, *others = artifact.manifest.variants
    tiles = replace(first, target=replace(first.target, name="amx", features=needs("amx")))
    both = having(artifact, tiles, first, *others)
    assert both.best(machine(*needs("amx"))).target.name == "avx512_vnni"
    with pytest.raises(HardwareError, match="no tiles"):
        having(artifact, tiles).best(machine(*needs("amx")))


def test_no_target_runs(artifact: Artifact) -> None:
    both = having(artifact, *artifact.manifest.variants[:-1])
    with pytest.raises(HardwareError, match=r"for target avx512_vnni, avx2; this CPU.* lacks avx2"):
        both.best(machine("fma"))
    with pytest.raises(HardwareError, match=r"was compiled for x86_64, this machine is aarch64"):
        both.check_hardware(replace(machine(), arch="aarch64"))


RUN = """
import sys, numpy as np, sparsec
with sparsec.Engine(sys.argv[1], num_cores=1) as engine:
    outputs = engine.run(sparsec.generate_random_inputs(sys.argv[1], 2, 3))
    maps = open("/proc/self/maps").read()
print(engine.artifact.target.name, float(np.abs(outputs[0]).sum()), *sorted(
    name for name in {part.split(" ")[0] for part in maps.split("memfd:")[1:]}))
"""


def run(path: Path, features: str | None) -> list[str]:
    """Target, sum of the outputs, libraries in memory of a process that has these features."""
    env = {k: v for k, v in os.environ.items() if k != "SPARSEC_CPU_FEATURES"}
    if features is not None:
        env["SPARSEC_CPU_FEATURES"] = features
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(path)], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_features_that_are_hidden(artifact: Artifact) -> None:
    """What runs is compared with ONNX Runtime elsewhere; here, targets with each other."""
    here = cpu.detect()
    cases = [("none", "generic")]
    if not targets.get("avx2").missing(here.features):
        cases.append(("avx2,fma", "avx2"))
    cases.append((",".join(sorted(here.features)), artifact.best(here).target.name))
    sums = []
    for features, name in cases:
        target, total, *loaded = run(artifact.path, features)
        assert target == name
        sums.append(float(total))
        # Nothing of other targets is in memory.
        (variant,) = (v for v in artifact.manifest.variants if v.target.name == name)
        wanted = {name for bucket in variant.buckets for name in (bucket.file, *bucket.needs)}
        assert set(loaded) == wanted
    np.testing.assert_allclose(sums, sums[0], rtol=1e-3)


# ---- in C ----------------------------------------------------------------------------------------

IN_C = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
library.sparsec_model_info.restype = ctypes.c_void_p
class Info(ctypes.Structure):
    _fields_ = [("abi", ctypes.c_uint32), ("length", ctypes.c_uint32), ("model", ctypes.c_char_p),
                ("target", ctypes.c_char_p)]
info = library.sparsec_model_info()
print(Info.from_address(info).target.decode() if info else "none")
library.sparsec_workspace_size.restype = ctypes.c_size_t
library.sparsec_workspace_size.argtypes = [ctypes.c_int64, ctypes.c_int32]
size = library.sparsec_workspace_size(1, 1)
print(size, library.sparsec_run(None, None, ctypes.c_int64(1), None, None, None))
"""


def in_c(path: Path, features: str, where: Path) -> list[str]:
    env = {**os.environ, "SPARSEC_CPU_FEATURES": features}
    command = [sys.executable, "-c", IN_C, str(path)]
    done = subprocess.run(command, env=env, cwd=where, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout.split()


def test_c_programs_load_the_best_that_runs(made: Path, tmp_path: Path) -> None:
    """The same library and functions as of one target; by a relative path from elsewhere too."""
    path = made / "m.sparsec"
    here = cpu.detect()
    name, size, status = in_c(path / "bucket_4.so", ",".join(here.features), tmp_path)
    assert name == Artifact.load(path).best(here).target.name
    assert int(size) > 0 and status == "1"  # SPARSEC_BAD_ARGUMENT
    name, _, _ = in_c(Path("m.sparsec/bucket_4.so"), "NONE , x", made)
    assert name == "generic"
    if not targets.get("avx2").missing(here.features):
        assert in_c(path / "bucket_4.so", "fma, avx2", tmp_path)[0] == "avx2"


@pytest.mark.slow
def test_c_where_none_can_run(micro_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.sparsec"
    sparsec.compile(micro_model, buckets=[4], output=path, target=["avx512_vnni", "avx2"])
    assert in_c(path / "bucket_4.so", "none", tmp_path) == ["none", "0", "3"]  # SPARSEC_REFUSED


def test_outputs_in_c(made: Path) -> None:
    """`sparsec_run` of the library that chooses gives what the Engine gives."""
    path = made / "m.sparsec"
    inputs = sparsec.generate_random_inputs(path, 1, 4)
    with sparsec.Engine(path, num_cores=1) as engine:
        expected = engine.run(inputs)
    library = ctypes.CDLL(str(path / "bucket_4.so"))
    library.sparsec_workspace_size.restype = ctypes.c_size_t
    library.sparsec_workspace_size.argtypes = [ctypes.c_int64, ctypes.c_int32]
    space = np.empty(library.sparsec_workspace_size(1, 1) + 64, np.uint8)
    start = space.ctypes.data + -space.ctypes.data % 64
    found = [np.empty_like(x) for x in expected]

    def pointers(arrays: list[np.ndarray[Any, Any]]) -> Any:
        return (ctypes.c_void_p * len(arrays))(*(x.ctypes.data for x in arrays))

    status = library.sparsec_run(
        pointers(inputs), pointers(found), ctypes.c_int64(1), None, ctypes.c_void_p(start), None
    )
    assert status == 0
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


# ---- what is stored ------------------------------------------------------------------------------


def emission(arrays: Mapping[int, bytes]) -> Any:
    weights = b"".join(arrays.values())
    return SimpleNamespace(weights=weights, parts=tuple(arrays))


@given(
    st.lists(
        st.lists(st.sampled_from([b"a" * 64, b"b" * 128, b"c" * 64, b"", b"d" * 192]), unique=True),
        min_size=1,
        max_size=4,
    )
)
def test_constants_are_shared(pools: list[list[bytes]]) -> None:
    """Every array is stored once, and found by who wants it; nobody needs a group that others have
    for themselves."""
    variants, wanted = [], {}
    for target, arrays in zip(targets.TARGETS, pools, strict=False):
        places, offset = {}, 0
        for data in arrays:
            if data:
                places[offset] = data
                offset += len(data)
        wanted[target.name] = places
        variants.append(fat.Variant(target, emission(places)))
    groups = fat.share(variants)
    everything = {data for arrays in pools for data in arrays if data}
    assert sum(len(group.data) for group in groups) == sum(map(len, everything))
    for name, places in wanted.items():
        found = {}
        for group in groups:
            for offset, at in group.places.get(name, {}).items():
                assert at % 64 == 0
                found[offset] = group.data[at : at + len(places[offset])]
        assert found == places


@pytest.mark.slow
def test_size_against_single_artifacts(tiny_model: Path, tmp_path: Path) -> None:
    def size(path: Path) -> int:
        """Bytes of the constants."""
        files = Artifact.load(path).manifest.files
        return sum(info.size for name, info in files.items() if name.startswith("weights-"))

    alone = []
    for name in ("avx512_vnni", "avx2"):
        output = tmp_path / f"{name}.sparsec"
        alone.append(sparsec.compile(tiny_model, buckets=[8], output=output, target=name).path)
    together = tmp_path / "both.sparsec"
    sparsec.compile(tiny_model, buckets=[8], output=together, target=["avx2", "avx512_vnni"])
    # The table of embeddings, at least, is there once.
    first, second = Artifact.load(together).manifest.variants
    assert set(first.buckets[0].needs) & set(second.buckets[0].needs)
    assert size(together) < 0.9 * sum(map(size, alone))


@pytest.mark.slow
def test_same_bytes_again(made: Path, micro_model: Path, tmp_path: Path) -> None:
    sparsec.compile(micro_model, buckets=[4], output=tmp_path / "m.sparsec", target=list(ALL))
    for path in (made / "m.sparsec").iterdir():
        assert path.read_bytes() == (tmp_path / "m.sparsec" / path.name).read_bytes(), path.name


@pytest.mark.slow
def test_the_c_that_is_kept_builds_the_same(made: Path, artifact: Artifact) -> None:
    compiler = toolchain.find()
    command = ["make", "-s", f"CC={shlex.join(compiler.command)}"]
    subprocess.run(command, cwd=made / "c", check=True, timeout=600)
    for name in artifact.manifest.files:
        if name.endswith(".so"):
            assert (made / "c" / name).read_bytes() == (artifact.path / name).read_bytes(), name


# ---- what is said of it --------------------------------------------------------------------------


def test_inspect(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = made / "m.sparsec"
    assert main(["inspect", str(path)]) == 0
    said = capsys.readouterr().out
    best = Artifact.load(path).best().target.name
    assert f"  * {best}" in said and "MB if nothing was shared" in said
    assert all(f" {name} " in said for name in ALL)
    assert f"bucket_4-{best}.so" in said
    assert main(["inspect", str(path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in report["targets"]] == list(ALL)
    assert report["target"]["name"] == best and report["runs_here"]


@pytest.mark.slow
def test_the_command_line(
    micro_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = ["--buckets", "4", "-o", str(tmp_path / "m.sparsec")]
    assert main(["compile", str(micro_model), *output, "--target", "avx2,generic", "-v"]) == 0
    assert "MB for avx2, generic" in capsys.readouterr().err


def test_targets_that_are_refused(
    micro_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = ["--buckets", "4", "-o", str(tmp_path / "m.sparsec")]
    with pytest.raises(SystemExit):
        main(["compile", str(micro_model), *output, "--target", "avx2,sse"])
    assert "there is no target 'sse'" in capsys.readouterr().err
    for wrong, options in (("there is no target 'sse'", {"target": ["avx2", "sse"]}),):
        with pytest.raises(InputError, match=wrong):
            sparsec.compile(micro_model, buckets=[4], output=tmp_path / "n.sparsec", **options)  # type: ignore[arg-type]


ROW = {
    "kind": "i8", "n": 8, "k": 8, "density": 0.2, "panels": True, "bucket": 4, "sparse": True,
    "chunks": 1, "tile": 2,
}  # fmt: skip


def test_records_of_tuning_are_by_target(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    avx2, generic = targets.get("avx2"), targets.get("generic")
    record = tmp_path / "record.json"
    both = [{"target": "avx2", **ROW}, {"target": "generic", **ROW, "tile": 1}]
    record.write_text(json.dumps({"tuning": both}))
    found = tuning.recorded(record, [avx2, generic])
    assert [tiling.tile for made in found.values() for tiling in made.values()] == [2, 1]
    assert [{k: row[k] for k in ("target", *ROW)} for row in tuning.rows(found)] == both
    assert not caplog.records
    record.write_text(json.dumps({"tuning": both[:1]}))
    assert list(tuning.recorded(record, [avx2, generic])) == ["avx2"]
    assert "generic is not tuned, but cut by rules" in caplog.text
    with pytest.raises(InputError, match="holds choices for avx2, not for generic: name one"):
        tuning.recorded(record, [generic])
    record.write_text(json.dumps({"tuning": [ROW]}))  # of whichever target there is
    assert len(tuning.recorded(record, [avx2, generic])) == 2


def test_what_can_be_measured_here(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    isas = [targets.get(name) for name in ("amx", *ALL)]
    here = machine(*needs("avx2"))
    assert [isa.name for isa in tuning.measurable(isas, here)] == ["avx2", "generic"]
    said = caplog.text
    assert "amx is not tuned" in said and "avx512_vnni is not tuned" in said
    assert "this machine lacks" in said and "avx2 is" not in said
    caplog.clear()
    far = replace(here, arch="aarch64")
    assert tuning.measurable(isas[:2], far) == tuple(isas[:2])  # measuring says why not
    assert not caplog.records
    assert [isa.name for isa in tuning.measurable(isas, far)] == ["generic"]
    assert "this machine is aarch64" in caplog.text
    monkeypatch.setattr(targets, "refusal", lambda isa: "no tiles" if isa.name == "amx" else None)
    every = machine(*needs("amx"), *needs("avx512_vnni"))
    assert [isa.name for isa in tuning.measurable(isas, every)] == list(ALL)
    assert "amx is not tuned, but cut by rules: no tiles" in caplog.text


@pytest.mark.slow
def test_several_targets_are_tuned(
    micro_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What runs here is measured; the record makes the same artifact again."""
    able = [isa.name for isa in targets.running_on(cpu.detect())]
    other = next((name for name in targets.NAMES if name not in able), None)
    several = [able[0], other or "generic"]
    tuned = sparsec.compile(
        micro_model, buckets=[4], output=tmp_path / "a", target=several, tune=True
    )
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert {row["target"] for row in manifest["tuning"]} == {*several} - {other}
    assert (f"{other} is not tuned" in caplog.text) == (other is not None)
    again = sparsec.compile(
        micro_model, buckets=[4], output=tmp_path / "b", target=several, tuning=tuned.path
    )
    assert again.manifest.files == tuned.manifest.files


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["variants"].append(m["variants"][0]), "a list of different targets"),
        (lambda m: m["variants"][0]["buckets"].pop(), r"variants\[0\].buckets must be a list of"),
        (lambda m: m["variants"][1].pop("target"), r"variants\[1\].target is missing"),
        (lambda m: m["variants"][0]["buckets"][0]["needs"].append("x.so"), "a list that has x.so"),
        (lambda m: m["variants"][0]["buckets"][0]["needs"].append("../x"), "a plain file name"),
    ],
)
def test_damaged_manifests(made: Path, tmp_path: Path, change: Any, message: str) -> None:
    manifest = json.loads((made / "m.sparsec" / "manifest.json").read_text())
    change(manifest)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=message):
        Artifact.load(tmp_path)
