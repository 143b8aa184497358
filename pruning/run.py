"""``sparsec.sparsify``: a dense model and some texts in, a fast one and a report out."""

from __future__ import annotations

from sparsec.pruning.engine import TorchModel  # noqa: F401  says what to install without PyTorch

# isort: split
import os
from collections.abc import Callable, Sequence
from typing import Any

from sparsec.arguments import whole
from sparsec.errors import InputError
from sparsec.paths import user_path
from sparsec.pruning.evaluation.models import find
from sparsec.pruning.evaluation.texts import WANTED, Fields, read
from sparsec.pruning.job import Job
from sparsec.pruning.outcome import Sparsified
from sparsec.pruning.wanted import Wanted, goal_of, number
from sparsec.pruning.workspace import check_output

Say = Callable[[str], None]


def sparsify(
    model: str | os.PathLike[str],
    *,
    texts: str | os.PathLike[str] | Sequence[Any],
    output: str | os.PathLike[str],
    sparsity: float | None = None,
    speedup: float | None = None,
    keep: float | None = None,
    form: str = "auto",
    minutes: float = 0.0,
    steps: int | None = None,
    labels: str | os.PathLike[str] | Sequence[Any] | None = None,
    dialect: str = "qdq",
    target: str = "auto",
    engine: str = "sparsec",
    num_cores: int | None = None,
    seed: int = 0,
    tokenizer: str | os.PathLike[str] | None = None,
    text_field: str | Sequence[str] | None = None,
    label_field: str | None = None,
    max_length: int | None = None,
    limit: int | None = None,
    seconds: float = 5.0,
    force: bool = False,
    progress: Say | None = None,
) -> Sparsified:
    """Make a dense model small and fast, and say what that cost.

    Args:
        model: a folder with ``model.onnx`` and a tokenizer, or an .onnx file beside them; float32
            or float16.
        texts: a file of lines, JSON lines or Parquet, or a list, as :func:`sparsec.evaluate` takes
            them; at least 64.  A fifth of them is held out, to judge by.
        output: the folder to make; the work so far is kept beside it until it is whole.
        sparsity: share of the 4-blocks of the encoder's layers that are to become zero.
        speedup: how many times as fast as the dense model in int8 it is to be, measured on this
            machine at the lengths of the texts.
        keep: the fastest that agrees with the dense model so well on the texts held out; below
            that nothing is written but the report.
        form: ``blocks`` (of 4 weights), ``channels`` (whole heads and feed-forward channels),
            ``int8`` (nothing is pruned), ``auto``.
        minutes: of training against the dense model; 0: one shot, without.
        steps: of training, instead of `minutes`: how many fit into those differs from run to run,
            and the same number gives the same bytes on the same machine.
        labels: a label for each text, which training is to count too.
        dialect: how the file says what is quantized: ``qdq`` or ``sparseml``.
        target: ISA target whose costs decide; ``auto``: the fastest that runs here.
        engine: what runs the models that are compared: ``sparsec``, or ``onnxruntime``, which
            needs no C compiler.
        num_cores: threads; None: all usable cores.
        seed: of everything that is drawn at random.
        tokenizer: its file or folder, if not beside the model.
        text_field, label_field: fields to read of JSON lines and Parquet.
        max_length: tokens after which texts are cut.
        limit: texts to read at most.
        seconds: how long each measurement of latency takes; 0: none, unless the goal needs it.
        force: replace what an earlier run has made.
        progress: called with lines of progress.

    Returns:
        What came out; its ``output`` is None where the goal was missed.

    Raises:
        InputError: an argument is wrong, there are too few texts, too little memory, or the goal is
            out of reach.
        ModelError: the model is damaged or quantized already (UnsupportedError: it has nodes that
            cannot be imported or trained through).
        NonFiniteError: the dense model, or training, gives NaN.
        ArtifactError: something cannot be written, a full disk for example.
    """
    wanted = Wanted(
        goal=goal_of(sparsity, speedup, keep, form),
        form=form,
        minutes=number("minutes", minutes, 0),
        steps=None if steps is None else whole("steps", steps, 1),
        dialect=dialect,
        target=target,
        engine=engine,
        threads=None if num_cores is None else whole("num_cores", num_cores, 1),
        seed=whole("seed", seed, 0),
        max_length=None if max_length is None else whole("max_length", max_length, 4),
        seconds=number("seconds", seconds, 0),
        force=force,
    )
    wanted.check()
    out = user_path(output)
    check_output(out, force)
    fields = (text_field,) if isinstance(text_field, str) else text_field
    names = Fields(None if fields is None else tuple(fields), label_field)
    samples = read(texts, labels, names, None if limit is None else whole("limit", limit, 1))
    if len(samples) < WANTED:
        raise InputError(
            f"{len(samples)} texts are too few: {WANTED} are needed, and some thousands do better; "
            f"they need no labels"
        )
    say = progress or (lambda line: None)
    found = find(os.fspath(model), "sparsec", None if tokenizer is None else os.fspath(tokenizer))
    labelled = labels is not None or label_field is not None
    job = Job(found, samples, labelled, out, wanted, say)
    try:
        return job.run()
    finally:
        job.close()
