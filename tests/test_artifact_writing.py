"""An artifact appears whole or not at all, and says what is in it."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from fake_codegen import INPUTS, OUTPUTS, TABLE, emission

from sparsec import targets
from sparsec.compiler import artifact, build, toolchain
from sparsec.compiler.fat import Variant
from sparsec.compiler.libraries import libraries_of
from sparsec.errors import ArtifactError, ModelError
from sparsec.runtime import Artifact, Engine

GENERIC = targets.get("generic")


def write(output: Path, *, force: bool = False, lengths: tuple[int, ...] = (4, 16)) -> Artifact:
    """What the driver does after code generation."""
    made = emission(lengths)
    compiler = toolchain.find()
    with artifact.staging(output) as stage:
        built = libraries_of(stage / "c", [Variant(GENERIC, made)], compiler)  # type: ignore[arg-type]
        folder = stage / "artifact"
        folder.mkdir()
        for library in built.files:
            library.rename(folder / library.name)
        manifest = artifact.manifest_of(
            sparsec_version="0.0.0",
            abi=build.abi_version(),
            model={"name": "fake", "sha256": "0" * 64, "dialect": "float"},
            inputs=INPUTS,
            outputs=OUTPUTS,
            mask_input=None,
            padding={"kind": "masked", "reason": ""},
            variants=built.rows,
            tuning=[],
        )
        artifact.seal(folder, manifest)
        artifact.publish(folder, output, force)
    return Artifact.load(output)


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def test_runtime_reads_and_runs_what_was_written(tmp_path: Path) -> None:
    written = write(tmp_path / "model.sparsec")
    assert written.buckets == (4, 16)
    assert leftovers(tmp_path) == []
    assert (written.path.stat().st_mode & 0o077) == (0o077 & ~_umask())
    with Engine(written) as engine:
        for length in (4, 16):
            ids = np.arange(3 * length).reshape(3, length)
            (values,) = engine.run([ids])
            np.testing.assert_array_equal(values, TABLE[ids])


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_every_file_is_in_the_manifest_and_the_manifest_is_canonical(tmp_path: Path) -> None:
    output = write(tmp_path / "model.sparsec").path
    text = (output / "manifest.json").read_text()
    manifest = json.loads(text)
    names = {path.name for path in output.iterdir()} - {"manifest.json"}
    assert set(manifest["files"]) == names
    assert json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False) + "\n" == text
    assert str(tmp_path) not in text


def test_same_bytes_in_another_folder(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    one = write(tmp_path / "a.sparsec").path
    two = write(tmp_path / "elsewhere" / "b.sparsec").path
    files = sorted(path.name for path in one.iterdir())
    assert files == sorted(path.name for path in two.iterdir())
    for name in files:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


def test_existing_output_is_replaced_only_by_force(tmp_path: Path) -> None:
    output = write(tmp_path / "model.sparsec").path
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    with pytest.raises(ArtifactError, match="exist_ok=True"):
        write(output, lengths=(8,))
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    assert write(output, lengths=(8,), force=True).buckets == (8,)
    assert not (output / "bucket_16.so").exists()
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("how", ["folder", "file", "link", "nowhere"])
def test_force_never_removes_anything_else(tmp_path: Path, how: str) -> None:
    output = tmp_path / "precious"
    if how == "folder":
        output.mkdir()
        (output / "thesis.txt").write_text("years of work")
    elif how == "file":
        output.write_text("years of work")
    else:
        target = tmp_path / "target"
        if how == "link":
            write(target)
        output.symlink_to(target)
    with pytest.raises(ArtifactError, match="not an artifact"):
        artifact.check_output(output, force=True)


def test_folders_that_lead_to_the_output(tmp_path: Path) -> None:
    output = tmp_path / "a" / "b" / "model.sparsec"
    artifact.check_output(output, force=False)
    assert not (tmp_path / "a").exists()
    with pytest.raises(ZeroDivisionError), artifact.staging(output):
        raise ZeroDivisionError
    assert not (tmp_path / "a").exists()
    assert write(output).path == output
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    for wrong in ("file/model.sparsec", "file/a/model.sparsec", "nowhere/model.sparsec"):
        with pytest.raises(ArtifactError, match="is not a folder"):
            artifact.check_output(tmp_path / wrong, force=False)


def test_without_renameat2_the_swap_still_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifact, "_rename", lambda *args: False)
    output = tmp_path / "model.sparsec"
    write(output)
    assert write(output, lengths=(8,), force=True).buckets == (8,)
    original = Path.rename

    def fail_on_artifact(self: Path, target: Path) -> Path:
        if self.name == "artifact":
            raise OSError(5, "Input/output error")
        return original(self, target)

    monkeypatch.setattr(Path, "rename", fail_on_artifact)
    with pytest.raises(ArtifactError, match="Input/output error"):
        write(output, lengths=(16,), force=True)
    assert Artifact.load(output).buckets == (8,)


def test_output_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    output = tmp_path / "model.sparsec"
    staged = tmp_path / "staged"
    staged.mkdir()
    artifact.seal(staged, {"who": "second"})
    output.mkdir()
    with pytest.raises(ArtifactError):
        artifact.publish(staged, output, force=False)
    assert list(output.iterdir()) == []


def test_error_inside_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), artifact.staging(tmp_path / "m.sparsec") as stage:
        (stage / "half").write_text("written")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_an_artifact_error(tmp_path: Path) -> None:
    # A limit on file size fails in the middle of a write, as a full disk does.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(ArtifactError, match=r"cannot write.*free some space"):
            write(tmp_path / "model.sparsec")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


SLEEPER = """
import signal, sys, time
from pathlib import Path
import sparsec.cli, sparsec.compiler
from sparsec.compiler import artifact

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

def compile(model, *, output, **options):
    with artifact.staging(Path(output)) as stage:
        (stage / "half").write_text("written")
        print("ready", flush=True)
        time.sleep(60)

sparsec.compile = compile
sys.exit(sparsec.cli.main(["compile", "model.onnx", "-o", sys.argv[1]]))
"""


@pytest.mark.parametrize(
    ("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "terminate"]
)
def test_interrupted_compile_leaves_nothing(
    tmp_path: Path, stop: signal.Signals, code: int
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPER, str(tmp_path / "model.sparsec")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(stop)
        _, said = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == code
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_readers_always_see_a_whole_artifact(tmp_path: Path) -> None:
    """While one process swaps two artifacts again and again, another can always read one."""
    output = tmp_path / "model.sparsec"
    output.mkdir()
    artifact.seal(output, {"generation": 0})
    script = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from sparsec.compiler import artifact
        output = Path(sys.argv[1])
        for generation in range(1, 200):
            with artifact.staging(output) as stage:
                folder = stage / "artifact"
                folder.mkdir()
                artifact.seal(folder, {"generation": generation})
                artifact.publish(folder, output, force=True)
        """
    )
    writer = subprocess.Popen([sys.executable, "-c", script, str(output)])
    seen = set()
    try:
        deadline = time.monotonic() + 60
        while writer.poll() is None and time.monotonic() < deadline:
            seen.add(json.loads((output / "manifest.json").read_text())["generation"])
    finally:
        writer.kill()
        writer.wait()
    assert writer.returncode == 0
    assert len(seen) > 3


def test_companions_are_packed(tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.mkdir()
    for name in ("config.json", "tokenizer.json", "README.md", "model.onnx"):
        (source / name).write_text(name)
    (source / "vocab.txt").symlink_to(source / "README.md")
    packed = {name: path.read_text() for name, path in artifact.companions(source).items()}
    assert packed == {
        "config.json": "config.json",
        "tokenizer.json": "tokenizer.json",
        "vocab.txt": "README.md",
    }
    (tmp_path / "secret").write_text("key")
    (source / "config.json").unlink()
    (source / "config.json").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelError, match="leaves the model's folder"):
        artifact.companions(source)
