"""Times of layers: by the cost model, measured, and as parts of a whole model."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

pytest.importorskip("torch")

from sparsec import targets
from sparsec.compiler import toolchain
from sparsec.errors import InputError, SparsecError
from sparsec.pruning.latency import (
    Latency,
    LayerForm,
    random_weights,
    rest_milliseconds,
)
from sparsec.runtime import cpu


@pytest.mark.parametrize("name", targets.NAMES)
@pytest.mark.parametrize("kind", ["i8", "f32"])
def test_less_work_takes_less_time(name: str, kind: str) -> None:
    latency = Latency(targets.get(name), length=128)

    def took(n: int, k: int, density: float = 1.0) -> float:
        return latency.milliseconds(LayerForm(n, k, density, kind))

    times = [took(384, 1536, density) for density in (0.02, 0.1, 0.3, 0.6, 1.0)]
    assert times[0] < 0.8 * times[-1]
    assert all(a <= b * 1.02 for a, b in itertools.pairwise(times)), times
    assert took(384, 768) < took(384, 1536) and took(192, 384) < took(384, 384)
    longer = Latency(targets.get(name), length=256).milliseconds(LayerForm(384, 384, 0.2, kind))
    assert longer > 1.5 * took(384, 384, 0.2)
    assert took(0, 384) == took(384, 0) == took(384, 384, 0.0) == 0


def test_on_tiles_channels_pay_and_few_zeros_do_not() -> None:
    latency = Latency(targets.get("amx"), length=128)
    dense = latency.milliseconds(LayerForm(768, 768))
    assert latency.milliseconds(LayerForm(768, 768, 0.5)) > 0.9 * dense
    assert latency.milliseconds(LayerForm(384, 768)) < 0.6 * dense


def test_random_weights_have_the_density_of_their_form() -> None:
    rng = np.random.default_rng(0)
    for kind, dtype in (("i8", np.int8), ("f32", np.float32)):
        w = random_weights(LayerForm(256, 1022, 0.3, kind), rng)
        assert w.dtype == dtype and w.shape == (256, 1022)
        blocks = w[:, :1020].reshape(256, 255, 4)
        assert abs((blocks != 0).any(2).mean() - 0.3) < 0.01
        assert (blocks != 0).all(2).sum() == (blocks != 0).any(2).sum()


def test_measured_times_take_the_place_of_modelled_ones() -> None:
    try:
        compiler = toolchain.find()
    except SparsecError:
        pytest.skip("no C compiler")
    target = targets.running_on(cpu.detect())[-1]  # the one that compiles fastest
    latency = Latency(target, length=16)
    forms = [LayerForm(32, 64), LayerForm(32, 64, 0.0), LayerForm(32, 32, 0.2)]
    latency.take_times(forms, compiler)
    assert len(latency.measured) == 2 and latency.scale > 0
    taken = dict(latency.measured)
    latency.take_times(forms, compiler)
    assert latency.measured == taken
    assert latency.milliseconds(forms[0]) == taken[forms[0].layer_class] * 1e3
    other = LayerForm(64, 64)
    assert latency.milliseconds(other) == latency.model_milliseconds(other) * latency.scale


def test_the_rest_is_what_layers_do_not_take() -> None:
    latency = Latency(targets.get("avx2"), length=128)
    layers = [LayerForm(384, 384)] * 4
    alone = 4 * latency.milliseconds(layers[0])
    assert np.isclose(rest_milliseconds(alone + 1.5, layers, latency), 1.5)
    with pytest.raises(InputError, match="one machine"):
        rest_milliseconds(alone / 2, layers, latency)
