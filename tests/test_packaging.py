"""What pip gets: an sdist that builds anywhere, and an installation that is whole."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sparsec.compiler import toolchain
from tests.server_support import ONE_ANSWER, TextModels

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
        *("tests/", "examples/", "release/"),
    )
    missing = [
        name
        for name in listing
        if name.startswith(folders) and (ROOT / name).exists() and name not in names
    ]
    # The models of the examples come with a git clone only.
    assert [name for name in missing if not re.fullmatch(r"examples/models/.*\.onnx", name)] == []
    assert {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "setup.py"} <= names
    built = [
        name
        for name in names
        if name.endswith((".so", ".pyc", "/_engine.c", "/_loader.c", "/_rows.c", "/_words.c"))
    ]
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


@dataclass(frozen=True)
class Snippet:
    """A block of code of the README."""

    heading: str
    language: str
    text: str

    def lines(self, start: str) -> list[str]:
        """Its commands that begin so, without comments."""
        found = [line.partition("  #")[0].strip() for line in self.text.splitlines()]
        return [line for line in found if line.startswith(start)]


def snippets() -> list[Snippet]:
    """All blocks of the README, in order."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = []
    for section in re.split(r"^##+ ", text, flags=re.M):
        heading, _, rest = section.partition("\n")
        blocks = re.findall(r"^```(\w*)\n(.*?)^```", rest, re.S | re.M)
        found += [Snippet(heading, language, code) for language, code in blocks]
    return found


def snippet(heading: str, language: str = "") -> Snippet:
    (found,) = (s for s in snippets() if (s.heading, s.language) == (heading, language))
    return found


def test_every_snippet_of_the_readme_is_run() -> None:
    """`make demo` by test_minilm.py, C below, the others twice in a row by the test after that."""
    assert [(s.heading, s.language) for s in snippets()] == [
        ("See it work", ""),
        ("Five minutes", ""),
        ("Text in, answers out", ""),
        ("Text in, answers out", "python"),
        ("Arrays in, arrays out", "python"),
        ("Over HTTP", ""),
        ("C", "c"),
    ]
    extras = set(re.findall(r"^([a-z]+) = \[", (ROOT / "pyproject.toml").read_text(), re.M))
    installed = [line for s in snippets() for line in s.lines("pip install ")]
    assert len(installed) == 3
    for line in installed:
        for word in shlex.split(line)[2:]:
            named = re.fullmatch(r"\.\[([a-z,]+)\]", word)
            if named:
                assert set(named[1].split(",")) <= extras, line
            else:
                assert (ROOT / word / "pyproject.toml").is_file(), line


def test_c_of_the_readme(tmp_path: Path) -> None:
    """It compiles as it stands, once its names are declared."""
    source = tmp_path / "snippet.c"
    source.write_text(
        '#include <dlfcn.h>\n#include <stdlib.h>\n#include "sparsec.h"\n'
        "int run(const void *const *inputs, void *const *outputs, int64_t batch) {\n"
        f"{snippet('C', 'c').text}\n(void)bucket, (void)info; return status;\n}}\n"
    )
    command = [*toolchain.find().command, "-std=c11", "-fsyntax-only", "-Wall", "-Werror"]
    checked([*command, f"-I{ROOT / 'templates'}", str(source)])


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(the bin folder of an environment with what the README installs, the clone it came from)."""
    clone = tmp_path_factory.mktemp("clone") / "sparsec"
    copy_tree(clone)
    home = tmp_path_factory.mktemp("normal") / "env"
    python, env, _ = environment(home)
    (line,) = snippet("Five minutes").lines("pip install ")
    checked([str(python), *INSTALL, *shlex.split(line)[2:]], cwd=clone, env=env)
    for folder in (clone, clone / "examples" / "models"):
        shutil.rmtree(folder / "build", ignore_errors=True)
    return home / "bin", clone


# Modules that a user's folder may happen to have, or that somebody put there.
HOSTILE = (
    "uvloop", "numpy", "json", "typing", "sanic", "subprocess", "argparse", "tokenizers", "onnx",
    "ziglang", "sitecustomize", "logging", "asyncio",
)  # fmt: skip


@pytest.mark.parametrize("hostile", [False, True])
@pytest.mark.parametrize("where", ["root", "elsewhere"])
def test_snippets_of_the_readme(
    installation: tuple[Path, Path], tmp_path: Path, where: str, hostile: bool
) -> None:
    """After ``pip install .``, in the clone, elsewhere (twice, as people do), and whatever lies
    around there."""
    programs, clone = installation
    if not (clone / "examples" / "models" / "ner" / "model.onnx").is_file():
        pytest.skip("the models come with a git clone")
    folder = tmp_path / "work folder"
    if where == "root":
        shutil.copytree(clone, folder, symlinks=True)
    else:
        folder.mkdir()
        (folder / "examples").symlink_to(clone / "examples")
    ran = tmp_path / "ran"
    if hostile:
        for name in HOSTILE:
            (folder / f"{name}.py").write_text(
                f"open({str(ran)!r}, 'a').write({name!r})\nraise ImportError({name!r})\n"
            )
    env = clean_environment(programs.parent)
    env["PATH"] = f"{programs}{os.pathsep}{env['PATH']}"
    for _ in range(2 if where == "elsewhere" and not hostile else 1):
        run_commands(folder, env)
        run_server(folder, env)
        if not hostile:  # Python itself runs what lies in the folder of a prompt
            run_python(folder, env)
    assert not ran.exists(), ran.read_text()
    if not hostile:
        code = "import sparsec, sparsec.cli, sparsec.runtime as r, sparsec_models as m; print("
        code += "sparsec.__file__, r.__file__, m.__file__)"
        for path in checked(["python", "-c", code], cwd=folder, env=env).split():
            assert Path(path).is_relative_to(programs.parent)


def run_commands(folder: Path, env: dict[str, str]) -> None:
    """The commands of the first minutes, measurements cut short."""
    quick = {"benchmark": " -t 0.1 -w 0"}
    commands = snippet("Five minutes").lines("sparsec ")
    assert len(commands) == 6
    for command in commands:
        line = command + quick.get(command.split()[1], "")
        checked(["sh", "-c", line], cwd=folder, env=env)
        if "inspect" in command or "hardware" in command:
            checked(["sh", "-c", f"python -m {line}"], cwd=folder, env=env)


def run_server(folder: Path, env: dict[str, str]) -> None:
    """The server and the request, at a port that is free."""
    (line,) = snippet("Over HTTP").lines("sparsec serve ")
    (request,) = snippet("Over HTTP").lines("curl ")
    body = shlex.split(request)[-1].encode()
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
                        with urllib.request.urlopen(found[1] + "/predict", body, 30) as answer:
                            assert b"nairobi" in answer.read().lower()
                        break
                else:
                    raise AssertionError("".join(said))
            finally:
                server.terminate()
            server.stderr.read()
        assert server.returncode == 0


def run_python(folder: Path, env: dict[str, str]) -> None:
    """The examples, as at the prompt: the working directory is first on the path."""
    said = []
    for heading in ("Text in, answers out", "Arrays in, arrays out"):
        done = subprocess.run(
            ["python", "-"], input=snippet(heading, "python").text, cwd=folder, env=env,
            text=True, capture_output=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert "LOC nairobi 20 27" in said[0]


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


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make wheels` makes for this Python."""
    if not all(map(importlib.util.find_spec, ("auditwheel", "ziglang"))):
        pytest.skip("wheels need auditwheel and ziglang: pip install .[wheels]")
    out = tmp_path_factory.mktemp("wheels")
    command = [sys.executable, "-m", "release.wheels", "--no-isolation", "--sdist", str(sdist)]
    said = checked([*command, "-o", str(out)], cwd=ROOT)
    (made,) = out.iterdir()
    assert said.split()[-1] == str(made)
    return made


def test_wheel_for_any_linux(wheel: Path, tiny_artifact: Path, tmp_path: Path) -> None:
    """It needs no symbol that glibc of 2014 lacks, and no CPU but x86-64's first."""
    assert f"manylinux2014_{platform.machine()}" in wheel.name
    report = checked([sys.executable, "-m", "auditwheel", "show", str(wheel)])
    assert f'following platform tag:\n"manylinux_2_17_{platform.machine()}"' in report
    needed = {tuple(map(int, v.split("."))) for v in re.findall(r"GLIBC_([\d.]+)", report)}
    assert (2, 2, 5) in needed and max(needed) <= (2, 17)
    with zipfile.ZipFile(wheel) as archive:
        objects = [name for name in archive.namelist() if name.endswith(".so")]
    assert {Path(name).name.split(".")[0] for name in objects} == {
        "_engine", "_loader", "_rows", "_words",
    }  # fmt: skip
    assert wheel.stat().st_size < 3_000_000

    python, env, site = environment(tmp_path / "env")
    checked([str(python), *INSTALL, str(wheel)], cwd=tmp_path, env=env)
    code = "import sys, sparsec; x = sparsec.generate_random_inputs(sys.argv[1])\n"
    code += "with sparsec.Engine(sys.argv[1]) as e: print(sparsec.__file__, e.run(x)[0].shape)"
    answer = checked([str(python), "-c", code, str(tiny_artifact)], cwd=tmp_path, env=env)
    assert answer.startswith(str(site)) and "(1, " in answer


# Python whose environments have the packages of this one: deploy/image.sh without a network.
PYTHON = """#!/bin/sh
"{python}" "$@" || exit
case "$*" in *venv*)
    for home; do :; done
    for site in "$home"/lib/*/site-packages; do cp "{pth}" "$site"; done
esac
"""


def test_image(wheel: Path, text_models: TextModels, tmp_path: Path) -> None:
    """The steps of deploy/Containerfile, run as they are: what comes out serves."""
    model = text_models["text-classification"].parent
    source, opt = tmp_path / "source", tmp_path / "opt" / "sparsec"
    (source / "model").mkdir(parents=True)
    for name in ("model.onnx", "tokenizer.json", "config.json"):
        if (model / name).exists():
            shutil.copy(model / name, source / "model")
    environment(tmp_path / "other")
    (pth,) = (tmp_path / "other").glob("lib/*/site-packages/requirements.pth")
    python = tmp_path / "python"
    python.write_text(PYTHON.format(python=sys.executable, pth=pth))
    python.chmod(0o755)
    script = ROOT / "deploy" / "image.sh"
    env = clean_environment(tmp_path) | {
        "PYTHON": str(python), "WHEEL": str(wheel), "PIP_ARGS": "--no-index --no-deps",
    }  # fmt: skip
    build = ["sh", str(script), "build", str(source), str(opt), "model", "16", "generic"]
    checked(build, cwd=tmp_path, env=env)
    assert {path.name for path in opt.iterdir()} == {"venv", "model.sparsec"}
    shutil.copy(script, opt)
    env |= {"PATH": f"{opt / 'venv' / 'bin'}:/usr/bin:/bin", "SPARSEC_TASK": "sentiment-analysis"}
    with subprocess.Popen(
        ["sh", str(opt / "image.sh"), "serve", "--port", "0"],
        cwd="/", env=env, stderr=subprocess.PIPE, text=True,
    ) as server:  # fmt: skip
        assert server.stderr is not None
        try:
            said = ""
            for line in server.stderr:
                said += line
                if found := re.search(r"ready at http://\S+?:(\d+):", said):
                    break
            assert found, said
            url = f"http://127.0.0.1:{found[1]}/predict"
            with urllib.request.urlopen(url, b'{"sequences": "good"}', 30) as answer:
                assert b"labels" in answer.read()
        finally:
            server.terminate()
        server.stderr.read()
    assert server.returncode == 0


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


# ---- without the compiler ------------------------------------------------------------------------


def closure(names: list[str]) -> Iterator[importlib.metadata.Distribution]:
    """Distributions of these names and all that they require, without extras."""
    seen: set[str] = set()
    while names:
        name = names.pop()
        if name.lower() in seen:
            continue
        seen.add(name.lower())
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # of another platform or Python
        yield found
        for text in found.requires or ():
            if "extra ==" not in text:
                names.append(re.split(r"[\s<>=!~;\[(]", text, maxsplit=1)[0])


def requirements(extra: str) -> list[str]:
    """Names that our own metadata asks for, without and with an extra."""
    rows = importlib.metadata.requires("sparsec") or []
    wanted = [row for row in rows if "extra ==" not in row or f'extra == "{extra}"' in row]
    return [re.split(r"[\s<>=!~;\[(]", row, maxsplit=1)[0] for row in wanted]


@pytest.fixture(scope="module")
def package(installation: tuple[Path, Path]) -> Path:
    """The package as pip installs it, a folder."""
    home = str(installation[0].parent)
    places = {"base": home, "platbase": home}
    return Path(sysconfig.get_path("purelib", vars=places, scheme="venv")) / "sparsec"


def bare(home: Path, package: Path, extra: str = "") -> Path:
    """Python of an environment with the package and what its metadata names, nothing else."""
    venv.create(home, with_pip=False)
    site = Path(
        sysconfig.get_path(
            "purelib", vars={"base": str(home), "platbase": str(home)}, scheme="venv"
        )
    )
    shutil.copytree(package, site / "sparsec")
    names = requirements(extra) + (requirements("text") if extra == "serve" else [])
    for found in closure([name for name in names if name != "sparsec"]):
        for name in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            if not (site / name).exists():
                (site / name).symlink_to(Path(str(found.locate_file(name))))
    return home / "bin" / "python"


RUN = """
import sys, sparsec
for name in ("onnx", "jinja2", "google.protobuf"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    sys.exit(f"{name} is here")
inputs = sparsec.generate_random_inputs(sys.argv[1])
with sparsec.Engine(sys.argv[1]) as engine:
    (expected,) = engine.run(inputs)
session = sparsec.InferenceSession(sys.argv[1])
feed = {node.name: x.tolist() for node, x in zip(session.get_inputs(), inputs)}
assert (session.run(None, feed)[0] == expected).all()
for refused, options in ((sparsec.compile, {"buckets": [8]}), (sparsec.Engine, {})):
    try:
        refused(sys.argv[2], **options)
    except sparsec.InputError as error:
        print(error)
"""


def test_artifacts_run_with_numpy_alone(
    package: Path, tiny_artifact: Path, tiny_model: Path, tmp_path: Path
) -> None:
    python = bare(tmp_path / "env", package)
    env = clean_environment(tmp_path)
    command = [str(python), "-c", RUN, str(tiny_artifact), str(tiny_model / "model.onnx")]
    said = checked(command, cwd=tmp_path, env=env)
    assert said.count("is not installed: pip install 'sparsec[compile]'") == 2

    sparsec = [str(python), "-m", "sparsec"]
    for line in (["inspect"], ["benchmark", "-t", "0.1", "-w", "0"]):
        checked([*sparsec, *line, str(tiny_artifact)], cwd=tmp_path, env=env)
    checked([*sparsec, "check-hardware"], cwd=tmp_path, env=env)
    for line in (["compile", "--buckets", "8"], ["inspect"], ["benchmark"]):
        done = subprocess.run(
            [*sparsec, *line, str(tiny_model / "model.onnx")], cwd=tmp_path, env=env, text=True,
            capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 8 and done.stderr.count("\n") == 1, done.stderr
        assert "pip install 'sparsec[compile]'" in done.stderr


PIPELINE = """
import sys
import sparsec
with sparsec.Pipeline.create(task="text-classification", model_path=sys.argv[1]) as pipeline:
    print(pipeline("a text").labels)
"""


def test_pipelines_and_the_server_too(
    package: Path, text_models: TextModels, tmp_path: Path
) -> None:
    python = bare(tmp_path / "env", package, "serve")
    program = PIPELINE + ONE_ANSWER + 'print("onnx" in sys.modules)'
    command = [str(python), "-c", program, str(text_models["text-classification"])]
    said = checked(command, cwd=tmp_path, env=clean_environment(tmp_path))
    assert '"labels"' in said and "Traceback" not in said and said.rstrip().endswith("False")
