"""Schedules, buffers and plans: small ones made by hand, random ones, and planted faults."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sparsec import targets
from sparsec.compiler import frontend, import_buckets
from sparsec.compiler.codegen import buffers, emit_buckets, plan_bucket, schedule
from sparsec.compiler.codegen.buffers import Ends
from sparsec.compiler.codegen.plan import (
    BEFORE,
    Argument,
    Buffer,
    Call,
    Copy,
    Plan,
    PlanError,
    Port,
    Size,
    Slot,
    Weights,
)
from sparsec.compiler.editor import Editor
from sparsec.compiler.ir import BATCH, Graph
from sparsec.compiler.lowering.linear import Plans
from sparsec.compiler.lowering.pool import WeightPool
from sparsec.compiler.ops import OPS
from sparsec.errors import SparsecError
from tests.fuzz.graphs import grown, grown_tokens

X: Slot = ("x", "flat")
Y: Slot = ("y", "flat")


def lane(name: str) -> Slot:
    return (name, "lane")


def rows(
    name: str,
    reads: Sequence[Slot],
    writes: Sequence[Slot],
    quads: int = 0,
    domain: str = "token",
) -> Call:
    """A lane kernel; with `quads`, a layer."""
    return Call(name, "rows", tuple(reads), tuple(writes), domain=domain, quads=quads)


def attention(name: str, reads: Sequence[Slot], writes: Sequence[Slot]) -> Call:
    return Call(name, "attention", tuple(reads), tuple(writes), domain="token", heads=2)


def general(name: str, reads: Sequence[Slot], writes: Sequence[Slot]) -> Call:
    return Call(name, "general", tuple(reads), tuple(writes))


def size_of(slot: Slot) -> Size:
    return Size(batch=64) if slot[1] == "flat" else Size(token=256)


def planned(
    calls: Sequence[Call],
    ends: Ends | None = None,
    sizes: Callable[[Slot], Size] = size_of,
) -> Plan:
    """A plan of these calls, from input x to output y unless told otherwise."""
    ends = Ends((X,), {Y: 0}) if ends is None else ends
    stages = schedule.stages(calls)
    used = {slot for call in calls for slot in (*call.reads, *call.writes)}
    known = {slot: sizes(slot) for slot in used | {*ends.inputs, *ends.outputs}}
    taken = sorted([*ends.outputs.items(), *ends.copied], key=lambda pair: pair[1])
    return Plan(
        length=8,
        tokens=8,
        inputs=tuple(Port(slot[0], known[slot]) for slot in ends.inputs),
        outputs=tuple(Port(slot[0], sizes(slot)) for slot, _ in taken),
        kernels={},
        stages=stages,
        memory=buffers.allocate(stages, ends, known),
        copies=tuple(Copy(slot, i) for slot, i in ends.copied),
    )


def where(plan: Plan) -> dict[str, tuple[str, int]]:
    """Where buffers are: "value:form" -> region and place."""
    return {":".join(b.slot): (b.region, b.at) for b in plan.memory.buffers}


#: A layer and what follows it, twice, with attention between: all regions occur.
BLOCK = (
    rows("pack", [X], [lane("a")]),
    rows("q", [lane("a")], [lane("q")], quads=4),
    rows("k", [lane("a")], [lane("k")], quads=4),
    attention("mix", [lane("q"), lane("k")], [lane("m")]),
    rows("out", [lane("m")], [lane("o")], quads=4),
    rows("norm", [lane("o")], [lane("n")]),
    rows("unpack", [lane("n")], [Y]),
)


# -- schedule


def stages_of(calls: Sequence[Call]) -> list[list[list[str]]]:
    return [[[c.function for c in w] for w in s.waves] for s in schedule.stages(calls)]


def test_neighbours_that_take_the_same_rows_share_a_stage() -> None:
    assert stages_of(BLOCK) == [
        [["pack"], ["q", "k"]],
        [["mix"]],
        [["out"], ["norm"], ["unpack"]],
    ]
    assert [s.kind for s in schedule.stages(BLOCK)] == ["rows", "attention", "rows"]


def test_rows_of_tokens_and_of_sequences_do_not_mix() -> None:
    calls = [rows("a", [X], [lane("a")]), rows("b", [X], [lane("b")], domain="item")]
    assert stages_of(calls) == [[["a"]], [["b"]]]


def test_row_major_calls_and_attention_stand_alone() -> None:
    calls = [
        general("a", [X], [("a", "flat")]),
        general("b", [X], [("b", "flat")]),
        attention("c", [lane("q")], [lane("c")]),
        attention("d", [lane("q")], [lane("d")]),
    ]
    assert stages_of(calls) == [[["a"]], [["b"]], [["c"]], [["d"]]]


def test_layers_that_need_each_other_are_in_different_waves() -> None:
    calls = [
        rows("a", [X], [lane("a")], quads=1),
        rows("b", [X], [lane("b")], quads=1),
        rows("c", [lane("a")], [lane("c")], quads=1),
        rows("d", [X], [lane("d")], quads=1),
        rows("e", [X], [lane("e")]),  # not a layer: split by rows
        rows("f", [X], [lane("f")], quads=1),
    ]
    assert stages_of(calls) == [[["a", "b"], ["c", "d"], ["e"], ["f"]]]


def test_a_batch_is_cut_into_pieces_of_about_so_many_rows() -> None:
    def graph(op: str, length: int) -> Graph:
        e = Editor(name="g", length=length)
        x = e.input("x", np.float32, (BATCH, length, 4))
        e.outputs.append(e.emit(op, [x], **({"axis": 0} if op == "softmax" else {})))
        return e.finish()

    assert schedule.chunk(graph("neg", 128)) == 512 // 128
    assert schedule.chunk(graph("neg", 1000)) == 1
    assert schedule.chunk(graph("softmax", 128)) == 0


# -- buffers


def test_buffers_of_a_stage_are_local_and_others_share_places() -> None:
    plan = planned(BLOCK)
    plan.verify()
    assert where(plan) == {
        "x:flat": ("input", 0),
        "a:lane": ("local", 0),
        "q:lane": ("workspace", 0),
        "k:lane": ("workspace", 1),
        "m:lane": ("workspace", 2),
        "o:lane": ("local", 0),
        "n:lane": ("local", 256),
        "y:flat": ("output", 0),
    }
    assert plan.memory.places == (Size(token=256),) * 3
    assert plan.memory.local == 512


def test_a_place_is_free_only_after_the_stage_that_reads_it_last() -> None:
    names = ["x", "a", "b", "c", "d"]
    chain = [general(f"to_{b}", [(a, "flat")], [(b, "flat")]) for a, b in pairwise(names)]
    plan = planned([*chain, general("last", [("d", "flat"), ("a", "flat")], [Y])])
    plan.verify()
    # a is needed to the end; of the others each takes turns with the next but one.
    assert [where(plan)[f"{n}:flat"][1] for n in "abcd"] == [0, 1, 2, 1]


def test_a_place_grows_to_its_largest_buffer_and_only_with_its_kind() -> None:
    sizes = {
        "x": Size(batch=4),
        "a": Size(batch=100),
        "b": Size(fixed=8),
        "c": Size(batch=300),
        "y": Size(batch=4),
    }
    calls = [
        general("a", [X], [("a", "flat")]),
        general("b", [("a", "flat")], [("b", "flat")]),
        general("c", [("b", "flat")], [("c", "flat")]),
        general("y", [("c", "flat")], [Y]),
    ]
    plan = planned(calls, sizes=lambda slot: sizes[slot[0]])
    plan.verify()
    assert [where(plan)[f"{n}:flat"] for n in "abc"] == [
        ("workspace", 0),
        ("workspace", 1),
        ("workspace", 0),
    ]
    assert plan.memory.places == (Size(batch=300), Size(fixed=8))


def test_local_memory_is_used_again_within_a_stage() -> None:
    calls = [
        rows("a", [X], [lane("a")]),
        rows("b", [lane("a")], [lane("b")]),
        rows("c", [lane("b")], [lane("c")]),
        rows("y", [lane("c")], [Y]),
    ]
    plan = planned(calls)
    plan.verify()
    assert [where(plan)[f"{n}:lane"] for n in "abc"] == [("local", n) for n in (0, 256, 0)]
    assert plan.memory.local == 512


def test_what_goes_into_a_gap_leaves_its_neighbours_alone() -> None:
    sizes = {"a": 64, "b": 512, "c": 128, "d": 64}
    calls = [
        rows("ab", [X], [lane("a"), lane("b")]),
        rows("c", [lane("b")], [lane("c")]),  # a is gone: 64 bytes, too few
        rows("d", [lane("b"), lane("c")], [lane("d")]),
        rows("y", [lane("d")], [Y]),
    ]
    plan = planned(
        calls, sizes=lambda s: Size(batch=4) if s[1] == "flat" else Size(token=sizes[s[0]])
    )
    plan.verify()
    places = where(plan)
    assert [places[f"{n}:lane"][1] for n in "abcd"] == [0, 64, 576, 0]
    assert plan.memory.local == 704


def test_outputs_are_made_in_place_or_copied() -> None:
    z: Slot = ("z", "flat")
    ends = Ends((X,), {Y: 0, z: 1}, ((X, 2), (Y, 3)))
    plan = planned([general("y", [X], [Y]), general("z", [Y], [z])], ends)
    plan.verify()
    assert where(plan) == {
        "x:flat": ("input", 0),
        "y:flat": ("output", 0),
        "z:flat": ("output", 1),
    }
    assert plan.copies == (Copy(X, 2), Copy(Y, 3))
    x = next(b for b in plan.memory.buffers if b.slot == X)
    assert (x.first, x.last) == (BEFORE, (2, 0))


def test_outputs_of_a_graph_that_are_no_results_of_their_own() -> None:
    e = Editor(name="g", length=4)
    x = e.input("x", np.float32, (BATCH, 3))
    y = e.emit("neg", [x])
    constant = e.constant(np.arange(3, dtype=np.float32), "three")
    e.outputs += [y, x, y, constant]
    pool = WeightPool()
    target = targets.get("generic")
    plan = plan_bucket(e.finish(), target, pool, Plans(target, [4], 1, None))
    assert [(c.value, c.output) for c in plan.copies] == [
        (X, 1),
        ((y, "flat"), 2),
        (Weights(0), 3),
    ]
    assert pool.data()[:12] == np.arange(3, dtype=np.float32).tobytes()


# -- plans


def test_a_plan_prints() -> None:
    text = planned(
        [
            replace(BLOCK[0], title="8 channels: copy", source="/pack", kernel="map_8_ab"),
            replace(BLOCK[1], tiles=(2, 1), arguments=(Argument("cv", Weights(128)),)),
            *BLOCK[2:],
        ]
    ).to_text()
    for line in (
        "bucket of 8 tokens: the batch as a whole",
        "input 0: x, 64*batch bytes",
        "stage 0: rows of tokens",
        "  wave 1",
        "    pack: 8 channels: copy",
        "        kernel map_8_ab",
        "        from   /pack",
        "        reads  x:flat",
        "               weights at 128",
        "        writes a:lane",
        "stage 1: attention of tokens",
        "  place 2 at 512*tokens/16: 256*tokens/16 bytes",
        "  x:flat: input 0, 64*batch bytes, the start to stage 0",
        "  q:lane: place 0, 256*tokens/16 bytes, stage 0 to stage 1",
        "  n:lane: local 256, 256*tokens/16 bytes, stage 2 waves 1 to 2",
        "  y:flat: output 0, 64*batch bytes, stage 2 to the end",
    ):
        assert line in text.split("\n")


# -- planted faults


def with_buffers(plan: Plan, made: Sequence[Buffer]) -> Plan:
    """The plan with other buffers."""
    assert tuple(made) != plan.memory.buffers
    return replace(plan, memory=replace(plan.memory, buffers=tuple(made)))


def with_buffer(plan: Plan, name: str, **changes: Any) -> Plan:
    """The plan with one buffer changed."""
    made = [replace(b, **changes) if b.slot[0] == name else b for b in plan.memory.buffers]
    return with_buffers(plan, made)


def with_calls(plan: Plan, change: Callable[[Call], Call]) -> Plan:
    """The plan with its calls changed, and nothing else."""
    stages = tuple(
        replace(s, waves=tuple(tuple(change(c) for c in wave) for wave in s.waves))
        for s in plan.stages
    )
    assert stages != plan.stages
    return replace(plan, stages=stages)


def with_call(plan: Plan, name: str, **changes: Any) -> Plan:
    return with_calls(plan, lambda c: replace(c, **changes) if c.function == name else c)


FAULTS: dict[str, tuple[Callable[[Plan], Plan], str]] = {
    "stages in the wrong order": (
        lambda p: replace(p, stages=(p.stages[1], p.stages[0], *p.stages[2:])),
        r"mix .* reads q:lane, which is not yet written",
    ),
    "a value that nobody makes": (
        lambda p: with_call(p, "norm", reads=(lane("nobody"),)),
        r"norm .* reads nobody:lane, which is not yet written",
    ),
    "a result of the same wave": (
        lambda p: with_call(p, "k", reads=(lane("q"),)),
        r"k .* reads q:lane, which is not yet written",
    ),
    "a write to an input": (
        lambda p: with_call(p, "unpack", writes=(X,)),
        r"unpack .* writes to x:flat, which is an input",
    ),
    "two writers": (
        lambda p: with_call(p, "k", writes=(lane("q"),)),
        r"k .* writes q:lane again",
    ),
    "two writers, one after the other": (
        lambda p: with_call(p, "norm", writes=(lane("o"),)),
        r"norm .* writes o:lane again",
    ),
    "no output": (
        lambda p: with_call(p, "unpack", writes=(("z", "flat"),)),
        "y:flat, which is an output, is not written",
    ),
    "an output too many": (
        lambda p: replace(p, outputs=(*p.outputs, Port("z", Size(fixed=4)))),
        r"outputs \[0\] are written of 2",
    ),
    "one place for two": (
        lambda p: with_buffer(p, "k", at=0),
        "[qk]:lane and [qk]:lane are in one place at one time",
    ),
    "one place for what is read and what is written": (
        lambda p: with_buffer(p, "m", at=1),
        "[km]:lane and [km]:lane are in one place at one time",
    ),
    "local buffers that overlap": (
        lambda p: with_buffer(p, "n", at=255),
        "[no]:lane and [no]:lane are in one place at one time",
    ),
    "a life too short": (
        lambda p: with_buffer(p, "q", last=(0, 1)),
        r"q:lane lives from \(0, 1\) to \(0, 1\), but is used from \(0, 1\) to \(1, 0\)",
    ),
    "local beyond its stage": (
        lambda p: with_buffer(p, "q", region="local", at=256),
        "q:lane is local, but outlives its stage",
    ),
    "local memory too small": (
        lambda p: replace(p, memory=replace(p.memory, local=511)),
        "n:lane of .* is too large for its place",
    ),
    "a place too small": (
        lambda p: replace(p, memory=replace(p.memory, places=(Size(token=255),) * 3)),
        "q:lane of .* is too large for its place",
    ),
    "a place that grows with something else": (
        lambda p: replace(p, memory=replace(p.memory, places=(Size(batch=1 << 20),) * 3)),
        "q:lane of .* is too large for its place",
    ),
    "a place that is not there": (
        lambda p: with_buffer(p, "m", at=3),
        "m:lane of .* is too large for its place",
    ),
    "no buffer": (
        lambda p: replace(
            p, memory=replace(p.memory, buffers=p.memory.buffers[:-2] + p.memory.buffers[-1:])
        ),
        "n:lane has no buffer",
    ),
    "two buffers": (
        lambda p: replace(
            p, memory=replace(p.memory, buffers=(*p.memory.buffers, p.memory.buffers[1]))
        ),
        "a value is in two buffers",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_verify_finds(fault: str) -> None:
    plan = planned(BLOCK)
    plan.verify()
    plant, message = FAULTS[fault]
    with pytest.raises(PlanError, match=message):
        plant(plan).verify()


# -- random ones


def needed_at(plan: Plan) -> list[tuple[tuple[int, int], set[Slot]]]:
    """For each wave, every value that is made by then and used in it or later: by brute force."""
    times = [((i, k), w) for i, s in enumerate(plan.stages) for k, w in enumerate(s.waves)]
    ends = {b.slot for b in plan.memory.buffers if b.region == "output"}
    ends |= {c.value for c in plan.copies if isinstance(c.value, tuple)}
    made = {b.slot for b in plan.memory.buffers if b.region == "input"}
    found = []
    for at, (time, wave) in enumerate(times):
        made |= {slot for call in wave for slot in call.writes}
        later = {s for _, w in times[at:] for c in w for s in (*c.reads, *c.writes)} | ends
        found.append((time, made & later))
    return found


def check(plan: Plan) -> None:
    """No two live buffers overlap and no call reads what is not there: found without `verify`."""
    have = {b.slot: b for b in plan.memory.buffers}
    known = {b.slot for b in plan.memory.buffers if b.region == "input"}
    for stage in plan.stages:
        for wave in stage.waves:
            assert {s for c in wave for s in c.reads} <= known
            known |= {s for c in wave for s in c.writes}
    by_stage: dict[int, set[Slot]] = {}
    for time, slots in needed_at(plan):
        by_stage.setdefault(time[0], set()).update(slots)
        local = [have[s] for s in slots if have[s].region == "local"]
        for a, b in combinations(local, 2):
            assert a.at + a.size.total <= b.at or b.at + b.size.total <= a.at, (a, b)
    for slots in by_stage.values():
        shared = [have[s] for s in slots if have[s].region != "local"]
        assert len({(b.region, b.at) for b in shared}) == len(shared)
    for buffer in have.values():
        if buffer.region == "workspace":
            room = plan.memory.places[buffer.at]
            for extent in ("batch", "token", "item", "fixed"):
                assert getattr(buffer.size, extent) <= getattr(room, extent)


@st.composite
def call_lists(draw: st.DrawFn) -> tuple[list[Call], Ends, dict[Slot, Size]]:
    """Calls that read inputs and earlier results, in any mixture of kinds; some are outputs."""
    inputs = [(f"x{i}", "flat") for i in range(draw(st.integers(1, 2)))]
    sizes: dict[Slot, Size] = {slot: Size(batch=4) for slot in inputs}
    known, calls, domains = list(inputs), [], {}
    for i in range(draw(st.integers(1, 14))):
        kind = draw(st.sampled_from(["rows", "rows", "rows", "general", "attention"]))
        domain = draw(st.sampled_from(["token", "token", "item"])) if kind == "rows" else "token"
        fit = [s for s in known if s[1] == "flat" or (domains[s] == domain and kind != "general")]
        reads = draw(st.lists(st.sampled_from(fit), min_size=1, max_size=3, unique=True))
        writes = []
        for k in range(draw(st.integers(1, 2))):
            flat = kind == "general" or draw(st.integers(0, 5)) == 0
            slot = (f"v{i}_{k}", "flat" if flat else draw(st.sampled_from(["lane", "panel_u8"])))
            bytes_ = draw(st.sampled_from([16, 64, 192, 256]))
            extent = draw(st.sampled_from(["batch", "fixed"])) if flat else domain
            sizes[slot] = Size(**{extent: bytes_})
            domains[slot] = domain
            writes.append(slot)
        quads = draw(st.integers(0, 2)) if kind == "rows" else 0
        calls.append(
            Call(
                f"f{i}",
                kind,
                tuple(reads),
                tuple(writes),
                domain="" if kind == "general" else domain,
                quads=quads,
            )
        )
        known += writes
    flat = [s for c in calls for s in c.writes if s[1] == "flat"]
    outputs = draw(st.lists(st.sampled_from(flat), unique=True)) if flat else []
    copied = draw(st.lists(st.sampled_from([*inputs, *flat]), max_size=2, unique=True))
    ends = Ends(
        tuple(inputs),
        {slot: i for i, slot in enumerate(outputs)},
        tuple((slot, len(outputs) + i) for i, slot in enumerate(copied)),
    )
    return calls, ends, sizes


@settings(max_examples=200, deadline=None)
@given(call_lists())
def test_random_calls(drawn: tuple[list[Call], Ends, dict[Slot, Size]]) -> None:
    calls, ends, sizes = drawn
    plan = planned(calls, ends, sizes.__getitem__)
    assert [c.function for c in plan.calls] == [c.function for c in calls]
    plan.verify()
    check(plan)
    assert plan.to_text().count("\n        writes") == len(calls)


@settings(max_examples=100, deadline=None)
@given(call_lists(), st.data())
def test_faults_in_random_plans(
    drawn: tuple[list[Call], Ends, dict[Slot, Size]], data: st.DataObject
) -> None:
    plan = planned(drawn[0], drawn[1], drawn[2].__getitem__)
    used = {s for c in plan.calls for s in c.reads}
    moved = [b for b in plan.memory.buffers if b.region in ("workspace", "local")]
    kind = data.draw(st.sampled_from(["unwritten", "input", "overlap"]))
    call = data.draw(st.sampled_from(plan.calls))
    if kind == "unwritten":
        made = [c for c in plan.calls if used & {*c.writes}]
        assume(made)
        call = data.draw(st.sampled_from(made))
        bad = with_call(plan, call.function, writes=())
    elif kind == "input":
        bad = with_call(plan, call.function, writes=(*call.writes, plan_input(plan)))
    else:
        pairs = [
            (a, b)
            for a, b in combinations(moved, 2)
            if a.region == b.region
            and (a.first if a.region == "local" else a.first[:1])
            <= (b.last if a.region == "local" else b.last[:1])
            and (b.first if a.region == "local" else b.first[:1])
            <= (a.last if a.region == "local" else a.last[:1])
        ]
        assume(pairs)
        a, b = data.draw(st.sampled_from(pairs))
        bad = with_buffer(plan, b.slot[0], at=a.at)
    with pytest.raises(PlanError):
        bad.verify()


def plan_input(plan: Plan) -> Slot:
    return next(b.slot for b in plan.memory.buffers if b.region == "input")


def of_tokens(seed: int) -> onnx.ModelProto:
    """A random graph over tokens, which runs in lanes, for any batch and length."""
    model = grown_tokens(seed, 9, 3, 11, quantized=True).model()
    for value in (*model.graph.input, *model.graph.output):
        batch, sequence = value.type.tensor_type.shape.dim[:2]
        batch.dim_param, sequence.dim_param = "batch", "sequence"
    return model


@pytest.mark.parametrize("make", [lambda seed: grown(seed, 8).model(), of_tokens])
@pytest.mark.parametrize("seed", range(25))
def test_random_graphs(seed: int, make: Callable[[int], onnx.ModelProto], tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(make(seed), path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = frontend.load_model(path)
            signature = frontend.signature(model)
            lengths = [8] if signature.has_sequence and signature.fixed_length is None else []
            graphs = import_buckets(model, signature, lengths)
            emission = emit_buckets(graphs, signature, targets.get("avx512_vnni"), "model")
        except SparsecError:
            pytest.skip("a graph that is refused")
    # Without one of these, elementwise nodes alone may stay row-major.
    heavy = any(OPS[node.op].linear or node.op == "layernorm" for node in graphs[0].nodes)
    for bucket in emission.buckets:
        bucket.plan.verify()
        check(bucket.plan)
        in_lanes = any(stage.kind == "rows" for stage in bucket.plan.stages)
        assert in_lanes or make is not of_tokens or not heavy
