"""What pip gets: an sdist that builds anywhere, and an installation that is whole."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import urllib.request
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.slow


def checked(command: list[str], **options: object) -> str:
    """Run a command, show what it said if it fails, return its output."""
    result = subprocess.run(command, capture_output=True, text=True, **options)  # type: ignore[call-overload]
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return str(result.stdout)


def copy_tree(copy: Path) -> None:
    """A clean copy of the tree."""
    if not (ROOT / ".git").exists():
        pytest.skip("only in a git checkout is it known which files are the project's")
    listing = checked(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT)
    for name in listing.splitlines():
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)


INSTALL = [
    "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps", "--no-index",
    "--ignore-installed",
]  # fmt: skip


def clean_environment(folder: Path) -> dict[str, str]:
    """Variables of a user who has set none of ours."""
    env = {k: v for k, v in os.environ.items() if k not in ("CC", "PYTHONPATH", "PYTHONSAFEPATH")}
    env["XDG_CACHE_HOME"] = str(folder / "cache")
    return env


def environment(home: Path) -> tuple[Path, dict[str, str], Path]:
    """(python, variables, folder of packages) of a fresh environment.

    The requirements, and pip itself, come from this environment: the tests need no network.
    """
    venv.create(home, with_pip=False)
    site = sysconfig.get_path(
        "purelib", vars={"base": str(home), "platbase": str(home)}, scheme="venv"
    )
    folders = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (Path(site) / "requirements.pth").write_text("\n".join(folders) + "\n")
    return home / "bin" / "python", clean_environment(home), Path(site)


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An sdist made from a clean copy of the tree."""
    copy, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    copy_tree(copy)
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(out)!r})"
    checked([sys.executable, "-c", code], cwd=copy)
    (archive,) = out.glob("sparsec-*.tar.gz")
    return archive


def test_sdist_holds_all_sources(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    listing = checked(["git", "ls-files"], cwd=ROOT).splitlines()
    folders = (
        *("sparsec/", "compiler/", "templates/", "runtime/", "serving/", "pruning/"),
        *("tests/", "examples/"),
    )
    missing = [
        name
        for name in listing
        if name.startswith(folders) and (ROOT / name).exists() and name not in names
    ]
    # The models of the examples come with a git clone only.
    assert [name for name in missing if not re.fullmatch(r"examples/models/.*\.onnx", name)] == []
    assert {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "setup.py"} <= names
    built = [name for name in names if name.endswith((".so", ".pyc", "/_engine.c", "/_loader.c"))]
    assert built == []


def test_sdist_is_light(sdist: Path) -> None:
    """No models: they are 40 MB, and who installs the package does not need them."""
    assert sdist.stat().st_size < 3_000_000
    with tarfile.open(sdist) as archive:
        heavy = {m.name: m.size for m in archive.getmembers() if m.size > 400_000}
        models = {
            m.name: m.size
            for m in archive.getmembers()
            if m.name.endswith((".onnx", ".data")) and m.size > 10_000
        }
    assert heavy == models == {}


def test_wheel_is_the_same_from_tree_and_sdist(sdist: Path, tmp_path: Path) -> None:
    copy_tree(tmp_path / "tree")
    (tmp_path / "sdist").mkdir()
    checked(["tar", "xzf", str(sdist)], cwd=tmp_path / "sdist")
    (unpacked,) = (tmp_path / "sdist").iterdir()
    found = {}
    for source in (tmp_path / "tree", unpacked):
        out = tmp_path / f"wheel of {source.name}"
        code = f"from setuptools import build_meta; build_meta.build_wheel({str(out)!r})"
        checked([sys.executable, "-c", code], cwd=source)
        (wheel,) = out.glob("sparsec-*.whl")
        assert wheel.stat().st_size < 3_000_000
        with zipfile.ZipFile(wheel) as archive:
            found[source] = sorted(archive.namelist())
    from_tree, from_sdist = found.values()
    assert from_tree == from_sdist
    top = {name.split("/")[0] for name in from_tree}
    assert {name for name in top if not name.startswith("sparsec-0")} == {"sparsec"}


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(the bin folder of an environment with ``pip install .``, the clone that it came from)."""
    clone = tmp_path_factory.mktemp("clone") / "sparsec"
    copy_tree(clone)
    home = tmp_path_factory.mktemp("normal") / "env"
    python, env, _ = environment(home)
    checked([str(python), *INSTALL, "."], cwd=clone, env=env)
    shutil.rmtree(clone / "build", ignore_errors=True)
    return home / "bin", clone


# Modules that a user's folder may happen to have, or that somebody put there.
HOSTILE = (
    "uvloop", "numpy", "json", "typing", "sanic", "subprocess", "argparse", "tokenizers", "onnx",
    "ziglang", "sitecustomize", "logging", "asyncio",
)  # fmt: skip


def blocks(language: str, heading: str) -> list[str]:
    """The code blocks of a section of the README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = re.split(r"^##+ ", text.split(heading + "\n", 1)[1], flags=re.M)[0]
    return re.findall(rf"^```{language}\n(.*?)^```", section, re.S | re.M)


@pytest.mark.parametrize("hostile", [False, True])
@pytest.mark.parametrize("where", ["root", "elsewhere"])
def test_commands_of_the_readme(
    installation: tuple[Path, Path], tiny_model: Path, tmp_path: Path, where: str, hostile: bool
) -> None:
    """After ``pip install .``, in the clone and elsewhere, whatever lies around there."""
    programs, clone = installation
    folder = tmp_path / "work folder"
    if where == "root":
        shutil.copytree(clone, folder, symlinks=True)
    else:
        folder.mkdir()
        (folder / "examples").symlink_to(clone / "examples")
    shutil.copy(tiny_model / "model.onnx", folder)
    ran = tmp_path / "ran"
    if hostile:
        for name in HOSTILE:
            (folder / f"{name}.py").write_text(
                f"open({str(ran)!r}, 'a').write({name!r})\nraise ImportError({name!r})\n"
            )
    env = clean_environment(programs.parent)
    env["PATH"] = f"{programs}{os.pathsep}{env['PATH']}"
    quick = {"benchmark": " -t 0.1 -w 0"}
    (block,) = blocks("", "## Five minutes")
    commands = [line.partition("#")[0].strip() for line in block.splitlines()]
    commands = [command for command in commands if command.startswith("sparsec ")]
    assert len(commands) >= 6
    for command in commands:
        line = command + quick.get(command.split()[1], "")
        checked(["sh", "-c", line], cwd=folder, env=env)
        if "inspect" in command or "hardware" in command:
            checked(["sh", "-c", f"python -m {line}"], cwd=folder, env=env)

    (line,) = (
        line for line in blocks("", "### Over HTTP")[0].splitlines() if line.startswith("sparsec s")
    )
    for start in ([], ["python", "-m"]):
        with subprocess.Popen(
            [*start, *shlex.split(line), "--port", "0"], cwd=folder, env=env, text=True,
            stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
        ) as server:  # fmt: skip
            assert server.stderr is not None
            said = []
            try:
                for text in server.stderr:
                    said.append(text)
                    if found := re.search(r"ready at (http://\S+):", text):
                        body = b'{"inputs": "Mary is flying from Nairobi to New York"}'
                        with urllib.request.urlopen(found[1] + "/predict", body, 30) as answer:
                            assert b"Nairobi".lower() in answer.read().lower()
                        break
                else:
                    raise AssertionError("".join(said))
            finally:
                server.terminate()
            server.stderr.read()
        assert server.returncode == 0
    assert not ran.exists(), ran.read_text()
    if hostile:
        return  # Python itself runs what lies in the folder of a prompt

    examples = [*blocks("python", "### Python"), *blocks("python", "### Text in, answers out")]
    assert len(examples) == 2
    shutil.rmtree(folder / "model.sparsec")
    for code in examples:
        # As at the prompt: the working directory is first on the path.
        said = subprocess.run(
            ["python", "-"], input=code, cwd=folder, env=env, text=True, capture_output=True
        )
        assert said.returncode == 0, said.stderr
    assert "nairobi" in said.stdout
    code = "import sparsec, sparsec.cli, sparsec.runtime as r; print(sparsec.__file__, r.__file__)"
    for path in checked(["python", "-c", code], cwd=folder, env=env).split():
        assert Path(path).is_relative_to(programs.parent)


def test_sources_that_are_not_installed(installation: tuple[Path, Path], tmp_path: Path) -> None:
    """In the root of a clone, what needs no compiled part works."""
    _, clone = installation
    home = tmp_path / "env"
    python, env, _ = environment(home)
    code = "import sparsec, sparsec.compiler.ir as ir; print(ir.__file__)"
    assert Path(checked([str(python), "-c", code], cwd=clone, env=env).strip()) == (
        clone / "compiler" / "ir.py"
    )
    assert "sparsec 0" in checked([str(python), "-m", "sparsec", "--version"], cwd=clone, env=env)


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
    python, env, site = environment(home)
    if compiler:
        env["CC"] = f"{python} -m ziglang cc"
        env["PATH"] = str(home / "bin")
    checked([str(python), *INSTALL, str(sdist)], cwd=tmp_path, env=env)

    where = checked(
        [str(python), "-c", "import sparsec.runtime as r; print(r.__file__)"], cwd=tmp_path, env=env
    )
    assert Path(where.strip()).is_relative_to(home)
    pages = {path.name for path in (home / "share/man/man1").iterdir()}
    names = ("compile", "inspect", "benchmark", "sparsify", "evaluate", "check-hardware")
    commands = ("", *(f"-{name}" for name in names))
    assert pages >= {f"sparsec{command}.1" for command in commands}
    assert "--buckets" in (home / "share/man/man1/sparsec-compile.1").read_text().replace("\\", "")
    typed = site / "sparsec" / "py.typed"
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
