"""Completion in shells, by a shell."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sparsec.cli import COMMANDS, main

pytest.importorskip("shtab", reason="pip install .[completion]")


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script for bash, as the command prints it."""
    file = tmp_path_factory.mktemp("completion") / "sparsec.bash"
    command = [sys.executable, "-m", "sparsec", "--print-completion", "bash"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    file.write_text(done.stdout)
    return file


def test_bash(printed: Path, tmp_path: Path) -> None:
    (tmp_path / "a_model.onnx").touch()
    (tmp_path / "a_folder").mkdir()
    cases = {
        "sparsec comp": {"compile"},
        "sparsec ": {command.__name__.rpartition(".")[2].replace("_", "-") for command in COMMANDS},
        "sparsec compile --tune-f": {"--tune-for"},
        "sparsec compile a_": {"a_model.onnx", "a_folder"},
        "sparsec compile m.onnx --emit-c a_": {"a_folder"},
        "sparsec benchmark -s sy": {"sync"},
        "sparsec compile m.onnx --target av": {"avx2", "avx512_vnni", "avx_vnni"},
        "sparsec evaluate x --against a_m": {"a_model.onnx"},
        "sparsec serve a_f": {"a_folder"},
    }
    lines = [f"source {printed}"]
    for line in cases:
        words = line.split(" ")
        quoted = " ".join(f'"{word}"' for word in words)
        lines += [
            f"COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; COMPREPLY=(); _shtab_sparsec",
            'echo "${COMPREPLY[@]}"',
        ]
    done = subprocess.run(
        ["bash", "-c", "\n".join(lines)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    found = dict(zip(cases, map(str.split, done.stdout.splitlines()), strict=True))
    for line, expected in cases.items():
        assert set(found[line]) >= expected, line
        assert all(word.startswith(line.split(" ")[-1]) for word in found[line]), line


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["--print-completion", shell])
    assert done.value.code == 0
    text = capsys.readouterr().out
    assert {"zsh": "#compdef sparsec", "tcsh": "complete sparsec"}[shell] in text
    assert "check-hardware" in text and "sparseml" in text  # a command, and a flag's value


def test_says_what_brings_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["--print-completion", "bash"]) == 8
    assert "pip install 'sparsec[completion]'" in capsys.readouterr().err
