"""Parts of the server without a server: settings, queues, tensors, cores."""

from __future__ import annotations

import ast
import asyncio
import json
import struct
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from sparsec.errors import InputError
from sparsec.serving.pipelines import Pipeline, base, tasks
from sparsec.serving.pipelines.base import Job
from sparsec.serving.runner import BatchingRunner, Features, Outputs, Runner
from sparsec.serving.server import config, cores, datalog, docs, inference, oip, openapi, tensors
from sparsec.serving.server.app import Service
from sparsec.serving.server.batching import ModelQueue, QueueFullError, Scheduler
from sparsec.serving.server.config import Batching, EndpointConfig
from sparsec.serving.server.errors import HttpError
from sparsec.serving.server.metrics import RequestMetrics
from sparsec.serving.server.registry import Endpoint, _Shared
from tests import pipelines_support
from tests.server_support import TASKS

# ---- settings ------------------------------------------------------------------------------------


def written(folder: Path, text: str) -> Path:
    path = folder / "c.yaml"
    path.write_text(text)
    return path


def test_deepsparse_files_are_read(tmp_path: Path) -> None:
    text = """
num_cores: 4
num_workers: 2
integration: local
engine_thread_pinning: core
pytorch_num_threads: 1
endpoints:
  - task: question_answering
    model: a.sparsec
    batch_size: 1
  - name: ner
    route: ner/predict/
    task: token_classification
    model: b.sparsec
    bucketing:
      sequence_lengths: [16, 128]
    kwargs:
      aggregation_strategy: simple
  - task: question_answering
    model: c.sparsec
    sequence_length: 384
"""
    got = config.load(written(tmp_path, text), port=1234)
    assert (got.num_cores, got.num_workers, got.port, got.host) == (4, 2, 1234, "127.0.0.1")
    assert [e.name for e in got.endpoints] == [
        "question-answering-0", "ner", "question-answering-1",
    ]  # fmt: skip
    assert [e.route for e in got.endpoints] == [
        "/predict", "/ner/predict", "/predict/question-answering-1",
    ]  # fmt: skip
    assert [e.lengths for e in got.endpoints] == [None, (16, 128), (384,)]
    assert got.endpoints[1].kwargs == {"aggregation_strategy": "simple"}


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("endpoints:\n- task: qa\n  modle: m\n  model: m\n", 3, "unknown key; did you mean model?"),
        ("endpoints:\n- {task: qa,\n   zzz: 1, model: m}\n", 3, "there are batch_size"),
        ("num_worker: 2\n", 1, "num_worker: unknown key; did you mean num_workers?"),
        ("endpoints:\n- route: /a\n", 2, "endpoints[0].task: is missing"),
        ("num_workers: 0\n", 1, "greater than or equal to 1"),
        ("num_workers: two\n", 1, "valid integer"),
        ("a: 1\na: 2\n", 2, "a is given twice"),
        ("endpoints:\n- [\n", 3, "expected the node content"),
        ("endpoints:\n- {task: qa, model: m, name: x}\n- {task: qa, model: m, name: x}\n", 1,
         "two endpoints have the name x"),
        ("endpoints:\n- {task: qa, model: m, route: /a}\n- {task: qa, model: m, route: a/}\n", 1,
         "two endpoints have the route /a"),
        ("endpoints:\n- task: qa\n  model: m\n  route: /v2/x\n", 4, "/v2 is the server's own"),
        ("endpoints:\n- task: qa\n  model: m\n  route: /a b\n", 4, "must be a path"),
        ("endpoints:\n- task: qa\n  model: m\n  name: a/b\n", 4, "letters, digits"),
        ("loggers: {}\n", 1, "use data_logging"),
        ("endpoints:\n- task: qa\n  model: m\n  bucketing:\n    sequence_lengths: []\n", 5,
         "at least 1"),
        ("endpoints:\n- task: qa\n  model: m\n  data_logging:\n    text: true\n", 4, "set file"),
        ("endpoints:\n- task: qa\n  model: m\n  data_logging:\n    statistics: [lenght]\n", 5,
         "Input should be"),
        ("limits:\n  body_byte: 3\n", 2, "did you mean body_bytes?"),
        ("x: &a [*a]\n", 1, "nested too deeply"),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_mistakes_have_a_line(tmp_path: Path, text: str, line: int, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(InputError) as info:
        config.load(path)
    assert any(
        row.startswith(f"{path}:{line}: ") and message in row
        for row in str(info.value).splitlines()
    ), str(info.value)


def test_other_mistakes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the configuration"):
        config.load(tmp_path / "nothing.yaml")
    with pytest.raises(InputError, match="must be a mapping"):
        config.load(written(tmp_path, "- 1\n"))
    both = {"task": "qa", "model": "m", "sequence_length": 16}
    both["bucketing"] = {"sequence_lengths": [16]}
    with pytest.raises(InputError, match="not both"):
        config.check({"endpoints": [both]}, "x")
    assert config.load(written(tmp_path, "")).endpoints == ()


@given(st.text(max_size=40))
def test_any_yaml_is_settings_or_an_input_error(text: str) -> None:
    try:
        data, _ = config.parse(text, "x")
        if isinstance(data, dict):
            config.check(data, "x")
    except InputError as error:
        assert str(error).startswith("x")


def test_routes_stay_when_endpoints_are_added() -> None:
    first = EndpointConfig(task="qa", model="m")
    one = config.complete([first])
    two = config.complete([first, EndpointConfig(task="qa", model="n")])
    assert one[0] == two[0]
    claimed = config.complete([first, EndpointConfig(task="qa", model="n", route="/predict")])
    assert [e.route for e in claimed] == ["/predict/qa-0", "/predict"]


# ---- queues --------------------------------------------------------------------------------------


def item(value: int, length: int = 4) -> Features:
    return Features({"input_ids": np.full(length, value, np.int64)}, length)


class FakeRunner(Runner):
    """Doubles ids; keeps batches; fails on negative ids; may be held."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Event()
        self.go.set()
        self.running = threading.Event()

    input_names = ("input_ids",)
    output_names = ("out",)
    buckets = (16,)

    def infer(self, items: Sequence[Features]) -> list[Outputs]:
        ids = [int(one.arrays["input_ids"][0]) for one in items]
        self.batches.append(ids)
        self.running.set()
        self.go.wait(20)
        if min(ids) < 0:
            raise InputError("negative")
        return [{"out": np.array(2 * value)} for value in ids]

    def padding(self, lengths: Sequence[int]) -> int:
        return 0

    def close(self) -> None:
        pass


class Watcher:
    """An observer that adds up."""

    def __init__(self) -> None:
        self.now, self.most, self.gone = 0, 0, 0
        self.sizes: list[int] = []

    def waiting(self, items: int) -> None:
        self.now = items
        self.most = max(self.most, items)

    def dropped(self, items: int) -> None:
        self.gone += items

    def batch(self, lengths: Sequence[int], padding: int, seconds: float) -> None:
        self.sizes.append(len(lengths))


def with_queue(
    batching: Batching,
    body: Callable[[ModelQueue, FakeRunner, Watcher], Coroutine[Any, Any, None]],
) -> tuple[FakeRunner, Watcher]:
    """Run `body` with a queue on a fresh scheduler."""
    runner, watcher = FakeRunner(), Watcher()

    async def main() -> None:
        scheduler = Scheduler(asyncio.get_running_loop())
        try:
            queue = scheduler.queue(runner, batching, watcher)
            await asyncio.wait_for(body(queue, runner, watcher), 20)
            scheduler.remove(queue)
        finally:
            runner.go.set()
            scheduler.close()

    asyncio.run(main())
    return runner, watcher


def values(outputs: list[Outputs]) -> list[int]:
    return [int(output["out"]) for output in outputs]


async def hold(queue: ModelQueue, runner: FakeRunner) -> asyncio.Future[list[Outputs]]:
    """Keep the thread busy with a batch of one."""
    runner.go.clear()
    runner.running.clear()
    first = queue.submit([item(0)])
    await asyncio.get_running_loop().run_in_executor(None, runner.running.wait, 20)
    return first


def test_what_waits_runs_together() -> None:
    async def body(queue: ModelQueue, runner: FakeRunner, watcher: Watcher) -> None:
        first = await hold(queue, runner)
        requests = [queue.submit([item(i, i), item(10 * i)]) for i in range(1, 6)]
        assert queue.waiting == 10
        runner.go.set()
        assert values(await first) == [0]
        for i, request in enumerate(requests, 1):
            assert values(await request) == [2 * i, 20 * i]

    runner, watcher = with_queue(Batching(max_batch=4), body)
    # Oldest first; a request may be split.
    assert runner.batches == [[0], [1, 10, 2, 20], [3, 30, 4, 40], [5, 50]]
    assert (watcher.sizes, watcher.now, watcher.most) == ([1, 4, 4, 2], 0, 10)


def test_a_full_queue_refuses_at_once() -> None:
    async def body(queue: ModelQueue, runner: FakeRunner, watcher: Watcher) -> None:
        first = await hold(queue, runner)
        queue.submit([item(1)] * 3)
        with pytest.raises(QueueFullError) as info:
            queue.submit([item(2)] * 2)
        assert info.value.retry_after >= 1
        last = queue.submit([item(3)])
        with pytest.raises(QueueFullError):
            queue.submit([item(2)])
        runner.go.set()
        assert values(await last) == [6] and values(await first) == [0]
        large = queue.submit([item(4)] * 9)  # larger than the queue, which is empty
        assert values(await large) == [8] * 9

    with_queue(Batching(max_batch=4, queue_size=4), body)


def test_cancelled_requests_do_not_run() -> None:
    async def body(queue: ModelQueue, runner: FakeRunner, watcher: Watcher) -> None:
        await hold(queue, runner)
        gone = queue.submit([item(1), item(2)])
        kept = queue.submit([item(3)])
        gone.cancel()
        await asyncio.sleep(0)
        assert queue.waiting == 1
        runner.go.set()
        assert values(await kept) == [6]

    runner, watcher = with_queue(Batching(), body)
    assert runner.batches == [[0], [3]]
    assert (watcher.gone, watcher.now) == (2, 0)


def test_a_request_cancelled_half_way() -> None:
    async def body(queue: ModelQueue, runner: FakeRunner, watcher: Watcher) -> None:
        runner.go.clear()
        large = queue.submit([item(i) for i in range(5)])
        await asyncio.get_running_loop().run_in_executor(None, runner.running.wait, 20)
        large.cancel()
        await asyncio.sleep(0)
        runner.go.set()
        assert values(await queue.submit([item(7)])) == [14]

    runner, watcher = with_queue(Batching(max_batch=2), body)
    assert runner.batches == [[0, 1], [7]]
    assert watcher.gone == 3


def test_only_the_request_that_fails_fails() -> None:
    async def body(queue: ModelQueue, runner: FakeRunner, watcher: Watcher) -> None:
        await hold(queue, runner)
        good, bad, other = (queue.submit([item(1)]), queue.submit([item(-1), item(5)]),
                            queue.submit([item(2)]))  # fmt: skip
        runner.go.set()
        assert values(await good) == [2] and values(await other) == [4]
        with pytest.raises(InputError, match="negative"):
            await bad
        with pytest.raises(InputError, match="negative"):
            await queue.submit([item(-2)])
        assert values(await queue.submit([item(3)])) == [6]

    with_queue(Batching(), body)


def test_waiting_for_a_batch_to_fill() -> None:
    async def body(queue: ModelQueue, runner: FakeRunner, watcher: Watcher) -> None:
        start = time.monotonic()
        first = queue.submit([item(1)])
        await asyncio.sleep(0.05)
        assert not runner.batches
        second = queue.submit([item(2)])
        await asyncio.gather(first, second)
        assert time.monotonic() - start >= 0.3
        start = time.monotonic()
        await asyncio.gather(*(queue.submit([item(i)]) for i in range(3)))  # full: no waiting
        assert time.monotonic() - start < 0.25

    runner, _ = with_queue(Batching(max_batch=3, max_delay_us=300_000), body)
    assert runner.batches == [[1, 2], [0, 1, 2]]


def test_nothing_to_run() -> None:
    async def body(queue: ModelQueue, runner: FakeRunner, watcher: Watcher) -> None:
        assert await queue.submit([]) == []

    runner, _ = with_queue(Batching(), body)
    assert runner.batches == []


def test_padding_is_counted() -> None:
    class Padding(BatchingRunner):
        def _call(self, arrays: Any) -> Any:
            raise AssertionError("counting padding runs nothing")

        def close(self) -> None:
            pass

    inputs = {"input_ids": np.dtype("int64"), "attention_mask": np.dtype("int64")}
    runner = Padding(inputs, {}, [16, 64])
    assert runner.padding([3, 16, 20]) == 13 + 0 + 44
    runner.free_padding = True
    assert runner.padding([3, 16, 20]) == 0


# ---- long texts --------------------------------------------------------------------------------


def test_long_texts_do_not_hold_up_others() -> None:
    """While long texts are tokenized, short ones are answered; too many long ones are refused."""
    go = threading.Event()

    class Texts(BaseModel):
        inputs: str

    class Task:
        on_nonfinite = "ignore"

        def __init__(self) -> None:
            self.at_once: list[str] = []

        def count(self, inputs: Texts) -> int:
            return 1

        def prepare(self, inputs: Texts) -> Job:
            if len(inputs.inputs) > 1:
                self.at_once.append(threading.current_thread().name)
                assert go.wait(20)
            return Job([item(1)])

        def conclude(self, jobs: Any, outputs: Any, warn: Any) -> list[Texts]:
            return [Texts(inputs="answer")]

    async def body(queue: ModelQueue, runner: FakeRunner, watcher: Watcher) -> None:
        task: Any = Task()
        endpoint: Any = SimpleNamespace(
            pipeline=task, queue=queue, data_log=None, metrics=RequestMetrics("")
        )
        limits = config.Limits(heavy_requests=4)

        async def ask(characters: int) -> str:
            found = await inference.predict(endpoint, [Texts(inputs="a" * characters)], limits)
            return str(found.results[0].inputs)  # type: ignore[attr-defined]

        long = [asyncio.create_task(ask(50_000)) for _ in range(4)]
        while len(task.at_once) < inference.HEAVY_THREADS:
            await asyncio.sleep(0.01)
        # None of these waits for them, or these would wait for ever.
        assert [await ask(1) for _ in range(20)] == ["answer"] * 20
        assert len(task.at_once) == inference.HEAVY_THREADS
        with pytest.raises(HttpError, match="too many requests with long texts") as info:
            await ask(50_000)
        assert (info.value.status, info.value.code) == (503, "queue_full")
        long[-1].cancel()
        await asyncio.wait([long[-1]])
        go.set()
        assert [await one for one in long[:-1]] == ["answer"] * 3
        assert len(task.at_once) == 3  # what was cancelled did not run
        assert await ask(50_000) == "answer"

    with_queue(Batching(), body)


# ---- tensors -------------------------------------------------------------------------------------

ARRAYS = st.sampled_from(sorted(set(oip.DTYPES) - {"BYTES"})).flatmap(
    lambda name: st.lists(st.integers(0, 100), min_size=1, max_size=6).map(
        lambda numbers: np.array(numbers).astype(oip.DTYPES[name])
    )
)
STRINGS = st.lists(st.text(max_size=9), min_size=1, max_size=5).map(oip.texts)


@given(st.dictionaries(st.text("abc", min_size=1), ARRAYS | STRINGS, min_size=1), st.booleans())
def test_tensors_survive_the_wire(arrays: dict[str, Any], binary: bool) -> None:
    asked = oip.InferRequest("1", {}, binary=binary)
    body, length = oip.encode("m", asked, arrays)
    assert (length is not None) == binary
    # A response's outputs are written as a request's inputs are.
    size = len(body) if length is None else length
    head = body[:size].replace(b'"outputs"', b'"inputs"', 1)
    got = oip.decode(head + body[size:], None if length is None else str(len(head)))
    assert got.id == "1" and got.tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        assert got.tensors[name].dtype == array.dtype
        assert got.tensors[name].tolist() == array.tolist()


def request_of(**changes: Any) -> bytes:
    import json

    tensor = {"name": "x", "shape": [2], "datatype": "INT8", "data": [1, 2], **changes}
    return json.dumps({"inputs": [tensor]}).encode()


def twice(what: str) -> bytes:
    """A request with two of the same name in a list."""
    import json

    body = json.loads(request_of())
    body[what] = [body["inputs"][0]] * 2
    return json.dumps(body).encode()


@pytest.mark.parametrize(
    ("body", "length", "message"),
    [
        (b"{}", None, "inputs: Field required"),
        (b'{"inputs": []}', None, "inputs: there are none"),
        (twice("inputs"), None, "input x is given twice"),
        (twice("outputs"), None, "output x is asked for twice"),
        (request_of(datatype="INT7"), None, "unknown datatype 'INT7'"),
        (request_of(shape=[3]), None, "2 elements; the shape [3] has 3"),
        (request_of(shape=[-1]), None, "greater than or equal to 0"),
        (request_of(data=None), None, "has no data"),
        (request_of(data=[1, 2.5]), None, "does not fit INT8"),
        (request_of(data=[1, 300]), None, "INT8"),
        (request_of(data=[1, True]), None, "True is not INT8"),
        (request_of(data=[1, "a"]), None, "'a' is not INT8"),
        (request_of(data=[1, 10**40]), None, "INT8"),
        (request_of(data=[[[[[[[[[[1, 2]]]]]]]]]]), None, "nested too deeply"),
        (request_of(datatype="BYTES"), None, "must be strings"),
        (request_of(datatype="BOOL"), None, "1 is not BOOL"),
        (request_of(data=None, parameters={"binary_data_size": 2}), None, "2 bytes; 0 are left"),
        (request_of(parameters={"binary_data_size": 2}), None, "data beside binary_data_size"),
        (request_of(parameters={"binary_data_size": True}), None, "must be a number"),
        (request_of() + b"??", str(len(request_of())), "2 bytes follow the last tensor"),
        (request_of(), "x", "must be a number of bytes"),
        (request_of(), "999999", "must be a number of bytes"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_requests(body: bytes, length: str | None, message: str) -> None:
    with pytest.raises(HttpError) as info:
        oip.decode(body, length)
    assert message in str(info.value) and info.value.status == 400


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x01\x00", "the last length is cut off"),
        (b"\x05\x00\x00\x00ab", "the last element is cut off"),
        (struct.pack("<I", 1) + b"\xff", "element 0 is not UTF-8"),
        (struct.pack("<I", 1) + b"a", "has 1 elements; the shape [2] has 2"),
    ],
)
def test_bad_bytes(data: bytes, message: str) -> None:
    head = request_of(datatype="BYTES", data=None, parameters={"binary_data_size": len(data)})
    with pytest.raises(HttpError) as info:
        oip.decode(head + data, str(len(head)))
    assert message in str(info.value)


# ---- the rest ------------------------------------------------------------------------------------


def test_cores_are_split(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for number in range(8):  # two threads to a core
        folder = tmp_path / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{number % 4},{number % 4 + 4}\n")
    grouped = cores.physical(list(range(8)), tmp_path)
    assert grouped == [[0, 4], [1, 5], [2, 6], [3, 7]]
    monkeypatch.setattr(cores, "physical", lambda cpus: grouped)
    monkeypatch.setattr(cores.cpu, "usable_cores", lambda: (4, 8))
    assert cores.split(1) == [((), 4)]
    assert cores.split(1, 2) == [((), 2)]
    assert cores.split(2) == [((0, 1, 4, 5), 2), ((2, 3, 6, 7), 2)]
    assert cores.split(2, 3) == [((0, 4), 1), ((1, 2, 5, 6), 2)]
    assert [share for _, share in cores.split(6)] == [1] * 6


def test_statistics_of_predictions() -> None:
    entities = {"predictions": [[{"entity": "B-PER", "score": 0.05, "word": "Mary"}], []]}
    assert list(datalog.labels(entities, ["entity"])) == ["B-PER"]
    assert list(datalog.scores(entities, ["score"])) == [0.05]
    several = {"labels": [["a", "b"]], "scores": [[0.7, 0.3]], "sequences": ["text"]}
    assert list(datalog.labels(several, ["label", "labels"])) == ["a", "b"]
    found = datalog.scores(several, ["scores"])
    assert datalog.histogram(list(found)) == {"0.3": 1, "0.7": 1}


# ---- tasks ---------------------------------------------------------------------------------------


class MoodInput(BaseModel):
    phrases: str | list[str]
    tone: Literal["loud", "quiet"]


class MoodOutput(BaseModel):
    """A mood and how sure that is, for each phrase."""

    moods: list[str]
    certainty: list[list[float]]


class Mood(Pipeline):
    """A task that nothing in the package knows of."""

    input_schema, output_schema = MoodInput, MoodOutput
    label_fields, score_fields = ("moods",), ("certainty",)

    def example(self) -> dict[str, Any]:
        return {"phrases": "mary is good", "tone": "loud"}

    def prepare(self, inputs: BaseModel) -> Job:
        assert isinstance(inputs, MoodInput)
        phrases = [inputs.phrases] if isinstance(inputs.phrases, str) else inputs.phrases
        fitting = (self.text.fit(self.text.encode(text), self.max_length) for text in phrases)
        return Job([self.text.features(encoding) for encoding in fitting])

    def finish(self, job: Job, outputs: list[Outputs]) -> MoodOutput:
        logits = [output["logits"] for output in outputs]
        return MoodOutput(moods=["happy"] * len(logits), certainty=[[0.25] for _ in logits])


@pytest.fixture(scope="module")
def mood(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    folder = tmp_path_factory.mktemp("mood")
    pipelines_support.make(folder, "sequence-classification")
    Pipeline.register("mood")(Mood)
    try:
        with Pipeline.create("mood", folder, engine_type="onnxruntime") as pipeline:
            yield pipeline
    finally:
        base._tasks.pop("mood", None)


def test_a_task_is_one_file(mood: Pipeline, tmp_path: Path) -> None:
    """Forms, tensors and statistics come from the class."""
    file = tmp_path / "log"
    settings = config.EndpointConfig(
        task="mood", model="m", name="mood", route="/mood",
        data_logging=config.DataLogging(file=str(file)),
    )  # fmt: skip
    endpoint = Endpoint(settings, mood, _Shared("", None), "0")  # type: ignore[arg-type]

    post = openapi.document([endpoint])["paths"]["/mood"]["post"]
    assert post["summary"] == "mood by mood"
    (content,) = post["requestBody"]["content"].values()
    assert content["example"] == mood.example()

    assert tensors.inputs(mood) == [
        {"name": "phrases", "datatype": "BYTES", "shape": [-1]},
        {"name": "tone", "datatype": "BYTES", "shape": [1]},
    ]
    given = {"phrases": oip.texts(["mary", "john"]), "tone": oip.texts(["loud"])}
    (made,) = tensors.to_inputs(mood, oip.InferRequest(None, given, {}, False, {}))
    assert made == MoodInput(phrases=["mary", "john"], tone="loud")
    ranks = {row["name"]: (row["datatype"], len(row["shape"])) for row in endpoint.tensors}
    assert ranks == {"moods": ("BYTES", 1), "certainty": ("FP32", 2)}

    inputs = mood.validate({"phrases": ["mary", "john"], "tone": "quiet"})
    job = mood.prepare(inputs)
    answer = mood.finish(job, mood.runner.infer(job.items))
    assert endpoint.data_log is not None
    endpoint.data_log.record("id", inputs, job.items, answer)
    endpoint.data_log.close()
    line = json.loads(file.read_text())
    assert line["label_counts"] == {"happy": 2}
    assert line["score_histogram"] == {"0.3": 2}


def test_the_server_names_no_task() -> None:
    """What it knows of a task is in the task's file."""
    ours = [kind for kind in tasks().values() if kind.__module__.startswith("sparsec.")]
    words = {
        name
        for kind in ours
        for schema in (kind.input_schema, kind.output_schema)
        for name in schema.model_fields
    }
    # These mean something to a server, or in the protocol, as well.
    words -= {"id", "inputs", "labels", "predictions", "scores", "start", "truncate"}
    for path in sorted(Path(docs.__file__).parent.glob("*.py")):
        if path.stem in (
            "openai",
            "tei",
            "rpc_messages",
        ):  # forms of other servers, each for one task
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert node.value not in words, (path.name, node.lineno, node.value)


def test_every_task_has_a_model_to_be_served_with() -> None:
    ours = {kind for kind in tasks().values() if kind.__module__.startswith("sparsec.")}
    assert {base.find(task) for task in TASKS} == ours


@pytest.mark.parametrize("task", sorted(TASKS))
def test_a_task_answers_its_example(task: str, tmp_path: Path) -> None:
    head, settings = TASKS[task]
    pipelines_support.make(tmp_path, head, **settings)
    with Pipeline.create(task, tmp_path, engine_type="onnxruntime") as pipeline:
        assert pipeline(pipeline.example())


# ---- routes --------------------------------------------------------------------------------------


def test_a_path_of_the_server_is_no_endpoints_and_documented() -> None:
    service = Service(config.ServerConfig(), None, None)  # type: ignore[arg-type]
    described = openapi.document([], admin=True)["paths"]
    for path, handlers in service.fixed.items():
        if path != "/":
            with pytest.raises(ValueError, match="is the server's own"):
                EndpointConfig(task="ner", model="m", route=path)
        # What people look at, the list of endpoints a second time, and their removal by a body.
        if path not in ("/docs", "/openapi.json", "/endpoints"):
            assert {method.lower() for method in handlers} <= set(described[path])
