"""``sparsec inspect``: what an ONNX file or an artifact holds, in words or as JSON."""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sparsec import hub
from sparsec.cli.common import HelpFormatter, positive, printable, progress
from sparsec.errors import ArtifactError, UnsupportedError
from sparsec.interface import MANIFEST, PER_TARGET
from sparsec.paths import input_path

if TYPE_CHECKING:
    from sparsec.compiler.ir import Graph

_LENGTH = 128

#: Random sequences on which precisions are compared.
_SAMPLES = 2


def register(commands: Any, common: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the command's parser."""
    from sparsec.targets import NAMES, PRECISIONS

    parser: argparse.ArgumentParser = commands.add_parser(
        "inspect",
        parents=[common],
        help="show what an ONNX model or an artifact holds",
        description="show what an ONNX model or an artifact holds",
        epilog="Exit code 4: the model cannot be compiled; what it holds and why not are shown.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "path",
        help="an ONNX file, a folder with model.onnx, hf:org/name, an artifact, or a file of one",
    )
    parser.add_argument(
        "--length",
        type=positive,
        metavar="N",
        help="sequence length to look at an ONNX model with "
        f"(default: {_LENGTH}, or the longest that the model takes)",
    )
    parser.add_argument(
        "--target",
        choices=("auto", *NAMES),
        default="auto",
        help="instructions to choose the kernels of an ONNX model for",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="of products of floats; bf16: also what it changes in the results of an ONNX model",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the report."""
    from sparsec.facade import is_artifact

    file = _part(args.path)
    if file or is_artifact(args.path):
        report = _artifact(input_path(args.path).parent if file else args.path)
        if file:
            report = {"file": file, **report}
        show = _show_artifact
    else:
        path = hub.local(args.path, progress(args))
        report = {**_model(path, args.length, args.target, args.precision), "path": args.path}
        show = _show_model
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        print("\n".join(map(printable, show(report))))
    return UnsupportedError.exit_code if report.get("unsupported") else 0


def _part(path: str) -> str:
    """The name of a file that belongs to an artifact; "" for what is something else.

    Raises:
        ArtifactError: it is a library that belongs to none, or not to the one that it lies in.
    """
    file = input_path(path)
    if not file.is_file() or file.suffix == ".onnx":
        return ""
    manifest = file.parent / MANIFEST
    try:
        names = json.loads(manifest.read_bytes())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        names = {}
    if file.name in names or file == manifest:
        return file.name
    if file.suffix != ".so":
        return ""
    where = (
        f"not part of the artifact {file.parent}" if names else f"alone: no {MANIFEST} beside it"
    )
    raise ArtifactError(
        f"{path} is a shared library and {where}; the libraries of an artifact belong in its "
        f"folder, as sparsec compile has made it"
    )


def _artifact(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest, after the whole artifact was checked."""
    from sparsec.errors import HardwareError
    from sparsec.runtime import Artifact

    artifact = Artifact.load(path)
    text = (artifact.path / MANIFEST).read_text(encoding="utf-8")
    report: dict[str, Any] = json.loads(text)
    mine = {name: report[name] for name in PER_TARGET}
    variants = [*report.pop("variants", ()), mine]
    report["targets"] = [_target(variant, report["files"]) for variant in variants]
    try:
        name = artifact.best().target.name
    except HardwareError as error:
        return {"path": str(path), **report, "runs_here": False, "why_not": str(error)}
    chosen = next(variant for variant in variants if variant["target"]["name"] == name)
    return {"path": str(path), **report, **chosen, "runs_here": True}


def _target(variant: Mapping[str, Any], files: Mapping[str, Any]) -> dict[str, Any]:
    """What an artifact has for a target: its name, features, libraries and their bytes."""
    own = [bucket["file"] for bucket in variant["buckets"]]
    libraries = sorted({*own, *(name for b in variant["buckets"] for name in b["needs"])})
    return {
        "name": variant["target"]["name"],
        "features": variant["target"]["features"],
        "libraries": libraries,
        "bytes": sum(files[name]["size"] for name in libraries),
    }


def _model(
    path: str | os.PathLike[str], length: int | None, target: str, precision: str
) -> dict[str, Any]:
    """What the compiler makes of a model, without building it; of one it refuses, what there is."""
    from sparsec import microarchitectures, targets
    from sparsec.compiler import frontend, optimize, settle_buckets
    from sparsec.compiler import report as reports
    from sparsec.compiler.codegen import emit_buckets
    from sparsec.runtime import cpu

    here = cpu.detect()
    isa = microarchitectures.choose("auto", target, targets.choose(target, here, precision), here)
    model = frontend.load_model(path)
    report: dict[str, Any] = {
        "path": str(path),
        "model": {"name": model.name, "sha256": model.sha256, "opset": model.opset},
        "nodes": len(model.proto.graph.node),
        "target": isa.name,
        "tuned_for": isa.tuned_for,
        "precision": isa.precision,
        "inputs": frontend.declared(model.inputs()),
        "outputs": frontend.declared(model.proto.graph.output),
        "layers": [],
        "kernels": [],
        "fusions": {},
        "general": [],
        "row_major": {},
        "unsupported": [],
    }
    try:
        report["model"]["dialect"] = frontend.dialect_name(model)
        signature = frontend.signature(model)
        report["inputs"] = [_tensor(spec) for spec in signature.inputs]
        report["outputs"] = [_tensor(spec) for spec in signature.outputs]
        if length is None or signature.fixed_length is not None:
            length = frontend.longest_length(model, _LENGTH)
        report["length"] = length if signature.has_sequence else 0
        buckets = [length] if signature.has_sequence else []
        settled = settle_buckets(model, signature, buckets)
        graphs = optimize(settled)
        emission = emit_buckets(graphs, signature, isa, model.name, padding=settled.kind)
        report["padding"] = {"kind": settled.kind, "reason": settled.reason}
        report["mask_input"] = settled.mask_input
        report["supports_lengths"] = emission.buckets[-1].supports_lengths
        report["layers"] = [dict(layer) for layer in emission.layers]
        report["kernels"] = _kernels(emission.buckets[-1].kernels)
        report |= reports.describe(graphs[-1])
        if isa.precision == "bf16":
            report["accuracy"] = _accuracy(path, graphs[-1], report)
    except UnsupportedError as error:
        report["unsupported"] = [
            {"node": name, "op": op, "reason": reason} for name, op, reason in error.nodes
        ] or [{"node": "", "op": "", "reason": str(error)}]
        report["why_not"] = str(error)
    return report


def _accuracy(
    path: str | os.PathLike[str], graph: Graph, report: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """What products of bfloat16 change in a model's outputs, on random inputs."""
    from sparsec.compiler import accuracy
    from sparsec.facade import generate_random_inputs

    inputs = generate_random_inputs(path, _SAMPLES, report["length"] or None)
    names = [spec["name"] for spec in report["outputs"]]
    return [vars(row) for row in accuracy.of_bf16(graph, inputs, names)]


def _kernels(calls: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How often each kernel of the compiler's table is called; artifacts of before do not say."""
    counts = Counter((call.get("entry", ""), call.get("family", "")) for call in calls)
    return [
        {"entry": entry, "family": family, "calls": number}
        for (entry, family), number in sorted(counts.items(), key=lambda item: item[0][::-1])
        if entry
    ]


def _tensor(spec: Any) -> dict[str, Any]:
    return {"name": spec.name, "dtype": str(spec.dtype), "shape": list(spec.shape)}


def _padding(report: Mapping[str, Any]) -> str:
    """What becomes of sequences that are shorter than a bucket."""
    kind, reason = report["padding"]["kind"], report["padding"]["reason"]
    if kind == "exact":
        if not reason:
            return "none: the model has no sequence axis"
        return f"changes results, so sequences must have a bucket's length: {reason}"
    how = "can be skipped" if report["supports_lengths"] else "is computed"
    mask = report["mask_input"]
    marks = f"; {mask} marks real tokens" if mask else "; no input marks real tokens"
    if kind == "lengths":
        return f"is kept out by the lengths that the engine gives ({reason}), and {how}{marks}"
    return f"is proved to reach no result, and {how}{marks}"


def _show_artifact(report: Mapping[str, Any]) -> list[str]:
    model, target, tools = report["model"], report["target"], report["toolchain"]
    size = sum(info["size"] for info in report["files"].values())
    here = "this machine can run it" if report["runs_here"] else report["why_not"]
    lines = _file(report)
    lines += [
        f"{report['path']}: artifact of {model['name']} ({model['dialect']}), "
        f"made by sparsec {report['sparsec_version']}",
        f"  source   sha256 {model['sha256']}",
        f"  target   {target['name']} on {target['arch']}, "
        f"products of floats in {target.get('precision', 'fp32')}; "
        f"needs {', '.join(target['features']) or 'nothing special'}; {here}",
        f"  tuned    for {target.get('tuned_for') or 'nothing known'}",
        f"  compiler {tools['compiler']} {tools['version']}, {' '.join(tools['flags'])}",
        f"  size     {size / 1e6:.1f} MB in {len(report['files'])} files, all intact",
        f"  padding  {_padding(report)}",
    ]
    lines += _targets(report)
    lines += _tensors(report)
    lines.append("buckets:")
    for bucket in report["buckets"]:
        file = report["files"][bucket["file"]]
        lines.append(
            f"  {bucket['length'] or 'no'} tokens: {bucket['file']}, {file['size'] / 1e6:.1f} MB, "
            f"{len(bucket['kernels'])} kernel calls"
        )
        lines += _calls(_kernels(bucket["kernels"]), "    ")
    name = target["name"]
    measured = any(row.get("target", name) == name for row in report.get("tuning", ()))
    times = "measured" if measured else "by the cost model"
    return lines + _layers(report["layers"], times)


def _file(report: Mapping[str, Any]) -> list[str]:
    """A line for the file that was named, if it was not the artifact itself."""
    name = report.get("file", "")
    if not name:
        return []
    lengths = [b["length"] for b in report["buckets"] if b["file"] == name]
    kind = "a file"
    if lengths:
        kind = f"the library for {lengths[0]} tokens" if lengths[0] else "the library"
    elif name.endswith(".so"):
        users = [row["name"] for row in report["targets"] if name in row["libraries"]]
        kind = f"a library for {', '.join(users)}" if users else "the library that chooses a target"
        kind = "the weights of all buckets" if len(report["targets"]) == 1 else kind
    elif name == MANIFEST:
        kind = "the description"
    return [f"{name}: {kind} of the artifact {report['path']}, which is:"]


def _targets(report: Mapping[str, Any]) -> list[str]:
    """Of an artifact for several targets, a line for each."""
    rows = report["targets"]
    if len(rows) == 1:
        return []
    used = report["target"]["name"] if report["runs_here"] else ""
    lines = ["targets, of which the first that runs is loaded:"]
    for row in rows:
        mark = "*" if row["name"] == used else " "
        needs = ", ".join(row["features"]) or "nothing special"
        lines.append(
            f"  {mark} {row['name']:12} {row['bytes'] / 1e6:.1f} MB in {len(row['libraries'])} "
            f"libraries; needs {needs}"
        )
    own = sum(row["bytes"] for row in rows)
    libraries = {name for row in rows for name in row["libraries"]}
    held = sum(report["files"][name]["size"] for name in libraries)
    return [*lines, f"  {held / 1e6:.1f} MB together, {own / 1e6:.1f} MB if nothing was shared"]


def _show_model(report: Mapping[str, Any]) -> list[str]:
    model = report["model"]
    lines = [
        f"{report['path']}: ONNX model {model['name']}, {report['nodes']} nodes, "
        f"opset {model['opset']}, quantization: {model.get('dialect', 'unknown')}",
        f"  source   sha256 {model['sha256']}",
    ]
    lines += _tensors(report)
    if report["unsupported"]:
        return [*lines, "it cannot be compiled:", *report["why_not"].splitlines()]
    lines.append(f"padding:    {_padding(report)}")
    lines += _deviations(report)
    counts = ", ".join(f"{name} x {n}" for name, n in report["fusions"].items())
    lines.append(f"recognized: {counts or 'no pattern'}")
    who = f" (for {report['target']}, tuned for {report['tuned_for']})"
    lines += _layers(report["layers"], "by the cost model", who)
    lines += ["kernel calls:", *_calls(report["kernels"], "  ")]
    if report["general"]:
        lines.append("on general kernels, which are slower:")
        for row in report["general"]:
            lines.append(f"  {row['name']} ({row['op']}): {row['reason']}")
    others = report["row_major"]
    if others:
        listed = ", ".join(f"{op} x {n}" for op, n in others.items())
        lines.append(f"row-major: {sum(others.values())} small nodes ({listed})")
    return lines


def _deviations(report: Mapping[str, Any]) -> list[str]:
    """A line for each output that products of bfloat16 change."""
    return [
        f"accuracy:   bf16 against fp32, {_SAMPLES} random sequences: {row['output']} differs by "
        f"at most {row['largest']:.2%} of its largest value, {row['mean']:.3%} on average, "
        f"cosine {row['cosine']:.6f}"
        for row in report.get("accuracy", ())
    ]


def _calls(kernels: Sequence[Mapping[str, Any]], indent: str) -> list[str]:
    """A line for each family of kernels."""
    families: dict[str, list[str]] = {}
    for row in kernels:
        families.setdefault(row["family"], []).append(f"{row['entry']} x {row['calls']}")
    return [f"{indent}{family:9} {', '.join(rows)}" for family, rows in families.items()]


def _tensors(report: Mapping[str, Any]) -> list[str]:
    lines = []
    for kind in ("inputs", "outputs"):
        lines.append(f"{kind}:")
        for spec in report[kind]:
            shape = spec["shape"]
            extents = "..." if shape is None else ", ".join(str(d or "?") for d in shape)
            lines.append(f"  {spec['name']}: {spec['dtype'] or '?'}[{extents}]")
    return lines


def _forms(layer: Mapping[str, Any]) -> str:
    """What the forms take among which a layer's kernel was chosen."""
    times = layer.get("microseconds", {})
    listed = ", ".join(f"{form} {time:g}" for form, time in times.items())
    return f"; {listed}" if listed else ""


def _layers(layers: Sequence[Mapping[str, Any]], times: str, note: str = "") -> list[str]:
    """A line for each layer; `times` says where its kernel's microseconds are from."""
    if not layers:
        return ["layers: none with weights"]
    width = min(60, max(len(str(layer["name"])) for layer in layers))
    lines = [
        f"layers{note}:",
        f"  {'name':{width}}  {'op':14} {'n x k':>13}  sparsity  4-blocks  kernel; "
        f"us of its form and the others on one core, {times}",
    ]
    for layer in layers:
        shape = f"{layer['n']} x {layer['k']}"
        lines.append(
            f"  {layer['name']:{width}}  {layer['op']:14} {shape:>13}  {layer['sparsity']:8.1%}  "
            f"{layer['block4_sparsity']:8.1%}  {layer['kernel']}{_forms(layer)}"
        )
    return lines
