"""Batching: whatever goes into one call, each sequence gets its own outputs, without padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.encoders import EncoderConfig, write_random
from examples.encoders.config import Export
from sparsec.errors import EngineClosedError, InputError, ModelError
from sparsec.serving import runner as runners
from sparsec.serving.runner import (
    Array,
    BatchingRunner,
    EngineRunner,
    Features,
    OnnxRuntimeRunner,
    Outputs,
    Runner,
    roles,
)

NAMES = ("input_ids", "attention_mask", "token_type_ids")


def features(ids: list[int], names: tuple[str, ...] = NAMES) -> Features:
    values = {"input_ids": ids, "attention_mask": [1] * len(ids), "token_type_ids": [0] * len(ids)}
    return Features({n: np.array(values[n], np.int64) for n in names}, len(ids))


class Recorder(BatchingRunner):
    """Gives ids + 1 for each token and their sum for each sequence, and notes the calls."""

    def __init__(self, buckets: list[int], names: tuple[str, ...] = NAMES, **options: Any) -> None:
        self.free_padding = options.pop("free_padding", False)
        super().__init__(
            {name: np.dtype(np.int64) for name in names},
            {
                "tokens": ("batch", "sequence"),
                "sums": ("batch",),
                "pairs": ("batch", 2, "sequence"),
            },
            buckets,
            **options,
        )
        self.calls: list[tuple[int, int]] = []

    def _call(self, arrays: dict[str, Array]) -> list[Array]:
        ids = arrays["input_ids"]
        self.calls.append(ids.shape)
        if "attention_mask" in arrays:
            assert (ids[arrays["attention_mask"] == 0] == self._pad["input_ids"]).all()
            ids = ids * arrays["attention_mask"]
        return [ids + 1, ids.sum(axis=1), np.stack([ids, -ids], axis=1)]

    def close(self) -> None:
        pass


def check(items: list[Features], results: list[Outputs]) -> None:
    for item, result in zip(items, results, strict=True):
        ids = item.arrays["input_ids"]
        assert result["tokens"].tolist() == (ids + 1).tolist()
        assert result["sums"] == ids.sum()
        assert result["pairs"].tolist() == [ids.tolist(), (-ids).tolist()]


@given(
    lengths=st.lists(st.integers(1, 64), max_size=40),
    buckets=st.lists(st.sampled_from([8, 16, 24, 32, 48]), unique=True),
    free=st.booleans(),
    masked=st.booleans(),
)
def test_each_gets_its_own(
    lengths: list[int], buckets: list[int], free: bool, masked: bool
) -> None:
    names = NAMES if masked else NAMES[:1]
    recorder = Recorder([*buckets, 64], names, free_padding=free, pad_id=7)
    rng = np.random.default_rng(len(lengths))
    items = [features(rng.integers(1, 99, n).tolist(), names) for n in lengths]
    check(items, recorder.infer(items))
    if not masked:
        assert len(recorder.calls) == len(set(lengths))
    elif free:
        assert len(recorder.calls) == bool(lengths)
    else:
        of = {n: min(b for b in [*buckets, 64] if b >= n) for n in lengths}
        assert len(recorder.calls) == len(set(of.values()))
    assert sum(rows for rows, _ in recorder.calls) == len(items)


def test_large_requests_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runners, "MAX_ROWS", 100)
    recorder = Recorder([16, 64], free_padding=True)
    items = [features([1] * n) for n in [60, *[10] * 20]]
    check(items, recorder.infer(items))
    assert recorder.calls == [(1, 60), *[(6, 10)] * 3, (2, 10)]


def test_too_long() -> None:
    with pytest.raises(InputError, match="65 tokens is above the largest bucket, 64"):
        Recorder([64]).infer([features([1] * 65)])


def test_roles() -> None:
    kinds = [
        role.kind for role in roles(["input_ids", "attention_mask", "position_ids", "segments"])
    ]
    assert kinds == ["ids", "mask", "positions", "types"]
    assert [role.kind for role in roles(["input.1", "input_mask"])] == ["ids", "mask"]
    for names, message in (
        (["pixels", "attention_mask"], "'pixels' is none of"),
        (["attention_mask"], "not those of a text model"),
        (["input_ids", "decoder_input_ids"], "not those of a text model"),
    ):
        with pytest.raises(ModelError, match=message):
            roles(names)


# ---- the two engines -----------------------------------------------------------------------------

SMALL = EncoderConfig(
    layers=1, hidden=16, heads=2, intermediate=32, vocab=50, max_position=64,
    head="token-classification",
)  # fmt: skip


def agree(one: Runner, two: Runner, lengths: list[int]) -> None:
    rng = np.random.default_rng(0)
    items = [features(rng.integers(1, 50, n).tolist(), one.input_names) for n in lengths]
    together = one.infer(items), two.infer(items)
    for i, item in enumerate(items):
        alone = two.infer([item])[0]["logits"]
        assert alone.shape == (item.length, SMALL.num_labels)
        for results in together:
            assert np.abs(results[i]["logits"] - alone).max() < 1e-5


EXPORTS = {
    "dynamic": Export(),
    "fixed-batch": Export(fixed_batch=4),
    "no-types": Export(token_type_input=False),
}


@pytest.mark.parametrize("export", EXPORTS)
def test_engines_agree(tmp_path: Path, export: str) -> None:
    path = write_random(tmp_path / "model.onnx", SMALL, "fp32", EXPORTS[export]).path
    with (
        EngineRunner(path, buckets=[8, 32], num_cores=1) as ours,
        OnnxRuntimeRunner(path, buckets=[8, 32], num_cores=1) as theirs,
    ):
        assert ours.input_names == theirs.input_names
        assert ours.buckets == theirs.buckets == (8, 32)
        assert dict(ours.output_shapes) == dict(theirs.output_shapes)
        assert ours.free_padding
        agree(ours, theirs, [3, 31, 8, 1, 32, 17])
        for runner in (ours, theirs):
            assert runner.infer([]) == []
    for runner in (ours, theirs):
        with pytest.raises(EngineClosedError):
            runner.infer([features([1, 2], ours.input_names)])


def test_fixed_length(tmp_path: Path) -> None:
    path = write_random(tmp_path / "model.onnx", SMALL, "fp32", Export(length=24)).path
    with EngineRunner(path) as ours, OnnxRuntimeRunner(path) as theirs:
        assert ours.buckets == theirs.buckets == (24,)
        agree(ours, theirs, [3, 24, 8])
    with pytest.raises(InputError, match="exported for 24 tokens"):
        OnnxRuntimeRunner(path, buckets=[32])


def test_no_mask(micro_model: Path) -> None:
    """Without an attention mask only whole buckets run, and padding is never added."""
    with OnnxRuntimeRunner(micro_model, buckets=[8]) as theirs:
        items = [features([1, 2, 3], ("input_ids",)), features([4, 5], ("input_ids",))]
        for item, result in zip(items, theirs.infer(items), strict=True):
            assert result["out"].shape == (item.length, 16)


def test_damaged_model(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="ONNX Runtime cannot load"):
        OnnxRuntimeRunner(tmp_path)
