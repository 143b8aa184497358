"""Nodes in groups and steps in order, on random graphs and on long ones."""

from __future__ import annotations

import time
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsec.compiler.editor import Editor
from sparsec.compiler.ir import BATCH, Graph
from sparsec.compiler.lowering import lanes
from sparsec.compiler.lowering.groups import GROUP_LIMIT, Step, group
from sparsec.compiler.lowering.waits import Waits

F = np.float32
LENGTH, CHANNELS = 4, 8


@settings(max_examples=150, deadline=None)
@given(r=st.randoms(use_true_random=False))
def test_no_step_waits_for_itself(r: Random) -> None:
    """Steps and dependences as they come, against the sets of all that a step waits for."""
    waits, behind = Waits(), list[set[int]]()
    for _ in range(r.randint(2, 25)):
        count = len(behind)
        if count < 2 or r.random() < 0.5:
            on = set(r.sample(range(count), r.randint(0, min(count, 3))))
            assert waits.add(on) == count
            behind.append(on.union(*(behind[i] for i in on)))
            continue
        step, others = r.randrange(count), set(r.sample(range(count), r.randint(1, 2)))
        circle = any(step == i or step in behind[i] for i in others)
        assert waits.reaches(others, step) is circle
        if not circle:
            waits.extend(step, others)
            more = others.union(*(behind[i] for i in others))
            for i, deps in enumerate(behind):
                if i == step or step in deps:
                    deps |= more
    order = waits.ordered(range(len(behind)))
    assert sorted(order) == list(range(len(behind)))
    for place, step in enumerate(order):
        assert behind[step] <= set(order[:place])


def random_graph(r: Random, nodes: int) -> Graph:
    """Layers, elementwise work, normalization, lookups, reductions: in lanes and row-major."""
    e = Editor(name="random", length=LENGTH)
    shape = (BATCH, LENGTH, CHANNELS)
    rows = [e.input(f"x{i}", F, shape) for i in range(2)]
    numbers = [e.input("n", F, (1, 1))]
    ids = e.input("ids", np.int64, shape[:2])
    weights = e.constant(np.ones((CHANNELS, CHANNELS), F))
    gamma = e.constant(np.ones(CHANNELS, F))
    positions = e.constant(np.ones((LENGTH, CHANNELS), F))
    for _ in range(nodes):
        x, n = r.choice(rows[-6:]), r.choice(numbers[-4:])
        kind = r.choice(["add", "mul", "relu", "sin", "n", "max", "linear", "norm", "table", "pos"])
        if kind == "n":
            numbers.append(e.emit("sin", [n]))
        elif kind == "max":
            most = e.emit("reduce_max", [x], axes=(0, 1, 2), keepdims=False)
            numbers.append(e.emit("reshape", [most], shape=(1, 1)))
        elif kind == "linear":
            rows.append(e.emit("linear", [x, weights]))
        elif kind == "norm":
            rows.append(e.emit("layernorm", [x, gamma, gamma], eps=1e-5))
        elif kind == "table":
            rows.append(e.emit("gather", [weights, ids], axis=0))
        elif kind == "pos":
            rows.append(e.emit("add", [x, positions]))
        elif kind == "sin":
            flat = e.emit("reshape", [e.emit("sin", [x])], shape=(BATCH * LENGTH, CHANNELS))
            rows.append(e.emit("reshape", [flat], shape=shape))
        else:
            rows.append(e.emit(kind, [x] if kind == "relu" else [x, r.choice([n, *rows[-6:]])]))
    e.outputs = list(dict.fromkeys([*r.sample(rows, 2), rows[-1], numbers[-1]]))
    return e.finish()


def made_and_read(step: Step) -> tuple[set[str], set[str]]:
    nodes = [step.node] if step.node is not None else step.group.nodes if step.group else []
    read = {name for node in nodes for name in node.inputs}
    return {out for node in nodes for out in node.outputs}, read


@settings(max_examples=50, deadline=None)
@given(r=st.randoms(use_true_random=False), nodes=st.integers(1, 60))
def test_steps_read_what_is_made(r: Random, nodes: int) -> None:
    graph = random_graph(r, nodes)
    choice = lanes.choose(graph)
    steps = group(graph, choice)
    all_made = [made_and_read(step)[0] for step in steps]
    assert sum(map(len, all_made)) == len(set().union(*all_made))
    # Rows of a table are looked up by their readers, and reshapes share bytes.
    looked_up = {
        n.output for n in graph.nodes if n.op == "gather" and n.output not in set().union(*all_made)
    }
    assert all(name in choice.nodes for name in looked_up)
    ready = {*graph.inputs, *graph.constants, *looked_up}
    for step, made in zip(steps, all_made, strict=True):
        _, read = made_and_read(step)
        assert {choice.root(name) for name in read} <= ready | made
        if step.group is not None:
            assert set(step.group.copies) <= ready
            assert len(step.group.nodes) <= GROUP_LIMIT
        ready |= made
    assert {choice.root(node.output) for node in graph.nodes} <= ready


@pytest.mark.parametrize("ops", [["add"], ["sin"], ["mul", "mul", "sin"], ["reshape"]], ids=str)
def test_long_chains_take_time_like_their_length(ops: list[str]) -> None:
    """20,000 nodes; with a set of all dependences for each step it was minutes, and gigabytes."""
    e = Editor(name="chain", length=LENGTH)
    x, number = e.input("x", F, (BATCH, LENGTH, CHANNELS)), e.input("n", F, (1, 1))
    x = e.emit("linear", [x, e.constant(np.ones((CHANNELS, CHANNELS), F))])
    for i in range(20_000):
        op = ops[i % len(ops)]
        if op == "sin" and len(ops) > 1:
            number = e.emit("sin", [number])
        elif op == "reshape":
            shapes = [(BATCH * LENGTH, CHANNELS), (BATCH, LENGTH, CHANNELS)]
            x = e.emit("reshape", [x], shape=shapes[i % 2])
        else:
            x = e.emit(op, [x] if op == "sin" else [x, number])
    e.outputs = [x]
    graph = e.finish()
    start = time.process_time()
    steps = group(graph, lanes.choose(graph))
    assert time.process_time() - start < 10
    assert len(steps) > 1
