"""What pip gets: an sdist that builds anywhere, and an installation that is whole."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.slow


def checked(command: list[str], **options: object) -> str:
    """Run a command, show what it said if it fails, return its output."""
    result = subprocess.run(command, capture_output=True, text=True, **options)  # type: ignore[call-overload]
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return str(result.stdout)


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An sdist made from a clean copy of the tree."""
    if not (ROOT / ".git").exists():
        pytest.skip("only in a git checkout is it known which files are the project's")
    copy, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    listing = checked(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT)
    for name in listing.splitlines():
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(out)!r})"
    checked([sys.executable, "-c", code], cwd=copy)
    (archive,) = out.glob("sparsec-*.tar.gz")
    return archive


def test_sdist_holds_all_sources(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    listing = checked(["git", "ls-files"], cwd=ROOT).splitlines()
    folders = ("sparsec/", "compiler/", "templates/", "runtime/", "serving/", "tests/", "examples/")
    missing = [
        name
        for name in listing
        if name.startswith(folders) and (ROOT / name).exists() and name not in names
    ]
    assert missing == []
    assert {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "setup.py"} <= names
    built = [name for name in names if name.endswith((".so", ".pyc", "/_engine.c", "/_loader.c"))]
    assert built == []


COMPILERS = [
    None,
    pytest.param(
        "zig",
        marks=pytest.mark.skipif(
            not importlib.util.find_spec("ziglang"), reason="ziglang is not installed"
        ),
    ),
]


@pytest.mark.parametrize("compiler", COMPILERS, ids=["system", "zig"])
def test_install_from_sdist(
    sdist: Path, tiny_model: Path, tmp_path: Path, compiler: str | None
) -> None:
    """In a fresh environment, with the usual compiler and with none but zig."""
    home = tmp_path / "env"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    # The requirements, and pip itself, come from this environment: the test needs no network.
    site = sysconfig.get_path(
        "purelib", vars={"base": str(home), "platbase": str(home)}, scheme="venv"
    )
    (Path(site) / "requirements.pth").write_text(sysconfig.get_path("purelib") + "\n")
    env = {k: v for k, v in os.environ.items() if k not in ("CC", "PYTHONPATH")}
    env["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    if compiler:
        env["CC"] = f"{python} -m ziglang cc"
        env["PATH"] = str(home / "bin")
    install = ["-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps", "--no-index"]
    install.append("--ignore-installed")
    checked([str(python), *install, str(sdist)], cwd=tmp_path, env=env)

    where = checked(
        [str(python), "-c", "import sparsec.runtime as r; print(r.__file__)"], cwd=tmp_path, env=env
    )
    assert Path(where.strip()).is_relative_to(home)
    pages = {path.name for path in (home / "share/man/man1").iterdir()}
    commands = ("", "-compile", "-inspect", "-benchmark", "-check-hardware")
    assert pages >= {f"sparsec{command}.1" for command in commands}
    assert "--buckets" in (home / "share/man/man1/sparsec-compile.1").read_text().replace("\\", "")
    typed = Path(site) / "sparsec" / "py.typed"
    assert typed.exists()

    sparsec = str(home / "bin" / "sparsec")
    output = tmp_path / "tiny.sparsec"
    checked(
        [sparsec, "compile", str(tiny_model), "--buckets", "8", "-o", str(output)],
        cwd=tmp_path,
        env=env,
    )
    report = json.loads(checked([sparsec, "inspect", str(output), "--json"], cwd=tmp_path, env=env))
    assert report["runs_here"] and [b["length"] for b in report["buckets"]] == [8]
    if compiler:
        assert report["toolchain"]["compiler"] == "zig"
    quick = ["-t", "0.1", "-w", "0"]
    said = checked([sparsec, "benchmark", str(output), *quick], cwd=tmp_path, env=env)
    assert "Throughput (items/sec): " in said
