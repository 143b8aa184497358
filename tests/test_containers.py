"""Containers: nothing can be written, nobody has a home, models lie on read-only volumes."""

from __future__ import annotations

import ctypes
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import sparsec
from sparsec import cache, scratch
from sparsec.errors import ArtifactError
from tests.server_support import ONE_ANSWER, TextModels

# A user id that no machine has a name for.
NOBODY = 54321


def mount_read_only() -> None:
    """Let this process see every file system but shared memory and /proc as read-only."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_namespace, read_only, remount, bind, private = 0x20000, 1, 32, 4096, 1 << 18
    if libc.unshare(new_namespace) or libc.mount(b"none", b"/", None, 16384 | private, None):
        os._exit(77)
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        place = line.split()[4].encode().decode("unicode_escape")
        if place.startswith(("/proc", "/dev", "/sys")):
            continue
        libc.mount(None, os.fsencode(place), None, remount | bind | read_only, None)


def run(
    program: str, *arguments: object, prepare: Callable[[], None] | None = None, **variables: str
) -> tuple[int, str]:
    """Exit code and what was said by Python with an environment of these variables alone."""
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={"PATH": os.environ["PATH"], **variables}, cwd="/", preexec_fn=prepare,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    if done.returncode == 77:
        pytest.skip("this user may not mount anything")
    return done.returncode, done.stdout + done.stderr


def test_serve_on_a_read_only_root(text_models: TextModels) -> None:
    code, said = run(ONE_ANSWER, text_models["text-classification"], prepare=mount_read_only)
    assert code == 0
    assert '"labels"' in said and "Traceback" not in said


def test_serve_with_no_place_at_all(text_models: TextModels, tmp_path: Path) -> None:
    """Where not even memory is: a line that says what to do."""
    program = "import sys; from sparsec import scratch; scratch.SHARED_MEMORY = '/proc/nowhere'; "
    program += "import tempfile; tempfile._candidate_tempdir_list = lambda: ['/proc/nowhere']; "
    program += "from sparsec.cli import main; sys.exit(main(sys.argv[1:]))"
    options = ["--task", "text-classification", "--port", "0", "--model-path"]
    code, said = run(program, "serve", *options, text_models["text-classification"])
    assert (code, said.count("\n")) == (ArtifactError.exit_code, 1)
    assert "mount a writable folder at /tmp, or name one in TMPDIR" in said


def test_an_artifact_that_is_read_only(tiny_artifact: Path) -> None:
    program = "import sys, sparsec; e = sparsec.Engine(sys.argv[1]); "
    program += "print(len(e.run(sparsec.generate_random_inputs(e.artifact))))"
    code, said = run(program, tiny_artifact, prepare=mount_read_only)
    assert (code, said) == (0, "1\n")


def as_nobody() -> None:
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


@pytest.fixture
def common() -> Iterator[Path]:
    """A folder that other users may enter, which pytest's are not; and no test without them."""
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    try:
        run("pass", prepare=as_nobody)
    except (PermissionError, subprocess.SubprocessError):
        pytest.skip("another user cannot run this interpreter")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def for_all(folder: Path) -> Path:
    """Let everyone read a folder and what is in it."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(path.stat().st_mode | 0o055)
    return folder


READ = """
import sys
from sparsec import Engine, InputError, ModelError, Pipeline, compile
from sparsec.ort import session
sys.argv.pop(0)
for act in (Engine, compile, lambda p: session(p, 1), lambda p: Pipeline.create("embedding", p),
            lambda p: Pipeline.create("embedding", sys.argv[0], tokenizer=p),
            lambda p: Pipeline.create("embedding", sys.argv[0], config=p),
            lambda p: compile(sys.argv[0], tuning=p, buckets=[8], output="o")):
    for path in (*sys.argv[1:], "x" * 300):
        try:
            act(path)
        except (InputError, ModelError) as error:
            print(error)
"""


def test_paths_out_of_reach(micro_model: Path, common: Path) -> None:
    model = for_all(Path(shutil.copytree(micro_model, common / "model")))
    closed = for_all(Path(shutil.copytree(micro_model, common / "closed" / "model")))
    closed.parent.chmod(0o700)
    code, said = run(READ, model, closed, closed / "model.onnx", prepare=as_nobody)
    assert (code, said.count("cannot read")) == (0, 7 * 3), said


def test_a_user_without_a_name_and_a_home(micro_model: Path, common: Path) -> None:
    place = for_all(Path(shutil.copytree(micro_model, common / "model")))
    program = "import sys, sparsec; from sparsec import cache; "
    program += "e = sparsec.Engine(sys.argv[1], buckets=[4], target='generic'); "
    program += "print(e.artifact.path.parent == cache.folder(), cache.folder())"
    (common / "tmp").mkdir()
    (common / "tmp").chmod(0o1777)
    for home in ({}, {"HOME": "/"}, {"HOME": "/no/such/home"}):
        code, said = run(program, place, prepare=as_nobody, TMPDIR=str(common / "tmp"), **home)
        assert (code, said) == (0, f"True {common}/tmp/sparsec-cache-{NOBODY}\n")
    made = common / "tmp" / f"sparsec-cache-{NOBODY}"
    assert stat.S_IMODE(made.stat().st_mode) == 0o700


def nobody_is_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_a_cache_that_is_a_trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code is loaded from the cache, so a folder that others can write is no cache."""
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", nobody_is_home)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mine = cache.folder()
    assert mine.parent == tmp_path and stat.S_IMODE(mine.stat().st_mode) == 0o700
    mine.chmod(0o777)
    with pytest.raises(ArtifactError, match="belongs to somebody else; set XDG_CACHE_HOME"):
        cache.folder()
    mine.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    mine.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="belongs to somebody else"):
        cache.folder()


def test_the_cache_is_where_it_always_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.folder().parent == Path(os.environ["XDG_CACHE_HOME"])
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.folder() == tmp_path / ".cache" / "sparsec"


def test_temporary_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    with scratch.temporary("x-") as folder:
        assert folder.parent == tmp_path / "tmp" and stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not folder.exists()
    # The working directory, which is Python's last resort, is not ours.
    monkeypatch.delenv("TMPDIR")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "tmp"))
    with scratch.temporary("x-") as folder:
        assert folder.parent == tmp_path / "tmp"


def test_profile_and_tune_without_a_temporary_folder(
    micro_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch, "_parents", lambda: iter(()))
    with pytest.raises(ArtifactError, match="no place for temporary files"):
        sparsec.compile(
            micro_model, buckets=[8], output=tmp_path / "m.sparsec", target="generic", tune=True
        )
