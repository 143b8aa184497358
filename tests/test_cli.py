"""The command line as users see it: what it prints, where, and its exit codes."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import shlex
import shutil
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

import sparsec
from sparsec import console, targets
from sparsec.cli import all_parsers, benchmark, main
from sparsec.compiler import toolchain
from sparsec.errors import InputError
from sparsec.progress import Bar, Step
from sparsec.runtime import Artifact

COMMANDS = (
    "compile",
    "inspect",
    "benchmark",
    "run",
    "sparsify",
    "evaluate",
    "buckets",
    "serve",
    "check-hardware",
)


def run(*args: str | Path) -> int:
    return main([str(arg) for arg in args])


def unsupported_model(folder: Path) -> Path:
    """Two nodes that sparsec has no op for, one that it has."""
    nodes = [
        helper.make_node("NonZero", ["x"], ["a"], name="first"),
        helper.make_node("Abs", ["x"], ["b"], name="fine"),
        helper.make_node("Det", ["m"], ["c"], name="second"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "sequence"]),
            helper.make_tensor_value_info("m", TensorProto.FLOAT, ["batch", 3, 3]),
        ],
        [
            helper.make_tensor_value_info("a", TensorProto.INT64, [2, "n"]),
            helper.make_tensor_value_info("b", TensorProto.FLOAT, ["batch", "sequence"]),
            helper.make_tensor_value_info("c", TensorProto.FLOAT, ["batch"]),
        ],
    )
    path = folder / "model.onnx"
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


# ---- help and usage ------------------------------------------------------------------------------


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as info:
        run("--version")
    assert info.value.code == 0
    assert capsys.readouterr().out == f"sparsec {sparsec.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_defaults(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as info:
        run(command, "--help")
    assert info.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"usage: sparsec {command}" in text
    assert "(default: None)" not in text and "(default: False)" not in text
    expected = {
        "compile": ["(default: auto)", "--emit-c DIR", "--dump-ir DIR", "(default: 1)"],
        "inspect": ["(default: 128, or", "--json"],
        "benchmark": ["(default: 10.0)", "(default: 2.0)", "(default: async)", "-nstreams N"],
        "run": ["(default: text)", "--task TASK", "--bad-rows FILE", "--ray ADDRESS"],
        "sparsify": ["(default: auto)", "--texts FILE", "--speedup X"],
        "evaluate": ["(default: 5.0)", "--against REFERENCE", "--at-least METRIC=VALUE"],
        "buckets": ["(default: 4)", "--plot FILE", "--tokenizer PATH"],
        "serve": ["(default: 5543)", "--hot-reload-config", "--config-file FILE"],
        "check-hardware": ["--json"],
    }
    for part in expected[command]:
        assert part in text


def test_every_target_can_be_chosen() -> None:
    parser = next(p for p in all_parsers() if p.prog == "sparsec compile")
    for name in ("auto", *targets.NAMES):
        assert parser.parse_args(["m.onnx", "--target", name]).target == name


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["compile"],
        ["compile", "m.onnx", "--buckets", "16,x"],
        ["compile", "m.onnx", "--buckets", "0"],
        ["compile", "m.onnx", "--target", "sse"],
        ["compile", "m.onnx", "-q", "-v"],
        ["benchmark", "m.onnx", "-i", "[1,a]"],
        ["benchmark", "m.onnx", "-t", "-1"],
        ["benchmark", "m.onnx", "-s", "fast"],
        ["frobnicate"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_code_2(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as info:
        run(*args)
    assert info.value.code == 2
    assert "usage: sparsec" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("whole", "short"),
    [
        ("compile m.onnx --force", "compile m.onnx --forc"),
        ("compile m.onnx --batch-size 3", "compile m.onnx --batch 3"),
        ("benchmark m.onnx -nstreams 3", "benchmark m.onnx -nstr 3"),
        ("benchmark m.onnx -ncores 3", "benchmark m.onnx -nc 3"),
        ("benchmark m.onnx -t5", "benchmark m.onnx --tim 5"),
        ("serve --task=ner", "serve --tas=ner"),
        ("--version", "--versio"),
    ],
)
def test_flags_are_taken_by_their_whole_names(
    whole: str, short: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = all_parsers()[0]
    if whole == "--version":
        with pytest.raises(SystemExit) as done:
            parser.parse_args([whole])
        assert done.value.code == 0
    else:
        parser.parse_args(whole.split())
    capsys.readouterr()
    with pytest.raises(SystemExit) as info:
        parser.parse_args(short.split())
    assert info.value.code == 2
    said = capsys.readouterr()
    assert "unrecognized arguments" in said.err or (whole == "--version" and not said.out)


def test_every_parser_refuses_parts_of_flags() -> None:
    assert len(all_parsers()) == len(COMMANDS) + 1
    for parser in all_parsers():
        for name in (n for action in parser._actions for n in action.option_strings if len(n) > 4):
            found = parser._get_option_tuples(name[:-1])
            assert all(name[:-1].startswith(row[1]) for row in found), (parser.prog, name)


def test_help_needs_none_of_the_heavy_imports() -> None:
    code = (
        "import sys\n"
        "from sparsec.cli import all_parsers\n"
        "all_parsers()[0].format_help()\n"
        "print(sorted({'numpy', 'onnx', 'jinja2', 'platformdirs'} & set(sys.modules)))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "[]\n", result.stderr


def test_python_m_sparsec() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "sparsec", "--version"], capture_output=True, text=True
    )
    assert result.stdout.startswith("sparsec ") and result.returncode == 0


# ---- compile -------------------------------------------------------------------------------------


def test_compile_writes_beside_the_model(
    micro_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(micro_model, folder)
    assert run("compile", folder, "--buckets", "16,8", "--target", "generic") == 0
    captured = capsys.readouterr()
    # Without a terminal, one line for scripts.
    assert (captured.out, captured.err) == (f"{folder / 'model.sparsec'}\n", "")
    artifact = Artifact.load(folder / "model.sparsec")
    assert artifact.buckets == (8, 16)
    assert (folder / "model.sparsec" / "config.json").read_text() == '{"vocab_size": 32}\n'

    assert run("compile", folder, "--buckets", "4", "--target", "generic") == 6
    assert "--force" in capsys.readouterr().err
    options = ["--buckets", "4", "--target", "generic", "--force", "-v"]
    assert run("compile", folder, *options) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{folder / 'model.sparsec'}\n"
    for stage in ("loading", "importing bucket 4", "generating C", "compiled", "linked", "writing"):
        assert f"sparsec: {stage}" in captured.err
    assert Artifact.load(folder / "model.sparsec").buckets == (4,)


def test_compile_keeps_the_c_and_the_ir(micro_model: Path, tmp_path: Path) -> None:
    output, tree, dump = tmp_path / "m.sparsec", tmp_path / "c", tmp_path / "ir"
    options = ["--buckets", "8", "--target", "generic", "--emit-c", tree, "--dump-ir", dump]
    assert run("compile", micro_model / "model.onnx", "-o", output, *options) == 0
    assert not (output / "config.json").exists()  # only a folder's companions are packed

    source = "".join(path.read_text() for path in (tree / "bucket_8").glob("*.c"))
    assert "project" in source
    assert str(tmp_path) not in source
    steps = sorted(path.name for path in (dump / "bucket_8").iterdir())
    assert steps[0] == "00-import.txt" and len(steps) > 3
    assert steps == [f"{i:02d}-{name.split('-', 1)[1]}" for i, name in enumerate(steps)]
    assert "linear(" in (dump / "bucket_8" / steps[-2]).read_text()
    assert steps[-1].endswith("-plan.txt")
    plan = (dump / "bucket_8" / steps[-1]).read_text()
    assert "bucket of 8 tokens" in plan and "project" in plan and "buffers" in plan

    env = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL")}
    command = ["make", "-s", f"CC={shlex.join(toolchain.find().command)}"]
    subprocess.run(command, cwd=tree, env=env, check=True)
    for library in output.glob("*.so"):
        assert (tree / library.name).read_bytes() == library.read_bytes()


def test_same_model_same_bytes(micro_model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "some" / "other" / "place"
    shutil.copytree(micro_model, copy)
    outputs = []
    for model, jobs in ((micro_model, "1"), (copy, "2")):
        output = tmp_path / f"{jobs}.sparsec"
        options = ["--buckets", "4,8", "--target", "generic", "--jobs", jobs]
        script = "import sys; from sparsec.cli import main; sys.exit(main(sys.argv[1:]))"
        # Processes of their own: string hashes differ between them.
        command = [sys.executable, "-c", script, "compile", str(model), "-o", str(output)]
        subprocess.run([*command, *options], check=True)
        outputs.append({path.name: path.read_bytes() for path in output.iterdir()})
    assert outputs[0].keys() == outputs[1].keys()
    for name in outputs[0]:
        assert outputs[0][name] == outputs[1][name], name


def on_terminal(*args: str, stdout: bool = False, code: int = 0) -> str:
    """What a command prints when its standard error is a terminal, and its standard output too."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    said: list[bytes] = []

    def read() -> None:
        try:
            while chunk := os.read(leader, 4096):
                said.append(chunk)
        except OSError:  # the other side is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    done = subprocess.run(
        [sys.executable, "-m", "sparsec", *args], stderr=follower, check=False,
        stdout=follower if stdout else subprocess.DEVNULL,
    )  # fmt: skip
    os.close(follower)
    reader.join()
    os.close(leader)
    text = b"".join(said).decode()
    assert done.returncode == code, text
    return text


def screen(said: str) -> list[str]:
    """The lines that a terminal shows in the end."""
    lines, column = [""], 0
    for part in re.split(r"(\r|\n|\x1b\[A|\x1b\[K)", said):
        if part == "\n":
            lines.append("")
        if part in ("\r", "\n"):
            column = 0
        elif not part.startswith("\x1b"):
            lines[-1] = lines[-1][:column] + part + lines[-1][column + len(part) :]
            column += len(part)
    return [line.rstrip() for line in lines if line.strip()]


def test_a_bar_on_a_terminal(micro_model: Path, tmp_path: Path) -> None:
    output = str(tmp_path / "m.sparsec")
    options = ["--buckets", "4,8", "--target", "generic", "--force"]
    command = ["compile", str(micro_model), "-o", output, *options]
    said = on_terminal(*command, stdout=True)
    # The C compiler's bar counts up to all that there is, and is gone in the end.
    shown = re.findall(r"sparsec: compiling C: +\d+%\|[^|]*\| (\d+)/(\d+) \[\d+:\d+<", said)
    assert shown and len({total for _, total in shown}) == 1
    assert re.search(r"sparsec: preparing: +\d+%\|[^|]*\| \d/5", said)
    first, *_, last = screen(said)
    assert first.startswith("sparsec: loading ")
    assert re.fullmatch(rf"sparsec: done: {re.escape(output)}, [\d.]+ MB for generic, .*", last)
    assert not any("|" in line for line in screen(said))
    assert on_terminal(*command, "-q", stdout=True) == ""
    # With -v, lines.
    said = on_terminal(*command, "-v")
    assert "sparsec: importing bucket 4" in said and "sparsec: linked bucket_8.so" in said
    assert "%|" not in said


def test_the_bar_is_gone_when_something_fails(micro_model: Path, tmp_path: Path) -> None:
    cc = tmp_path / "cc"
    real = shlex.join(toolchain.find().command)
    cc.write_text(f'#!/bin/sh\ncase "$*" in *bucket_4*) exit 9;; esac\nexec {real} "$@"\n')
    cc.chmod(0o755)
    command = ["compile", str(micro_model), "-o", str(tmp_path / "m.sparsec"), "--cc", str(cc)]
    said = on_terminal(*command, "--buckets", "4", "--target", "generic", code=5)
    lines = screen(said)
    assert lines[1].startswith("sparsec: error: ") and not any("|" in line for line in lines)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_go_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    bar = Bar()
    bar("first")
    for done in (1, 2):
        bar(Step(f"step {done}", "training", done, 3, loss="0.5", agreement="0.98"))
        bar("warning: something")
    console.say("from elsewhere")
    shown = screen(terminal.getvalue())
    assert shown[:-1] == [
        "sparsec: first", *["sparsec: warning: something"] * 2, "sparsec: from elsewhere",
    ]  # fmt: skip
    assert "sparsec: training:" in shown[-1] and "2/3" in shown[-1]
    assert "loss=0.5, agreement=0.98" in shown[-1]
    bar(Step("step 3", "training", 3, 3))
    assert len(screen(terminal.getvalue())) == 4 and console.live is None
    # A run that goes on counts from where it was.
    bar(Step("step 90", "training", 90, 100))
    assert "90%" in screen(terminal.getvalue())[-1]
    console.clear()
    assert len(screen(terminal.getvalue())) == 4 and console.live is None


def test_a_bar_that_nobody_sees(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stream = os.fdopen(os.open("/dev/full", os.O_WRONLY), "w", buffering=1)
    monkeypatch.setattr(sys, "stderr", stream)
    bar = Bar()
    for done in range(3):
        bar(Step("step", "training", done, 3))
        bar("line")
    console.clear()
    stream.close()


# ---- inspect -------------------------------------------------------------------------------------


def test_inspect_model(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", tiny_model / "model.onnx", "--target", "avx2") == 0
    text = capsys.readouterr().out
    assert "quantization: sparseml" in text
    assert "attention_mask: int64[batch, sequence]" in text
    assert "last_hidden_state: float32[batch, sequence, 64]" in text
    row = next(line for line in text.splitlines() if "intermediate/dense" in line)
    # Dead channels are gone: a few of 256, and with them some of the zeros.
    assert re.search(r"qlinear +25\d x 64 +(79|80)\.\d% +(79|80)\.\d%", row)
    assert re.search(r"; sparse [\d.]+, dense [\d.]+$", row)
    assert re.search(r"\nkernel calls:\n  attention +attention_i8_i8_pairs_bytes x 1\n", text)
    assert "  linear    linear_i8_sparse_pairs x " in text

    assert run("inspect", tiny_model, "--target", "avx2", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["unsupported"] == [] and len(report["layers"]) == 6
    first = report["layers"][0]
    assert {"name", "op", "n", "k", "sparsity", "block4_sparsity", "kernel", "microseconds"} == (
        set(first)
    )
    assert set(first["microseconds"]) == {"sparse", "dense"} and first["microseconds"]["sparse"] > 0
    assert {"entry": "map_layernorm", "family": "map", "calls": 3} in report["kernels"]


def test_inspect_at_the_longest_length_that_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from examples import encoders
    from examples.encoders.config import EncoderConfig

    path = tmp_path / "model.onnx"
    encoders.write_random(path, EncoderConfig(layers=1, max_position=48), form="fp32")
    assert run("inspect", path, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["length"] == 48 and report["layers"] and not report["unsupported"]
    assert run("inspect", path, "--length", "49", "--json") == 4
    report = json.loads(capsys.readouterr().out)
    assert report["unsupported"] and "works up to length 48" in report["why_not"]


def test_inspect_lists_everything_unsupported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = unsupported_model(tmp_path)
    assert run("inspect", path) == 4
    text = capsys.readouterr().out
    assert "first (NonZero, opset 17)" in text and "second (Det, opset 17)" in text
    assert "fine" not in text
    assert run("inspect", path, "--json") == 4
    report = json.loads(capsys.readouterr().out)
    assert {row["node"] for row in report["unsupported"]} == {"first", "second"}


def test_inspect_shows_what_a_refused_model_says_of_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = helper.make_graph(
        [helper.make_node("StringConcat", ["a", "b"], ["c\x1b[31m"])],
        "strings",
        [
            helper.make_tensor_value_info("a", TensorProto.STRING, ["n", None, 3]),
            helper.make_tensor_value_info("b", TensorProto.STRING, None),
        ],
        [onnx.ValueInfoProto(name="c\x1b[31m")],
    )
    path = tmp_path / "model.onnx"
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    assert run("inspect", path) == 4
    text = capsys.readouterr().out
    assert "a: string[n, ?, 3]\n  b: string[...]\n" in text and "c\\x1b[31m: ?[...]" in text
    assert "cannot be compiled" in text
    assert run("inspect", path, "--json") == 4
    report = json.loads(capsys.readouterr().out)
    assert report["inputs"][0] == {"name": "a", "dtype": "string", "shape": ["n", None, 3]}
    assert report["outputs"] == [{"name": "c\x1b[31m", "dtype": None, "shape": None}]


def test_inspect_artifact(tiny_artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", tiny_artifact) == 0
    text = capsys.readouterr().out
    for part in (
        "sparseml",
        "padding  is proved to reach no result, and can be skipped; attention_mask marks",
        "generic",
        "this machine can run it",
        "8 tokens",
        "16 tokens",
        "80.0%",
        "linear    linear_i8_sparse x ",
    ):
        assert part in text
    assert run("inspect", tiny_artifact, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["runs_here"] and [b["length"] for b in report["buckets"]] == [8, 16]
    names = {(k["entry"], k["family"]) for b in report["buckets"] for k in b["kernels"]}
    assert names >= {("linear_i8_sparse", "linear"), ("map_layernorm", "map")}


def test_inspect_says_which_artifact_a_file_belongs_to(
    tiny_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (weights,) = tiny_artifact.glob("weights-*.so")
    for name, kind in (
        ("bucket_16.so", "the library for 16 tokens"),
        (weights.name, "the weights of all buckets"),
        ("manifest.json", "the description"),
        ("sparsec.h", "a file"),
    ):
        assert run("inspect", tiny_artifact / name) == 0
        first, second, *_ = capsys.readouterr().out.splitlines()
        assert first == f"{name}: {kind} of the artifact {tiny_artifact}, which is:"
        assert second.startswith(f"{tiny_artifact}: artifact of model (sparseml)")
    assert run("inspect", tiny_artifact / "bucket_16.so", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["file"], report["path"]) == ("bucket_16.so", str(tiny_artifact))
    shutil.copy(tiny_artifact / "bucket_16.so", tmp_path)
    assert run("inspect", tmp_path / "bucket_16.so") == 6
    error = capsys.readouterr().err
    assert "is a shared library and alone: no manifest.json beside it" in error
    shutil.copytree(tiny_artifact, tmp_path / "m.sparsec")
    shutil.copy(tiny_artifact / "bucket_16.so", tmp_path / "m.sparsec" / "other.so")
    assert run("inspect", tmp_path / "m.sparsec" / "other.so") == 6
    assert f"not part of the artifact {tmp_path / 'm.sparsec'}" in capsys.readouterr().err


def test_inspect_says_what_an_artifact_needs(
    tiny_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "other.sparsec"
    shutil.copytree(tiny_artifact, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["target"]["features"] = ["no_such_feature"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert run("inspect", copy) == 0
    assert "lacks no_such_feature" in capsys.readouterr().out


# ---- benchmark -----------------------------------------------------------------------------------

LINES = (
    r"Original Model Path: {path}\n"
    r"Batch Size: {batch}\n"
    r"Scenario: {scenario}\n"
    r"Throughput \(items/sec\): \d+\.\d{{4}}\n"
    r"Latency Mean \(ms/batch\): \d+\.\d{{4}}\n"
    r"Latency Median \(ms/batch\): \d+\.\d{{4}}\n"
    r"Latency Std \(ms/batch\): \d+\.\d{{4}}\n"
    r"Iterations: \d+\n"
)


@pytest.mark.parametrize(
    ("scenario", "label"),
    [("sync", "singlestream"), ("async", "multistream"), ("elastic", "elastic")],
)
def test_benchmark_prints_the_known_lines(
    tiny_artifact: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    scenario: str,
    label: str,
) -> None:
    export = tmp_path / "out.json"
    options = [
        "-i",
        "[3,8]",
        "-s",
        scenario,
        "-nstreams",
        "3",
        "-t",
        "0.1",
        "-w",
        "0",
        "-x",
        export,
    ]
    assert run("benchmark", tiny_artifact, *options) == 0
    pattern = LINES.format(path=re.escape(str(tiny_artifact)), batch=3, scenario=label)
    assert re.fullmatch(pattern, capsys.readouterr().out)
    report = json.loads(export.read_text())
    result = report["benchmark_result"]
    assert report["engine"] == "sparsec" and report["version"] == sparsec.__version__
    assert report["num_streams"] == (1 if scenario == "sync" else 3)
    assert result["iterations"] >= report["num_streams"]
    assert result["items_per_sec"] == pytest.approx(
        result["iterations"] * 3 / result["seconds_ran"]
    )
    assert result["25.0%"] <= result["median"] <= result["99.9%"]


def test_benchmark_of_onnx_files(
    micro_model: Path, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ["-t", "0.05", "-w", "0", "-s", "sync"]
    shapes = "[2,8]"
    assert run("benchmark", micro_model, "-e", "onnxruntime", "-i", shapes, *quick) == 0
    assert run("benchmark", micro_model, "-i", shapes, *quick) == 0
    assert capsys.readouterr().out.count("Batch Size: 2") == 2
    (entry,) = (own_cache / "sparsec").glob("*.sparsec")
    assert Artifact.load(entry).buckets == (8,)


def test_benchmark_as_json(
    tiny_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = tmp_path / "out.json"
    options = ["-i", "[3,8]", "-s", "sync", "-t", "0.05", "-w", "0", "--json", "-x", export]
    assert run("benchmark", tiny_artifact, *options) == 0
    printed = capsys.readouterr().out
    report = json.loads(printed)
    assert report == json.loads(export.read_text())
    assert (report["batch_size"], report["input_shapes"]) == (3, [[3, 8]])
    assert report["benchmark_result"]["scenario"] == "singlestream"


def test_benchmark_says_what_brings_onnx_runtime(
    micro_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert run("benchmark", micro_model, "-e", "onnxruntime") == 8
    assert "pip install 'sparsec[onnxruntime]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-e", "onnxruntime"], "is an artifact"),
        (["-i", "[1,8],[2,8]"], "differ in batch size"),
        (["-i", "[2,8]", "-b", "3"], "contradicts"),
        (["-i", "[1,8],[1,8]"], "the model takes"),
        (["-i", "[1,99]"], "16"),
        (["-x", "/dev/null/folder/out.json"], "cannot write /dev/null/folder/out.json: Not a dir"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_benchmark_refuses(
    tiny_artifact: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert run("benchmark", tiny_artifact, "-t", "0", "-w", "0", *options) == 8
    error = capsys.readouterr().err
    assert error.startswith("sparsec: error: ") and message in error


def test_streams_run_at_once_and_failures_come_out() -> None:
    barrier = threading.Barrier(3, timeout=10)
    result = benchmark.measure(
        [barrier.wait] * 3, batch_size=2, scenario="x", seconds=0.0, warmup=0.0
    )
    assert len(result.latencies) == 3

    def fail() -> None:
        raise InputError("broken")

    with pytest.raises(InputError, match="broken"):
        benchmark.measure(
            [lambda: time.sleep(0.01), fail], batch_size=1, scenario="x", seconds=9, warmup=9
        )


def test_result_figures() -> None:
    result = benchmark.Result("x", 4, 2.0, (1.0, 2.0, 3.0, 6.0))
    figures = result.to_json()
    assert figures["items_per_sec"] == 8.0
    assert (figures["mean"], figures["median"]) == (3.0, 2.5)
    assert figures["std"] == pytest.approx(3.5**0.5)
    assert figures["99.9%"] == 6.0


# ---- check-hardware and errors -------------------------------------------------------------------


def test_check_hardware(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("check-hardware") == 0
    text = capsys.readouterr().out
    for part in ("CPU:", "Cores:", "Caches:", "Features:", "C compiler:", *targets.NAMES):
        assert part in text
    monkeypatch.setenv("SPARSEC_CPU_FEATURES", "none")
    assert run("check-hardware", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["target"] == "generic" and report["features"] == []
    assert [row["name"] for row in report["targets"] if row["runs"]] == ["generic"]
    avx2 = next(row for row in report["targets"] if row["name"] == "avx2")
    assert avx2["missing"] == ["avx2", "fma"]


def test_errors_are_one_line_and_verbose_shows_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "missing.onnx"
    assert run("compile", missing, "--buckets", "8") == 3
    assert capsys.readouterr().err == f"sparsec: error: {missing} does not exist\n"
    assert run("compile", missing, "--buckets", "8", "-v") == 3
    error = capsys.readouterr().err
    assert "Traceback" in error and error.endswith(f"sparsec: error: {missing} does not exist\n")


@pytest.mark.parametrize(
    ("redirection", "code", "said"),
    [
        ("| head -1", 0, ""),
        ("| head -0", 0, ""),
        (">&-", 0, ""),
        ("<&-", 0, ""),
        (">&- 2>&- <&-", 0, ""),
        ("> /dev/full", 1, "sparsec: error: cannot write standard output: No space left"),
    ],
)
@pytest.mark.parametrize("command", ["inspect MODEL --json", "check-hardware", "inspect MODEL"])
def test_output_that_nobody_reads(
    command: str, redirection: str, code: int, said: str, tiny_artifact: Path
) -> None:
    words = [str(tiny_artifact) if word == "MODEL" else word for word in command.split()]
    line = shlex.join([sys.executable, "-m", "sparsec", *words])
    result = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{line} {redirection}"],
        capture_output=True, text=True, cwd=tiny_artifact.parent, check=False,
    )  # fmt: skip
    assert result.returncode == code
    assert result.stderr.startswith(said) and len(result.stderr.splitlines()) == bool(said)


def test_help_that_nobody_reads(tmp_path: Path) -> None:
    line = shlex.join([sys.executable, "-m", "sparsec", "compile", "--help"])
    result = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{line} | head -0"],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("redirection", ["2>&1 | head -0", "2>&1 | head -1", ">&- 2>&-"])
def test_compiles_though_nobody_listens(
    redirection: str, micro_model: Path, tmp_path: Path
) -> None:
    """A progress line that cannot be written is no reason to stop, and least of all with code 0."""
    command = [sys.executable, "-m", "sparsec", "compile", str(micro_model), "--buckets", "8", "-v"]
    line = shlex.join([*command, "-o", str(tmp_path / "m.sparsec"), "--target", "generic"])
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{line} {redirection}"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert Artifact.load(tmp_path / "m.sparsec").buckets == (8,)


def test_folders_for_what_is_written_are_made(
    micro_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact, export = tmp_path / "a b" / "c" / "m.sparsec", tmp_path / "x" / "y" / "out.json"
    options = ["--emit-c", tmp_path / "e" / "c", "--dump-ir", tmp_path / "d" / "ir"]
    assert run("compile", micro_model, "--buckets", "8", "-o", artifact, *options) == 0
    assert (tmp_path / "e" / "c" / "Makefile").exists() and any((tmp_path / "d" / "ir").iterdir())
    assert run("benchmark", artifact, "-t", "0", "-w", "0", "-x", export) == 0
    assert json.loads(export.read_text())["batch_size"] == 1
    assert run("benchmark", artifact, "-t", "0", "-w", "0", "-x", tmp_path / "x") == 8
    assert "it is a folder" in capsys.readouterr().err
