"""Reading artifacts: what is refused, in which words, and that it is refused before any loading."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runtime_fake import edit, make_artifact, seal

from sparsec.compiler import build
from sparsec.errors import ArtifactError, HardwareError
from sparsec.interface import ELEMENTS, PADDING
from sparsec.runtime import Artifact, CpuInfo, _engine
from sparsec.runtime import artifact as module


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artifact(tmp_path_factory.mktemp("artifact") / "fake.sparsec", (4, 16))


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "copy.sparsec"))


def test_what_is_read(original: Path) -> None:
    artifact = Artifact.load(original)
    assert artifact.path == original and artifact.buckets == (4, 16)
    assert [str(spec) for spec in artifact.inputs] == [
        "ids: int64[batch, sequence]",
        "mask: int64[batch, sequence]",
        "bias: float32[3]",
    ]
    assert artifact.outputs[0].shape == ("batch", "sequence", 3)
    assert artifact.target.name == "generic"
    manifest = artifact.manifest
    assert manifest.mask_input == "mask" and manifest.supports_lengths is True
    assert manifest.layers[0].sparsity == 0.5 and manifest.toolchain.flags == ("-O1",)
    assert manifest.buckets[1].kernels[0].kernel == "fake"
    assert manifest.files["bucket_4.so"].size == (original / "bucket_4.so").stat().st_size
    assert artifact.library(16) == original.resolve() / "bucket_16.so"
    with pytest.raises(AttributeError):
        artifact.path = Path()  # type: ignore[misc]


def test_constants_agree_with_the_c_interface() -> None:
    assert build.abi_version() == _engine.ABI_VERSION
    enums = [
        {name: int(number) for name, number in re.findall(r"(\w+) = (\d+)", body)}
        for body in re.findall(r"enum \{([^}]*)\}", build.public_header())
    ]
    assert {e.constant: e.number for e in ELEMENTS.values()} in enums
    assert {f"SPARSEC_PADDING_{kind.upper()}": n for kind, n in PADDING.items()} in enums
    assert all(np.dtype(name).name == name for name in ELEMENTS)


def test_buckets_are_sorted(copy: Path) -> None:
    edit(copy, lambda m: m["buckets"].reverse())
    assert Artifact.load(copy).buckets == (4, 16)


# ---- folders and files ---------------------------------------------------------------------------


def test_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        Artifact.load(tmp_path / "nothing")
    with pytest.raises(ArtifactError, match=r"no manifest\.json"):
        Artifact.load(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"x")
    with pytest.raises(ArtifactError, match="an artifact is a folder"):
        Artifact.load(tmp_path / "model.onnx")
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(ArtifactError, match="cannot be read"):
        Artifact.load(tmp_path)
    with pytest.raises(ArtifactError, match=r"does not exist|null"):
        Artifact.load("a\0b")


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "damaged: Expecting value"),
        (b"{", "damaged"),
        (b"\xff\xfe\x00", "damaged"),
        (b"[" * 200_000, "damaged"),
        (b"[]", r"the document must be an object, not \[\]"),
        (b"1" * 10_000, "damaged"),
        (b"{}", "format is missing"),
        (b'{"format": "zip"}', 'format must be "sparsec-artifact", not "zip"'),
    ],
)
def test_manifests_that_are_none(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "manifest.json").write_bytes(data)
    with pytest.raises(ArtifactError, match=message) as caught:
        Artifact.load(tmp_path)
    assert str(tmp_path / "manifest.json") in str(caught.value)


def test_an_absurdly_large_manifest(tmp_path: Path) -> None:
    with (tmp_path / "manifest.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ArtifactError, match="no plausible size"):
        Artifact.load(tmp_path)


@pytest.mark.parametrize("field, what", [("schema", "schema 9"), ("abi", "ABI 9")])
def test_made_by_a_newer_sparsec(copy: Path, field: str, what: str) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest.update({field: 9, "sparsec_version": "9.1"})
        # Nothing else that a newer schema might have changed is looked at.
        del manifest["inputs"], manifest["target"]

    edit(copy, change)
    with pytest.raises(ArtifactError, match=rf"{what}, made by sparsec 9\.1.*: upgrade sparsec"):
        Artifact.load(copy)


def test_made_by_an_older_sparsec(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SCHEMA", 99)
    with pytest.raises(
        ArtifactError, match=r"schema \d+.*reads schema 99: compile the model again"
    ):
        Artifact.load(copy)


def test_missing_file(copy: Path) -> None:
    (copy / "bucket_16.so").unlink()
    with pytest.raises(ArtifactError, match=r"bucket_16\.so is missing"):
        Artifact.load(copy)


def test_truncated_file(copy: Path) -> None:
    os.truncate(copy / "bucket_16.so", 100)
    with pytest.raises(ArtifactError, match=r"bucket_16\.so is damaged: it has 100 bytes"):
        Artifact.load(copy)


def test_one_flipped_bit_is_found_each_time(copy: Path) -> None:
    Artifact.load(copy)  # the result of this check must not be remembered for the damaged file
    path = copy / "bucket_4.so"
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    for _ in range(2):
        with pytest.raises(ArtifactError, match=r"bucket_4\.so is damaged: its sha256 is"):
            Artifact.load(copy)
    assert Artifact.load(copy, verify=False).buckets == (4, 16)


def test_files_are_hashed_once(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Artifact.load(copy)
    monkeypatch.setattr(module, "_sha256", lambda path: pytest.fail(f"{path} is hashed again"))
    Artifact.load(copy)


def test_links(copy: Path, original: Path, tmp_path: Path) -> None:
    (copy / "bucket_4.so").rename(copy / "inside.so")
    (copy / "bucket_4.so").symlink_to("inside.so")
    edit(copy, lambda m: seal(copy, m))
    assert Artifact.load(copy).library(4).name == "inside.so"
    (tmp_path / "linked").symlink_to(copy)  # the folder itself may be reached through a link
    Artifact.load(tmp_path / "linked")

    (copy / "bucket_4.so").unlink()
    (copy / "bucket_4.so").symlink_to(original / "bucket_4.so")
    with pytest.raises(ArtifactError, match="leads out of the artifact"):
        Artifact.load(copy)
    (copy / "bucket_4.so").unlink()
    (copy / "bucket_4.so").symlink_to("bucket_4.so")
    with pytest.raises(ArtifactError, match=r"bucket_4\.so"):
        Artifact.load(copy)
    (copy / "bucket_4.so").unlink()
    (copy / "bucket_4.so").mkdir()
    with pytest.raises(ArtifactError, match="not a regular file"):
        Artifact.load(copy)


@pytest.mark.parametrize(
    "name", ["../bucket_4.so", "/etc/passwd", "a/b", "a\\b", "..", ".", "", "a\0b", "manifest.json"]
)
def test_names_that_are_no_plain_names(copy: Path, name: str) -> None:
    def in_bucket(manifest: dict[str, Any]) -> None:
        manifest["buckets"][0]["file"] = name

    def in_files(manifest: dict[str, Any]) -> None:
        manifest["files"][name] = manifest["files"]["bucket_4.so"]

    manifest = (copy / "manifest.json").read_text()
    for change in (in_bucket, in_files):
        (copy / "manifest.json").write_text(manifest)
        edit(copy, change)
        with pytest.raises(ArtifactError, match="plain file name"):
            Artifact.load(copy)


# ---- every field ---------------------------------------------------------------------------------


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in a JSON document."""
    inner: Any = ()
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value)
    found = [path] if path else []
    for key, member in inner:
        found += places(member, (*path, key))
    return found


def replaced(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy of the document with another value at a path."""
    document = json.loads(json.dumps(document))
    parent = document
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    return document


def of_type(path: tuple[Any, ...], sample: Any, old: Any) -> bool:
    """Whether a sample is a legal value where `old` was, so far as its JSON type goes."""
    if path == ("mask_input",) and sample is None:
        return True
    if path[-1] in ("sparsity", "block4_sparsity"):
        return sample == 0.25
    return type(sample) is type(old) and isinstance(sample, (bool, str))


def test_every_field_is_typed(original: Path) -> None:
    """No value may be replaced by one of another JSON type, and none may be left out."""
    document = json.loads((original / "manifest.json").read_text())
    samples = [None, True, -1, 0.25, "wrong type", [[]], {"wrong": {}}]
    for path in places(document):
        parent = document
        for key in path[:-1]:
            parent = parent[key]
        old = parent[path[-1]]
        for sample in samples:
            if of_type(path, sample, old):
                continue
            data = json.dumps(replaced(document, path, sample)).encode()
            with pytest.raises(ArtifactError):
                module.parse_manifest(data)
                pytest.fail(f"{path} = {sample!r} was accepted")
        if isinstance(path[-1], str) and path[0] != "files":
            del parent[path[-1]]
            with pytest.raises(ArtifactError, match=f"{path[-1]} is missing"):
                module.parse_manifest(json.dumps(document).encode())
            parent[path[-1]] = old


@pytest.mark.parametrize(
    "path, value, message",
    [
        (("inputs", 0, "dtype"), "float16", "inputs[0].dtype must be one of bool, float32"),
        (("inputs", 0, "shape"), ["batch"] * 9, "of rank 8 at most"),
        (("inputs", 0, "shape", 1), "tokens", '"batch", "sequence" or an integer, not "tokens"'),
        (("inputs", 0, "name"), "mask", "inputs must be a list without repeated names"),
        (("mask_input",), "attention", "mask_input must be null or one of ids, mask, bias"),
        (("buckets",), [], "at least one bucket"),
        (("buckets", 0, "length"), 16, "without repeated lengths"),
        (("buckets", 0, "length"), 0, "lengths above 0"),
        (("buckets", 0, "file"), "other.so", "a list that has other.so"),
        (("files", "bucket_4.so", "sha256"), "0" * 63 + "G", "a sha256"),
        (("layers", 0, "sparsity"), 1.5, "a number from 0 to 1"),
        (("layers", 0, "n"), 10**30, "an integer"),
    ],
)
def test_values_that_make_no_sense(
    original: Path, path: tuple[Any, ...], value: Any, message: str
) -> None:
    document = json.loads((original / "manifest.json").read_text())
    with pytest.raises(ArtifactError) as caught:
        module.parse_manifest(json.dumps(replaced(document, path, value)).encode())
    assert message in str(caught.value)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_damage_is_an_artifact_error(original: Path, data: st.DataObject) -> None:
    """Cut, overwritten and inserted bytes: it still parses, or it is an ArtifactError."""
    text = bytearray((original / "manifest.json").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text) - 1))
        kind = data.draw(st.sampled_from(["cut", "set", "insert"]))
        if kind == "cut":
            del text[at : at + data.draw(st.integers(1, 40))]
        elif kind == "set":
            text[at] = data.draw(st.integers(0, 255))
        else:
            text[at:at] = data.draw(st.binary(min_size=1, max_size=4))
        if not text:
            break
    with contextlib.suppress(ArtifactError):
        module.parse_manifest(bytes(text))


# ---- hardware ------------------------------------------------------------------------------------


def cpu(*features: str, arch: str = "x86_64") -> CpuInfo:
    return CpuInfo(arch, "Test CPU 3000", frozenset(features), {}, 1, 1)


def test_hardware(copy: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["target"] = {
            "name": "avx512_vnni",
            "arch": "x86_64",
            "features": ["avx2", "avx512f", "avx512vnni"],
        }

    edit(copy, change)
    artifact = Artifact.load(copy)  # looking at it works on any machine
    artifact.check_hardware(cpu("avx2", "avx512f", "avx512vnni", "sse4_2"))
    with pytest.raises(HardwareError) as caught:
        artifact.check_hardware(cpu("avx2", "fma"))
    assert (
        "target avx512_vnni; this CPU (Test CPU 3000) lacks avx512f, avx512vnni. Targets that run "
        "here: avx2, generic; compile the model again with target='avx2'"
    ) in str(caught.value)
    with pytest.raises(HardwareError, match="compiled for x86_64, this machine is aarch64"):
        artifact.check_hardware(cpu(arch="aarch64"))
