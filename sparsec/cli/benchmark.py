"""``sparsec benchmark``: throughput and latency of a model under load."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sparsec import hub, scratch
from sparsec.cli.common import HelpFormatter, output_file, positive, progress
from sparsec.errors import InputError

if TYPE_CHECKING:
    from sparsec.cli.profile import Counters

# What users of the predecessor know these as, in the printed lines.
SCENARIOS = {"sync": "singlestream", "async": "multistream", "elastic": "elastic"}

PERCENTILES = (25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9)

Request = Callable[[], object]

# On disk: what the user named, or what it became when it was fetched.
Model = str | os.PathLike[str]


def register(commands: Any, common: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the command's parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "benchmark",
        parents=[common],
        help="measure throughput and latency",
        description="measure throughput and latency of a model or an artifact",
        epilog='Example: sparsec benchmark model.sparsec -i "[64,384]" -s sync',
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "model", help="an artifact, an ONNX file, a folder with model.onnx, or hf:org/name"
    )
    parser.add_argument(
        "-b", "--batch-size", "--batch_size", type=positive, metavar="N",
        help="sequences in a request (default: 1, or the first extent of --input-shapes)",
    )  # fmt: skip
    parser.add_argument(
        "-i", "-shapes", "--input-shapes", "--input_shapes", type=shapes, metavar="SHAPES",
        help='shapes of the inputs, "[64,384]" for all or "[1,128],[1,128]" one by one '
        "(default: the largest bucket of an artifact, 128 tokens of an ONNX model)",
    )  # fmt: skip
    parser.add_argument(
        "-s", "--scenario", choices=tuple(SCENARIOS), default="async",
        help="sync: one request at a time on all cores; async: streams of requests that share the "
        "cores out among them; elastic: streams that all use all cores",
    )  # fmt: skip
    parser.add_argument(
        "-nstreams", "--num-streams", "--num_streams", type=positive, metavar="N",
        help="streams of async and elastic (default: half the cores, at least 1)",
    )  # fmt: skip
    parser.add_argument(
        "-ncores", "--num-cores", "--num_cores", type=positive, metavar="N",
        help="physical cores to use (default: all that this process may use)",
    )  # fmt: skip
    parser.add_argument(
        "-t", "--time", type=_seconds, default=10.0, metavar="SECONDS", help="how long to measure"
    )
    parser.add_argument(
        "-w", "--warmup-time", "--warmup_time", type=_seconds, default=2.0, metavar="SECONDS",
        help="how long to run before measuring",
    )  # fmt: skip
    parser.add_argument(
        "-e", "--engine", choices=("sparsec", "onnxruntime"), default="sparsec",
        help="what runs the model",
    )  # fmt: skip
    parser.add_argument(
        "--profile", action="store_true",
        help="also print the time of every kernel (an artifact must be compiled with --profile)",
    )  # fmt: skip
    parser.add_argument(
        "-x",
        "--export-path",
        "--export_path",
        metavar="FILE",
        help="also write the results as JSON",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    parser.set_defaults(run=run)
    return parser


@dataclass(frozen=True)
class Result:
    """What was measured.

    Attributes:
        scenario: in the words of :data:`SCENARIOS`.
        batch_size: items in a request.
        seconds: wall time of the measurement.
        latencies: milliseconds of each request.
    """

    scenario: str
    batch_size: int
    seconds: float
    latencies: tuple[float, ...]

    @property
    def items_per_sec(self) -> float:
        """Items finished per second of wall time."""
        return len(self.latencies) * self.batch_size / self.seconds

    @property
    def mean(self) -> float:
        return statistics.fmean(self.latencies)

    @property
    def median(self) -> float:
        return statistics.median(self.latencies)

    @property
    def std(self) -> float:
        return statistics.pstdev(self.latencies)

    def to_json(self) -> dict[str, Any]:
        """The ``benchmark_result`` of an exported file; times in ms per batch."""
        ordered = sorted(self.latencies)
        last = len(ordered) - 1
        return {
            "scenario": self.scenario,
            "items_per_sec": self.items_per_sec,
            "seconds_ran": self.seconds,
            "iterations": len(ordered),
            "mean": self.mean,
            "median": self.median,
            "std": self.std,
            **{f"{p}%": ordered[round(p / 100 * last)] for p in PERCENTILES},
        }


def run(args: argparse.Namespace) -> int:
    """Load, warm up, measure, print."""
    from sparsec.runtime import cpu

    export = output_file(args.export_path) if args.export_path else None
    batch, length = _batch_and_length(args)
    cores = min(args.num_cores or cpu.usable_cores()[0], cpu.usable_cores()[0])
    streams = 1
    if args.scenario != "sync":
        streams = args.num_streams or max(1, cores // 2)
    if args.profile and (args.engine != "sparsec" or args.scenario != "sync"):
        raise InputError("--profile works with --engine sparsec and --scenario sync")
    load = _sparsec if args.engine == "sparsec" else _onnxruntime
    # Streams of `async` have cores of their own; those of `elastic` submit to one shared pool.
    shared = args.scenario != "async"
    each = cores if shared else max(1, cores // streams)
    model = hub.local(args.model, progress(args))
    loaded = load(args, model, batch, length, 1 if shared else streams, each)
    requests, close = loaded.requests, loaded.close
    counters = loaded.counters
    try:
        result = measure(
            [requests[i % len(requests)] for i in range(streams)],
            batch_size=batch,
            scenario=SCENARIOS[args.scenario],
            seconds=args.time,
            warmup=args.warmup_time,
            warm=counters.reset if counters else None,
        )
        profile = counters.table(batch) if counters else ""
        rows = counters.to_json(batch) if counters else None
    finally:
        close()
    report = _report(args, loaded.name, cores, streams, result, rows)
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        print("\n".join(_show(args, result)))
        if profile:
            print(profile)
    if export is not None:
        try:
            export.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(f"cannot write {args.export_path}: {error.strerror}") from error
    return 0


def _report(
    args: argparse.Namespace, engine: str, cores: int, streams: int, result: Result, profile: Any
) -> dict[str, Any]:
    """What --json and --export-path write."""
    from sparsec import __version__

    return {
        "engine": engine,
        "version": __version__,
        "orig_model_path": args.model,
        "model_path": args.model,
        "batch_size": result.batch_size,
        "input_shapes": args.input_shapes,
        "num_cores": cores,
        "scenario": args.scenario,
        "seconds_to_run": args.time,
        "num_streams": streams,
        "benchmark_result": result.to_json(),
        **({} if profile is None else {"profile": profile}),
    }


def _show(args: argparse.Namespace, result: Result) -> list[str]:
    """The lines that users of the predecessor know."""
    return [
        f"Original Model Path: {args.model}",
        f"Batch Size: {result.batch_size}",
        f"Scenario: {result.scenario}",
        f"Throughput (items/sec): {result.items_per_sec:.4f}",
        f"Latency Mean (ms/batch): {result.mean:.4f}",
        f"Latency Median (ms/batch): {result.median:.4f}",
        f"Latency Std (ms/batch): {result.std:.4f}",
        f"Iterations: {len(result.latencies)}",
    ]


def measure(
    requests: Sequence[Request],
    *,
    batch_size: int,
    scenario: str,
    seconds: float,
    warmup: float,
    warm: Callable[[], None] | None = None,
) -> Result:
    """Run each request again and again on a thread of its own, all at once.

    Args:
        requests: one per stream.
        batch_size: items that one request computes.
        scenario: what to call this.
        seconds: how long to measure; every stream finishes at least one request.
        warmup: how long to run before.
        warm: called between warming up and measuring.
    """
    _run_streams(requests, warmup)
    if warm:
        warm()
    seconds_ran, latencies = _run_streams(requests, seconds)
    return Result(scenario, batch_size, seconds_ran, tuple(latencies))


def _run_streams(requests: Sequence[Request], seconds: float) -> tuple[float, list[float]]:
    """(wall seconds, milliseconds of each request)."""
    latencies: list[list[float]] = [[] for _ in requests]
    failures: list[BaseException] = []
    stop = time.perf_counter() + seconds

    def stream(index: int) -> None:
        try:
            now = time.perf_counter()
            while not latencies[index] or (now < stop and not failures):
                requests[index]()
                then, now = now, time.perf_counter()
                latencies[index].append((now - then) * 1e3)
        except BaseException as error:
            failures.append(error)

    threads = [
        threading.Thread(target=stream, args=(i,), daemon=True) for i in range(1, len(requests))
    ]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    stream(0)
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return time.perf_counter() - start, [ms for per_stream in latencies for ms in per_stream]


def shapes(text: str) -> list[list[int]]:
    """``[64,384]`` or ``[1,128],[1,128]`` as lists, for argparse."""
    try:
        rows = json.loads(f"[{text}]")
    except ValueError:
        rows = None
    good = isinstance(rows, list) and rows and all(
        isinstance(row, list) and row and all(type(d) is int and d > 0 for d in row) for row in rows
    )  # fmt: skip
    if not good:
        raise argparse.ArgumentTypeError(f'{text!r} is not like "[64,384]" or "[1,128],[1,128]"')
    return list(rows)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds")
    return value


def _batch_and_length(args: argparse.Namespace) -> tuple[int, int | None]:
    """What the options say about a request; no length means the model's own."""
    if not args.input_shapes:
        return args.batch_size or 1, None
    batches = {shape[0] for shape in args.input_shapes}
    lengths = {shape[1] for shape in args.input_shapes if len(shape) > 1}
    if len(batches) > 1 or len(lengths) > 1:
        raise InputError(f"the inputs differ in batch size or length: {args.input_shapes}")
    (batch,) = batches
    if args.batch_size not in (None, batch):
        raise InputError(
            f"--batch-size {args.batch_size} contradicts --input-shapes, batch {batch}"
        )
    return batch, next(iter(lengths), None)


def _inputs(args: argparse.Namespace, model: Model, batch: int, length: int | None) -> list[Any]:
    from sparsec.facade import generate_random_inputs

    inputs = generate_random_inputs(model, batch, length)
    asked = args.input_shapes or []
    if len(asked) == 1:
        asked = asked * len(inputs)
    if asked and [list(array.shape) for array in inputs] != asked:
        raise InputError(
            f"--input-shapes gives {asked}, the model takes {[list(a.shape) for a in inputs]}"
        )
    return inputs


@dataclass(frozen=True)
class Loaded:
    """An engine ready to be measured: one request per engine, how to close it, its name."""

    requests: list[Request]
    close: Callable[[], None]
    name: str
    counters: Counters | None = None


def _sparsec(
    args: argparse.Namespace,
    model: Model,
    batch: int,
    length: int | None,
    engines: int,
    cores: int,
) -> Loaded:
    """Engines of this project; an ONNX model is compiled for the measured length."""
    from sparsec.facade import Engine, is_artifact

    inputs = _inputs(args, model, batch, length)
    options: dict[str, Any] = {"num_cores": cores}
    if not is_artifact(model):
        options["buckets"] = _buckets(model, inputs)
        options["batch_size"] = batch
        options["progress"] = progress(args)
    if args.profile and not is_artifact(model):
        import sparsec

        options.pop("num_cores")
        with scratch.temporary("sparsec-profile-") as folder:
            output = folder / "profile.sparsec"
            made = sparsec.compile(model, output=output, profile=True, **options)
            loaded = [Engine(made, cores) for _ in range(engines)]
    else:
        loaded = [Engine(model, **options) for _ in range(engines)]
    counters = None
    if args.profile:
        from sparsec.cli.profile import Counters

        buckets = loaded[0].buckets
        fits = [b for b in buckets if b >= (length or max(buckets))]
        counters = Counters(loaded[0], min(fits or buckets))

    def close() -> None:
        for engine in loaded:
            engine.close()

    def request(engine: Engine) -> Request:
        return lambda: engine.run(inputs)

    return Loaded([request(engine) for engine in loaded], close, "sparsec", counters)


def _buckets(model: Model, inputs: Sequence[Any]) -> list[int]:
    """The length of the inputs, if they have any."""
    from sparsec.compiler import frontend

    specs = frontend.signature(frontend.load_model(model)).inputs
    return [
        array.shape[spec.shape.index("sequence")]
        for spec, array in zip(specs, inputs, strict=True)
        if "sequence" in spec.shape
    ][:1]


def _onnxruntime(
    args: argparse.Namespace,
    model: Model,
    batch: int,
    length: int | None,
    engines: int,
    cores: int,
) -> Loaded:
    """ONNX Runtime sessions on the same file, for comparison."""
    from sparsec import ort
    from sparsec.facade import is_artifact

    if is_artifact(model):
        raise InputError(f"onnxruntime runs ONNX files; {args.model} is an artifact")
    arrays = _inputs(args, model, batch, length)
    sessions = [ort.session(model, cores) for _ in range(engines)]
    feeds = {spec.name: array for spec, array in zip(sessions[0].get_inputs(), arrays, strict=True)}

    def request(session: Any) -> Request:
        return lambda: session.run(None, feeds)

    import onnxruntime

    return Loaded(
        [request(session) for session in sessions],
        lambda: None,
        f"onnxruntime {onnxruntime.__version__}",
    )
