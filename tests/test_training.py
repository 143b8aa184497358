"""Gradual training on networks of a few neurons: schedule, losses, batches, the training itself."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="training needs torch")

from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from sparsec.errors import InputError, NonFiniteError  # noqa: E402
from sparsec.pruning.clock import clock  # noqa: E402
from sparsec.pruning.engine.table import Table  # noqa: E402
from sparsec.pruning.least_squares import solve_rows  # noqa: E402
from sparsec.pruning.ranges import Range  # noqa: E402
from sparsec.pruning.training import (  # noqa: E402
    checkpoint,
    losses,
    masks,
    observe,
    plan,
    remembered,
    rows,
)
from sparsec.pruning.training.batches import (  # noqa: E402
    GRAIN,
    Batches,
    Example,
    choose_buckets,
)
from sparsec.pruning.training.losses import Kind, Result  # noqa: E402
from sparsec.pruning.training.network import Layer, OnInput, Student  # noqa: E402
from sparsec.pruning.training.quantizers import round_activation, round_weight  # noqa: E402
from sparsec.pruning.training.trainer import Options, Trained, Trainer  # noqa: E402

WIDE, VOCABULARY, CLASSES = 16, 30, 3


class Tiny:
    """Two residual layers over an embedding; outputs: token states and a class of the text."""

    layers = tuple(Layer(n, f"into {n}") for n in ("up.0", "down.0", "up.1", "down.1", "head"))

    def __init__(self, seed: int = 0) -> None:
        rng = torch.Generator().manual_seed(seed)
        shapes = {"table": (VOCABULARY, WIDE), "head": (CLASSES, WIDE)}
        for i in range(2):
            shapes |= {f"up.{i}": (2 * WIDE, WIDE), f"down.{i}": (WIDE, 2 * WIDE)}
        self.values = {
            name: torch.randn(shape, generator=rng) / (shape[1] ** 0.5 if name != "table" else 1)
            for name, shape in shapes.items()
        }
        self.values["bias"] = torch.zeros(CLASSES)

    def parameters_by_name(self) -> Mapping[str, Tensor]:
        return self.values

    def run(
        self,
        inputs: Mapping[str, Tensor],
        parameters: Mapping[str, Tensor],
        on_input: OnInput | None = None,
    ) -> Result:
        values = {**self.values, **parameters}
        see = on_input or (lambda name, x: x)

        def linear(name: str, x: Tensor) -> Tensor:
            return functional.linear(see(f"into {name}", x), values[name])

        table = values["table"]
        x = functional.embedding(inputs["ids"], table, sparse=isinstance(table, Table))
        states = []
        for i in range(2):
            x = x + linear(f"down.{i}", torch.tanh(linear(f"up.{i}", x)))
            x = functional.layer_norm(x, (WIDE,))
            states.append(x)
        mask = (inputs["ids"] > 0)[:, :, None]
        pooled = (x * mask).sum(1) / mask.sum(1)
        scores = linear("head", pooled) + values["bias"]
        return Result({"states": x, "scores": scores}, states)


def examples(count: int, seed: int = 1, label: bool = False) -> list[Example]:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        ids = rng.integers(1, VOCABULARY, rng.integers(3, 20))
        made.append(Example({"ids": ids}, {"scores": int(ids[0]) % CLASSES} if label else {}))
    return made


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads take longer to meet than these products take."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


KINDS = {"states": Kind.STATES, "scores": Kind.CLASSES}
TARGETS = dict.fromkeys(("up.0", "down.0", "up.1", "down.1"), 0.5)


def trainer(
    options: Options, folder: Path | None = None, lines: list[str] | None = None,
    label: bool = False, teacher: Tiny | None = None, frozen: Sequence[str] = (),
) -> Trainer:  # fmt: skip
    teacher = teacher or Tiny()
    return Trainer(
        teacher,
        Student(teacher, frozen=frozen, tables=["table"]),
        Batches(examples(60, label=label), tokens=64, seed=options.seed),
        Batches(examples(16, seed=2), tokens=64, seed=0),
        KINDS,
        TARGETS,
        options,
        folder=folder,
        answers=None if folder is None else folder / "teacher",
        say=(lines if lines is not None else []).append,
    )


# ---- schedule ------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    steps=st.integers(1, 3000), prune=st.booleans(), quantize=st.booleans(),
    start=st.sampled_from([0.0, 0.6]),
)  # fmt: skip
def test_plans_have_the_steps_that_are_asked_for(
    steps: int, prune: bool, quantize: bool, start: float
) -> None:
    cycles = plan.make(steps, prune, quantize, start)
    assert cycles[0].share > start
    assert plan.total(cycles) == steps and all(c.steps >= 1 for c in cycles)
    shares = [c.share for c in cycles]
    assert shares == sorted(shares) and shares[-1] == 1.0
    assert len(cycles) <= plan.MOST_CYCLES + 2
    assert sum(c.quantized for c in cycles) == (1 if quantize else 0)
    assert not quantize or cycles[-1].quantized
    found = [plan.locate(cycles, step) for step in range(steps)]
    assert found == sorted(found) and found[0] == (0, 0)
    with pytest.raises(IndexError):
        plan.locate(cycles, steps)


def test_sparsity_rises_as_a_cube() -> None:
    assert [plan.cubic(t) for t in (-1, 0, 0.5, 1, 2)] == [0, 0, 0.875, 1, 1]
    cycles = plan.make(1300)
    rising = [c.share for c in cycles if c.share < 1]
    gains = np.diff([0, *rising, 1])
    assert len(rising) > 10 and (np.diff(gains) < 0).all()


def test_learning_rates_rewind() -> None:
    cycle = plan.Cycle(100, 1.0, 0.5)
    rates = [cycle.learning_rate(step) for step in range(100)]
    assert max(rates) == rates[9] == 0.5 and rates[0] == pytest.approx(0.05)
    assert (np.diff(rates[10:]) < 0).all()
    assert 0.5 * plan.FLOOR <= rates[-1] < 1.5 * 0.5 * plan.FLOOR
    assert plan.Cycle(1, 1.0).learning_rate(0) == 1


def test_a_plan_is_shortened_behind_what_is_done() -> None:
    cycles = plan.make(1000)
    short = plan.shortened(cycles, 3, 0.5)
    assert short[:3] == cycles[:3]
    assert sum(c.steps for c in short[3:]) == pytest.approx(
        sum(c.steps for c in cycles[3:]) / 2, abs=len(cycles)
    )
    assert all(c.steps == 1 for c in plan.shortened(cycles, 0, 0.0))


@given(seconds=st.floats(1, 1e5), step=st.floats(1e-3, 10))
def test_steps_fit_into_the_time(seconds: float, step: float) -> None:
    count = plan.steps_in(seconds, step)
    assert count == 1 or 0.89 * seconds / step - 1 <= count <= seconds / step


def test_times_are_said_in_words() -> None:
    assert [clock(s) for s in (5.2, 150, 7300)] == ["5 s", "2 min", "2 h 02 min"]


# ---- losses --------------------------------------------------------------------------------------


def shapes_of(kind: Kind) -> tuple[int, ...]:
    return {Kind.CLASSES: (4, 5), Kind.LABELS: (4, 5), Kind.PLACES: (4, 6), Kind.STATES: (4, 6, 8),
            Kind.VECTOR: (4, 8), Kind.NUMBERS: (4, 1)}[kind]  # fmt: skip


@pytest.mark.parametrize("kind", Kind)
def test_losses_are_least_where_the_outputs_are_the_teachers(kind: Kind) -> None:
    torch.manual_seed(0)
    teacher = 3 * torch.randn(shapes_of(kind))
    mask = torch.arange(6) < torch.tensor([6, 4, 2, 1])[:, None]
    same = losses.output_loss(kind, teacher.clone(), teacher, mask)
    assert abs(float(same)) < 1e-5
    assert float(losses.agreement(kind, teacher, teacher, mask).mean()) == pytest.approx(1)
    student = torch.randn(shapes_of(kind), requires_grad=True)
    before = losses.output_loss(kind, student, teacher, mask)
    before.backward()
    assert student.grad is not None and bool(student.grad.isfinite().all())
    after = losses.output_loss(kind, student - 0.05 * student.grad, teacher, mask)
    assert 0 < after.item() < before.item()


@pytest.mark.parametrize("kind", [Kind.PLACES, Kind.STATES])
def test_padding_counts_nowhere(kind: Kind) -> None:
    torch.manual_seed(0)
    teacher, student = torch.randn(shapes_of(kind)), torch.randn(shapes_of(kind))
    mask = torch.arange(6) < torch.tensor([6, 4, 2, 1])[:, None]
    other = student.clone()
    other[~mask] = 100.0
    for measure in (losses.output_loss, losses.agreement):
        a, b = (measure(kind, x, teacher, mask).mean() for x in (student, other))
        assert float(a) == pytest.approx(float(b))
    if kind is Kind.STATES:
        a, b = (losses.state_loss([x], [teacher], mask) for x in (student, other))
        assert float(a) == pytest.approx(float(b))


def test_divergence_is_the_textbooks() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(4, 5), torch.randn(4, 5)
    p, q = (np.exp(x.numpy() / 2) for x in (b, a))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    want = 4 * (p * np.log(p / q)).sum(1).mean()
    mask = torch.ones(4, 6, dtype=torch.bool)
    assert float(losses.output_loss(Kind.CLASSES, a, b, mask)) == pytest.approx(want, rel=1e-5)


def test_states_count_in_units_of_the_teachers() -> None:
    torch.manual_seed(0)
    teacher, mask = 50 * torch.randn(4, 6, 8) + 7, torch.ones(4, 6, dtype=torch.bool)
    zero = losses.state_loss([torch.zeros_like(teacher) + 7], [teacher], mask)
    assert float(zero) == pytest.approx(1, rel=0.05)
    assert float(losses.state_loss([], [], mask)) == 0


def test_labels_that_are_none_do_not_count() -> None:
    scores = torch.randn(2, 3, 4)
    targets = torch.tensor([[1, losses.IGNORE, 2], [losses.IGNORE] * 3])
    want = functional.cross_entropy(scores[0, [0, 2]], torch.tensor([1, 2]))
    assert torch.allclose(losses.label_loss(Kind.CLASSES, scores, targets), want)
    nothing = losses.label_loss(Kind.CLASSES, scores, torch.full((2, 3), losses.IGNORE))
    assert float(nothing) == 0
    with pytest.raises(ValueError, match="no labels"):
        losses.label_loss(Kind.STATES, scores, targets)


def test_kinds_follow_task_and_shape() -> None:
    kind = losses.kind_of
    assert kind("embeddings", ("batch", "sequence", 384)) is Kind.STATES
    assert kind("embeddings", ("batch", 384)) is Kind.VECTOR
    assert kind("text-classification", ("batch", 2)) is Kind.CLASSES
    assert kind("token-classification", ("batch", "sequence", 9)) is Kind.CLASSES
    assert kind("fill-mask", ("batch", "sequence", 30522)) is Kind.CLASSES
    assert kind("multi-label-classification", ("batch", 6)) is Kind.LABELS
    assert kind("regression", ("batch", 1)) is Kind.NUMBERS
    assert kind("question-answering", ("batch", "sequence")) is Kind.PLACES
    assert kind("outputs", ("batch", 7)) is Kind.NUMBERS


# ---- batches -------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=40),
    most=st.integers(1, 4),
)
def test_buckets_leave_the_least_to_fill_up(lengths: list[int], most: int) -> None:
    import itertools

    found = choose_buckets(lengths, most)
    sizes = sorted({-(-n // GRAIN) * GRAIN for n in lengths})
    assert found[-1] == sizes[-1] and len(found) <= most

    def cost(buckets: tuple[int, ...]) -> int:
        return sum(min(b for b in buckets if b >= n) for n in lengths)

    every = [
        (*chosen, sizes[-1])
        for k in range(min(most, len(sizes)))
        for chosen in itertools.combinations(sizes[:-1], k)
    ]
    assert cost(found) == min(map(cost, every))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 100), count=st.integers(1, 70), tokens=st.integers(1, 200))
def test_an_epoch_shows_every_example_once(seed: int, count: int, tokens: int) -> None:
    made = [Example({"ids": np.full(1 + i % 21, i + 1)}, {}) for i in range(count)]
    batches = Batches(made, tokens, seed)
    for epoch in range(2):
        seen = []
        for step in range(batches.per_epoch):
            batch = batches.batch(epoch * batches.per_epoch + step)
            size = max(1, tokens // batch.length)
            assert len(batch.mask) <= size and batch.length in batches.buckets
            assert (batch.inputs["ids"] > 0).tolist() == batch.mask.tolist()
            seen += batch.inputs["ids"][:, 0].tolist()
        assert sorted(seen) == list(range(1, count + 1))
    assert sorted(i for b in batches.all() for i in b.inputs["ids"][:, 0]) == sorted(seen)
    again = Batches(made, tokens, seed)
    step = 2 * batches.per_epoch - 1
    assert np.array_equal(again.batch(step).inputs["ids"], batches.batch(step).inputs["ids"])


def test_targets_of_tokens_are_filled_up() -> None:
    made = [Example({"ids": np.arange(1, n + 1)}, {"y": np.arange(n), "z": n}) for n in (3, 5)]
    (batch,) = Batches(made, 100, 0).all()
    assert batch.targets["y"].tolist() == [[0, 1, 2, *[-100] * 5], [0, 1, 2, 3, 4, *[-100] * 3]]
    assert batch.targets["z"].tolist() == [3, 5]
    assert batch.inputs["ids"][0].tolist() == [1, 2, 3, 0, 0, 0, 0, 0]
    with pytest.raises(InputError, match="no text"):
        Batches([], 10, 0)
    with pytest.raises(InputError, match="longer than the longest batch"):
        Batches(made, 10, 0, buckets=[4])


# ---- rounding ------------------------------------------------------------------------------------


def test_rounding_is_that_of_onnx() -> None:
    ort = pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper

    x = torch.randn(500, generator=torch.Generator().manual_seed(0)) * 2
    x[:4] = torch.tensor([0.5, 1.5, -0.5, 2.5]) * 0.02  # ties
    made = Range(0.02, 120, 0, 255, 0.0)
    vi = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ],
        "g", [vi("x", TensorProto.FLOAT, [500])], [vi("y", TensorProto.FLOAT, [500])],
        [helper.make_tensor("s", TensorProto.FLOAT, [], [made.scale]),
         helper.make_tensor("z", TensorProto.UINT8, [], [made.zero_point])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (want,) = session.run(None, {"x": x.numpy()})
    got = round_activation(x, torch.tensor(made.scale), made).numpy()
    assert np.array_equal(got, want)


def test_gradients_pass_inside_the_range_only() -> None:
    x = torch.tensor([-9.0, 0.3, 9.0], requires_grad=True)
    scale = torch.tensor(0.02, requires_grad=True)
    round_activation(x, scale, Range(0.02, 128, 0, 255, 0.0)).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0, 1, 0]
    share = 1 / (3 * 255) ** 0.5
    assert scale.grad is not None
    # By the limits of the two outside, and the rounding error of the one inside.
    assert float(scale.grad) == pytest.approx(share * (-128 + 127 + (15 - 0.3 / 0.02)), abs=1e-4)


def test_weights_round_to_bytes_of_their_channel() -> None:
    weight = torch.randn(5, 12, generator=torch.Generator().manual_seed(0), requires_grad=True)
    rounded = round_weight(weight)
    steps = rounded / (weight.detach().abs().amax(1, keepdim=True) / 127)
    assert torch.allclose(steps, steps.round(), atol=1e-4) and steps.abs().max().item() <= 127.01
    rounded.sum().backward()
    assert weight.grad is not None and bool((weight.grad == 1).all())


# ---- masks ---------------------------------------------------------------------------------------


def test_moments_are_those_of_real_tokens() -> None:
    network = Tiny()
    student = Student(network)
    batches = Batches(examples(20), 64, 0).all()

    def tensors(batch):  # type: ignore[no-untyped-def]
        return {n: torch.from_numpy(v) for n, v in batch.inputs.items()}, torch.from_numpy(
            batch.mask
        )

    found = observe.moments(student, batches, tensors)
    assert set(found) == {layer.place for layer in network.layers}
    tokens = torch.cat([network.values["table"][torch.from_numpy(e.inputs["ids"])]
                        for e in examples(20)])  # fmt: skip
    assert torch.allclose(found["into up.0"], tokens.T @ tokens / len(tokens), atol=1e-4)


def test_masks_take_the_cheapest_and_never_come_back() -> None:
    weight = torch.randn(6, 18, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(6, 18, dtype=torch.bool)
    for share in (0.25, 0.5, 0.5, 0.4, 0.75, 1.0):
        before = mask
        mask = masks.choose(weight * before, torch.eye(18), before, share)
        keep = masks.kept_blocks(mask)
        assert not bool((mask & ~before).any())
        assert int((~keep).sum()) == max(round(share * 30), int((~masks.kept_blocks(before)).sum()))
        # With inputs that have nothing in common, size is all that counts.
        filled = functional.pad(weight, (0, 2))
        cost = filled.square().unflatten(1, (-1, 4)).sum(2)
        if bool(keep.any()) and not bool(keep.all()):
            assert float(cost[keep].min()) >= float(cost[~keep].max())


def test_what_is_left_makes_up_for_what_went() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 5, generator=generator) @ torch.randn(5, 12, generator=generator)
    x += 0.1 * torch.randn(200, 12, generator=generator)
    weight = torch.randn(3, 12, generator=generator)
    moments = x.T @ x / len(x)
    mask = masks.choose(weight, moments, torch.ones(3, 12, dtype=torch.bool), 1 / 3)
    settled = masks.settle(weight, moments, mask)
    assert bool((settled[~mask] == 0).all())
    far = [float((x @ (w - weight).T).square().mean()) for w in (weight * mask, settled)]
    assert far[1] < 0.2 * far[0]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 40), st.floats(0, 1), st.floats(0, 4), st.integers(0, 999))
def test_settling_comes_near_the_exact_optimum(
    rows: int, columns: int, share: float, spread: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    sizes = 10 ** (spread * torch.rand(columns, generator=generator) - spread / 2)
    x = torch.randn(max(2, columns), columns, generator=generator) * sizes
    x[:, 0] = 0  # an input that carries nothing
    moments = x.T @ x / len(x)
    weight = torch.randn(rows, columns, generator=generator) / sizes
    every = torch.ones(rows, columns, dtype=torch.bool)
    mask = masks.choose(weight, moments, every, share)
    settled = masks.settle(weight, moments, mask)
    assert bool(settled.isfinite().all()) and bool((settled[~mask] == 0).all())
    hessian = moments.double()
    strength = masks.DAMPING * max(1e-12, float(hessian.diagonal().mean()))
    hessian = hessian + strength * torch.eye(columns, dtype=torch.float64)

    def loss(weights: torch.Tensor) -> float:
        far = weights.double() - weight.double()
        return float(((far @ hessian) * far).sum())

    exact = loss(solve_rows(hessian, weight, mask))
    start = loss(weight * mask)
    assert loss(settled) <= exact + 0.05 * (start - exact) + 1e-6 * loss(weight * 0)


def test_outputs_that_the_loss_sees_keep_more() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20000, 8, generator=generator) * torch.arange(1, 9)
    g = torch.randn(20000, 4, generator=generator) * torch.tensor([1.0, 2.0, 3.0, 0.0])
    squares = (g[:, :, None] * x[:, None, :]).square().mean(0)
    found = masks.sensitivity(squares, x.T @ x / len(x))
    assert found is not None
    shares = (found - 0.1) / (found - 0.1)[0]
    assert torch.allclose(shares, torch.tensor([1.0, 4.0, 9.0, 0.0]), rtol=0.2)
    assert masks.sensitivity(torch.zeros(4, 8), torch.eye(8)) is None


def test_masks_go_where_parameters_go() -> None:
    student = Student(Tiny(), {"head": torch.ones(CLASSES, WIDE, dtype=torch.bool)})
    student.to("meta")
    assert student.masks["head"].device == student.values[0].device == torch.device("meta")
    assert student.masks["head"].dtype == torch.bool


def test_a_pruned_weight_gets_no_gradient() -> None:
    """So it stays zero, though nothing masks it on the way."""
    mask = torch.ones(CLASSES, WIDE, dtype=torch.bool)
    mask[:, 4:8] = False
    student = Student(Tiny(), {"head": mask})
    got = student({"ids": torch.arange(1, 7)[None]})
    got.outputs["scores"].square().sum().backward()
    grad = student.named_values()["head"].grad
    assert grad is not None and bool((grad[:, 4:8] == 0).all()) and bool((grad[:, :4] != 0).all())
    assert bool((student.named_values()["head"][:, 4:8] == 0).all())


def test_a_students_rows_lie_one_after_the_other() -> None:
    """Whatever the layout of the model: masks, gradients and moments have that one."""
    teacher = Tiny()
    teacher.values["head"] = teacher.values["head"].T.contiguous().T
    student = Student(teacher)
    value = student.named_values()["head"]
    assert value.is_contiguous() and torch.equal(value, teacher.values["head"])


@pytest.mark.parametrize("tiles", [False, True])
def test_products_are_coarse_only_where_that_is_fast(
    tiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And only those of steps: what is measured is in float32 either way."""
    can = {"avx512_bf16": True, "amx_bf16": tiles}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: can)
    seen: list[torch.dtype] = []

    class Watching(Tiny):
        def run(
            self,
            inputs: Mapping[str, Tensor],
            parameters: Mapping[str, Tensor],
            on_input: OnInput | None = None,
        ) -> Result:
            seen.append(functional.linear(torch.ones(1, 4), torch.ones(2, 4)).dtype)
            return super().run(inputs, parameters, on_input)

    one = trainer(Options(steps=2), teacher=Watching())
    one._state.cycles, one._state.cycle = plan.make(2, quantize=False), 0
    one._one(0)
    assert seen == [torch.bfloat16 if tiles else torch.float32] * 2  # teacher and student
    assert {p.dtype for p in one.student.values} == {torch.float32}
    assert {p.grad.dtype for p in one.student.values if p.grad is not None} == {torch.float32}
    seen.clear()
    one.agreement()
    observe.moments(one.student, [one._batches.batch(0)], one._tensors)
    assert set(seen) == {torch.float32}


def test_steps_in_bfloat16_repeat_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    options = Options(steps=40, learning_rate=5e-3)
    first = trainer(options).train()
    assert same(first, trainer(options).train()) and first.curve[-1].agreement > 0.8
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert not same(first, trainer(options).train())


def test_a_last_block_may_be_short() -> None:
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[0, 4:] = False
    assert masks.kept_blocks(mask).tolist() == [[True, False], [True, True]]


# ---- tables by rows ------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(data=st.data(), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_rows_move_as_a_dense_table_does(data: st.DataObject, dtype: torch.dtype) -> None:
    """Against torch's Adam over the whole table, whatever is looked up when."""
    looked_up = data.draw(
        st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=9), min_size=1, max_size=30)
    )
    rng = torch.Generator().manual_seed(len(looked_up))
    start = torch.randn(8, 3, generator=rng, dtype=dtype)
    table, dense = Table(start.clone()), nn.Parameter(start.clone())
    mine = rows.RowAdam({"table": table})
    theirs = torch.optim.Adam([dense], betas=(0.0, rows.BETA), eps=rows.EPSILON)
    for i, numbers in enumerate(looked_up):
        rate = 0.1 / (i + 1)
        pull = torch.randn(len(numbers), 3, generator=rng, dtype=dtype)
        mine.zero_grad()
        theirs.zero_grad()
        for one, sparse in ((table, True), (dense, False)):
            given = functional.embedding(torch.tensor(numbers), one, sparse=sparse)
            (given.sin() * pull).sum().backward()
        mine.step(rate)
        theirs.param_groups[0]["lr"] = rate
        theirs.step()
    torch.testing.assert_close(table.detach(), dense.detach(), rtol=1e-4, atol=1e-5)
    seen = {n for numbers in looked_up for n in numbers}
    assert set(mine.state()["table"]["rows"].tolist()) == seen
    for row in set(range(8)) - seen:
        assert torch.equal(table[row], start[row])


@pytest.mark.parametrize("limit", [1e-2, 1e6])
def test_gradients_of_rows_are_clipped_with_the_others(limit: float) -> None:
    rng = torch.Generator().manual_seed(0)
    numbers = torch.tensor([1, 4, 1])
    found = []
    for sparse in (True, False):
        kind = Table if sparse else nn.Parameter
        table, weight = kind(torch.ones(6, 3)), nn.Parameter(torch.arange(3.0))
        (functional.embedding(numbers, table, sparse=sparse) @ weight).sum().backward()
        clip = rows.clip if sparse else nn.utils.clip_grad_norm_
        norm = clip([table, weight, nn.Parameter(torch.randn(2, generator=rng))], limit)
        grad = table.grad
        assert grad is not None
        found.append((norm, grad.to_dense() if sparse else grad, weight.grad))
    torch.testing.assert_close(*found)


def test_rows_that_no_text_has_stay() -> None:
    """A state has the rows that were looked up, and gives back those that were not."""
    one = trainer(Options(steps=12, learning_rate=5e-3))
    start = one.teacher.parameters_by_name()["table"]
    used = {
        int(i) for batch in map(one._batches.batch, range(12)) for i in batch.inputs["ids"].flat
    }
    begun = one._snapshot()
    made = one.train().parameters["table"]
    moved = (made != start).any(1).nonzero().flatten().tolist()
    assert moved and set(moved) <= used - {0}  # what fills up moves nothing
    ended = one._snapshot()
    assert set(ended["rows"]["table"]["rows"].tolist()) == used
    one._restore(begun)
    assert torch.equal(one.student.named_values()["table"], start)
    one._restore(ended)
    assert torch.equal(one.student.named_values()["table"], made)


def test_tables_may_stay_as_they_are() -> None:
    one = trainer(Options(steps=8), frozen=["table"])
    assert "table" not in one.train().parameters


# ---- the training --------------------------------------------------------------------------------


def roundings(made: Trained) -> dict[str, tuple[Range, list[float] | None]]:
    return {
        name: (one.range, None if one.factors is None else one.factors.tolist())
        for name, one in made.roundings.items()
    }


def same(a: Trained, b: Trained) -> bool:
    return (
        all(torch.equal(a.parameters[n], b.parameters[n]) for n in a.parameters)
        and all(torch.equal(a.masks[n], b.masks[n]) for n in a.masks)
        and roundings(a) == roundings(b)
        and [p.agreement for p in a.curve] == [p.agreement for p in b.curve]
    )


def test_a_training_prunes_rounds_and_learns() -> None:
    lines: list[str] = []
    options = Options(steps=160, learning_rate=5e-3, range_rate=1e-2)
    one = trainer(options, lines=lines)
    dense = one.agreement()
    made = one.train()
    assert dense == pytest.approx(1)
    for name in TARGETS:
        zero = made.parameters[name].reshape(-1, 4) == 0
        assert float(zero.all(1).float().mean()) == pytest.approx(0.5, abs=0.02)
        assert torch.equal(made.parameters[name] == 0, ~made.masks[name])
    assert bool((made.parameters["head"] != 0).all())
    assert set(made.roundings) == {layer.place for layer in Tiny.layers}
    sparsity = [p.sparsity for p in made.curve]
    assert sparsity == sorted(sparsity)
    # What it loses when blocks go, it learns again.
    rest = [p for p in made.curve if p.sparsity == sparsity[-1]]
    assert rest[-1].agreement > 0.9 and rest[-1].loss < rest[0].loss
    naive = trainer(dataclasses.replace(options, learning_rate=0.0, range_rate=0.0)).train()
    assert made.curve[-1].agreement > naive.curve[-1].agreement + 0.01
    assert lines[-1].startswith("step 160 of 160, loss") and lines[-1].endswith("int8, 0 s left")


def test_the_same_seed_gives_the_same_bytes() -> None:
    options = Options(steps=40, learning_rate=5e-3)
    first = trainer(options).train()
    assert same(first, trainer(options).train())
    assert not same(first, trainer(dataclasses.replace(options, seed=1)).train())


@pytest.mark.parametrize("stop", [3, 17, 36])
def test_a_training_that_was_stopped_goes_on_as_if_it_was_not(stop: int, tmp_path: Path) -> None:
    options = Options(steps=40, learning_rate=5e-3)
    whole = trainer(options, tmp_path / "whole").train()
    stopped = trainer(options, tmp_path)
    real, calls = stopped._gradients, 0

    def interrupted(batch, told):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        if calls > stop:
            raise KeyboardInterrupt
        return real(batch, told)

    stopped._gradients = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    lines: list[str] = []
    assert same(whole, trainer(options, tmp_path, lines).train())
    assert "goes on at step" in lines[0]
    # Finished is finished.
    assert same(whole, trainer(options, tmp_path).train())


def test_a_checkpoint_belongs_to_its_training(tmp_path: Path) -> None:
    options = Options(steps=4)
    trainer(options, tmp_path).train()
    with pytest.raises(InputError, match="another model, other texts or other options"):
        trainer(Options(steps=5), tmp_path).train()
    (tmp_path / checkpoint.NAME).write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match="damaged"):
        trainer(options, tmp_path).train()


def test_a_full_disk_costs_the_checkpoint_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.write(tmp_path, "x", {"a": 1})

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.write(tmp_path, "x", {"a": 2})
    assert checkpoint.read(tmp_path, "x") == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == [checkpoint.NAME]
    lines: list[str] = []
    made = trainer(Options(steps=4), tmp_path / "new", lines).train()
    assert made.steps == 4
    assert [line for line in lines if "no checkpoint could be written" in line]


def test_nan_goes_back_and_slows_down() -> None:
    lines: list[str] = []
    one = trainer(Options(steps=60, learning_rate=5e-3), lines=lines)
    real, broken = one._gradients, [25, 26, 30]

    def sometimes(batch, told):  # type: ignore[no-untyped-def]
        if one._state.step in broken:
            broken.remove(one._state.step)
            return None
        return real(batch, told)

    one._gradients = sometimes  # type: ignore[method-assign]
    made = one.train()
    assert made.steps == 60 and math.isfinite(made.curve[-1].agreement)
    back = [line for line in lines if "half the learning rate" in line]
    assert back[0] == "NaN or infinity at step 25: back to 22, half the learning rate" or (
        "at step 25: back to" in back[0]
    )
    assert len(back) == 3 and one._state.slower == 1 / 8


def test_numbers_that_do_not_come_back_end_it(tmp_path: Path) -> None:
    one = trainer(Options(steps=30), tmp_path)
    real = one._gradients

    def always(batch, told):  # type: ignore[no-untyped-def]
        return real(batch, told) if one._state.step < 5 else None

    one._gradients = always  # type: ignore[method-assign]
    with pytest.raises(NonFiniteError, match=r"at step 5\), and going back"):
        one.train()
    assert (tmp_path / checkpoint.NAME).exists()


def test_a_teacher_without_numbers_is_told_at_once() -> None:
    teacher = Tiny()
    teacher.values["up.0"][0, 0] = math.nan
    with pytest.raises(NonFiniteError, match="gives NaN or infinity in states"):
        trainer(Options(steps=10), teacher=teacher).train()


def test_labels_pull_too() -> None:
    options = Options(steps=100, learning_rate=1e-2, quantize=False,
                      weights=losses.Weights(0.0, 0.0, 1.0))  # fmt: skip
    one = trainer(options, label=True)
    made = one.train()
    right = []
    for batch in one._batches.all():
        got = one.student({n: torch.from_numpy(v) for n, v in batch.inputs.items()})
        right += (got.outputs["scores"].argmax(1).numpy() == batch.targets["scores"]).tolist()
    assert np.mean(right) > 0.5 and not made.roundings


def test_minutes_become_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    one = trainer(Options(minutes=0.05), lines=lines)
    before = {n: p.detach().clone() for n, p in one.student.named_values().items()}
    one._pace()
    assert all(torch.equal(before[n], p) for n, p in one.student.named_values().items())
    monkeypatch.setattr(one, "_pace", lambda: (0.03, 0.01))
    assert plan.total(one._plan()) == 100
    made = one.train()
    assert made.steps <= 100 and "100 steps in 0.05 minutes" in lines[0]


def test_answers_that_are_kept_make_room_for_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = trainer(Options(minutes=0.05), tmp_path)
    assert 6 <= one._batches.per_epoch <= 20
    monkeypatch.setattr(one, "_pace", lambda: (0.03, 0.01))
    seconds = 3 - 0.01 * one._batches.per_epoch
    assert plan.total(one._plan()) == plan.steps_in(seconds, 0.02) > 100
    # Too few steps to ask twice.
    monkeypatch.setattr(one, "_pace", lambda: (1.0, 0.1))
    assert plan.total(one._plan()) == 3


def test_steps_that_take_longer_than_measured_become_fewer() -> None:
    """The teacher's reading and what cycles begin with are no steps."""
    lines: list[str] = []
    one = trainer(Options(minutes=1.2), lines=lines)
    state = one._state
    state.cycles = plan.make(100)
    state.step, state.seconds, state.aside = 20, 30.0, 20.0  # half a second a step
    one._shorten(1)
    assert plan.total(state.cycles) == 100 and not lines
    one._beginning = 2.0
    state.seconds = 50.0  # 1.5 s a step: 120 s for the others
    one._shorten(1)
    fewer = plan.total(state.cycles)
    assert 35 < fewer < 55 and lines == [f"steps take longer than measured: {fewer} instead"]


# ---- the teacher's answers -----------------------------------------------------------------------


def test_answers_are_those_of_the_teacher(tmp_path: Path) -> None:
    one = trainer(Options(steps=40), tmp_path)
    made = remembered.remember(tmp_path / "kept", one._batches, one._told, KINDS, "a")
    assert made is not None
    for step in (0, 1, one._batches.per_epoch, one._batches.per_epoch + 3):
        batch = one._batches.batch(step)
        told, kept = one._told(batch), made.result(batch)
        assert list(kept.outputs) == list(KINDS)
        mask = torch.from_numpy(batch.mask)
        pairs = [(told.outputs[name], kept.outputs[name]) for name in KINDS]
        pairs += list(zip(told.states, kept.states, strict=True))
        for wanted, got in pairs:
            assert got.shape == wanted.shape and got.dtype == torch.float32
            by_token = wanted.shape[:2] == mask.shape
            real = (wanted[mask], got[mask]) if by_token else (wanted, got)
            assert torch.allclose(*real, rtol=1e-3, atol=1e-3)
            assert not by_token or not got[~mask].any()


def test_answers_are_computed_once(tmp_path: Path) -> None:
    one = trainer(Options(steps=40), tmp_path)
    calls = []

    def run(batch):  # type: ignore[no-untyped-def]
        calls.append(batch)
        return one._told(batch)

    for fingerprint, count in (("a", 1), ("a", 1), ("b", 2)):
        found = remembered.remember(tmp_path / "kept", one._batches, run, KINDS, fingerprint)
        assert found is not None and len(calls) == count * one._batches.per_epoch
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize("why", ["large", "disk", "numbers", "broken"])
def test_answers_that_cannot_be_kept(
    why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = trainer(Options(steps=40), tmp_path)
    kinds = dict(KINDS)

    def run(batch):  # type: ignore[no-untyped-def]
        found = one._told(batch)
        if why == "broken":
            raise OSError(28, "No space left on device")
        return losses.Result(found.outputs, [s * 1e6 for s in found.states])

    if why == "disk":
        monkeypatch.setattr(remembered, "SHARE", 0.0)
    if why == "numbers":
        kinds["more"] = losses.Kind.NUMBERS
    if why == "broken":
        with pytest.raises(OSError, match="No space"):
            remembered.remember(tmp_path / "kept", one._batches, run, kinds, "a")
    else:
        assert remembered.remember(tmp_path / "kept", one._batches, run, kinds, "a") is None
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_teacher_to_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(remembered, "_write", full)
    lines: list[str] = []
    made = trainer(Options(steps=40), tmp_path, lines).train()
    assert made.steps == 40
    assert [line for line in lines if line.endswith("anew each time (No space left on device)")]


# ---- labels --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text():  # type: ignore[no-untyped-def]
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    from sparsec.serving.text import Text

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "who", "lives", "in", "ber", "##lin", "anna", "."]
    made = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]
    )
    return Text(made)


def test_labels_become_targets(text) -> None:  # type: ignore[no-untyped-def]
    from sparsec.pruning.evaluation.texts import Sample
    from sparsec.pruning.training.targets import targets

    def of(task: str, sample: Sample, outputs=("y",), names=("O", "PER", "LOC"), longest=32):  # type: ignore[no-untyped-def]
        return targets(task, sample, "text 1", text, longest, outputs, names)

    none = losses.IGNORE
    assert of("text-classification", Sample("anna")) == {}
    assert of("text-classification", Sample("anna", label="LOC")) == {"y": 2}
    assert of("multi-label-classification", Sample("a", label=["O", 2]))["y"].tolist() == [1, 0, 1]
    assert of("regression", Sample("anna", label="0.5"))["y"].tolist() == [0.5]
    words = Sample("", words=("anna", "lives", "in", "berlin"), label=["PER", "O", "O", "LOC"])
    made = of("token-classification", words)["y"].tolist()
    assert made == [none, 1, 0, 0, 2, none, none]
    assert of("token-classification", words, longest=4)["y"].tolist() == [none, 1, 0, none]
    plain = Sample("anna in", label="PER O")
    assert of("token-classification", plain)["y"].tolist() == [none, 1, 0, none]
    question = Sample("who", "anna lives in berlin .", label="berlin")
    both = ("start", "end")
    # [CLS] who [SEP] anna lives in ber ##lin . [SEP]
    assert of("question-answering", question, both) == {"start": 6, "end": 7}
    assert of("question-answering", question, both, longest=8) == {"start": none, "end": none}
    nobody = dataclasses.replace(question, label=[])
    assert of("question-answering", nobody, both) == {"start": 0, "end": 0}
    other = dataclasses.replace(question, label="paris")
    assert of("question-answering", other, both) == {"start": none, "end": none}
    for task, label, match in (
        ("embeddings", 0.5, "takes none"),
        ("text-classification", "ORG", "no label 'ORG'"),
        ("regression", "much", "a number is needed"),
        ("token-classification", ["PER"], "1 labels for 2 words"),
        ("token-classification", [{"start": 0}], "one for each word"),
    ):
        with pytest.raises(InputError, match=match):
            of(task, Sample("anna in", label=label))
