"""The compiler: an ONNX model and a list of buckets in, an artifact out.

:func:`compile` is the whole pipeline; each stage is the folder or file of its name here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsec.arguments import argument, whole, wholes
from sparsec.errors import InputError
from sparsec.paths import config_folder, input_path, user_path
from sparsec.positions import read_positions
from sparsec.progress import Step

if TYPE_CHECKING:
    from sparsec.compiler.codegen import Emission
    from sparsec.compiler.frontend import Model, Signature
    from sparsec.compiler.ir import Graph
    from sparsec.compiler.padding import Settled
    from sparsec.runtime import Artifact, CpuInfo
    from sparsec.targets import Target

__all__ = ["abandon", "compile", "import_buckets", "optimize", "settle_buckets"]

Progress = Callable[[str], None]


def compile(
    model: str | os.PathLike[str] | Model,
    *,
    buckets: Sequence[int] = (),
    output: str | Path | None = None,
    batch_size: int = 1,
    target: str | Sequence[str] = "auto",
    tune_for: str = "auto",
    precision: str = "fp32",
    cc: str | None = None,
    jobs: int | None = None,
    emit_c: str | Path | None = None,
    dump_ir: str | Path | None = None,
    force: bool = False,
    exist_ok: bool = False,
    profile: bool = False,
    tune: bool = False,
    tuning: str | Path | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Compile an ONNX model into an artifact.

    Args:
        model: an ONNX file, a folder with ``model.onnx`` and perhaps tokenizer and config, or
            ``hf:org/name``; or any of these as ``frontend.load_model`` has read it.
        buckets: sequence lengths to specialize to; needed unless the model has no
            sequence axis or works for one length only.
        output: the artifact's folder; when absent, ``model.sparsec`` beside ``model.onnx``, and for
            ``hf:org/name``, ``name.sparsec`` in the working directory.
        batch_size: the batch size to cut layers for; any other runs too.
        target: an ISA target's name, or ``auto`` for the fastest that runs here.  Several, as a
            list or with commas (``avx2,avx512_vnni``), make one artifact of which the runtime loads
            the fastest that runs where it is.
        tune_for: the microarchitecture whose costs decide between ways to compute the same, of
            ``sparsec.microarchitectures``; ``native`` is this machine's, ``auto`` that as well
            where `target` is ``auto``, else ``generic``.
        precision: of products of floats in linear layers and attention: ``fp32``, or ``bf16`` for
            operands rounded to bfloat16, with float32 sums; all else stays float32.
        cc: the C compiler's command; found when absent.
        jobs: compilers to run at once; as many as usable cores when absent.
        emit_c: keep the generated C in this folder, with a Makefile.
        dump_ir: write the IR after the import and after every pass to this folder, and last what
            the generated code does: calls of kernels, and the buffers between them.
        force, exist_ok: replace an artifact that is at `output`; two names of one thing.
        profile: compile counters in, for ``sparsec benchmark --profile``; costs a little speed.
        tune: measure on this machine how to cut the linear layers, instead of going by rules made
            on another one; the choices are recorded in the manifest.  Of several targets, those
            that run here are measured, and a warning names the others.
        tuning: make the choices that are recorded in this artifact or manifest, for each target.
        progress: called with one line per stage and bucket.

    Returns:
        The artifact, as the runtime sees it.

    Raises:
        ModelError: the model cannot be read (UnsupportedError: it cannot be compiled).
        ToolchainError: there is no C compiler, or it failed.
        ArtifactError: the artifact cannot be written.
        InputError: an argument is wrong, or the target does not have the precision (HardwareError:
            ``auto`` finds none here that has it).
    """
    # Imported here so that `import sparsec` and the command line's --help stay quick.
    import sparsec
    from sparsec import hub
    from sparsec.compiler import artifact, build, frontend, toolchain
    from sparsec.compiler.codegen import emit_buckets
    from sparsec.compiler.fat import Variant
    from sparsec.compiler.libraries import libraries_of
    from sparsec.compiler.tune import tune as measure
    from sparsec.compiler.tuning import measurable, recorded, rows
    from sparsec.runtime import Artifact, cpu

    tell = progress or (lambda _: None)
    force = force or exist_ok
    batch_size = whole("batch_size", batch_size, 1)
    jobs = None if jobs is None else whole("jobs", jobs, 1)
    if tune and tuning is not None:
        raise InputError(
            f"give {argument('tune', True)} to measure or {argument('tuning')} to repeat, not both"
        )
    here = cpu.detect()
    isas = _isas(target, tune_for, precision, here)
    tilings = recorded(input_path(tuning), isas) if tuning is not None else {}
    tuned = measurable(isas, here) if tune else ()
    compiler = toolchain.find(cc)

    if isinstance(model, frontend.Model):
        loaded = model
    else:
        # Before anything is downloaded, if that is to be.
        if hub.is_name(model):
            output = output or hub.artifact_path(str(model))
            artifact.check_output(user_path(output), force)
        tell(f"loading {model}")
        loaded = frontend.load_model(hub.local(model, tell))
    destination = user_path(output) if output else loaded.path.with_suffix(".sparsec")
    artifact.check_output(destination, force)

    signature = frontend.signature(loaded)
    dump = user_path(dump_ir) if dump_ir else None
    settled = settle_buckets(loaded, signature, buckets, progress=tell)
    places = read_positions(config_folder(loaded.path))
    for graph in settled.graphs:
        if places.longest is not None and graph.length > places.longest:
            tell(f"bucket {graph.length} is longer than a text can be: {places.why()}")
    graphs = optimize(settled, dump, tell)
    signature = replace(signature, mask_input=settled.mask_input)

    variants = []
    for isa in isas:
        tell(_step(f"generating C for {isa.name}", 2 * len(graphs), len(graphs)))
        emit = partial(
            emit_buckets,
            graphs,
            signature,
            isa,
            loaded.name,
            batch_size,
            profile,
            padding=settled.kind,
        )
        emission = emit(tilings.get(isa.name))
        if isa in tuned:
            lengths = [graph.tokens for graph in graphs]
            made = measure(emission.classes, lengths, batch_size, isa, compiler, jobs, tell)
            tilings[isa.name] = made
            emission = emit(made)
        _dump_plans(dump, emission, isa.name if len(isas) > 1 else "")
        variants.append(Variant(isa, emission))

    with artifact.staging(destination) as stage:
        kept = user_path(emit_c) if emit_c else None
        built = libraries_of(stage / "c", variants, compiler, jobs=jobs, progress=tell, kept=kept)

        tell(f"writing {destination}")
        folder = stage / "artifact"
        folder.mkdir()
        for library in built.files:
            library.rename(folder / library.name)
        (folder / "sparsec.h").write_text(build.public_header(), encoding="utf-8")
        for name, path in artifact.companions_of(loaded).items():
            (folder / name).write_bytes(path.read_bytes())
        manifest = artifact.manifest_of(
            sparsec_version=sparsec.__version__,
            abi=build.abi_version(),
            model={
                "name": loaded.name,
                "sha256": loaded.sha256,
                "dialect": frontend.dialect_name(loaded),
            },
            inputs=[_tensor_row(spec) for spec in signature.inputs],
            outputs=[_tensor_row(spec) for spec in signature.outputs],
            mask_input=signature.mask_input,
            padding={"kind": settled.kind, "reason": settled.reason},
            variants=built.rows,
            tuning=rows(tilings),
        )
        artifact.seal(folder, manifest)
        artifact.publish(folder, destination, force)
    return Artifact.load(destination)


def abandon() -> None:
    """Stop the compilers of this process and remove what is unfinished.

    For an exit that does not wait for threads which compile; those fail.
    """
    from sparsec.compiler import artifact, toolchain

    toolchain.stop_all()
    artifact.remove_unfinished()


def import_buckets(
    model: Model,
    signature: Signature,
    buckets: Sequence[int],
    *,
    dump_ir: Path | None = None,
    progress: Progress | None = None,
) -> list[Graph]:
    """Import the model and run the passes, once for each bucket.

    Args:
        model, signature: from the frontend.
        buckets: sequence lengths, in any order.
        dump_ir: write the IR to this folder after every step.
        progress: called with one line per bucket.

    Returns:
        One optimized graph per bucket, shortest first.

    Raises:
        InputError: the buckets do not fit the model.
        UnsupportedError: the model holds nodes that cannot be compiled.
    """
    settled = settle_buckets(model, signature, buckets, progress=progress)
    return optimize(settled, dump_ir, progress)


def settle_buckets(
    model: Model,
    signature: Signature,
    buckets: Sequence[int],
    *,
    progress: Progress | None = None,
) -> Settled:
    """Import the model once for each bucket, and prove or see to it that padding does no harm.

    Args, Raises: as for :func:`import_buckets`.
    """
    from sparsec.compiler import frontend, padding

    tell = progress or (lambda _: None)
    graphs = []
    lengths = _check_buckets(buckets, signature)
    for done, length in enumerate(lengths):
        tell(_step(f"importing bucket {length}", done, len(lengths)))
        graphs.append(frontend.import_graph(model, length))
    shorter = frontend.shorter_graphs(model, signature, graphs[0].length)
    return padding.settle(graphs, shorter, signature.mask_input)


def optimize(
    settled: Settled, dump_ir: Path | None = None, progress: Progress | None = None
) -> list[Graph]:
    """The graphs of settled buckets after all passes, shortest first.

    Args:
        settled: from :func:`settle_buckets`.
        dump_ir: write the IR to this folder after every step.
        progress: called with one line per bucket.
    """
    from sparsec.compiler import passes

    tell = progress or (lambda _: None)
    count = len(settled.graphs)
    graphs = []
    for done, graph in enumerate(settled.graphs):
        tell(_step(f"optimizing bucket {graph.length}", count + done, count))
        dump = _Dump(dump_ir / f"bucket_{graph.length}") if dump_ir else None
        if dump:
            dump(-1, "import", graph)
        graphs.append(passes.run(graph, on_pass=dump))
    return graphs


def _step(line: str, done: int, buckets: int) -> Step:
    """Of what comes before the C compiler: each bucket imported, each optimized, C generated."""
    return Step(line, "preparing", done, 2 * buckets + 1)


class _Dump:
    """Writes graphs as numbered text files; the import is number 0."""

    def __init__(self, folder: Path) -> None:
        from sparsec.compiler.artifact import writing

        self.folder = folder
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, index: int, step: str, graph: Graph) -> None:
        from sparsec.compiler.ir import to_text

        self.write(index + 1, step, to_text(graph))

    def write(self, number: int, step: str, text: str) -> None:
        from sparsec.compiler.artifact import writing

        path = self.folder / f"{number:02d}-{step}.txt"
        with writing(path):
            path.write_text(text, encoding="utf-8")


def _isas(
    target: str | Sequence[str], tune_for: str, precision: str, here: CpuInfo
) -> list[Target]:
    """The targets, given as one, as several with commas, or as a list; fastest first."""
    from sparsec import microarchitectures, targets

    names = target.split(",") if isinstance(target, str) else list(target)
    found = {}
    for name in (str(name).strip() for name in names or ["auto"]):
        isa = targets.choose(name, here, precision)
        found[isa.name] = microarchitectures.choose(tune_for, name, isa, here)
    return [found[row.name] for row in targets.TARGETS if row.name in found]


def _dump_plans(folder: Path | None, emission: Emission, target: str = "") -> None:
    """Write what the code of each bucket does, as the step after the last pass."""
    from sparsec.compiler import passes

    if folder is None:
        return
    for bucket in emission.buckets:
        dump = _Dump(folder / f"bucket_{bucket.length}")
        step = f"plan-{target}" if target else "plan"
        dump.write(len(passes.PIPELINE) + 1, step, bucket.plan.to_text())


def _check_buckets(buckets: Sequence[int], signature: Signature) -> list[int]:
    """The buckets in ascending order; [0] for a model without a sequence axis."""
    lengths = wholes("buckets", buckets)
    if not lengths and signature.fixed_length is not None:
        return [signature.fixed_length]
    if not signature.has_sequence:
        if lengths:
            raise InputError("the model has no sequence axis: compile it without buckets")
        return [0]
    if not lengths:
        raise InputError(
            "the model has a sequence axis: name the lengths to compile for "
            f"({argument('buckets')})"
        )
    if min(lengths) < 1:
        raise InputError(f"a bucket must be at least 1 token long, not {min(lengths)}")
    twice = sorted({length for length in lengths if lengths.count(length) > 1})
    if twice:
        raise InputError(f"bucket {twice[0]} is given twice")
    return sorted(lengths)


def _tensor_row(spec: Any) -> dict[str, Any]:
    return {"name": spec.name, "dtype": str(spec.dtype), "shape": list(spec.shape)}
